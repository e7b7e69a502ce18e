//! The life of a request, top to bottom. Nothing on the request path hides elsewhere.

mod earlier;
pub mod error;
pub mod forward;
mod migration;
pub mod respond;
pub mod route;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::Method;
use http::Request;
use http::Response;
use http::header;
use http::request::Parts;
use hyper::body::Body;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::answers::Answers;
use crate::clock::Clock;
use crate::identity::Caller;
use crate::identity::Callers;
use crate::identity::Presented;
use crate::keyring::Keyring;
use crate::listener::Peer;
use crate::observe::exchange::Exchange;
use crate::observe::ration::Ration;
use crate::observe::series::Series;
use crate::payload;
use crate::payload::Payload;
use crate::payload::Sizes;
use crate::payload::room::Room;
use crate::policy::Grant;
use crate::policy::Head;
use crate::policy::Policy;
use crate::proxy::error::Error;
use crate::proxy::forward::Unheard;
use crate::proxy::route::Route;
use crate::proxy::route::Routes;
use crate::quota::Latches;
use crate::slots::Slots;
use crate::upstream::pool::Pool;

/// What configuration says of callers' bodies, and of requests' lines in the log.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How large they may be.
    pub sizes: Sizes,
    /// From head to whole body.
    pub body_timeout: Duration,
    /// Of requests that are done, one in so many has a line.
    pub done_one_in: u32,
}

/// Shortens the caller's wait, in milliseconds.
const TIMEOUT: HeaderName = HeaderName::from_static("kybio-gateway-timeout-ms");

/// KYBIO has no such thing, so that nobody is to rely on it.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// An hour, which is the longest time that can be configured.
const TIMEOUT_MS_MAX: u64 = 3_600_000;

/// How much of a refused request's body is read and dropped, so that the caller reads our answer and not a reset. Some HTTP/2 clients
/// read no answer at all before they have sent everything.
const DISCARD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// For how long.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything that decides, made once and shared by all workers. A reload makes a new one.
pub struct Proxy {
    /// Who may be who.
    pub callers: Callers,
    /// Who may do what.
    pub policy: Policy,
    /// Where to.
    pub routes: Routes,
    /// How many at a time.
    pub slots: Slots,
    /// How much memory bodies take.
    pub bodies: Room,
    /// Lines for requests of whoever is no caller: anybody with a certificate of the right CA can send as many as they like.
    pub strangers: Arc<Ration>,
    /// The accounts' keys, as people may see them.
    pub keyring: Keyring,
    /// Accounts whose calls for the day are used up.
    pub latches: Arc<Latches>,
    /// What KYBIO's error answers mean.
    pub answers: Answers,
    /// Limits of bodies.
    pub settings: Settings,
    /// Where it's counted.
    pub series: Arc<Series>,
    /// What time it is.
    pub clock: Clock,
}

/// One worker: the line that requests go along now, and the tasks of those that are under way.
pub struct Worker {
    line: ArcSwap<Line>,
    /// They drive connections to upstreams.
    drivers: TaskTracker,
    /// Attempts outlive their callers: a call that may have effect isn't cut because nobody listens any more.
    attempts: TaskTracker,
}

/// The shared rules, and one worker's own connections. A request goes along one line from its head to its end, whatever is reloaded
/// meanwhile.
pub struct Line {
    proxy: Arc<Proxy>,
    /// One for each route, in their order.
    pools: Vec<Arc<Pool>>,
    attempts: TaskTracker,
}

impl Worker {
    /// Nothing is under way.
    #[must_use]
    pub fn new(proxy: Arc<Proxy>) -> Self {
        let (drivers, attempts) = (TaskTracker::new(), TaskTracker::new());
        let line = Line::new(proxy, None, &drivers, attempts.clone());
        Self {
            line: ArcSwap::from_pointee(line),
            drivers,
            attempts,
        }
    }

    /// The line for a request that begins now.
    #[must_use]
    pub fn line(&self) -> Arc<Line> {
        self.line.load_full()
    }

    /// From now on requests go by other rules. Connections to upstreams that stay are kept.
    pub fn reload(&self, proxy: Arc<Proxy>) {
        let before = self.line();
        let attempts = self.attempts.clone();
        let line = Line::new(proxy, Some(&before), &self.drivers, attempts);
        for pool in &before.pools {
            if !line.pools.iter().any(|kept| Arc::ptr_eq(kept, pool)) {
                pool.close();
            }
        }
        self.line.store(Arc::new(line));
    }

    /// The calls under way.
    #[must_use]
    pub fn attempts(&self) -> &TaskTracker {
        &self.attempts
    }
}

impl Line {
    fn new(
        proxy: Arc<Proxy>,
        before: Option<&Self>,
        drivers: &TaskTracker,
        attempts: TaskTracker,
    ) -> Self {
        let pool = |route: &Route| {
            let is_its = |pool: &&Arc<Pool>| std::ptr::eq(pool.upstream(), &*route.upstream);
            let kept = before.and_then(|before| before.pools.iter().find(is_its));
            kept.map_or_else(
                || {
                    let upstream = Arc::clone(&route.upstream);
                    Arc::new(Pool::new(upstream, proxy.clock.clone(), drivers.clone()))
                },
                Arc::clone,
            )
        };
        Self {
            pools: proxy.routes.iter().map(pool).collect(),
            proxy,
            attempts,
        }
    }

    /// The kept connections, for whoever sweeps them.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.iter()
    }

    /// Closes what has been kept for too long. Called each second, and when another worker wants a connection.
    pub fn sweep(&self) {
        self.pools.iter().for_each(|pool| pool.sweep());
        self.proxy.latches.sweep(self.proxy.clock.since_epoch());
    }

    /// Whose a connection is; none, if nobody knows it.
    #[must_use]
    pub fn caller(&self, presented: &Presented) -> Option<Caller> {
        self.proxy.callers.identify(presented).ok()
    }

    /// Answers one request. Its time counts from this call on, before the answer is waited for. (An async function would keep what it's given
    /// twice, and what waits is to be small.)
    pub fn handle<B>(
        self: Arc<Self>,
        peer: Arc<Peer>,
        request: Request<B>,
    ) -> impl Future<Output = Response<Bytes>> + use<B>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    {
        let (head, mut body) = request.into_parts();
        let mut exchange = Exchange::begin(
            Arc::clone(&self.proxy.series),
            self.proxy.clock.clone(),
            Arc::clone(&peer.address),
            &head.headers,
        );
        exchange.done_one_in = self.proxy.settings.done_one_in;
        async move {
            let admitted = self
                .proxy
                .admit(&peer.presented, &head, &mut body, &mut exchange)
                .await;
            let Admitted {
                grant,
                payload,
                patience,
            } = match admitted {
                Ok(admitted) => admitted,
                Err(error) => {
                    // Who waits for our leave before sending isn't sending: to read would be to give leave.
                    let waits = head.headers.contains_key(header::EXPECT);
                    // A field can be one byte on the wire and a hundred here: that isn't kept while the body is waited for.
                    drop(head);
                    if !error.ends_body() && !waits {
                        self.proxy.discard(body).await;
                    }
                    return respond::refusal(&error, exchange);
                }
            };
            let forwarded = self.forward(grant, payload, exchange, patience).await;
            let (exchange, verdict) = match forwarded {
                Ok(ended) => ended,
                Err(Unheard::GaveUp(receipt)) => return respond::gave_up(&receipt),
                Err(Unheard::Failed(receipt)) => return respond::internal(&receipt),
            };
            match verdict {
                Ok(reply) => respond::reply(&head.headers, &reply, exchange),
                Err(error) => respond::refusal(&error, exchange),
            }
        }
    }
}

/// A request that may be forwarded.
struct Admitted {
    grant: Grant,
    payload: Payload,
    /// When the caller stops waiting, if it says so.
    patience: Option<Instant>,
}

impl Proxy {
    /// Everything that's decided before a byte leaves: who, what, with which account, and whether the body is fit to be signed.
    async fn admit<B>(
        &self,
        presented: &Presented,
        head: &Parts,
        body: &mut B,
        exchange: &mut Exchange,
    ) -> Result<Admitted, Error>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    {
        let caller = self.callers.identify(presented).inspect_err(|_| {
            match self.strangers.line(self.clock.now()) {
                Some(unlogged) => exchange.unlogged = unlogged,
                None => exchange.is_logged = false,
            }
        })?;
        exchange.caller = self.policy.number(&caller);

        let Parts {
            method,
            uri,
            version,
            headers,
            ..
        } = head;
        let asked = self
            .policy
            .resolve(&Head {
                method,
                uri,
                version: *version,
                headers,
                from_loopback: *presented == Presented::Loopback,
            })
            .inspect_err(|_| {
                // What is no operation is named in the log as it was written, or nobody could tell what was wrong.
                let target = uri.authority().filter(|_| uri.path().is_empty());
                let target = target.map_or_else(|| uri.path(), |authority| authority.as_str());
                exchange.target = Some(fit_for_a_log(method, target));
            })?;
        exchange.operation = Some(Arc::clone(asked.operation()));
        let permit = self.policy.authorize(&caller, asked, headers)?;
        exchange.permitted = Some(permit.operation_number());
        exchange.account = permit.account_number();
        if headers.contains_key(IDEMPOTENCY_KEY) {
            return Err(Error::IdempotencyKey);
        }
        let patience = patience(headers)?.map(|patience| exchange.started() + patience);

        payload::check_head(headers, *version, body.is_end_stream())?;
        let waited = self.clock.now();
        let whole = payload::read(
            body,
            self.settings.sizes,
            self.bodies.hold(caller.name().clone()),
            patience
                .into_iter()
                .fold(waited + self.settings.body_timeout, Instant::min),
        )
        .await;
        let now = self.clock.now();
        exchange.uploading = now - waited;
        exchange.waited += exchange.uploading;
        let whole = whole.map_err(|error| match (&error, patience) {
            (payload::Error::Slow, Some(patience)) if patience <= now => Error::CallerTimeout,
            _ => Error::Payload(error),
        })?;
        exchange.request_bytes = whole.length();

        let draft = payload::check(whole).map_err(payload::Error::Invalid)?;
        let grant = permit.settle(draft.app_id())?;
        exchange.account = Some(grant.account_number());
        exchange.signed = Some(migration::signed(headers, draft.written(), grant.key()));
        let payload = draft.address(&grant.account().app_id)?;
        Ok(Admitted {
            grant,
            payload,
            patience,
        })
    }

    async fn discard<B: Body<Data = Bytes> + Unpin>(&self, body: B) {
        if !body.is_end_stream() {
            payload::discard(body, DISCARD_BYTES_MAX, self.clock.now() + DISCARD_TIMEOUT).await;
        }
    }
}

/// Method and target without what may have been put there by mistake, a member's number or name, or a key: of a target the segments of letters,
/// as operations have them, and the vendor's own.
fn fit_for_a_log(method: &Method, target: &str) -> String {
    const STANDARD: [Method; 9] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    let is_fit = |segment: &&str| {
        ["v1", "pospal-api", "pospal-api2", "*"].contains(segment)
            || segment
                .bytes()
                .all(|byte| byte.is_ascii_alphabetic() || byte == b'.')
    };
    let fit = target
        .split('/')
        .map(|segment| Some(segment).filter(is_fit).unwrap_or("…"));
    let method = STANDARD.iter().find(|standard| *standard == method);
    format!(
        "{} {}",
        method.map_or("…", Method::as_str),
        fit.collect::<Vec<_>>().join("/")
    )
}

/// How long the caller waits, counted from its request's head. It can only shorten what is configured.
fn patience(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let mut values = headers.get_all(TIMEOUT).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let digits = value.as_bytes();
            let number = digits.iter().all(u8::is_ascii_digit).then_some(digits);
            let milliseconds = number
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .and_then(|digits| digits.parse::<u64>().ok())
                .filter(|milliseconds| (1..=TIMEOUT_MS_MAX).contains(milliseconds));
            let patience = milliseconds.map(Duration::from_millis);
            patience.map(Some).ok_or(Error::BadTimeout)
        }
        (Some(_), Some(_)) => Err(Error::BadTimeout),
    }
}

#[cfg(test)]
mod tests {
    use super::fit_for_a_log;

    #[test]
    fn a_logged_target_has_no_numbers_no_names_and_no_keys() {
        for (method, target, expected) in [
            (
                "POST",
                "/openapi/v1/customerOpenApi/add",
                "POST /openapi/v1/customerOpenApi/add",
            ),
            (
                "GET",
                "/pospal-api2/openapi/v1/no/such",
                "GET /pospal-api2/openapi/v1/no/such",
            ),
            (
                "POST",
                "/customers/17759205640/points",
                "POST /customers/…/points",
            ),
            ("POST", "/177/592/056/40", "POST /…/…/…/…"),
            ("POST", "/openapi/v1/roger1AppKey", "POST /openapi/v1/…"),
            ("51EDB2A84DDD", "/7319CanaryKey5520", "… /…"),
            ("POST", "/members/%E5%BC%A0", "POST /members/…"),
            ("POST", "/tel=1775/zhang-san/张三", "POST /…/…/…"),
            ("CONNECT", "user:word@host:443", "CONNECT …"),
            ("POST", "//a/../", "POST //a/../"),
            ("OPTIONS", "*", "OPTIONS *"),
            ("GET", "", "GET "),
        ] {
            let method = method.parse().expect("a method");
            assert_eq!(fit_for_a_log(&method, target), expected);
        }
    }
}
