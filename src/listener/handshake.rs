//! From a TCP connection to a verified certificate.

use std::io;
use std::sync::Arc;

use rustls::HandshakeKind;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::identity::Presented;
use crate::listener::Gate;
use crate::listener::Listener;
use crate::listener::Peer;
use crate::listener::standing::Standing;
use crate::listener::tls;
use crate::listener::tls::Bearer;
use crate::listener::tls::Holder;
use crate::listener::tls::Terms;
use crate::observe::metrics::HANDSHAKES;
use crate::observe::remote::Remote;
use crate::stop::Stop;

impl Listener {
    /// TLS within its deadline; a failure is counted and logged by its reason.
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        remote: Remote,
        gate: &Gate,
        terms: &Terms,
        stop: &Stop,
    ) -> Option<(Box<TlsStream<TcpStream>>, Arc<Standing>)> {
        let limit = gate.settings.handshake_timeout;
        let (config, witness) = terms.witnessed();
        let handshake = Box::pin(timeout(limit, TlsAcceptor::from(config).accept(stream)));
        let (reason, cause) = tokio::select! {
            outcome = handshake => match outcome {
                Ok(Ok(stream)) => match self.admit(&stream, remote, gate) {
                    // Boxed, because it's large, and handed on several times.
                    Ok(standing) => return Some((Box::new(stream), standing)),
                    Err(reason) => {
                        let cause = "the session of before isn't resumed";
                        let bearer = stream.get_ref().1.peer_certificates().and_then(Bearer::of);
                        self.report.handshake_failed(remote, reason, cause, bearer.as_ref());
                        return None;
                    }
                },
                // A health checker's or a scanner's: it connected, said nothing and left.
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => ("protocol", error.to_string()),
                Ok(Err(error)) => (tls::reason(&error), error.to_string()),
                Err(_) => ("timeout", format!("no TLS handshake within {limit:?}")),
            },
            () = stop.cut.cancelled() => return None,
        };
        let bearer = witness.refused().and_then(Bearer::of);
        self.report
            .handshake_failed(remote, reason, &cause, bearer.as_ref());
        None
    }

    /// A handshake is complete. A resumed session's certificates are verified too, which the library doesn't do.
    fn admit(
        &self,
        stream: &TlsStream<TcpStream>,
        remote: Remote,
        gate: &Gate,
    ) -> Result<Arc<Standing>, &'static str> {
        let session = stream.get_ref().1;
        let chain = session.peer_certificates().unwrap_or_default();
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        if resumed {
            self.verified.verify(gate, chain, &self.clock)?;
        }
        let kind = HANDSHAKES[usize::from(resumed)];
        self.metrics.handshakes.with_label_values(&[kind]).inc();
        let Holder { names, ends } = chain.first().map(tls::holder).unwrap_or_default();
        let peer = Arc::new(Peer {
            address: remote.to_string().into(),
            presented: Presented::Certificate(names),
        });
        let chain = self.chains.keep(chain);
        Ok(Standing::certified(peer, chain, ends, gate))
    }
}
