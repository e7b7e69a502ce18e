//! HTTP/1.1 by hand, for callers that libraries don't make: whatever bytes, and the answers to them one by one.

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::{Answer, Client};

/// An open connection.
pub struct Wire {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
    /// The next answer is one to HEAD: it tells the length of a body that doesn't come.
    pub no_body: bool,
}

impl Wire {
    /// `client` offers HTTP/1.1.
    pub async fn open(client: &Client) -> Self {
        Self {
            stream: client.stream().await.unwrap(),
            buffer: Vec::new(),
            no_body: false,
        }
    }

    /// Whether the other side takes it is its own affair: it may have had enough.
    pub async fn write(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).await.is_ok() {
            let _ = self.stream.flush().await;
        }
    }

    /// Nothing more will be written.
    pub async fn end(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The next answer but `100 Continue`; none once the connection has ended.
    pub async fn answer(&mut self) -> Option<Answer> {
        const END: &[u8] = b"\r\n\r\n";
        loop {
            let end = loop {
                let found = self.buffer.windows(END.len()).position(|part| part == END);
                match found {
                    Some(at) => break at + END.len(),
                    None => self.fill().await?,
                }
            };
            let head = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
            let mut lines = head.trim_end().split("\r\n");
            let first = lines.next().unwrap();
            let status = first.strip_prefix("HTTP/1.").expect(first);
            let status: u16 = status[2..5].parse().expect(first);
            let mut headers = HeaderMap::new();
            for line in lines {
                let (name, value) = line.split_once(": ").expect(line);
                headers.append(
                    name.parse::<HeaderName>().unwrap(),
                    value.parse::<HeaderValue>().unwrap(),
                );
            }
            if status == 100 {
                continue;
            }
            let length = match headers.get("content-length") {
                Some(length) if !self.no_body => length.to_str().unwrap().parse().unwrap(),
                _ => 0,
            };
            while self.buffer.len() < length {
                self.fill().await.expect("a whole answer");
            }
            return Some(Answer {
                status: status.to_string().parse().unwrap(),
                headers,
                body: self.buffer.drain(..length).collect::<Vec<_>>().into(),
            });
        }
    }

    async fn fill(&mut self) -> Option<()> {
        let count = self.stream.read_buf(&mut self.buffer).await.ok()?;
        (count > 0).then_some(())
    }
}
