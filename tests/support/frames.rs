//! HTTP/2 by hand, for callers that libraries don't make: those that see each frame, and those that don't listen.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::support::Client;
use crate::support::tools::PATIENCE;

pub const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
pub const GOAWAY: u8 = 0x7;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// One frame that came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The last stream that a GOAWAY says was looked at, or will be.
    fn last_stream(&self) -> u32 {
        assert_eq!(self.kind, GOAWAY);
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }
}

/// An open connection. It answers no ping, and takes no notice of a GOAWAY, unless the test wants it to.
pub struct Frames {
    stream: TlsStream<TcpStream>,
}

impl Frames {
    /// `client` offers HTTP/2 alone.
    pub async fn open(client: &Client) -> Self {
        let mut stream = client.stream().await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        stream.write_all(preface).await.unwrap();
        let mut frames = Self { stream };
        frames.write(SETTINGS, 0, 0, &[]).await.unwrap();
        frames
    }

    /// A call on this stream (1, 3, 5 ...).
    pub async fn ask(&mut self, stream: u32, operation: &str, body: &str) {
        let path = format!("/openapi/v1/{operation}");
        let fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "gateway.test"),
            (":path", &path),
            ("content-type", "application/json"),
        ];
        let mut block = Vec::new();
        for (name, value) in fields {
            // RFC 7541, section 6.2.2: a literal that isn't indexed, with a new name; neither text is compressed.
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend(text.as_bytes());
            }
        }
        self.write(HEADERS, END_HEADERS, stream, &block)
            .await
            .unwrap();
        self.write(DATA, END_STREAM, stream, body.as_bytes())
            .await
            .unwrap();
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.stream.write_all(&[&head, payload].concat()).await?;
        self.stream.flush().await
    }

    /// The next frame; none once the connection has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        let read = async {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.ok()?;
            let [a, b, c, kind, _, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]).try_into().unwrap()];
            self.stream.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes(stream);
            Some(Frame {
                kind,
                stream,
                payload,
            })
        };
        timeout(PATIENCE, read).await.expect("a frame, or the end")
    }

    /// The next frame of this kind.
    pub async fn frame(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection goes on");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Does as it's asked to from now on, until the connection ends. The last stream of each GOAWAY that came.
    pub async fn leaves(&mut self) -> Vec<u32> {
        let mut goodbyes = Vec::new();
        while let Some(frame) = self.next().await {
            match frame.kind {
                GOAWAY => goodbyes.push(frame.last_stream()),
                // The other side may have gone meanwhile.
                PING => drop(self.write(PING, ACK, 0, &frame.payload).await),
                _ => {}
            }
        }
        goodbyes
    }

    /// The body of a stream's answer.
    pub async fn answer(&mut self, stream: u32) -> String {
        loop {
            let frame = self.frame(DATA).await;
            if frame.stream == stream && !frame.payload.is_empty() {
                return String::from_utf8(frame.payload).unwrap();
            }
        }
    }
}
