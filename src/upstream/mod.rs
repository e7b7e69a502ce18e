//! One KYBIO host, and exactly one attempt to reach it. Takes nothing less than a signed body, sends it nowhere but to the account's
//! own host, follows no redirect, and says of each failure whether anything may have left.

pub mod breaker;
pub mod connect;
pub mod destination;
pub mod pool;
pub mod probe;
pub mod send;
pub mod skew;
pub mod wire;

use std::io;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use http::HeaderValue;
use http::Uri;
use http::uri::Authority;
use prometheus::Histogram;
use prometheus::IntCounter;
use prometheus::IntGauge;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::name::UpstreamName;
use crate::observe::metrics::HANDSHAKES;
use crate::observe::metrics::Metrics;
use crate::observe::metrics::PHASES;
use crate::observe::series::HostSeries;
use crate::outcome::Left;
use crate::upstream::breaker::Breaker;
use crate::upstream::breaker::Health;
use crate::upstream::breaker::Pass;
use crate::upstream::destination::Reach;
use crate::upstream::skew::Skew;

/// What configuration says of one host.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The name that configuration gives it.
    pub name: UpstreamName,
    /// Where it is.
    pub base_url: BaseUrl,
    /// Whom its certificate must lead to.
    pub roots: Roots,
    /// Addresses instead of those that DNS has; empty for DNS. Host, SNI and verification stay the URL's.
    pub resolve: Vec<SocketAddr>,
    /// Its name may lead into a private network.
    pub allow_private: bool,
    /// It's told the trace that a call is part of.
    pub traceparent: bool,
    /// DNS, TCP and TLS together, all addresses included.
    pub connect_timeout: Duration,
    /// A read's attempt.
    pub attempt_timeout: Duration,
    /// All that a request may take, from its head on.
    pub total_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// How long any connection is used, so that address changes are seen.
    pub connection_age_max: Duration,
    /// Connections in the whole process.
    pub connections_max: usize,
    /// How far this machine's clock may be from the host's before the log warns of it.
    pub clock_skew_max: Duration,
    /// The largest reply that is read, compressed or not.
    pub reply_bytes_max: usize,
    /// When it's held to be down.
    pub breaker: breaker::Rules,
}

impl Settings {
    /// Where its name may lead. Addresses that the operator wrote aren't asked for that.
    #[must_use]
    pub fn reach(&self) -> Reach {
        if self.base_url.is_this_machine() {
            Reach::Loopback
        } else if self.allow_private {
            Reach::Private
        } else {
            Reach::Public
        }
    }
}

/// Certificate authorities that a host's certificate may lead to.
#[derive(Clone, Debug)]
pub struct Roots(pub Arc<RootCertStore>);

impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        self.0.roots == other.0.roots
    }
}

/// `https://host[:port][/path]`; `http://` to this machine alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    tls: bool,
    host: Box<str>,
    port: u16,
    authority: HeaderValue,
    path: Box<str>,
}

/// Why a text can't be a base URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Not `https://host[:port][/path]`.
    #[error("write it as https://host[:port][/path], without user, query or fragment")]
    Form,
    /// What follows the host isn't a port.
    #[error("the port must be 1 to 65535")]
    Port,
    /// It has the part that's appended.
    #[error("leave /openapi/v1 out: it's appended for each operation")]
    Path,
    /// Signed bodies in plain text over a network.
    #[error("http:// is for this machine alone (127.0.0.1, [::1], localhost): use https://")]
    PlainText,
}

impl BaseUrl {
    /// The path's trailing slash is dropped.
    ///
    /// # Errors
    /// When it has another form, or is plain text to another machine.
    pub fn parse(text: &str) -> Result<Self, BadUrl> {
        let uri: Uri = text.parse().map_err(|_| BadUrl::Form)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(BadUrl::Form),
        };
        let authority = uri.authority().ok_or(BadUrl::Form)?;
        if authority.as_str().contains('@')
            || text.contains(['?', '#'])
            || authority.host().is_empty()
        {
            return Err(BadUrl::Form);
        }
        let port = port(authority, if tls { 443 } else { 80 }).ok_or(BadUrl::Port)?;
        let host = authority.host();
        let host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(address) if address.parse::<Ipv6Addr>().is_ok() => address,
            Some(_) => return Err(BadUrl::Form),
            None => host,
        };
        if !tls && !is_this_machine(host) {
            return Err(BadUrl::PlainText);
        }
        ServerName::try_from(host).map_err(|_| BadUrl::Form)?;
        let path = uri.path().trim_end_matches('/');
        if path.to_ascii_lowercase().ends_with("/openapi/v1") {
            return Err(BadUrl::Path);
        }
        Ok(Self {
            tls,
            host: host.into(),
            port,
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| BadUrl::Form)?,
            path: path.into(),
        })
    }

    /// Not plain text.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host is this machine, by name or by address.
    #[must_use]
    pub fn is_this_machine(&self) -> bool {
        is_this_machine(&self.host)
    }

    /// The host, if it's written as an address.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// The port that was written, or the scheme's own. What can't be one isn't passed over: signed bodies would go where nobody meant.
fn port(authority: &Authority, default: u16) -> Option<u16> {
    let after_host = authority.as_str().strip_prefix(authority.host())?;
    match after_host.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port > 0),
        None => after_host.is_empty().then_some(default),
    }
}

/// One host for the whole process: TLS sessions and the number of connections are shared by all workers.
pub struct Upstream {
    settings: Settings,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    permits: Arc<Semaphore>,
    /// Workers that wait for a permit now.
    waiting: AtomicUsize,
    /// Rings when somebody starts to wait.
    wanted: Notify,
    breaker: Arc<Breaker>,
    retired: CancellationToken,
    series: Arc<HostSeries>,
    open: IntGauge,
    idle: IntGauge,
    opened: IntCounter,
    reused: IntCounter,
    ages: Histogram,
    /// By [`HANDSHAKES`].
    handshakes: [IntCounter; HANDSHAKES.len()],
    /// By [`PHASES`].
    phases: [Histogram; PHASES.len()],
    clock_skew: Skew,
    probes: [IntCounter; 2],
}

impl Upstream {
    /// # Errors
    /// When the TLS library refuses the settings.
    pub fn new(settings: Settings, metrics: &Metrics) -> Result<Self, rustls::Error> {
        let name = settings.name.as_str();
        let tls = if settings.base_url.tls {
            Some(connect::tls(&settings)?)
        } else {
            None
        };
        let breaker = Breaker::new(
            settings.name.clone(),
            settings.breaker,
            metrics.breaker_state.with_label_values(&[name]),
            metrics.breaker_opens.with_label_values(&[name]),
        );
        let probes = ["failed", "reached"]
            .map(|result| metrics.breaker_probes.with_label_values(&[name, result]));
        let handshakes =
            HANDSHAKES.map(|kind| metrics.upstream_handshakes.with_label_values(&[name, kind]));
        let phases = PHASES.map(|phase| metrics.phase_seconds.with_label_values(&[name, phase]));
        let connections_max = i64::try_from(settings.connections_max).unwrap_or(i64::MAX);
        metrics
            .upstream_connections_max
            .with_label_values(&[name])
            .set(connections_max);
        let clock_skew = metrics.clock_skew.with_label_values(&[name]);
        metrics
            .clock_skew_max
            .with_label_values(&[name])
            .set(settings.clock_skew_max.as_secs_f64());
        Ok(Self {
            series: Arc::new(HostSeries::new(settings.name.clone(), metrics)),
            clock_skew: Skew::new(settings.name.clone(), settings.clock_skew_max, clock_skew),
            handshakes,
            phases,
            idle: metrics.upstream_connections_idle.with_label_values(&[name]),
            ages: metrics.upstream_connection_ages.with_label_values(&[name]),
            permits: Arc::new(Semaphore::new(settings.connections_max)),
            breaker: Arc::new(breaker),
            retired: CancellationToken::new(),
            probes,
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
            open: metrics.upstream_connections.with_label_values(&[name]),
            opened: metrics.upstream_opened.with_label_values(&[name]),
            reused: metrics.upstream_reused.with_label_values(&[name]),
            tls,
            settings,
        })
    }

    /// What configuration says of it.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What its attempts are counted in.
    #[must_use]
    pub fn series(&self) -> &Arc<HostSeries> {
        &self.series
    }

    /// It's held to be down: a call would be refused.
    #[must_use]
    pub fn is_down(&self, now: Instant) -> bool {
        self.breaker.refuses(now)
    }

    /// Leave to make one attempt.
    ///
    /// # Errors
    /// [`Error::Down`] while it's held to be down.
    pub fn enter(&self, now: Instant) -> Result<Pass, Error> {
        self.breaker.enter(now).map_err(|breaker::Open| Error::Down)
    }

    /// Another one takes its place: what is under way ends here, and nothing is kept for later.
    pub fn retire(&self) {
        self.retired.cancel();
        self.breaker.retire();
    }

    /// Another one has taken its place.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.is_cancelled()
    }

    fn show_phase(&self, phase: Phase, took: Duration) {
        if let Some(histogram) = self.phases.get(phase as usize) {
            histogram.observe(took.as_secs_f64());
        }
    }

    fn count_probe(&self, reached: bool) {
        self.probes[usize::from(reached)].inc();
    }
}

/// The parts of an attempt, in the order of [`PHASES`].
#[derive(Clone, Copy, Debug)]
enum Phase {
    Connect,
    FirstByte,
    Rest,
}

/// Why an attempt brought no whole reply.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's name has no address.
    #[error("the host's name can't be resolved")]
    Resolve(#[source] io::Error),
    /// It has none that may be connected to.
    #[error("the host's name leads where no call may go")]
    Destination(#[source] destination::Refused),
    /// No address took the connection. Which, and why, is for the log alone.
    #[error("the host can't be reached")]
    Connect(#[source] io::Error),
    /// The machine that the gateway runs on has nothing left to make a connection of, mostly no descriptor.
    #[error("the gateway has no means left to make a connection")]
    Exhausted(#[source] io::Error),
    /// The TLS handshake failed: mostly a certificate that isn't trusted.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// No connection in time.
    #[error("no connection within the connect timeout")]
    ConnectTimeout,
    /// `connections_max` are in use.
    #[error("all connections are in use")]
    Capacity,
    /// The breaker is open: nothing was tried.
    #[error("the host is down: too many calls to it have failed")]
    Down,
    /// Once there was a connection, too little time was left to hear an answer.
    #[error("the time was gone before there was a connection")]
    Late,
    /// Once there was a connection, nobody waited for an answer any more.
    #[error("the caller had gone before there was a connection")]
    Unwanted,
    /// The connection had gone before the request was written.
    #[error("the connection had gone before the request was sent")]
    Unsent {
        /// What hyper met.
        #[source]
        cause: hyper::Error,
        /// It had carried a call before.
        reused: bool,
    },
    /// The connection broke.
    #[error("the connection broke before the reply was whole")]
    Broken(#[source] hyper::Error),
    /// No whole reply in time.
    #[error("no whole reply in time")]
    Timeout(Left),
    /// The reply is larger than `reply_bytes_max`.
    #[error("the reply is larger than {0} bytes")]
    TooLarge(usize),
}

impl Error {
    /// Decided where the error was born.
    #[must_use]
    pub fn left(&self) -> Left {
        match self {
            Self::Resolve(_)
            | Self::Destination(_)
            | Self::Connect(_)
            | Self::Exhausted(_)
            | Self::Tls(_)
            | Self::ConnectTimeout
            | Self::Capacity
            | Self::Down
            | Self::Late
            | Self::Unwanted
            | Self::Unsent { .. } => Left::Nothing,
            Self::Timeout(left) => *left,
            Self::Broken(_) | Self::TooLarge(_) => Left::Perhaps,
        }
    }

    /// What it says of the host. `fair`: the caller's own upload didn't use up the time.
    fn health(&self, fair: bool) -> Health {
        match self {
            // That a host didn't answer in what a slow upload has left over is no fault of its own.
            Self::ConnectTimeout | Self::Timeout(_) if !fair => Health::Unknown,
            Self::Resolve(_)
            | Self::Destination(_)
            | Self::Connect(_)
            | Self::Tls(_)
            | Self::ConnectTimeout
            | Self::Broken(_)
            | Self::Unsent { reused: false, .. }
            | Self::Timeout(Left::Perhaps) => Health::Ill,
            // It did answer.
            Self::TooLarge(_) => Health::Well,
            // Ours, or an idle connection's end.
            Self::Exhausted(_)
            | Self::Capacity
            | Self::Down
            | Self::Late
            | Self::Unwanted
            | Self::Unsent { reused: true, .. }
            | Self::Timeout(Left::Nothing) => Health::Unknown,
        }
    }

    /// The `result` label of an attempt.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "resolve",
            Self::Destination(_) => "destination",
            Self::Connect(_) => "connect",
            Self::Exhausted(_) => "exhausted",
            Self::Tls(_) => "tls",
            Self::ConnectTimeout => "connect-timeout",
            Self::Capacity => "capacity",
            Self::Down => "down",
            Self::Late => "late",
            Self::Unwanted => "unwanted",
            Self::Unsent { .. } => "unsent",
            Self::Broken(_) => "broken",
            Self::Timeout(_) => "timeout",
            Self::TooLarge(_) => "too-large",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BadUrl;
    use super::BaseUrl;

    #[test]
    fn base_urls_are_https_or_this_machine() {
        let check = |text: &str, expected: Result<(&str, u16, &str), BadUrl>| {
            let url = BaseUrl::parse(text);
            assert_eq!(
                url.as_ref()
                    .map(|url| (&*url.host, url.port, &*url.path))
                    .map_err(|error| *error),
                expected,
                "{text}"
            );
        };
        check(
            "https://area1.example.com/pospal-api2",
            Ok(("area1.example.com", 443, "/pospal-api2")),
        );
        check(
            "https://area1.example.com:8443/a/",
            Ok(("area1.example.com", 8443, "/a")),
        );
        check(
            "https://area1.example.com",
            Ok(("area1.example.com", 443, "")),
        );
        check("http://127.0.0.1:9443", Ok(("127.0.0.1", 9443, "")));
        check("http://[::1]:1/x", Ok(("::1", 1, "/x")));
        check("http://localhost", Ok(("localhost", 80, "")));
        check("http://area1.example.com", Err(BadUrl::PlainText));
        for port in ["0", "65536", "194430", ""] {
            check(
                &format!("https://area1.example.com:{port}/a"),
                Err(BadUrl::Port),
            );
        }
        check(
            "https://area1.example.com/pospal-api2/openapi/v1/",
            Err(BadUrl::Path),
        );
        check("https://[area1.example.com]", Err(BadUrl::Form));
        check("http://127.0.0.1.example.com", Err(BadUrl::PlainText));
        for bad in [
            "",
            "area1.example.com",
            "ftp://x",
            "https://",
            "https://u:p@x",
            "https://x/?q",
            "https://x/#f",
            "https://x y",
        ] {
            check(bad, Err(BadUrl::Form));
        }
    }
}
