//! Builds everything from a [`Config`], runs it, and brings it to an orderly end.

pub mod notify;
pub mod reload;
pub mod socket;
mod unix;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::Response;
use hyper::body::Incoming;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::interval;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::Runtime;
use crate::identity::Caller;
use crate::identity::Presented;
use crate::listener::Listener;
use crate::listener::Peer;
use crate::listener::Service;
use crate::listener::socket::Address;
use crate::listener::socket::Bound;
use crate::listener::socket::Socket;
use crate::observe::metrics::Metrics;
use crate::proxy::Proxy;
use crate::proxy::Worker;
use crate::proxy::respond;
use crate::server::reload::InForce;
use crate::server::reload::Reloader;
use crate::server::reload::Source;
use crate::server::socket::Door;
use crate::server::socket::Passed;
use crate::server::unix::SocketFile;
use crate::stop::Stop;

/// Descriptors for everything but connections: files, runtimes, the admin's own.
const DESCRIPTORS_RESERVED: u64 = 128;

/// How long connections may take to end once they're cut off.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// How often idle connections to upstreams are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Everything that's needed, bound and built, but not running yet.
pub struct Server {
    in_force: InForce,
    source: Option<Source>,
    listener: Arc<Listener>,
    door: Door,
    admin: Arc<Admin>,
    admin_door: std::net::TcpListener,
    runtime: Runtime,
    stop: Stop,
}

/// Why it can't run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More connections are configured than the process may have descriptors.
    #[error(
        "listener.connections_max and upstreams need {needed} descriptors, but the limit is {limit}: lower connections_max, or raise the limit (ulimit -Hn, LimitNOFILE=)"
    )]
    Descriptors {
        /// For all connections.
        needed: u64,
        /// The hard limit.
        limit: u64,
    },
    /// The address can't be had.
    #[error("{key}: {address} can't be bound: {cause}{}", remedy(.cause.kind()))]
    Bind {
        /// The key that names it.
        key: &'static str,
        /// The address.
        address: Address,
        /// What the kernel says.
        #[source]
        cause: io::Error,
    },
    /// What whoever started this process passed isn't what is configured.
    #[error("{key}: the socket that was passed {fault}")]
    Passed {
        /// The key that it's for.
        key: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// Where the file of a unix socket should be, there's something else.
    #[error(
        "listener.address: {0} is there, and isn't a socket: it's left alone; name another path, or remove it"
    )]
    NotASocket(Address),
    /// The TLS library refuses an upstream's settings.
    #[error("upstreams.{name}: {cause}")]
    Upstream {
        /// Which.
        name: String,
        /// What it says.
        #[source]
        cause: rustls::Error,
    },
    /// The system refuses something that's always there.
    #[error("the system refuses: {0}")]
    System(#[from] io::Error),
}

impl Error {
    /// It's the configuration that has to change.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Descriptors { .. }
                | Self::Passed { .. }
                | Self::NotASocket(_)
                | Self::Upstream { .. }
        )
    }
}

/// What to do where an address can't be had.
fn remedy(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AddrInUse => "; is another gateway running?",
        // Of a unix socket alone.
        io::ErrorKind::NotFound => "; make its folder first (systemd: RuntimeDirectory=)",
        _ => "",
    }
}

/// What was cut off when the time was up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Connections of callers, with a request on them.
    pub connections: usize,
    /// Calls whose answer hadn't come.
    pub calls: usize,
}

impl Server {
    /// Builds everything, and binds both addresses, as far as no socket was passed. With a source, the configuration can be reloaded while it runs.
    ///
    /// # Errors
    /// When an address can't be had, or a limit doesn't fit.
    pub fn bind(
        config: Config,
        source: Option<Source>,
        clock: Clock,
        stop: Stop,
        passed: Passed,
    ) -> Result<Self, Error> {
        raise_descriptor_limit(&config)?;
        let metrics = Arc::new(Metrics::new());
        let proxy = reload::proxy(&config, None, &metrics, &clock)?;
        let admin = Arc::new(Admin {
            metrics: Arc::clone(&metrics),
            standing: Arc::default(),
            log: source.as_ref().map(|source| Arc::clone(&source.log)),
            clock: clock.clone(),
            draining: stop.draining.clone(),
        });
        for code in respond::CODES {
            metrics.refusals.with_label_values(&[code]);
        }
        reload::show(&config, &metrics, &admin.standing);
        proxy.series.begin();
        proxy.keyring.show(&metrics);
        metrics.reload_successful.set(1);
        let now = clock.since_epoch();
        metrics.reload_success_time.set(now.as_secs_f64());
        let admin_door = socket::admin(passed.admin, config.admin)?;
        let door = socket::door(passed.listener, &config.door)?;
        let connections_max = config.door.settings.connections_max;
        let shown_max = i64::try_from(connections_max).unwrap_or(i64::MAX);
        metrics.downstream_connections_max.set(shown_max);
        let listener = Arc::new(Listener::new(
            config.door.settings,
            config.door.terms,
            metrics,
            clock,
        ));
        Ok(Self {
            in_force: InForce {
                proxy,
                accounts: config.accounts,
                written: config.written,
                connections_max,
            },
            source,
            listener,
            door,
            admin,
            admin_door,
            runtime: config.runtime,
            stop,
        })
    }

    /// Where callers connect.
    ///
    /// # Errors
    /// When the kernel doesn't say.
    pub fn address(&self) -> io::Result<Address> {
        self.door.bound.address()
    }

    /// Callers connect to a socket that was passed.
    #[must_use]
    pub fn is_passed(&self) -> bool {
        self.door.passed
    }

    /// Where metrics and health are.
    ///
    /// # Errors
    /// When the kernel doesn't say.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin_door.local_addr()
    }

    /// Serves until `stop` is draining, and then brings everything to an end within its times. `beside` runs beside it, and is who
    /// may start that.
    ///
    /// # Errors
    /// When the system refuses a thread or a runtime.
    pub fn run(self, beside: impl Future<Output = ()> + Send + 'static) -> Result<Cut, Error> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (report, reports) = mpsc::channel(self.runtime.workers);
        let mut workers = Vec::new();
        let (mut threads, mut alive) = (Vec::new(), Vec::new());
        for number in 0..self.runtime.workers {
            let own = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            alive.push(own.handle().clone());
            let worker = Arc::new(Worker::new(Arc::clone(&self.in_force.proxy)));
            workers.push(Arc::clone(&worker));
            let (listener, stop) = (Arc::clone(&self.listener), self.stop.clone());
            let (door, report) = (self.door.bound.try_clone()?, report.clone());
            let passed = self.door.passed;
            let serve = move || {
                // Nobody listens only when the process ends anyway.
                let _ = report.blocking_send(work(own, worker, listener, door, passed, &stop));
            };
            threads.push(
                thread::Builder::new()
                    .name(format!("worker-{number}"))
                    .spawn(serve)?,
            );
        }
        drop((report, self.door.bound));
        let file = self.door.file;
        let (times, runtime_now) = watch::channel(self.runtime);
        let listener = Arc::clone(&self.listener);
        let cut = runtime.block_on(async {
            self.admin_door.set_nonblocking(true)?;
            let admin_door = TcpListener::from_std(self.admin_door)?;
            // All end with this runtime, which ends with the last worker.
            tokio::spawn(notify::watchdog(alive, self.stop.closing.clone()));
            // Nothing of this configuration is held for longer than it's in force: it has keys.
            let Proxy { routes, clock, .. } = &*self.in_force.proxy;
            for route in routes.iter() {
                reload::watch_upstream(route, clock);
            }
            let standing = Arc::clone(&self.admin.standing);
            tokio::spawn(self.admin.serve(admin_door, self.stop.cut.clone()));
            if let Some(source) = self.source {
                let reloader = Reloader {
                    source,
                    in_force: self.in_force,
                    listener: self.listener,
                    workers,
                    standing,
                    runtime: times,
                    draining: self.stop.draining.clone(),
                    hanging: None,
                };
                tokio::spawn(reloader.run());
            }
            tokio::spawn(beside);
            supervise(reports, self.stop, &runtime_now, file).await
        });
        // A name that's being resolved, or a file on a server that doesn't answer, isn't waited for.
        runtime.shutdown_background();
        for worker in threads {
            if worker.join().is_err() {
                return Err(Error::System(io::Error::other("a worker thread panicked")));
            }
        }
        Ok(Cut {
            connections: listener.cut(),
            calls: cut?,
        })
    }
}

/// Waits for the end, and then for the workers; cuts them off when their time is up.
async fn supervise(
    mut reports: mpsc::Receiver<io::Result<usize>>,
    stop: Stop,
    runtime: &watch::Receiver<Runtime>,
    file: Option<SocketFile>,
) -> io::Result<usize> {
    let early = tokio::select! {
        () = stop.draining.cancelled() => None,
        // A worker ends early only when it couldn't start. The others are brought to an orderly end, and the process fails.
        report = reports.recv() => {
            tracing::error!(?report, "a worker has ended");
            stop.draining.cancel();
            report
        }
    };
    let times = *runtime.borrow();
    tokio::select! {
        () = tokio::time::sleep(times.drain_delay) => {}
        () = stop.cut.cancelled() => {}
    }
    // While the socket still listens: who comes too late is told so, and who was in time is in its queue.
    drop(file);
    stop.closing.cancel();
    let ended = async {
        let mut calls = 0;
        let mut failed = early.and_then(Result::err);
        while let Some(report) = reports.recv().await {
            match report {
                Ok(cut) => calls += cut,
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(calls), Err)
    };
    let mut ended = std::pin::pin!(ended);
    if let Ok(calls) = timeout(times.drain_timeout, ended.as_mut()).await {
        return calls;
    }
    stop.cut.cancel();
    ended.await
}

/// One worker's life: its own runtime, connections and pools. Returns the calls that were cut off.
fn work(
    runtime: runtime::Runtime,
    worker: Arc<Worker>,
    listener: Arc<Listener>,
    door: Bound,
    passed: bool,
    stop: &Stop,
) -> io::Result<usize> {
    let calls = runtime.block_on(async {
        let door = Socket::from_bound(door)?;
        let (connections, attempts) = (TaskTracker::new(), worker.attempts().clone());
        let sweeper = tokio::spawn(sweep(Arc::clone(&worker)));
        let serving = Serving(Arc::clone(&worker));
        listener
            .run(door, passed, stop.clone(), connections.clone(), serving)
            .await;
        connections.close();
        attempts.close();
        let ended = async {
            connections.wait().await;
            attempts.wait().await;
        };
        let calls = tokio::select! {
            () = ended => 0,
            () = stop.cut.cancelled() => {
                let calls = attempts.len();
                // They see it too, and say whether they had a request.
                let _ = timeout(LAST_WORDS_TIMEOUT, connections.wait()).await;
                calls
            }
        };
        sweeper.abort();
        worker.line().pools().for_each(|pool| pool.close());
        Ok(calls)
    });
    runtime.shutdown_background();
    calls
}

/// A worker behind the door.
#[derive(Clone)]
struct Serving(Arc<Worker>);

impl Service for Serving {
    fn caller(&self, presented: &Presented) -> Option<Caller> {
        self.0.line().caller(presented)
    }

    fn answer(
        self,
        peer: Arc<Peer>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Bytes>> + Send + 'static {
        let line = self.0.line();
        // Boxed, because HTTP/2 has a task for each request, into which it would be copied six times.
        Box::pin(line.handle(peer, request))
    }
}

async fn sweep(worker: Arc<Worker>) {
    let mut tick = interval(SWEEP_INTERVAL);
    loop {
        let line = worker.line();
        let wanted = line.pools().map(|pool| Box::pin(pool.wanted()));
        tokio::select! {
            _ = tick.tick() => {}
            () = any(wanted.collect()) => {}
        }
        line.sweep();
    }
}

/// Ends with the first of them; never, if there's none.
async fn any(mut futures: Vec<std::pin::Pin<Box<impl Future<Output = ()>>>>) {
    std::future::poll_fn(|cx| {
        let ready = futures
            .iter_mut()
            .any(|future| future.as_mut().poll(cx).is_ready());
        if ready {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

/// The soft limit is historic; the hard one is what the operator set.
fn raise_descriptor_limit(config: &Config) -> Result<(), Error> {
    check_descriptors(config)?;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .map_err(io::Error::from)?;
    Ok(())
}

/// All connections that are configured must fit.
fn check_descriptors(config: &Config) -> Result<(), Error> {
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let upstream: usize = config
        .upstreams
        .iter()
        .map(|route| route.upstream.connections_max)
        .sum();
    let needed = (config.door.settings.connections_max + upstream) as u64 + DESCRIPTORS_RESERVED;
    if needed > limit {
        return Err(Error::Descriptors { needed, limit });
    }
    Ok(())
}
