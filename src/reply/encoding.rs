//! Content codings of replies: what a caller accepts, and bounded decoding for those who accept less than the vendor sends.

use std::io::Read;

use bytes::Bytes;
use flate2::read::DeflateDecoder;
use flate2::read::MultiGzDecoder;
use flate2::read::ZlibDecoder;
use http::HeaderMap;
use http::header;

/// How the vendor may have packed a reply. It's asked for these two alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// RFC 9110 section 8.4.1.3.
    Gzip,
    /// RFC 9110 section 8.4.1.2: zlib, though some servers send it bare.
    Deflate,
}

/// How many times larger than its packed form a reply may be. JSON of like records reaches some 30; gzip can reach 1,032.
pub const RATIO_MAX: usize = 200;

/// Below this size the ratio isn't looked at.
const RATIO_FREE_BYTES: usize = 64 * 1024;

/// The names that they have in a reply's head.
const KNOWN: [(&[u8], Encoding); 5] = [
    (b"", Encoding::Identity),
    (b"identity", Encoding::Identity),
    (b"gzip", Encoding::Gzip),
    (b"x-gzip", Encoding::Gzip),
    (b"deflate", Encoding::Deflate),
];

/// Why a reply can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another coding than those that were asked for.
    #[error("the reply has a content coding that wasn't asked for")]
    Unasked,
    /// Broken or cut off.
    #[error("the reply's compressed bytes are broken")]
    Broken(#[source] std::io::Error),
    /// Larger than `reply_bytes_max`, or than the ratio allows.
    #[error("the reply unpacks to more than {0} bytes")]
    TooLarge(usize),
}

impl Encoding {
    /// What a reply's head says.
    ///
    /// # Errors
    /// When it's none of the three.
    pub fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        match (codings.next(), codings.next()) {
            (None, _) => Ok(Self::Identity),
            (Some(coding), None) => {
                let coding = coding.as_bytes().trim_ascii();
                let known = KNOWN
                    .iter()
                    .find(|(name, _)| coding.eq_ignore_ascii_case(name));
                known.map(|(_, encoding)| *encoding).ok_or(Error::Unasked)
            }
            (Some(_), Some(_)) => Err(Error::Unasked),
        }
    }

    /// The header's value; `None` for plain bytes.
    #[must_use]
    pub fn token(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Deflate => Some("deflate"),
        }
    }

    /// Whether a caller takes it (RFC 9110 section 12.5.3: the coding by name, else `*`; a weight of 0 refuses).
    #[must_use]
    pub fn accepted_by(self, headers: &HeaderMap) -> bool {
        let Some(token) = self.token() else {
            return true;
        };
        let mut any = None;
        for item in headers
            .get_all(header::ACCEPT_ENCODING)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
        {
            let mut parts = item.split(';').map(str::trim);
            let coding = parts.next().unwrap_or_default();
            let weight = parts.find_map(|parameter| {
                parameter
                    .strip_prefix("q=")
                    .or_else(|| parameter.strip_prefix("Q="))
            });
            let wanted =
                weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|weight| weight > 0.0));
            if coding.eq_ignore_ascii_case(token) {
                return wanted;
            }
            if coding == "*" {
                any = Some(wanted);
            }
        }
        any.unwrap_or(false)
    }

    /// The plain bytes, at most `bytes_max` of them and at most [`RATIO_MAX`] times the packed ones.
    ///
    /// # Errors
    /// When they're broken, cut off, or too many.
    pub fn decode(self, packed: &Bytes, bytes_max: usize) -> Result<Bytes, Error> {
        let limit = bytes_max.min((packed.len().saturating_mul(RATIO_MAX)).max(RATIO_FREE_BYTES));
        match self {
            Self::Identity => Ok(packed.clone()),
            Self::Gzip => unpack(MultiGzDecoder::new(&packed[..]), limit),
            // A zlib stream says so in its first byte (RFC 1950 section 2.2: method 8); a bare one never starts with that and checks.
            Self::Deflate if is_zlib(packed) => unpack(ZlibDecoder::new(&packed[..]), limit),
            Self::Deflate => unpack(DeflateDecoder::new(&packed[..]), limit),
        }
    }
}

fn is_zlib(packed: &[u8]) -> bool {
    matches!(packed, [method, flags, ..] if method & 0x0f == 8 && (u16::from(*method) << 8 | u16::from(*flags)).is_multiple_of(31))
}

fn unpack(reader: impl Read, limit: usize) -> Result<Bytes, Error> {
    let mut plain = Vec::new();
    reader
        .take(limit as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(Error::Broken)?;
    if plain.len() > limit {
        Err(Error::TooLarge(limit))
    } else {
        Ok(plain.into())
    }
}

#[cfg(test)]
mod tests {
    use super::Encoding;
    use super::Error;
    use bytes::Bytes;
    use flate2::Compression;
    use flate2::read::DeflateEncoder;
    use flate2::read::GzEncoder;
    use flate2::read::ZlibEncoder;
    use http::HeaderMap;
    use http::HeaderValue;
    use http::header;
    use std::io::Read;

    fn all(mut reader: impl Read) -> Bytes {
        let mut out = Vec::new();
        reader.read_to_end(&mut out).expect("memory");
        out.into()
    }

    #[test]
    fn what_a_caller_accepts_is_read_as_the_rfc_says() {
        let accepts = |value: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            }
            Encoding::Gzip.accepted_by(&headers)
        };
        for yes in [
            "gzip",
            "GZIP",
            "deflate, gzip;q=0.5",
            "*",
            "br, *;q=0.1",
            "gzip;q=1.000",
        ] {
            assert!(accepts(Some(yes)), "{yes}");
        }
        for no in [
            "",
            "identity",
            "deflate",
            "gzip;q=0",
            "gzip; q=0.000, *",
            "*;q=0",
            "gzip;q=x",
        ] {
            assert!(!accepts(Some(no)), "{no}");
        }
        assert!(!accepts(None));
        assert!(Encoding::Identity.accepted_by(&HeaderMap::new()));
    }

    #[test]
    fn each_coding_unpacks_to_what_was_packed() {
        let plain = Bytes::from("{\"status\":\"success\"}".repeat(50));
        let level = Compression::default();
        let packed = [
            (Encoding::Identity, plain.clone()),
            (Encoding::Gzip, all(GzEncoder::new(&plain[..], level))),
            (Encoding::Deflate, all(ZlibEncoder::new(&plain[..], level))),
            (
                Encoding::Deflate,
                all(DeflateEncoder::new(&plain[..], level)),
            ),
        ];
        for (encoding, packed) in packed {
            assert_eq!(
                encoding.decode(&packed, 1 << 20).expect("whole"),
                plain,
                "{encoding:?}"
            );
            if encoding != Encoding::Identity {
                let cut = packed.slice(..packed.len() - 5);
                assert!(
                    matches!(encoding.decode(&cut, 1 << 20), Err(Error::Broken(_))),
                    "{encoding:?}"
                );
            }
        }
    }

    #[test]
    fn bombs_are_refused_by_size_and_by_ratio() {
        let bomb = all(GzEncoder::new(
            std::io::repeat(b' ').take(64 << 20),
            Compression::best(),
        ));
        assert!(
            matches!(Encoding::Gzip.decode(&bomb, 16 << 20), Err(Error::TooLarge(limit)) if limit < 16 << 20)
        );
        assert!(matches!(
            Encoding::Gzip.decode(&bomb, 1_000),
            Err(Error::TooLarge(1_000))
        ));
    }
}
