//! Who is calling: from what a connection presents to the caller that configuration knows by it. A certificate's names, a user of this
//! machine and its loopback never stand for one another.

use std::collections::HashMap;
use std::fmt;

use crate::name::CallerName;

/// What a caller is known by: a name that a certificate can carry, one SPIFFE URI or a DNS name (the common name never counts); or,
/// without TLS, what this machine says of the other end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// `spiffe://trust-domain/path`.
    Spiffe(String),
    /// A DNS name, in small letters.
    Dns(String),
    /// A user of this machine, at the other end of a unix socket.
    Uid(u32),
    /// Whoever connects to a loopback address without TLS.
    Loopback,
}

/// Why a text can't be an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadIdentity {
    /// It's none of the forms.
    #[error(
        "an identity is written `spiffe://trust-domain/path`, `dns:host.name`, `uid:1000` or `loopback`"
    )]
    Form,
    /// It's [`UID_UNKNOWN`].
    #[error(
        "uid {UID_UNKNOWN} is how every user looks that the kernel can't name here: it can't stand for one caller"
    )]
    UidUnknown,
}

/// What the kernel shows instead of a user that has no number in this process's user namespace (user_namespaces(7), "overflow user
/// ID"): all of them look alike, so that it's never anybody's identity.
pub const UID_UNKNOWN: u32 = 65_534;

impl Identity {
    /// As configuration writes it.
    ///
    /// # Errors
    /// When it's neither a SPIFFE ID, `dns:` with an exact host name, `uid:` with a user's number, nor `loopback`.
    pub fn parse(text: &str) -> Result<Self, BadIdentity> {
        if text == "loopback" {
            return Ok(Self::Loopback);
        }
        if let Some(uid) = text.strip_prefix("uid:") {
            return Self::uid(uid);
        }
        if let Some(name) = text.strip_prefix("dns:") {
            return Self::dns(name).ok_or(BadIdentity::Form);
        }
        Self::spiffe(text).ok_or(BadIdentity::Form)
    }

    /// A user's number in its one spelling: no sign, no leading zero.
    fn uid(text: &str) -> Result<Self, BadIdentity> {
        let uid = text
            .parse::<u32>()
            .ok()
            .filter(|uid| uid.to_string() == text);
        match uid {
            // The largest number is no user's: the kernel says "none" with it.
            None | Some(u32::MAX) => Err(BadIdentity::Form),
            Some(UID_UNKNOWN) => Err(BadIdentity::UidUnknown),
            Some(uid) => Ok(Self::Uid(uid)),
        }
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
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Loopback => f.write_str("loopback"),
        }
    }
}

/// A caller whose identity was verified and whose name is known. Only [`Callers::identify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller(CallerName);

impl Caller {
    /// The name that configuration gives it.
    #[must_use]
    pub fn name(&self) -> &CallerName {
        &self.0
    }
}

/// Nobody we know, verified as it may be.
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
    /// A user of this machine that is no caller.
    #[error("no caller is uid {0}")]
    Uid(u32),
    /// No caller is whoever connects on loopback.
    #[error("no caller has the identity loopback")]
    Loopback,
}

/// Identities that are told. A certificate can have thousands, and whoever shows it is told so with each of its requests.
const LISTED_MAX: usize = 20;

fn list(identities: &[Identity]) -> String {
    let told = identities.iter().take(LISTED_MAX);
    let mut text = told.map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(rest @ 1..) = identities.len().checked_sub(LISTED_MAX) {
        text.push_str(&format!(" and {rest} more"));
    }
    text
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
    /// Why they're nobody's, where configuration knows none of them: exactly one SPIFFE URI counts, else the DNS names.
    fn unknown(&self) -> Unknown {
        let identities: Vec<_> = match self.uris.as_slice() {
            [] => self
                .dns
                .iter()
                .filter_map(|name| Identity::dns(name))
                .collect(),
            [uri] => match Identity::spiffe(uri) {
                Some(identity) => vec![identity],
                None => return Unknown::OddUris,
            },
            _ => return Unknown::OddUris,
        };
        if identities.is_empty() {
            Unknown::NoIdentity
        } else {
            Unknown::NotConfigured(identities)
        }
    }
}

/// What a connection says of who is at its other end. Only the listener makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presented {
    /// The names in a certificate that was verified.
    Certificate(Names),
    /// The user who connected to a unix socket, as the kernel knew it then.
    Uid(u32),
    /// Somebody on this machine: nobody can be told from another there.
    Loopback,
    /// A certificate that was verified once, and isn't good any more: why, as the reason of a failed handshake.
    Refused(&'static str),
}

impl fmt::Display for Presented {
    /// As configuration writes identities, but for the names of a certificate, which are as they stand in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(names) => names.fmt(f),
            Self::Uid(uid) => Identity::Uid(*uid).fmt(f),
            Self::Loopback => Identity::Loopback.fmt(f),
            Self::Refused(reason) => {
                write!(f, "a certificate that isn't accepted any more: {reason}")
            }
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dns = self.dns.iter().map(|name| ("dns:", name));
        let uris = self.uris.iter().map(|uri| ("", uri));
        for (number, (kind, name)) in uris.chain(dns).enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{kind}{name}")?;
        }
        Ok(())
    }
}

/// All identities that configuration knows, by what connections present: a request makes nothing to look its caller up with.
#[derive(Clone, Debug, Default)]
pub struct Callers {
    spiffe: HashMap<String, Caller>,
    dns: HashMap<String, Caller>,
    uids: HashMap<u32, Caller>,
    loopback: Option<Caller>,
}

impl Callers {
    /// One entry for each identity; configuration has seen to it that none stands twice.
    #[must_use]
    pub fn new(identities: impl IntoIterator<Item = (Identity, CallerName)>) -> Self {
        let mut callers = Self::default();
        for (identity, name) in identities {
            let caller = Caller(name);
            match identity {
                Identity::Spiffe(uri) => drop(callers.spiffe.insert(uri, caller)),
                Identity::Dns(name) => drop(callers.dns.insert(name, caller)),
                Identity::Uid(uid) => drop(callers.uids.insert(uid, caller)),
                Identity::Loopback => callers.loopback = Some(caller),
            }
        }
        callers
    }

    /// The caller that a connection belongs to.
    ///
    /// # Errors
    /// When it belongs to none, or to more than one, or isn't good any more.
    pub fn identify(&self, presented: &Presented) -> Result<Caller, Unknown> {
        let known = match presented {
            Presented::Certificate(names) => self.certified(names)?,
            Presented::Uid(uid) => self.uids.get(uid).ok_or(Unknown::Uid(*uid))?,
            Presented::Loopback => self.loopback.as_ref().ok_or(Unknown::Loopback)?,
            Presented::Refused(reason) => return Err(Unknown::Refused(reason)),
        };
        Ok(known.clone())
    }

    /// By the one URI, else by the DNS names. Those that are known are well formed: what isn't is never found.
    fn certified(&self, names: &Names) -> Result<&Caller, Unknown> {
        let mut known = names.dns.iter().filter_map(|name| self.by_dns(name));
        let first = match names.uris.as_slice() {
            [] => known.next(),
            [uri] => return self.spiffe.get(uri).ok_or_else(|| names.unknown()),
            _ => None,
        };
        let first = first.ok_or_else(|| names.unknown())?;
        if known.all(|other| other == first) {
            Ok(first)
        } else {
            Err(Unknown::Ambiguous)
        }
    }

    fn by_dns(&self, name: &str) -> Option<&Caller> {
        // A certificate has small letters as a rule, and may have thousands of names.
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            self.dns.get(&name.to_ascii_lowercase())
        } else {
            self.dns.get(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BadIdentity;
    use super::Callers;
    use super::Identity;
    use super::Names;
    use super::Presented;
    use super::UID_UNKNOWN;
    use super::Unknown;
    use crate::name::CallerName;

    fn callers() -> Callers {
        let name = |text| CallerName::new(text).expect("a name");
        let identity = |text| Identity::parse(text).expect("an identity");
        Callers::new([
            (identity("spiffe://shop.example/orders"), name("orders")),
            (identity("dns:orders.internal"), name("orders")),
            (identity("dns:tills.internal"), name("tills")),
            (identity("uid:1000"), name("sync")),
            (identity("dns:loopback"), name("odd")),
        ])
    }

    fn identify(uris: &[&str], dns: &[&str]) -> Result<String, Unknown> {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        let names = Names {
            uris: owned(uris),
            dns: owned(dns),
        };
        callers()
            .identify(&Presented::Certificate(names))
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
            identify(&[], &["orders.internal", "ORDERS.internal", "*.x"]),
            Ok("orders".to_owned())
        );
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
        let not_configured = |texts: &[&str]| {
            let identity = |text: &&str| Identity::parse(text).expect("an identity");
            Err(Unknown::NotConfigured(texts.iter().map(identity).collect()))
        };
        assert_eq!(
            identify(&["spiffe://shop.example/other"], &["orders.internal"]),
            not_configured(&["spiffe://shop.example/other"])
        );
        assert_eq!(
            identify(&[], &["*.internal", "XOrders.internal", "x"]),
            not_configured(&["dns:xorders.internal", "dns:x"])
        );
        // Names of one kind are none of the other.
        for odd in ["orders.internal", "spiffe://shop.example/orders/"] {
            assert_eq!(identify(&[odd], &[]), Err(Unknown::OddUris), "{odd}");
        }
        assert_eq!(
            identify(&[], &["spiffe://shop.example/orders"]),
            Err(Unknown::NoIdentity)
        );
    }

    #[test]
    fn of_many_names_the_first_are_told_and_how_many_more() {
        let names: Vec<_> = (0..22).map(|number| format!("x{number}")).collect();
        let told = |count: usize| {
            let names: Vec<_> = names[..count].iter().map(String::as_str).collect();
            identify(&[], &names).expect_err("nobody").to_string()
        };
        assert!(told(20).ends_with("dns:x18, dns:x19"), "{}", told(20));
        assert!(told(22).ends_with("dns:x19 and 2 more"), "{}", told(22));
    }

    #[test]
    fn a_certificate_a_user_and_loopback_never_stand_for_one_another() {
        let named = |presented| {
            let caller = callers().identify(&presented);
            caller.map(|caller| caller.name().to_string())
        };
        assert_eq!(named(Presented::Uid(1000)), Ok("sync".to_owned()));
        assert_eq!(named(Presented::Uid(1001)), Err(Unknown::Uid(1001)));
        assert_eq!(named(Presented::Loopback), Err(Unknown::Loopback));
        // What a certificate says of users is a name like any other, and none that anybody can have.
        for forged in ["uid:1000", "loopback"] {
            assert_eq!(identify(&[forged], &[]), Err(Unknown::OddUris), "{forged}");
        }
        assert_eq!(identify(&[], &["uid:1000"]), Err(Unknown::NoIdentity));
        assert_eq!(identify(&[], &["loopback"]), Ok("odd".to_owned()));
        assert_eq!(Unknown::Uid(1001).to_string(), "no caller is uid 1001");
    }

    #[test]
    fn a_user_that_the_kernel_cannot_name_is_nobody() {
        let text = format!("uid:{UID_UNKNOWN}");
        assert_eq!(Identity::parse(&text), Err(BadIdentity::UidUnknown));
    }

    #[test]
    fn identities_have_one_spelling() {
        for good in ["uid:0", "uid:4294967294", "loopback"] {
            let identity = Identity::parse(good).expect(good);
            assert_eq!(identity.to_string(), good);
        }
        for bad in [
            "uid:",
            "uid:-1",
            "uid:+1000",
            "uid:01000",
            "uid:1000 ",
            "uid:4294967295",
            "uid:4294967296",
            "uid:root",
            "Loopback",
            "loopback:",
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
            assert_eq!(Identity::parse(bad), Err(BadIdentity::Form), "{bad}");
        }
    }
}
