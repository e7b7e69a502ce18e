//! Kept connections of one worker to one upstream: last in, first out, so that few stay warm rather than many lukewarm.
//!
//! It's ours because it knows what a general client hides: whether a connection is quiet before it's used again, how old it is, and
//! that nothing is tried twice behind our back.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use prometheus::Histogram;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::upstream::Error;
use crate::upstream::Upstream;
use crate::upstream::connect::connect;
use crate::upstream::wire::Accepted;
use crate::upstream::wire::Socket;

/// A reply's head that is larger is an error. The vendor's are a few hundred bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How long a returned connection may take to be ready again. Its driver runs on this very thread, so this is a few turns of it.
const READY_WAIT: Duration = Duration::from_millis(100);

/// One worker's connections to one upstream.
pub struct Pool {
    upstream: Arc<Upstream>,
    clock: Clock,
    /// Owns the task that drives each connection.
    drivers: TaskTracker,
    idle: Mutex<Vec<(Connection, Idle)>>,
    /// Rings when a connection turns idle while somebody here waits.
    returned: Notify,
    waiting_here: AtomicUsize,
}

/// A connection that nobody else uses now.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Full<Bytes>>,
    pub(super) accepted: Accepted,
    /// It has carried a call.
    pub(super) reused: bool,
    /// How often the host had been found to be down when this was opened.
    falls: u64,
    socket: Socket,
    driver: AbortHandle,
    born: Instant,
    idle_since: Instant,
}

/// Counts a connection as open for as long as it lives, and then how long that was.
struct Open {
    count: IntGauge,
    ages: Histogram,
    clock: Clock,
    born: Instant,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.count.dec();
        let age = self.clock.now().duration_since(self.born);
        self.ages.observe(age.as_secs_f64());
    }
}

/// Counts a connection as idle for as long as it lives.
struct Idle(IntGauge);

impl Idle {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Connection {
    /// Ends the task that drives it, at once: what it hasn't written by now is never written.
    pub(super) fn cut(self) {
        self.driver.abort();
    }
}

impl Pool {
    /// An empty one.
    #[must_use]
    pub fn new(upstream: Arc<Upstream>, clock: Clock, drivers: TaskTracker) -> Self {
        Self {
            upstream,
            clock,
            drivers,
            idle: Mutex::default(),
            returned: Notify::new(),
            waiting_here: AtomicUsize::new(0),
        }
    }

    /// The host.
    #[must_use]
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// The time, by the clock that ages connections.
    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Wall time since 1970-01-01 UTC.
    pub(super) fn since_epoch(&self) -> Duration {
        self.clock.since_epoch()
    }

    /// Closes what has been idle or in use for too long, and what another worker waits for. Called each second, and when
    /// [`wanted`](Self::wanted) rings.
    pub fn sweep(&self) {
        let wanted = self.upstream.waiting.load(Ordering::Acquire)
            > self.waiting_here.load(Ordering::Acquire);
        let now = self.now();
        self.idle()
            .retain(|(connection, _)| !wanted && self.is_usable(connection, now));
    }

    /// Rings when a worker starts to wait for a connection.
    pub async fn wanted(&self) {
        self.upstream.wanted.notified().await;
    }

    /// Closes all idle connections.
    pub fn close(&self) {
        self.idle().clear();
    }

    /// A connection to use alone, from `now` on: an idle one, or a new one, within `deadline`.
    pub(super) async fn checkout(
        &self,
        mut now: Instant,
        deadline: Instant,
    ) -> Result<Connection, Error> {
        // Boxed, because it's the larger one by far, and the less usual.
        let open = |permit| Box::pin(self.open(permit, deadline));
        loop {
            if let Some(connection) = self.usable(now).await {
                self.upstream.reused.inc();
                return Ok(connection);
            }
            if let Ok(permit) = Arc::clone(&self.upstream.permits).try_acquire_owned() {
                return open(permit).await;
            }
            let _waiting = Waiting::begin(self);
            let freed = async {
                tokio::select! {
                    permit = Arc::clone(&self.upstream.permits).acquire_owned() => permit.ok(),
                    () = self.returned.notified() => None,
                }
            };
            match timeout_at(deadline, freed).await {
                Ok(Some(permit)) => return open(permit).await,
                Ok(None) => now = self.now(),
                Err(_) => return Err(Error::Capacity),
            }
        }
    }

    /// Puts a connection back after a whole reply, `now`.
    pub(super) fn checkin(&self, mut connection: Connection, now: Instant) {
        if connection.sender.is_closed() || self.upstream.retired.is_cancelled() {
            return;
        }
        let waiting_here = self.waiting_here.load(Ordering::Acquire);
        if waiting_here == 0 && self.upstream.waiting.load(Ordering::Acquire) > 0 {
            // Another worker needs the permit more than this one needs a warm connection.
            return;
        }
        connection.idle_since = now;
        connection.reused = true;
        let idle = Idle::new(&self.upstream.idle);
        self.idle().push((connection, idle));
        if waiting_here > 0 {
            self.returned.notify_one();
        }
    }

    /// The youngest idle connection that can be used; the others that were looked at are closed.
    async fn usable(&self, mut now: Instant) -> Option<Connection> {
        loop {
            let (mut connection, _) = self.idle().pop()?;
            if connection.sender.is_closed()
                || !self.is_usable(&connection, now)
                || !connection.socket.is_quiet()
            {
                continue;
            }
            let ready = connection.sender.is_ready()
                || timeout(READY_WAIT, connection.sender.ready())
                    .await
                    .is_ok_and(|ready| ready.is_ok());
            if ready {
                return Some(connection);
            }
            connection.cut();
            now = self.now();
        }
    }

    fn is_usable(&self, connection: &Connection, now: Instant) -> bool {
        let settings = self.upstream.settings();
        // What leads to a host that was found to be down may be dead, though nothing shows it yet.
        connection.falls == self.upstream.breaker.falls()
            && now.duration_since(connection.idle_since) < settings.idle_timeout
            && now.duration_since(connection.born) < settings.connection_age_max
    }

    async fn open(
        &self,
        permit: OwnedSemaphorePermit,
        deadline: Instant,
    ) -> Result<Connection, Error> {
        let deadline = deadline.min(self.clock.now() + self.upstream.settings().connect_timeout);
        let falls = self.upstream.breaker.falls();
        let (wire, socket) = connect(&self.upstream, &self.clock, deadline, 0).await?;
        let accepted = wire.accepted();
        // Header names as the vendor's own clients send them don't matter (contract, section 2).
        let handshake = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(wire));
        let (sender, driver) = handshake.await.map_err(|cause| Error::Unsent {
            cause,
            reused: false,
        })?;
        self.upstream.opened.inc();
        self.upstream.open.inc();
        let now = self.clock.now();
        let open = Open {
            count: self.upstream.open.clone(),
            ages: self.upstream.ages.clone(),
            clock: self.clock.clone(),
            born: now,
        };
        // The permit and the gauge live as long as the socket does, which is as long as its driver.
        let driver = self.drivers.spawn(async move {
            // What goes wrong here is told to the attempt that it happens to.
            drop(driver.await);
            drop((open, permit));
        });
        Ok(Connection {
            sender,
            accepted,
            reused: false,
            falls,
            socket,
            driver: driver.abort_handle(),
            born: now,
            idle_since: now,
        })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Connection, Idle)>> {
        // Nothing that holds it can panic half-way through a change.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits for a permit, here and in the process.
struct Waiting<'a>(&'a Pool);

impl<'a> Waiting<'a> {
    fn begin(pool: &'a Pool) -> Self {
        pool.waiting_here.fetch_add(1, Ordering::AcqRel);
        pool.upstream.waiting.fetch_add(1, Ordering::AcqRel);
        pool.upstream.wanted.notify_waiters();
        Self(pool)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting_here.fetch_sub(1, Ordering::AcqRel);
        self.0.upstream.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
