//! Who is calling: from the names in a verified certificate to the caller that configuration knows by one of them.

use std::collections::HashMap;
use std::fmt;

use crate::name::CallerName;

/// A name that a certificate can carry: one SPIFFE URI, or a DNS name. The common name never counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// `spiffe://trust-domain/path`.
    Spiffe(String),
    /// A DNS name, in small letters.
    Dns(String),
}

/// Why a text can't be an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an identity is written `spiffe://trust-domain/path` or `dns:host.name`")]
pub struct BadIdentity;

impl Identity {
    /// As configuration writes it.
    ///
    /// # Errors
    /// When it's neither a SPIFFE ID nor `dns:` with an exact host name.
    pub fn parse(text: &str) -> Result<Self, BadIdentity> {
        if let Some(name) = text.strip_prefix("dns:") {
            return Self::dns(name).ok_or(BadIdentity);
        }
        Self::spiffe(text).ok_or(BadIdentity)
    }

    /// A DNS SAN; only an exact host name counts, so a wildcard certificate is nobody.
    #[must_use]
    pub fn dns(name: &str) -> Option<Self> {
        let label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        (name.len() <= 253 && name.split('.').all(label))
            .then(|| Self::Dns(name.to_ascii_lowercase()))
    }

    /// A URI SAN that is a SPIFFE ID (SPIFFE-ID specification, section 2): a trust domain in small letters, a path without empty
    /// or dotted segments, no query, fragment, port or user.
    #[must_use]
    pub fn spiffe(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix("spiffe://")?;
        let (domain, path) = rest.split_once('/')?;
        let in_domain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        let segment = |segment: &str| {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
            !matches!(segment, "" | "." | "..") && segment.bytes().all(legal)
        };
        let good = uri.len() <= 2048
            && (1..=255).contains(&domain.len())
            && domain.bytes().all(in_domain)
            && path.split('/').all(segment);
        good.then(|| Self::Spiffe(uri.to_owned()))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(uri) => f.write_str(uri),
            Self::Dns(name) => write!(f, "dns:{name}"),
        }
    }
}

/// A caller whose certificate was verified and whose name is known. Only [`Callers::identify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(CallerName);

impl Caller {
    /// The name that configuration gives it.
    #[must_use]
    pub fn name(&self) -> &CallerName {
        &self.0
    }
}

/// A verified certificate that is nobody we know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// None of its identities is configured.
    #[error("no caller has one of this certificate's identities: {}", list(.0))]
    NotConfigured(Vec<Identity>),
    /// It carries none.
    #[error(
        "the certificate carries no identity: one SPIFFE URI or a DNS name as subject alternative name"
    )]
    NoIdentity,
    /// More than one URI, or one that isn't a SPIFFE ID.
    #[error("the certificate's URI names aren't exactly one SPIFFE ID")]
    OddUris,
    /// It was good when the connection began.
    #[error("the certificate isn't accepted any more: {0}")]
    Refused(&'static str),
    /// Its DNS names belong to more than one caller.
    #[error("the certificate's names belong to more than one caller")]
    Ambiguous,
}

fn list(identities: &[Identity]) -> String {
    identities
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// What a certificate says of its holder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// URI SANs as they stand.
    pub uris: Vec<String>,
    /// DNS SANs as they stand.
    pub dns: Vec<String>,
}

impl Names {
    /// Exactly one SPIFFE URI, else the DNS names.
    fn identities(&self) -> Result<Vec<Identity>, Unknown> {
        match self.uris.as_slice() {
            [] => Ok(self
                .dns
                .iter()
                .filter_map(|name| Identity::dns(name))
                .collect()),
            [uri] => Identity::spiffe(uri)
                .map(|identity| vec![identity])
                .ok_or(Unknown::OddUris),
            _ => Err(Unknown::OddUris),
        }
    }
}

/// What a connection has shown of who is at its other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presented {
    /// A certificate that was verified.
    Certificate(Names),
    /// A certificate that was verified once, and isn't good any more: why, as the reason of a failed handshake.
    Refused(&'static str),
}

/// All identities that configuration knows.
#[derive(Clone, Debug, Default)]
pub struct Callers(HashMap<Identity, CallerName>);

impl Callers {
    /// One entry for each identity; configuration has seen to it that none stands twice.
    #[must_use]
    pub fn new(identities: impl IntoIterator<Item = (Identity, CallerName)>) -> Self {
        Self(identities.into_iter().collect())
    }

    /// The caller that a verified certificate belongs to.
    ///
    /// # Errors
    /// When it belongs to none, or to more than one, or isn't good any more.
    pub fn identify(&self, presented: &Presented) -> Result<Caller, Unknown> {
        let identities = match presented {
            Presented::Certificate(names) => names.identities()?,
            Presented::Refused(reason) => return Err(Unknown::Refused(reason)),
        };
        if identities.is_empty() {
            return Err(Unknown::NoIdentity);
        }
        let mut known = identities
            .iter()
            .filter_map(|identity| self.0.get(identity));
        let Some(first) = known.next() else {
            return Err(Unknown::NotConfigured(identities));
        };
        if known.all(|other| other == first) {
            Ok(Caller(first.clone()))
        } else {
            Err(Unknown::Ambiguous)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Callers;
    use super::Identity;
    use super::Names;
    use super::Presented;
    use super::Unknown;
    use crate::name::CallerName;

    fn callers() -> Callers {
        let name = |text| CallerName::new(text).expect("a name");
        let identity = |text| Identity::parse(text).expect("an identity");
        Callers::new([
            (identity("spiffe://shop.example/orders"), name("orders")),
            (identity("dns:orders.internal"), name("orders")),
            (identity("dns:tills.internal"), name("tills")),
        ])
    }

    fn identify(uris: &[&str], dns: &[&str]) -> Result<String, Unknown> {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        callers()
            .identify(&Presented::Certificate(Names {
                uris: owned(uris),
                dns: owned(dns),
            }))
            .map(|caller| caller.name().to_string())
    }

    #[test]
    fn one_spiffe_uri_counts_and_else_dns_names() {
        assert_eq!(
            identify(&["spiffe://shop.example/orders"], &[]),
            Ok("orders".to_owned())
        );
        assert_eq!(
            identify(&["spiffe://shop.example/orders"], &["tills.internal"]),
            Ok("orders".to_owned())
        );
        assert_eq!(identify(&[], &["Orders.Internal"]), Ok("orders".to_owned()));
        assert_eq!(
            identify(&[], &["other", "tills.internal"]),
            Ok("tills".to_owned())
        );
    }

    #[test]
    fn any_other_set_of_names_is_nobody() {
        assert_eq!(identify(&[], &[]), Err(Unknown::NoIdentity));
        assert_eq!(identify(&[], &["*.internal"]), Err(Unknown::NoIdentity));
        assert_eq!(
            identify(
                &["spiffe://shop.example/orders", "spiffe://shop.example/x"],
                &["orders.internal"]
            ),
            Err(Unknown::OddUris)
        );
        assert_eq!(
            identify(&["https://shop.example/orders"], &["orders.internal"]),
            Err(Unknown::OddUris)
        );
        assert_eq!(
            identify(&[], &["orders.internal", "tills.internal"]),
            Err(Unknown::Ambiguous)
        );
        assert!(matches!(
            identify(&["spiffe://shop.example/other"], &["orders.internal"]),
            Err(Unknown::NotConfigured(_))
        ));
        assert!(matches!(
            identify(&[], &["xorders.internal"]),
            Err(Unknown::NotConfigured(_))
        ));
    }

    #[test]
    fn identities_have_one_spelling() {
        for bad in [
            "orders",
            "dns:",
            "dns:*.x",
            "dns:a..b",
            "spiffe://",
            "spiffe://Shop/x",
            "spiffe://shop",
            "spiffe://shop/",
            "spiffe://shop/a//b",
            "spiffe://shop/../x",
            "spiffe://shop/a?b",
            "spiffe://u@shop/a",
            "spiffe://shop:1/a",
            "https://x/y",
        ] {
            assert!(Identity::parse(bad).is_err(), "{bad}");
        }
    }
}
