//! HTTP/2 by hand, for callers that libraries don't make: those that see each frame, and those that don't listen.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::support::Client;
use crate::support::tools::PATIENCE;

pub const DATA: u8 = 0x0;
pub const HEADERS: u8 = 0x1;
pub const PRIORITY: u8 = 0x2;
pub const RST_STREAM: u8 = 0x3;
pub const SETTINGS: u8 = 0x4;
pub const PUSH_PROMISE: u8 = 0x5;
pub const PING: u8 = 0x6;
pub const GOAWAY: u8 = 0x7;
pub const WINDOW_UPDATE: u8 = 0x8;
pub const CONTINUATION: u8 = 0x9;
pub const PRIORITY_UPDATE: u8 = 0x10;

pub const ACK: u8 = 0x1;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;

/// What each connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a ping says that stands behind everything else.
const LAST: &[u8] = b"the last";

/// A frame's bytes, whatever they mean.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A header block of these fields.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let bytes = |(name, value): &(&str, &str)| field(name.as_bytes(), value.as_bytes());
    fields.iter().flat_map(bytes).collect()
}

/// RFC 7541, section 5.1, with a prefix of 7 bits.
pub fn length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(0x7f) else {
        return block.push(u8::try_from(length).unwrap());
    };
    block.push(0x7f);
    while rest >= 0x80 {
        block.push(u8::try_from(rest % 0x80).unwrap() | 0x80);
        rest /= 0x80;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// The header block of a call, with more fields.
pub fn call(operation: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let path = format!("/openapi/v1/{operation}");
    let fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "gateway.test"),
        (":path", &path),
        ("content-type", "application/json"),
    ];
    block(&[&fields[..], more].concat())
}

/// One frame that came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The status that a block of header fields begins with (RFC 7541: fully indexed, or a literal with an indexed name).
    pub fn status(&self) -> u16 {
        assert_eq!(self.kind, HEADERS);
        match self.payload[..] {
            [index @ 0x88..=0x8e, ..] => {
                [200, 204, 206, 304, 400, 404, 500][usize::from(index - 0x88)]
            }
            [0x08 | 0x48, 3, a, b, c, ..] => {
                std::str::from_utf8(&[a, b, c]).unwrap().parse().unwrap()
            }
            [0x08 | 0x48, 0x82 | 0x83, a, b, ..] => {
                huffman_digits(u32::from_be_bytes([a, b, self.payload[4], 0]))
            }
            _ => panic!("no status: {:02x?}", self.payload),
        }
    }

    /// The last stream that a GOAWAY says was looked at, or will be.
    fn last_stream(&self) -> u32 {
        assert_eq!(self.kind, GOAWAY);
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }
}

/// One header field. RFC 7541, section 6.2.2: a literal that isn't indexed, with a new name; neither text is compressed.
pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut field = vec![0];
    for text in [name, value] {
        length(&mut field, text.len());
        field.extend(text);
    }
    field
}

/// Three digits in the code of RFC 7541, appendix B, from the highest bit on: five bits each for 0, 1 and 2, six for the others.
fn huffman_digits(mut bits: u32) -> u16 {
    let mut number = 0;
    for _ in 0..3 {
        let (digit, length) = match bits >> 27 {
            digit @ 0..=2 => (digit, 5),
            _ => ((bits >> 26) - 0x19 + 3, 6),
        };
        number = number * 10 + u16::try_from(digit).unwrap();
        bits <<= length;
    }
    number
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
        stream.write_all(PREFACE).await.unwrap();
        let mut frames = Self { stream };
        frames.write(SETTINGS, 0, 0, &[]).await.unwrap();
        frames
    }

    /// A call on this stream (1, 3, 5 ...).
    pub async fn ask(&mut self, stream: u32, operation: &str, body: &str) {
        self.write(HEADERS, END_HEADERS, stream, &call(operation, &[]))
            .await
            .unwrap();
        self.write(DATA, END_STREAM, stream, body.as_bytes())
            .await
            .unwrap();
    }

    pub async fn write(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        self.write_all(&frame(kind, flags, stream, payload)).await
    }

    /// Bytes as they are.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Writes all of it, reading what comes meanwhile, and then waits for the answer to a ping, or the end.
    pub async fn flood(self, bytes: &[u8]) -> Aftermath {
        let (mut from, mut to) = tokio::io::split(self.stream);
        let reading = async {
            let mut frames = Vec::new();
            while let Some(frame) = read(&mut from).await {
                let is_last = frame.kind == PING && frame.payload == LAST;
                frames.push(frame);
                if is_last {
                    let ended = false;
                    return Aftermath { frames, ended };
                }
            }
            let ended = true;
            Aftermath { frames, ended }
        };
        let writing = async {
            // The other side may end it at any byte.
            let _ = to.write_all(bytes).await;
            let _ = to.write_all(&frame(PING, 0, 0, LAST)).await;
            let _ = to.flush().await;
        };
        let both = async { tokio::join!(reading, writing).0 };
        timeout(PATIENCE, both).await.expect("a pong, or the end")
    }

    /// The next frame; none once the connection has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        let next = read(&mut self.stream);
        timeout(PATIENCE, next).await.expect("a frame, or the end")
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

/// What a flood came to.
pub struct Aftermath {
    frames: Vec<Frame>,
    /// The other side has ended the connection.
    pub ended: bool,
}

impl fmt::Debug for Aftermath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds = BTreeMap::<_, usize>::new();
        for frame in &self.frames {
            *kinds.entry(frame.kind).or_default() += 1;
        }
        let goodbye = self.frames.iter().find(|frame| frame.kind == GOAWAY);
        let goodbye = goodbye.map(|frame| String::from_utf8_lossy(&frame.payload[4..]));
        let ended = self.ended;
        write!(
            f,
            "ended: {ended}, frames by kind: {kinds:?}, goodbye: {goodbye:?}"
        )
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, number @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]).try_into().unwrap()];
    stream.read_exact(&mut payload).await.ok()?;
    let stream = u32::from_be_bytes(number);
    Some(Frame {
        kind,
        flags,
        stream,
        payload,
    })
}
