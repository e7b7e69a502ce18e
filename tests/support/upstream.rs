//! A scripted KYBIO host: real TLS, a journal of everything that arrived, and a signature check in its own few lines.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use md5::{Digest, Md5};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::support::Pki;

/// What arrived in one request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        let values: Vec<_> = self.headers.get_all(name).iter().collect();
        assert_eq!(values.len(), 1, "{name}: {values:?}");
        values[0].to_str().unwrap()
    }

    /// upper(hex(md5(key ‖ body))), as the contract says.
    pub fn is_signed_with(&self, key: &str) -> bool {
        signature(key, &self.body) == self.header("data-signature")
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }
}

pub fn signature(key: &str, body: &[u8]) -> String {
    let digest = Md5::new().chain_update(key).chain_update(body).finalize();
    digest.iter().map(|byte| format!("{byte:02X}")).collect()
}

pub const SUCCESS: &str = r#"{"status":"success","messages":[],"errorCode":null}"#;

/// What the script does with a request.
pub enum Act {
    /// Answers.
    Answer(Response<Full<Bytes>>),
    /// Answers with this body once it's there.
    Later(Pin<Box<dyn Future<Output = Bytes> + Send>>),
    /// Never answers, and keeps the connection.
    Hang,
    /// Closes the connection without an answer.
    Close,
}

impl Act {
    pub fn ok(body: impl Into<Bytes>) -> Self {
        Self::Answer(Response::new(Full::new(body.into())))
    }

    pub fn status(status: u16, body: impl Into<Bytes>) -> Self {
        Self::Answer(
            Response::builder()
                .status(status)
                .body(Full::new(body.into()))
                .unwrap(),
        )
    }
}

/// Why a service ends a connection: the script says so.
#[derive(Debug, thiserror::Error)]
#[error("scripted")]
struct Scripted;

type Script = dyn Fn(&Seen) -> Act + Send + Sync;

pub struct Upstream {
    pub address: SocketAddr,
    journal: Arc<Mutex<Vec<Seen>>>,
    arrivals: watch::Receiver<usize>,
    connections: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<JoinHandle<()>>>>,
    accepting: JoinHandle<()>,
}

impl Upstream {
    /// Answers success to everything.
    pub async fn start(pki: &Pki) -> Self {
        Self::scripted(pki, |_| Act::ok(SUCCESS)).await
    }

    pub async fn scripted(
        pki: &Pki,
        script: impl Fn(&Seen) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = TlsAcceptor::from(Arc::new(pki.server("upstream.test").server_config()));
        let script: Arc<Script> = Arc::new(script);
        let journal = Arc::new(Mutex::new(Vec::new()));
        let (arrived, arrivals) = watch::channel(0);
        let arrived = Arc::new(arrived);
        let connections = Arc::new(AtomicUsize::new(0));
        let open = Arc::new(Mutex::new(Vec::new()));
        let accepting = tokio::spawn({
            let (journal, connections, open) = (
                Arc::clone(&journal),
                Arc::clone(&connections),
                Arc::clone(&open),
            );
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (tls, script) = (tls.clone(), Arc::clone(&script));
                    let (journal, arrived, connections) = (
                        Arc::clone(&journal),
                        Arc::clone(&arrived),
                        Arc::clone(&connections),
                    );
                    let serving = tokio::spawn(async move {
                        let Ok(stream) = tls.accept(stream).await else {
                            return;
                        };
                        connections.fetch_add(1, Ordering::SeqCst);
                        let service = service_fn(move |request: Request<Incoming>| {
                            let (script, journal, arrived) = (
                                Arc::clone(&script),
                                Arc::clone(&journal),
                                Arc::clone(&arrived),
                            );
                            async move {
                                let (head, body) = request.into_parts();
                                let body = body.collect().await.map_err(|_| Scripted)?.to_bytes();
                                let target = head.uri.to_string();
                                let seen = Seen {
                                    method: head.method,
                                    target,
                                    headers: head.headers,
                                    body,
                                };
                                let act = script(&seen);
                                journal.lock().unwrap().push(seen);
                                arrived.send_modify(|count| *count += 1);
                                match act {
                                    Act::Answer(answer) => Ok(answer),
                                    Act::Later(body) => Ok(Response::new(Full::new(body.await))),
                                    Act::Hang => {
                                        std::future::pending::<Result<_, Scripted>>().await
                                    }
                                    Act::Close => Err(Scripted),
                                }
                            }
                        });
                        let _ = http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                    open.lock().unwrap().push(serving);
                }
            }
        });
        Self {
            address,
            journal,
            arrivals,
            connections,
            open,
            accepting,
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.journal.lock().unwrap().clone()
    }

    /// The latest request that arrived.
    pub fn last(&self) -> Seen {
        self.journal
            .lock()
            .unwrap()
            .last()
            .expect("something arrived")
            .clone()
    }

    /// The only request that arrived.
    pub fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.into_iter().next().unwrap()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits until this many requests have arrived.
    pub async fn arrived(&self, count: usize) {
        let mut arrivals = self.arrivals.clone();
        let waited = tokio::time::timeout(
            super::tools::PATIENCE,
            arrivals.wait_for(|arrived| *arrived >= count),
        )
        .await;
        waited.expect("it arrives in time").unwrap();
    }

    /// Closes all open connections, and goes on accepting.
    pub async fn drop_connections(&self) {
        let open: Vec<_> = self.open.lock().unwrap().drain(..).collect();
        for serving in open {
            serving.abort();
            // Only once the task is gone is its socket closed.
            let _ = serving.await;
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
        self.open
            .lock()
            .unwrap()
            .drain(..)
            .for_each(|serving| serving.abort());
    }
}
