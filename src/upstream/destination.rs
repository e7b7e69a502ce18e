//! Where a signed body may go: which addresses a host's name may lead to. Whoever can answer for DNS could otherwise have the gateway
//! hand signatures to a machine in its own network, or knock there.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

/// What may be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The internet alone.
    Public,
    /// Private networks and this machine too.
    Private,
    /// This machine alone: the URL names it.
    Loopback,
}

/// What an address is, as far as this goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reached over the internet.
    Public,
    /// This machine.
    Loopback,
    /// A network of somebody's own, or an address set apart for documents, tests and translation.
    Private,
    /// Nobody's address, or everybody's in the same wire: of what stands there, a cloud's metadata service is the best known.
    NoHost,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Loopback => "this machine",
            Self::Private => "in a private network",
            Self::NoHost => "a link-local, multicast or reserved address",
        })
    }
}

/// Why a name's addresses can't be connected to. For the log alone: they tell of networks.
#[derive(Debug, thiserror::Error)]
pub struct Refused {
    addresses: Vec<IpAddr>,
    reach: Reach,
}

/// Addresses that are told.
const TOLD_MAX: usize = 4;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told: Vec<_> = self.addresses.iter().take(TOLD_MAX).collect();
        for address in &told {
            write!(f, "{address} ({}), ", kind(**address))?;
        }
        let more = self.addresses.len() - told.len();
        if more > 0 {
            write!(f, "and {more} more, ")?;
        }
        let is_host = |address: &IpAddr| kind(*address) != Kind::NoHost;
        f.write_str(match self.reach {
            Reach::Loopback => "which isn't this machine, as base_url says: look at the file of hosts",
            Reach::Public if self.addresses.iter().any(is_host) => {
                "which isn't connected to: is DNS right? If the host is really there, set allow_private"
            }
            Reach::Public | Reach::Private => "where no host is: look at DNS",
        })
    }
}

impl Reach {
    /// Of these addresses, those that may be connected to.
    ///
    /// # Errors
    /// When none of them may, though there are some.
    pub fn filter(self, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let (covered, refused): (Vec<_>, Vec<_>) = addresses
            .into_iter()
            .partition(|address| self.covers(address.ip()));
        if covered.is_empty() && !refused.is_empty() {
            return Err(Refused {
                addresses: refused.iter().map(SocketAddr::ip).collect(),
                reach: self,
            });
        }
        Ok(covered)
    }

    /// Whether this address may be connected to.
    #[must_use]
    pub fn covers(self, address: IpAddr) -> bool {
        match (self, kind(address)) {
            (Self::Public | Self::Private, Kind::Public)
            | (Self::Private, Kind::Private)
            | (Self::Private | Self::Loopback, Kind::Loopback) => true,
            (_, Kind::NoHost)
            | (Self::Public, Kind::Private | Kind::Loopback)
            | (Self::Loopback, Kind::Public | Kind::Private) => false,
        }
    }
}

/// By IANA's registries of special-purpose addresses (RFC 6890 and what came after it), for IPv6 also by what IANA has given out at all.
#[must_use]
pub fn kind(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(address) => kind_4(address),
        IpAddr::V6(address) => kind_6(address),
    }
}

fn kind_4(address: Ipv4Addr) -> Kind {
    match address.octets() {
        // Loopback (RFC 1122).
        [127, ..] => Kind::Loopback,
        // "This network" (RFC 791), link-local (RFC 3927), multicast (RFC 5771), reserved and broadcast (RFC 1112, RFC 919).
        [0, ..] | [169, 254, ..] | [224..=255, ..]
        // Metadata services that aren't link-local (Alibaba's, Oracle's).
        | [100, 100, 100, 200]
        | [192, 0, 0, 192] => Kind::NoHost,
        // Private use (RFC 1918).
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..]
        // Shared with a carrier (RFC 6598), where some clouds have their metadata service.
        | [100, 64..=127, ..]
        // Protocol assignments (RFC 6890), documents (RFC 5737), 6to4 relays (RFC 7526), AS112 and AMT (RFC 7534, 7535, 7450), tests (RFC 2544).
        | [192, 0, 0 | 2, _]
        | [192, 31, 196, _]
        | [192, 52, 193, _]
        | [192, 88, 99, _]
        | [192, 175, 48, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _] => Kind::Private,
        _ => Kind::Public,
    }
}

/// Those that carry an IPv4 address are what that is: a translator on the way unpacks it.
fn kind_6(address: Ipv6Addr) -> Kind {
    let segments = address.segments();
    let inner = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        kind_4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => Kind::Loopback,
        // Mapped (RFC 4291), translated with the well-known prefix (RFC 6052): the latter can't lead to the translator itself.
        [0, 0, 0, 0, 0, 0xffff, high, low] => inner(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => match inner(high, low) {
            Kind::Loopback => Kind::Private,
            other => other,
        },
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => match inner(high, low) {
            Kind::Loopback => Kind::Private,
            other => other,
        },
        // AWS has its metadata service among the unique local addresses.
        [0xfd00, 0xec2, ..] => Kind::NoHost,
        // Unique local (RFC 4193), site-local as it once was (RFC 3879), translation for local use (RFC 8215), protocol assignments with Teredo
        // and ORCHID among them (RFC 2928, RFC 4380), documents (RFC 3849, RFC 9637), AS112 (RFC 7535).
        [0xfc00..=0xfdff, ..]
        | [0xfec0..=0xfeff, ..]
        | [0x64, 0xff9b, 1, ..]
        | [0x2001, 0..=0x1ff, ..]
        | [0x2001, 0xdb8, ..]
        | [0x3fff, 0..=0xfff, ..]
        | [0x2620, 0x4f, 0x8000, ..] => Kind::Private,
        // Global unicast, of which nothing else has been given out (RFC 4291, RFC 3513).
        [0x2000..=0x3fff, ..] => Kind::Public,
        // Link-local, multicast, unspecified, discard-only, IPv4-compatible, and what nobody has.
        _ => Kind::NoHost,
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;
    use super::Reach;
    use super::kind;
    use std::net::SocketAddr;

    /// First and last address of each block, and its neighbours outside.
    #[test]
    fn special_addresses_are_known_to_their_edges() {
        let cases = [
            (
                Kind::Public,
                "1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0",
            ),
            (
                Kind::Public,
                "169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0",
            ),
            (
                Kind::Public,
                "192.31.195.255 192.31.197.0 192.52.192.255 192.52.194.0 192.88.98.255 192.88.100.0 192.167.255.255",
            ),
            (
                Kind::Public,
                "192.169.0.0 192.175.47.255 192.175.49.0 198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0",
            ),
            (
                Kind::Public,
                "203.0.112.255 203.0.114.0 223.255.255.255 8.8.8.8 47.100.1.2",
            ),
            (
                Kind::Loopback,
                "127.0.0.0 127.0.0.1 127.255.255.255 ::1 ::ffff:127.0.0.1",
            ),
            (
                Kind::Private,
                "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.0 192.168.255.255",
            ),
            (
                Kind::Private,
                "100.64.0.0 100.100.100.199 100.100.100.201 100.127.255.255 192.0.0.0 192.0.0.255 192.0.2.1",
            ),
            (
                Kind::Private,
                "192.31.196.0 192.52.193.0 192.88.99.1 192.175.48.1 198.18.0.0 198.19.255.255 198.51.100.1 203.0.113.1",
            ),
            (
                Kind::NoHost,
                "0.0.0.0 0.255.255.255 169.254.0.0 169.254.169.254 169.254.255.255 100.100.100.200 192.0.0.192 fd00:ec2::254 224.0.0.0 239.255.255.255 240.0.0.0 255.255.255.255",
            ),
            (
                Kind::Public,
                "2000:: 2001:200:: 2001:db7:ffff:: 2001:db9:: 2400:3200::1 2606:4700::1111 3ffe:: 3fff:1000:: 3fff:ffff::",
            ),
            (
                Kind::Public,
                "::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808:: 2003::",
            ),
            (
                Kind::Private,
                "fc00:: fd00:ec1:: fd00:ec3:: fdff:ffff:: fec0:: feff:ffff:: 64:ff9b:1:: 64:ff9b:1::a9fe:a9fe 2001:: 2001:1ff:ffff::",
            ),
            (
                Kind::Private,
                "2001:db8:: 2001:db8:ffff:: 3fff:: 3fff:fff:: 2620:4f:8000::1",
            ),
            (
                Kind::Private,
                "::ffff:10.0.0.1 64:ff9b::10.0.0.1 64:ff9b::127.0.0.1 2002:a00:1:: 2002:7f00:1:: 2002:c0a8:101::1",
            ),
            (
                Kind::NoHost,
                ":: ::2 ::10.0.0.1 ::ffff:0:0 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe:: ::ffff:0:7f00:1",
            ),
            (
                Kind::NoHost,
                "fe80:: fe80::1 febf:ffff:: ff00:: ff02::1 100::1 64:ff9a:: 64:ff9b:2:: 4000:: 5f00:: fbff:: fe00::",
            ),
        ];
        for (expected, addresses) in cases {
            for address in addresses.split(' ') {
                assert_eq!(kind(address.parse().expect(address)), expected, "{address}");
            }
        }
    }

    #[test]
    fn of_a_names_addresses_those_that_may_be_are_left() {
        let addresses = |text: &str| -> Vec<SocketAddr> {
            let address = |text: &str| SocketAddr::new(text.parse().expect("an address"), 443);
            text.split_whitespace().map(address).collect()
        };
        let left = Reach::Public.filter(addresses("10.0.0.1 8.8.8.8 ::1 2400:3200::1"));
        assert_eq!(left.ok(), Some(addresses("8.8.8.8 2400:3200::1")));
        let refused = Reach::Public.filter(addresses("10.0.0.1 ::1 10.0.0.2 10.0.0.3 10.0.0.4"));
        let told = refused.expect_err("none is public").to_string();
        assert!(
            told.starts_with("10.0.0.1 (in a private network), ::1 (this machine), "),
            "{told}"
        );
        assert!(!told.contains("10.0.0.4"), "{told}");
        assert_eq!(Reach::Public.filter(Vec::new()).ok(), Some(Vec::new()));
    }

    #[test]
    fn what_may_be_reached_is_what_was_configured() {
        let reached = |reach: Reach| {
            let of = ["47.100.1.2", "10.0.0.1", "127.0.0.1", "169.254.169.254"];
            of.map(|address| reach.covers(address.parse().expect("an address")))
        };
        assert_eq!(reached(Reach::Public), [true, false, false, false]);
        assert_eq!(reached(Reach::Private), [true, true, true, false]);
        assert_eq!(reached(Reach::Loopback), [false, false, true, false]);
    }
}
