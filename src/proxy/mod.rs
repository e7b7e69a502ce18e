//! The life of a request, top to bottom. Nothing on the request path hides elsewhere.

pub mod error;
pub mod respond;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::Request;
use http::Response;
use http::header;
use http::request::Parts;
use hyper::body::Body;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::identity::Callers;
use crate::identity::Names;
use crate::listener::Peer;
use crate::name::UpstreamName;
use crate::observe::exchange::Answer;
use crate::observe::exchange::Attempt;
use crate::observe::exchange::Exchange;
use crate::observe::metrics::Metrics;
use crate::operation::Class;
use crate::outcome::Outcome;
use crate::payload;
use crate::payload::Payload;
use crate::policy::Grant;
use crate::policy::Head;
use crate::policy::Policy;
use crate::proxy::error::Error;
use crate::reply;
use crate::reply::Reply;
use crate::sign;
use crate::upstream::Upstream;
use crate::upstream::pool::Pool;
use crate::upstream::send;

/// What configuration says of callers' bodies.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The largest body.
    pub body_bytes_max: usize,
    /// From head to whole body.
    pub body_timeout: Duration,
}

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
    pub upstreams: Vec<Arc<Upstream>>,
    /// Limits of bodies.
    pub settings: Settings,
    /// Where it's counted.
    pub metrics: Arc<Metrics>,
    /// What time it is.
    pub clock: Clock,
}

/// One worker's end of the line: the shared rules, and connections of its own.
pub struct Worker {
    proxy: Arc<Proxy>,
    pools: HashMap<UpstreamName, Pool>,
    /// Attempts outlive their callers: a call that may have effect isn't cut because nobody listens any more.
    attempts: TaskTracker,
}

/// What comes of a call: KYBIO's word, or why there's none.
type Verdict = Result<Reply, Error>;

impl Worker {
    /// `drivers` owns the tasks that drive connections, `attempts` those of calls under way.
    #[must_use]
    pub fn new(proxy: Arc<Proxy>, drivers: &TaskTracker, attempts: TaskTracker) -> Self {
        let pool = |upstream: &Arc<Upstream>| {
            let pool = Pool::new(Arc::clone(upstream), proxy.clock.clone(), drivers.clone());
            (upstream.settings().name.clone(), pool)
        };
        Self {
            pools: proxy.upstreams.iter().map(pool).collect(),
            proxy,
            attempts,
        }
    }

    /// The kept connections, for whoever sweeps them.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values()
    }

    /// Answers one request.
    pub async fn handle<B>(self: Arc<Self>, peer: &Peer, request: Request<B>) -> Response<Bytes>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    {
        let (head, mut body) = request.into_parts();
        let mut exchange = Exchange::begin(
            Arc::clone(&self.proxy.metrics),
            self.proxy.clock.clone(),
            peer.address,
        );
        let id = exchange.id;
        let ended = match self
            .proxy
            .admit(&peer.names, &head, &mut body, &mut exchange)
            .await
        {
            Ok((grant, payload)) => self.forward(grant, payload, exchange).await,
            Err(error) => {
                if !error.ends_body() {
                    self.proxy.discard(&head.headers, body).await;
                }
                Some((exchange, Err(error)))
            }
        };
        match ended {
            Some((exchange, Ok(reply))) => respond::reply(&head.headers, &reply, exchange),
            Some((exchange, Err(error))) => respond::refusal(&error, exchange),
            None => respond::internal(id),
        }
    }

    /// Makes the one attempt in a task of its own, and waits for what comes of it. `None` if the task panicked, which is a bug.
    async fn forward(
        self: Arc<Self>,
        grant: Grant,
        payload: Payload,
        mut exchange: Exchange,
    ) -> Option<(Exchange, Verdict)> {
        let worker = Arc::clone(&self);
        let attempt = self.attempts.spawn(async move {
            let verdict = worker.attempt(&grant, &payload, &mut exchange).await;
            (exchange, verdict)
        });
        attempt.await.ok()
    }

    async fn attempt(&self, grant: &Grant, payload: &Payload, exchange: &mut Exchange) -> Verdict {
        let Proxy { clock, .. } = &*self.proxy;
        let pool = self
            .pools
            .get(&grant.account().upstream)
            .ok_or(Error::NoUpstream)?;
        let settings = pool.upstream().settings();
        let started = clock.now();
        let total = exchange.started() + settings.total_timeout;
        // A write's one attempt has all the time that is left: to give it up early would only make its outcome unknown.
        let deadline = if grant.operation().class == Class::Read {
            total.min(started + settings.attempt_timeout)
        } else {
            total
        };

        let stamp = clock.stamp();
        let signed = sign::sign(payload, grant.key());
        let call = send::Call {
            operation: &grant.operation().name,
            signed: &signed,
            stamp,
        };
        // If this task ends here, for whatever reason, that is the truth.
        exchange.outcome = Outcome::Unknown;
        let sent = send::send(pool, &call, deadline).await;

        let result = sent
            .as_ref()
            .map_or_else(|error| error.label(), |_| "answered");
        exchange.attempt = Some(Attempt {
            upstream: settings.name.clone(),
            result,
            duration: clock.now() - started,
        });
        let verdict = sent.map_err(Error::Upstream).and_then(|answer| {
            reply::read(
                answer.status,
                &answer.headers,
                answer.body,
                settings.reply_bytes_max,
            )
            .map_err(Error::Reply)
        });
        exchange.outcome = verdict.as_ref().map_or_else(Error::outcome, outcome);
        exchange.answer = verdict.as_ref().ok().map(|reply| Answer {
            success: reply.verdict().success,
            code: reply.verdict().code,
        });
        verdict
    }
}

fn outcome(reply: &Reply) -> Outcome {
    if reply.verdict().success {
        Outcome::Done
    } else {
        Outcome::Rejected
    }
}

impl Proxy {
    /// Everything that's decided before a byte leaves: who, what, with which account, and whether the body is fit to be signed.
    async fn admit<B>(
        &self,
        names: &Names,
        head: &Parts,
        body: &mut B,
        exchange: &mut Exchange,
    ) -> Result<(Grant, Payload), Error>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    {
        let caller = self.callers.identify(names)?;
        exchange.caller = Some(caller.name().clone());

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
            })
            .inspect_err(|_| {
                // What is no operation is named in the log as it was written, or nobody could tell what was wrong.
                exchange.target = Some(format!("{method} {}", uri.path()));
            })?;
        exchange.operation = Some((asked.operation().name.clone(), asked.operation().class));
        let permit = self.policy.authorize(&caller, asked, headers)?;
        exchange.permitted = true;
        exchange.account = permit.account().map(|account| account.name.clone());
        if headers.contains_key("idempotency-key") {
            return Err(Error::IdempotencyKey);
        }

        payload::check_head(headers, *version, body.is_end_stream())?;
        let waited = self.clock.now();
        let whole = payload::read(
            body,
            self.settings.body_bytes_max,
            waited + self.settings.body_timeout,
        )
        .await;
        exchange.body_wait = self.clock.now() - waited;
        let whole = whole?;
        exchange.request_bytes = whole.len();

        let draft = payload::check(whole).map_err(payload::Error::Invalid)?;
        let grant = permit.settle(draft.app_id())?;
        exchange.account = Some(grant.account().name.clone());
        let payload = draft.address(&grant.account().app_id)?;
        Ok((grant, payload))
    }

    async fn discard<B: Body<Data = Bytes> + Unpin>(&self, headers: &HeaderMap, body: B) {
        // Who waits for our leave before sending isn't sending: to read would be to give leave.
        if !body.is_end_stream() && !headers.contains_key(header::EXPECT) {
            payload::discard(body, DISCARD_BYTES_MAX, self.clock.now() + DISCARD_TIMEOUT).await;
        }
    }
}
