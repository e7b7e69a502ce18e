//! Replies that a host had better not give, one function each.

use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::Response;
use http_body_util::Full;

use crate::support::upstream::{Act, Then};

/// An answer, byte by byte, with this for its Content-Length.
pub fn framed(lengths: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lengths}\r\n\r\n{body}")
}

/// The whole of it, byte by byte.
pub fn whole(body: &str) -> String {
    framed(&format!("content-length: {}", body.len()), body)
}

/// The first bytes of it: all but so many.
pub fn all_but(missing: usize, body: &str, then: Then) -> Act {
    let mut bytes = whole(body);
    bytes.truncate(bytes.len() - missing);
    Act::raw(bytes, then)
}

/// It comes after a while.
pub fn slow(pause: Duration, body: &str) -> Act {
    let body = body.to_owned();
    Act::Later(Box::pin(async move {
        let _ = tokio::time::timeout(pause, std::future::pending::<()>()).await;
        body.into()
    }))
}

/// Asks for a pause, in seconds.
pub fn later(status: u16, pause: &str) -> Act {
    let answer = Response::builder()
        .status(status)
        .header("retry-after", pause);
    Act::Answer(answer.body(Full::default()).unwrap())
}

pub fn redirect() -> Act {
    let answer = Response::builder()
        .status(307)
        .header("location", "https://upstream.test/elsewhere");
    Act::Answer(answer.body(Full::default()).unwrap())
}

/// Compressed, with a right length, but the end is missing.
pub fn gzip_without(missing: usize, body: &str) -> Act {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body.as_bytes()).unwrap();
    let mut gzip = encoder.finish().unwrap();
    gzip.truncate(gzip.len() - missing);
    let answer = Response::builder().header("content-encoding", "gzip");
    Act::Answer(answer.body(Full::new(gzip.into())).unwrap())
}
