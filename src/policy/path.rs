//! From a request's target to the name of an operation. Forgives letter case and nothing else: the vendor's server is forgiving, so
//! a rule that compared text could be walked around (contract, section 2).

use std::net::IpAddr;
use std::net::Ipv6Addr;

use http::HeaderMap;
use http::HeaderValue;
use http::Uri;
use http::Version;
use http::header;
use http::uri::Authority;
use http::uri::Scheme;

/// Why a target isn't the path of any operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// `?`, even with nothing behind it.
    #[error("the path has a query; KYBIO's operations take everything in the body")]
    Query,
    /// `//`.
    #[error("the path has an empty segment (`//`)")]
    EmptySegment,
    /// `.` or `..`.
    #[error("the path has a `.` or `..` segment")]
    DotSegment,
    /// `%`.
    #[error("the path has a percent sign; write each character plainly")]
    Percent,
    /// `;`, `\` and all others.
    #[error("the path has a character that no operation's name has")]
    Character,
    /// A slash or dot at its end.
    #[error("the path ends with a slash or a dot")]
    Trailing,
    /// Another than `https`; on HTTP/1 `http` is forgiven, for it says nothing of how the connection was made.
    #[error("the request's scheme isn't https")]
    Scheme,
    /// Host missing, more than one, not a host, or another than the target's authority.
    #[error("the request doesn't name exactly one host")]
    Host,
    /// On loopback without TLS: Host is another machine's.
    #[error("the request names another host than this machine")]
    ForeignHost,
}

/// Where operations live. The second is the vendor's own prefix, so that a service moves by changing its host name alone.
const PREFIXES: [&str; 2] = ["/openapi/v1/", "/pospal-api2/openapi/v1/"];

/// The part of the path behind the prefix, as it's written; `None` if the path is none of ours.
///
/// # Errors
/// When the spelling could mean different things to different servers.
pub fn operation_path<'a>(
    uri: &'a Uri,
    headers: &HeaderMap,
    version: Version,
) -> Result<Option<&'a str>, BadTarget> {
    check_scheme(uri, version)?;
    check_host(uri, headers, version)?;
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    check_spelling(target)?;
    let behind = |prefix: &&str| {
        let (before, behind) = target.split_at_checked(prefix.len())?;
        before.eq_ignore_ascii_case(prefix).then_some(behind)
    };
    Ok(PREFIXES.iter().find_map(behind))
}

/// HTTP/2 is spoken over TLS alone, and always names its scheme (RFC 9113 section 8.3.1).
fn check_scheme(uri: &Uri, version: Version) -> Result<(), BadTarget> {
    let good = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        Some(scheme) => *scheme == Scheme::HTTP && version < Version::HTTP_2,
        // Where there's no authority either, as on HTTP/2 with a Host alone, the library shows no scheme.
        None => version < Version::HTTP_2 || uri.authority().is_none(),
    };
    if good { Ok(()) } else { Err(BadTarget::Scheme) }
}

/// One Host that is a host, and that of the target when the target names one (RFC 9112 section 3.2; RFC 9113 section 8.3.1).
fn check_host(uri: &Uri, headers: &HeaderMap, version: Version) -> Result<(), BadTarget> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let good = match (hosts.next(), hosts.next(), uri.authority()) {
        (Some(host), None, Some(authority)) => {
            let host = host.as_bytes();
            is_host(host) && host.eq_ignore_ascii_case(authority.as_str().as_bytes())
        }
        (Some(host), None, None) => is_host(host.as_bytes()),
        (None, _, Some(authority)) => {
            version == Version::HTTP_2 && is_host(authority.as_str().as_bytes())
        }
        (None, _, None) => version == Version::HTTP_10,
        (Some(_), Some(_), _) => false,
    };
    if good { Ok(()) } else { Err(BadTarget::Host) }
}

/// A name or an address, and perhaps a port (RFC 9110 section 7.2). Neither a list nor a user's name before it: to another server that
/// could be another host. Some clients write a unix socket's path with percent signs.
fn is_host(text: &[u8]) -> bool {
    let brackets = text.iter().position(|byte| *byte == b']');
    let host_min = brackets.map_or(0, |at| at + 1);
    let colon = text[host_min..].iter().position(|byte| *byte == b':');
    let (host, port) = text.split_at(colon.map_or(text.len(), |at| host_min + at));
    let is_name = host
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(byte));
    let address = host
        .strip_prefix(b"[")
        .and_then(|host| str::from_utf8(host.strip_suffix(b"]")?).ok());
    let is_address = address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    !host.is_empty() && (is_name || is_address) && port.iter().skip(1).all(u8::is_ascii_digit)
}

/// Where nothing is known of a caller but that it's on this machine, a browser there may be made to call by a page from anywhere, whose
/// host's name suddenly means 127.0.0.1 (DNS rebinding). It can't help naming that host.
///
/// # Errors
/// When Host is neither a loopback address nor `localhost` or a name below it, which never mean another machine (RFC 6761 section 6.3).
pub fn check_own_host(headers: &HeaderMap) -> Result<(), BadTarget> {
    let own = |host: &HeaderValue| {
        let authority = Authority::try_from(host.as_bytes()).ok()?;
        let host = authority.host().to_ascii_lowercase();
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let loopback = address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
        Some(loopback || host == "localhost" || host.ends_with(".localhost"))
    };
    if headers
        .get_all(header::HOST)
        .iter()
        .all(|host| own(host) == Some(true))
    {
        Ok(())
    } else {
        Err(BadTarget::ForeignHost)
    }
}

fn check_spelling(target: &str) -> Result<(), BadTarget> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_".contains(&byte);
    if !target.bytes().all(is_legal) {
        return Err(if target.contains('?') {
            BadTarget::Query
        } else if target.contains('%') {
            BadTarget::Percent
        } else {
            BadTarget::Character
        });
    }
    if target.contains("//") {
        return Err(BadTarget::EmptySegment);
    }
    let mut segments = target.as_bytes().split(|byte| *byte == b'/');
    if segments.any(|segment| segment == b"." || segment == b"..") {
        return Err(BadTarget::DotSegment);
    }
    if target.len() > 1 && target.ends_with(['/', '.']) {
        return Err(BadTarget::Trailing);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::BadTarget;
    use super::check_own_host;
    use super::operation_path;
    use http::HeaderMap;
    use http::HeaderValue;
    use http::Uri;
    use http::Version;
    use http::header;

    fn path(target: &str, hosts: &[&str]) -> Result<Option<String>, BadTarget> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_str(host).expect("a host"));
        }
        let uri = target.parse::<Uri>().expect(target);
        let path = operation_path(&uri, &headers, Version::HTTP_11)?;
        Ok(path.map(ToOwned::to_owned))
    }

    #[test]
    fn letter_case_is_forgiven_and_the_vendors_prefix_taken() {
        for (target, behind) in [
            ("/openapi/v1/customerOpenApi/add", "customerOpenApi/add"),
            ("/OPENAPI/V1/CUSTOMEROPENAPI/ADD", "CUSTOMEROPENAPI/ADD"),
            (
                "/pospal-api2/openapi/v1/customerOpenApi/add",
                "customerOpenApi/add",
            ),
        ] {
            let expected = Ok(Some(behind.to_owned()));
            assert_eq!(path(target, &["gateway"]), expected, "{target}");
        }
        assert_eq!(
            path("/openapi/v1/a/b/c", &["gateway"]),
            Ok(Some("a/b/c".to_owned()))
        );
        for target in [
            "/",
            "/metrics",
            "/openapi/v2/a/b",
            "/x/openapi/v1/a/b",
            "/openapi/v1",
        ] {
            assert_eq!(path(target, &["gateway"]), Ok(None), "{target}");
        }
    }

    #[test]
    fn every_other_spelling_is_refused() {
        let cases = [
            ("/openapi/v1/a/b?", BadTarget::Query),
            ("/openapi/v1/a/b?x=1", BadTarget::Query),
            ("//openapi/v1/a/b", BadTarget::EmptySegment),
            ("/openapi/v1//a/b", BadTarget::EmptySegment),
            ("/openapi/v1/./a/b", BadTarget::DotSegment),
            ("/openapi/v1/x/../a/b", BadTarget::DotSegment),
            ("/openapi/v1/a/%62", BadTarget::Percent),
            ("/openapi/v1/a%2fb", BadTarget::Percent),
            ("/openapi/v1/a;x/b", BadTarget::Character),
            ("/openapi/v1/a\\b", BadTarget::Character),
            ("/openapi/v1/a:b/c", BadTarget::Character),
            ("/openapi/v1/a/b/", BadTarget::Trailing),
            ("/openapi/v1/a/b.", BadTarget::Trailing),
        ];
        for (target, expected) in cases {
            assert_eq!(path(target, &["gateway"]), Err(expected), "{target}");
        }
    }

    #[test]
    fn the_scheme_is_https() {
        let headers = HeaderMap::new();
        let path = |target: &str, version| {
            let uri = target.parse::<Uri>().expect(target);
            operation_path(&uri, &headers, version).map(|path| path.is_some())
        };
        assert_eq!(path("https://a/", Version::HTTP_2), Ok(false));
        for (target, version) in [
            ("http://a/", Version::HTTP_2),
            ("a", Version::HTTP_2),
            ("ftp://a/", Version::HTTP_11),
        ] {
            assert_eq!(path(target, version), Err(BadTarget::Scheme), "{target}");
        }
    }

    #[test]
    fn exactly_one_host_is_named() {
        assert_eq!(path("/", &[]), Err(BadTarget::Host));
        assert_eq!(path("/", &["a", "a"]), Err(BadTarget::Host));
        assert_eq!(path("https://a/", &["b"]), Err(BadTarget::Host));
        assert_eq!(path("https://a/", &["A"]), Ok(None));
        assert_eq!(path("https://a/", &[]), Err(BadTarget::Host));
        for host in [
            "a",
            "a.test",
            "a:8443",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:8443",
            "a_b",
            "%2Frun%2Fa.sock",
        ] {
            assert_eq!(path("/", &[host]), Ok(None), "{host}");
        }
        for host in [
            "",
            "a, b",
            "a b",
            "u@a",
            "a/b",
            "https://a",
            ":80",
            "[::1]x",
            "[a]",
            "::1",
            "a:b",
            "a\\b",
        ] {
            assert_eq!(path("/", &[host]), Err(BadTarget::Host), "{host}");
        }
        assert_eq!(path("https://u@a/", &["u@a"]), Err(BadTarget::Host));
    }

    #[test]
    fn only_names_that_never_mean_another_machine_are_its_own() {
        let check = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.append(header::HOST, HeaderValue::from_str(host).expect("a host"));
            check_own_host(&headers)
        };
        for own in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1",
            "127.1.2.3:80",
            "[::1]",
            "[::1]:8080",
            "gateway.localhost:8080",
        ] {
            assert_eq!(check(own), Ok(()), "{own}");
        }
        for foreign in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "evillocalhost",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "localhost@evil.example:80",
            "192.0.2.1",
            "[::ffff:192.0.2.1]",
            "2130706433",
            "",
        ] {
            assert_eq!(check(foreign), Err(BadTarget::ForeignHost), "{foreign}");
        }
        assert_eq!(check_own_host(&HeaderMap::new()), Ok(()), "HTTP/1.0");
    }
}
