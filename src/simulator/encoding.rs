//! Compressing an answer when the caller says that it can read that: the vendor does, and naive clients see garbage.

use std::io;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use flate2::write::ZlibEncoder;
use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

/// How an answer's body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As it is.
    Identity,
    /// gzip, preferred.
    Gzip,
    /// `deflate`, which in HTTP means the zlib format (RFC 9110, section 8.4.1.2).
    Deflate,
}

impl Encoding {
    /// The best encoding that the caller accepts; `q=0` is a refusal, other weights are overlooked.
    pub(super) fn chosen(headers: &HeaderMap) -> Self {
        let accepts = |name: &str| {
            let lines = headers
                .get_all(ACCEPT_ENCODING)
                .iter()
                .filter_map(|line| line.to_str().ok());
            lines.flat_map(|line| line.split(',')).any(|item| {
                let (coding, weight) = item.split_once(';').unwrap_or((item, ""));
                coding.trim().eq_ignore_ascii_case(name) && !is_zero(weight)
            })
        };
        if accepts("gzip") {
            Self::Gzip
        } else if accepts("deflate") {
            Self::Deflate
        } else {
            Self::Identity
        }
    }

    /// The `Content-Encoding`.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Deflate => Some("deflate"),
        }
    }

    /// The body in this encoding.
    pub(super) fn encode(self, body: Vec<u8>) -> Vec<u8> {
        let encoded = match self {
            Self::Identity => Ok(body),
            Self::Gzip => encode(
                GzEncoder::new(Vec::new(), Compression::fast()),
                &body,
                GzEncoder::finish,
            ),
            Self::Deflate => encode(
                ZlibEncoder::new(Vec::new(), Compression::fast()),
                &body,
                ZlibEncoder::finish,
            ),
        };
        encoded.expect("writing to memory has no IO to fail")
    }
}

fn encode<E: Write>(
    mut encoder: E,
    body: &[u8],
    finish: fn(E) -> io::Result<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    encoder.write_all(body)?;
    finish(encoder)
}

fn is_zero(weight: &str) -> bool {
    let weight = weight
        .trim()
        .strip_prefix("q=")
        .or_else(|| weight.trim().strip_prefix("Q="));
    weight.and_then(|weight| weight.trim().parse::<f32>().ok()) == Some(0.0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use flate2::read::ZlibDecoder;
    use http::HeaderMap;
    use http::HeaderValue;
    use http::header::ACCEPT_ENCODING;

    use crate::simulator::encoding::Encoding;

    #[test]
    fn the_callers_accept_encoding_decides() {
        let cases = [
            ("gzip,deflate", Encoding::Gzip),
            ("deflate", Encoding::Deflate),
            ("GZIP;q=0.5", Encoding::Gzip),
            ("gzip;q=0, deflate", Encoding::Deflate),
            ("br", Encoding::Identity),
            ("", Encoding::Identity),
        ];
        for (header, expected) in cases {
            let headers =
                HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(header))]);
            assert_eq!(Encoding::chosen(&headers), expected, "{header}");
        }
    }

    #[test]
    fn both_encodings_decode_to_the_same_bytes() {
        let body = "您已用完当日请求量".repeat(100).into_bytes();
        let mut decoded = Vec::new();
        GzDecoder::new(Encoding::Gzip.encode(body.clone()).as_slice())
            .read_to_end(&mut decoded)
            .unwrap();
        assert_eq!(decoded, body);
        decoded.clear();
        ZlibDecoder::new(Encoding::Deflate.encode(body.clone()).as_slice())
            .read_to_end(&mut decoded)
            .unwrap();
        assert_eq!(decoded, body);
    }
}
