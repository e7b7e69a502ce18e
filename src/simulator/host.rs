//! The stand-in's HTTP/1.1 server: connections, their limits, and their end. Knows nothing of operations, and of faults only when to
//! ask for them: what they do is in `misbehave`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::CONNECTION;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::LengthLimitError;
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::simulator::Simulator;
use crate::simulator::faults::Fault;
use crate::simulator::misbehave;
use crate::simulator::misbehave::End;
use crate::simulator::misbehave::Line;
use crate::simulator::misbehave::Socket;
use crate::simulator::protocol;

/// Serves until `stop`. Each connection is a task of its own that ends by itself, at the latest [`DRAIN_TIME`] after `stop`; one that a
/// fault ends has a little longer for its last words.
pub(super) async fn serve(
    simulator: Arc<Simulator>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    stop: CancellationToken,
) {
    let welcome = |socket| {
        let visitor = Visitor {
            // Before the fault is looked for: one that is set from now on finds this connection among those to close.
            refusing: simulator.faults.refusing(),
            simulator: Arc::clone(&simulator),
            stop: stop.clone(),
        };
        visitor.welcome(socket, tls.clone())
    };
    accept(listener, CONNECTIONS_MAX, &stop, welcome).await;
}

/// Gives each connection to a task of its own, `connections_max` at once, until `stop`; returns when the last has ended. That they
/// end is `welcome`'s part.
pub(super) async fn accept<F>(
    listener: TcpListener,
    connections_max: usize,
    stop: &CancellationToken,
    welcome: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(connections_max));
    let tasks = TaskTracker::new();
    let accepting = async {
        loop {
            // The slot comes first: beyond the cap, connections wait in the kernel's queue.
            let slot = Arc::clone(&slots)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((socket, _)) => {
                    let conversation = welcome(socket);
                    tasks.spawn(async move {
                        conversation.await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: trying again at once would only spin.
                    tracing::warn!(%error, "the simulator could not accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// One connection's share of the server.
struct Visitor {
    simulator: Arc<Simulator>,
    refusing: watch::Receiver<()>,
    stop: CancellationToken,
}

impl Visitor {
    async fn welcome(self, socket: TcpStream, tls: Option<TlsAcceptor>) {
        if self.simulator.faults.strike_connection() {
            return misbehave::reset(socket);
        }
        // Answers are small: waiting to fill a segment would only add delay. A socket that refuses still works.
        let _ = socket.set_nodelay(true);
        let Some(tls) = tls else {
            return self.converse(socket).await;
        };
        let handshake = timeout(HANDSHAKE_TIME, tls.accept(socket));
        match self.stop.run_until_cancelled(handshake).await {
            Some(Ok(Ok(stream))) => self.converse(stream).await,
            Some(Ok(Err(error))) => {
                tracing::debug!(%error, "a TLS handshake with the simulator failed")
            }
            Some(Err(_)) => tracing::debug!("a TLS handshake with the simulator took too long"),
            None => {}
        }
    }

    async fn converse(self, stream: impl Socket) {
        let Self {
            simulator,
            mut refusing,
            stop,
        } = self;
        let line = Line::new(&simulator.faults);
        let service = service_fn(|request| answer(&simulator, &line, &stop, request));
        // hyper's header timer also runs while a kept connection is idle, so this is the idle limit too.
        let mut server = http1::Builder::new();
        server
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .max_buf_size(HEADER_BYTES_MAX)
            .keep_alive(true);
        let mut connection = server.serve_connection(TokioIo::new(line.carry(stream)), service);
        let ended = tokio::select! {
            ended = &mut connection => Some(ended),
            () = stop.cancelled() => None,
            _ = refusing.changed() => {
                // hyper closes it at once when it's idle, and else after the answer that is due.
                Pin::new(&mut connection).graceful_shutdown();
                stop.run_until_cancelled(&mut connection).await
            }
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                Pin::new(&mut connection).graceful_shutdown();
                // Past the drain time the connection is dropped as it is.
                timeout(DRAIN_TIME, &mut connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the simulator broke");
        }
        line.finish(connection.into_parts().io.into_inner()).await;
    }
}

/// The whole request's answer. An error ends the connection: there is nobody left to answer, no telling where the body ends, or a
/// fault that wants it so.
async fn answer(
    simulator: &Simulator,
    line: &Line<'_>,
    stop: &CancellationToken,
    request: Request<Incoming>,
) -> io::Result<Response<Full<Bytes>>> {
    let fault = simulator.strike(request.method(), request.uri().path());
    if fault == Some(Fault::ResetBeforeReading) {
        return Err(line.end(End::Reset));
    }
    let (head, body) = request.into_parts();
    let read = timeout(BODY_TIME, Limited::new(body, BODY_BYTES_MAX).collect()).await?;
    let response = match read {
        Ok(body) => {
            let request = Request::from_parts(head, body.to_bytes());
            match fault {
                None => simulator.answer(&request),
                Some(fault) => misbehave::answer(fault, simulator, &request, line, stop).await?,
            }
        }
        Err(error) if error.is::<LengthLimitError>() => {
            let mut response =
                protocol::infrastructure(StatusCode::PAYLOAD_TOO_LARGE, "body too large\n");
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
            response
        }
        Err(error) => return Err(io::Error::other(error)),
    };
    line.answered();
    Ok(response.map(Full::new))
}

/// The most connections at once.
const CONNECTIONS_MAX: usize = 1024;

/// The largest request body.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The largest request head.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// The longest TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// The longest wait for a request's head, and so the longest that a connection is kept idle.
const HEADER_TIME: Duration = Duration::from_secs(60);

/// The longest wait for a request's body.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The longest that calls in flight may take after `stop`.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use flate2::read::GzDecoder;
    use rcgen::CertifiedKey;
    use rustls::ClientConfig;
    use rustls::RootCertStore;
    use rustls::ServerConfig;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::net::TcpStream;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::TlsConnector;
    use tokio_util::sync::CancellationToken;

    use crate::simulator::bench::Bench;
    use crate::simulator::bench::signed;
    use crate::simulator::host::BODY_BYTES_MAX;

    const BODY: &[u8] = br#"{"appId":"abcdefghijklmn"}"#;

    fn head(length: usize, more: &str) -> String {
        let path = "/openapi/v1/ticketOpenApi/queryAllPayMethod";
        let signature = signed(path, BODY.into()).headers()["data-signature"]
            .to_str()
            .unwrap()
            .to_owned();
        format!(
            "POST {path} HTTP/1.1\r\nhost: sim\r\ntime-stamp: 1\r\ndata-signature: {signature}\r\n{more}\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )
    }

    async fn listening() -> (TcpListener, std::net::SocketAddr) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn parts(answer: &[u8]) -> (String, Vec<u8>) {
        let end = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap();
        (
            String::from_utf8(answer[..end].to_vec()).unwrap(),
            answer[end + 4..].to_vec(),
        )
    }

    #[tokio::test]
    async fn a_call_over_tls_is_answered_compressed_with_its_date() {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let server = ServerConfig::builder().with_no_client_auth();
        let server = server
            .with_single_cert(vec![cert.der().clone()], key.into())
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();

        let (listener, address) = listening().await;
        let stop = CancellationToken::new();
        let tls = Some(TlsAcceptor::from(Arc::new(server)));
        let serving = tokio::spawn(Bench::new().simulator().serve(listener, tls, stop.clone()));
        let socket = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        let mut stream = connector
            .connect("localhost".try_into().unwrap(), socket)
            .await
            .unwrap();
        stream
            .write_all(
                head(
                    BODY.len(),
                    "accept-encoding: gzip,deflate\r\nconnection: close\r\n",
                )
                .as_bytes(),
            )
            .await
            .unwrap();
        stream.write_all(BODY).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        stop.cancel();
        serving.await.unwrap();

        let (head, body) = parts(&answer);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        for line in [
            "content-encoding: gzip",
            "content-type: application/json; charset=utf-8",
            "x-kybio-simulator: stand-in",
            "date: ",
        ] {
            assert!(head.contains(line), "{line} is missing:\n{head}");
        }
        let mut text = String::new();
        GzDecoder::new(body.as_slice())
            .read_to_string(&mut text)
            .unwrap();
        assert!(
            text.starts_with(r#"{"status":"success","messages":[],"errorCode":null,"data":[{"#),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_a_413() {
        let (listener, address) = listening().await;
        let stop = CancellationToken::new();
        let serving = tokio::spawn(Bench::new().simulator().serve(listener, None, stop.clone()));
        let mut socket = TcpStream::connect(address).await.unwrap();
        // One byte too many, and it is the last: with nothing left unread, closing resets nothing.
        socket
            .write_all(head(BODY_BYTES_MAX + 1, "").as_bytes())
            .await
            .unwrap();
        socket
            .write_all(&vec![b' '; BODY_BYTES_MAX + 1])
            .await
            .unwrap();
        let mut start = [0; 12];
        socket.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 413");
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn stopping_ends_idle_connections_at_once() {
        let (listener, address) = listening().await;
        let stop = CancellationToken::new();
        let serving = tokio::spawn(Bench::new().simulator().serve(listener, None, stop.clone()));
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket
            .write_all(head(BODY.len(), "").as_bytes())
            .await
            .unwrap();
        socket.write_all(BODY).await.unwrap();
        let mut start = [0; 12];
        socket.read_exact(&mut start).await.unwrap();
        stop.cancel();
        serving.await.unwrap();
        // The connection was kept alive after its call; now it's closed, whole answer first.
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        assert!(rest.ends_with(b"}"));
    }
}
