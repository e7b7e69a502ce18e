//! Callers: one kept connection each, HTTP/1.1 or HTTP/2 by what TLS agreed on; HTTP/1.1 without TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::tools::PATIENCE;

pub struct Client {
    way: Way,
    sender: Mutex<Option<Sender>>,
}

enum Way {
    Tls(SocketAddr, TlsConnector),
    Plain(SocketAddr),
    Unix(PathBuf),
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    /// Status, our code, outcome and whether it may be sent again.
    pub fn refusal(&self) -> (u16, String, String, String) {
        let json = self.json();
        let told = (
            json["gateway"]["outcome"].as_str().unwrap(),
            json["gateway"]["retryable"].as_bool().unwrap(),
        );
        let headers = (
            self.header("kybio-gateway-outcome"),
            self.header("kybio-gateway-retryable") == "yes",
        );
        assert_eq!(told, headers, "envelope and headers agree");
        assert_eq!(json["status"], "error");
        assert_eq!(json["errorCode"], -i64::from(self.status.as_u16()));
        assert_eq!(
            json["gateway"]["requestId"],
            self.header("kybio-gateway-request-id")
        );
        let code = json["gateway"]["code"].as_str().unwrap().to_owned();
        (
            self.status.as_u16(),
            code,
            told.0.to_owned(),
            self.header("kybio-gateway-retryable").to_owned(),
        )
    }
}

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Client {
    pub fn new(address: SocketAddr, config: ClientConfig) -> Self {
        Self::by(Way::Tls(address, TlsConnector::from(Arc::new(config))))
    }

    /// Without TLS.
    pub fn plain(address: SocketAddr) -> Self {
        Self::by(Way::Plain(address))
    }

    /// On a unix socket, as this process's user.
    pub fn unix(path: &Path) -> Self {
        Self::by(Way::Unix(path.to_owned()))
    }

    fn by(way: Way) -> Self {
        Self {
            way,
            sender: Mutex::default(),
        }
    }

    /// The TLS stream alone, for those who want to write their own bytes.
    pub async fn stream(&self) -> Result<TlsStream<TcpStream>, Failure> {
        let Way::Tls(address, _) = &self.way else {
            panic!("there is no TLS");
        };
        let stream = TcpStream::connect(address).await?;
        // As callers do: a head isn't answered 40 ms later because its body comes in another packet.
        stream.set_nodelay(true)?;
        self.shake_hands(stream).await
    }

    /// TLS on a connection of the test's own.
    pub async fn shake_hands(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Failure> {
        let Way::Tls(_, tls) = &self.way else {
            panic!("there is no TLS");
        };
        // As callers do: what is small isn't held back until something comes.
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("gateway.test")?;
        Ok(tls.connect(name, stream).await?)
    }

    /// Its next request goes over this connection.
    pub async fn goes_over(&self, stream: TcpStream) -> Result<(), Failure> {
        let stream = self.shake_hands(stream).await?;
        *self.sender.lock().await = Some(over_tls(stream).await?);
        Ok(())
    }

    pub fn request(
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::post(path).body(Full::new(body.into())).unwrap();
        for (name, value) in headers {
            request.headers_mut().append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        request
    }

    /// A call as services make it.
    pub async fn call(&self, operation: &str, body: impl Into<Bytes>) -> Answer {
        let path = format!("/openapi/v1/{operation}");
        self.send(Self::request(
            &path,
            &[("content-type", "application/json")],
            body,
        ))
        .await
        .expect("an answer")
    }

    /// A call with more header fields.
    pub async fn call_with(
        &self,
        operation: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let path = format!("/openapi/v1/{operation}");
        let mut all = vec![("content-type", "application/json")];
        all.extend(headers);
        self.send(Self::request(&path, &all, body))
            .await
            .expect("an answer")
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        tokio::time::timeout(PATIENCE, self.send_on_kept(request, true))
            .await
            .expect("an answer in time")
    }

    /// Over this connection, and no other if it ends.
    pub async fn send_over(
        &self,
        stream: TcpStream,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, Failure> {
        let send = async {
            self.goes_over(stream).await?;
            self.send_on_kept(request, false).await
        };
        tokio::time::timeout(PATIENCE, send)
            .await
            .expect("an answer in time")
    }

    async fn send_on_kept(
        &self,
        mut request: Request<Full<Bytes>>,
        may_connect: bool,
    ) -> Result<Answer, Failure> {
        let mut kept = self.sender.lock().await;
        let usable = match &mut *kept {
            Some(Sender::Http1(sender)) => sender.ready().await.is_ok(),
            Some(Sender::Http2(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            if !may_connect {
                return Err("the connection has ended".into());
            }
            *kept = Some(self.connect().await?);
        }
        let response = match kept.as_mut().unwrap() {
            Sender::Http1(sender) => {
                let host = match self.way {
                    Way::Plain(_) => "localhost",
                    Way::Tls(..) | Way::Unix(_) => "gateway.test",
                };
                let headers = request.headers_mut();
                headers
                    .entry(header::HOST)
                    .or_insert(HeaderValue::from_static(host));
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                let target = format!(
                    "https://gateway.test{}",
                    request.uri().path_and_query().unwrap()
                );
                *request.uri_mut() = target.parse()?;
                *request.version_mut() = Version::HTTP_2;
                let mut sender = sender.clone();
                // Many at a time on one connection.
                drop(kept);
                sender.send_request(request).await?
            }
        };
        let (head, body) = response.into_parts();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    async fn connect(&self) -> Result<Sender, Failure> {
        match &self.way {
            Way::Plain(address) => http1(TcpStream::connect(address).await?).await,
            Way::Unix(path) => http1(UnixStream::connect(path).await?).await,
            Way::Tls(..) => over_tls(self.stream().await?).await,
        }
    }
}

/// HTTP/1.1 or HTTP/2, as TLS agreed on.
async fn over_tls(stream: TlsStream<TcpStream>) -> Result<Sender, Failure> {
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return http1(stream).await;
    }
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(Sender::Http2(sender))
}

async fn http1(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Sender, Failure> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(Sender::Http1(sender))
}

/// A plain HTTP GET, for the admin pages.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, "admin")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    (
        status,
        String::from_utf8(
            response
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .to_vec(),
        )
        .unwrap(),
    )
}
