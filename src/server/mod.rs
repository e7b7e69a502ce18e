//! Builds everything from a [`Config`], runs it, and brings it to an orderly end.

pub mod socket;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::time::interval;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::Runtime;
use crate::identity::Callers;
use crate::listener::Listener;
use crate::observe::metrics::Metrics;
use crate::policy::Policy;
use crate::proxy::Proxy;
use crate::proxy::Worker;
use crate::proxy::route::Route;
use crate::quota::Latches;
use crate::server::socket::bind;
use crate::slots::Slots;
use crate::stop::Stop;
use crate::upstream::probe;

/// Descriptors for everything but connections: files, runtimes, the admin's own.
const DESCRIPTORS_RESERVED: u64 = 128;

/// How often idle connections to upstreams are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Everything that's needed, bound and built, but not running yet.
pub struct Server {
    proxy: Arc<Proxy>,
    listener: Arc<Listener>,
    door: std::net::TcpListener,
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
    #[error("{key}: {address} can't be bound: {cause}{}", if .cause.kind() == io::ErrorKind::AddrInUse { "; is another gateway running?" } else { "" })]
    Bind {
        /// The key that names it.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the kernel says.
        #[source]
        cause: io::Error,
    },
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
        matches!(self, Self::Descriptors { .. } | Self::Upstream { .. })
    }
}

/// What was cut off when the time was up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Connections of callers.
    pub connections: usize,
    /// Calls whose answer hadn't come.
    pub calls: usize,
}

impl Server {
    /// Builds everything, and binds both addresses.
    ///
    /// # Errors
    /// When an address can't be had, or a limit doesn't fit.
    pub fn bind(config: Config, clock: Clock, stop: Stop) -> Result<Self, Error> {
        raise_descriptor_limit(&config)?;
        let answers = config.catalogue.answers().clone();
        let metrics = Arc::new(Metrics::new(answers.codes()));
        let policy = Policy::new(&config.catalogue, &config.accounts, &config.callers);
        let disabled = config
            .accounts
            .iter()
            .filter(|account| account.key.is_err())
            .count();
        metrics
            .accounts_disabled
            .set(i64::try_from(disabled).unwrap_or(i64::MAX));
        let routes = config.upstreams.into_iter().map(|settings| {
            let name = settings.upstream.name.clone();
            match Route::new(settings, &metrics) {
                Ok(route) => Ok((name, route)),
                Err(cause) => Err(Error::Upstream {
                    name: name.to_string(),
                    cause,
                }),
            }
        });
        let proxy = Arc::new(Proxy {
            callers: Callers::new(config.identities),
            policy,
            routes: routes.collect::<Result<_, _>>()?,
            slots: Slots::default(),
            latches: Latches::new(&metrics),
            answers,
            settings: config.body,
            metrics: Arc::clone(&metrics),
            clock: clock.clone(),
        });
        let usable = config.accounts.iter().any(|account| account.key.is_ok());
        let admin = Arc::new(Admin {
            metrics: Arc::clone(&metrics),
            usable,
            draining: stop.draining.clone(),
        });
        let admin_door = bind("admin.address", config.admin, false)?;
        let door = bind(
            "listener.address",
            config.door.address,
            config.door.reuse_port,
        )?;
        let listener = Arc::new(Listener::new(
            config.door.settings,
            config.door.tls,
            metrics,
            clock,
        ));
        Ok(Self {
            proxy,
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
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.door.local_addr()
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
        for number in 0..self.runtime.workers {
            let (proxy, listener, stop) = (
                Arc::clone(&self.proxy),
                Arc::clone(&self.listener),
                self.stop.clone(),
            );
            let (door, report) = (self.door.try_clone()?, report.clone());
            let serve = move || {
                // Nobody listens only when the process ends anyway.
                let _ = report.blocking_send(work(proxy, listener, door, &stop));
            };
            workers.push(
                thread::Builder::new()
                    .name(format!("worker-{number}"))
                    .spawn(serve)?,
            );
        }
        drop((report, self.door));
        let cut = runtime.block_on(async {
            self.admin_door.set_nonblocking(true)?;
            let admin_door = TcpListener::from_std(self.admin_door)?;
            // All end with this runtime, which ends with the last worker.
            tokio::spawn(beside);
            tokio::spawn(self.admin.serve(admin_door, self.stop.cut.clone()));
            for route in self.proxy.routes.values() {
                let upstream = Arc::clone(&route.upstream);
                tokio::spawn(probe::run(upstream, self.proxy.clock.clone()));
            }
            supervise(reports, self.stop, self.runtime).await
        });
        for worker in workers {
            if worker.join().is_err() {
                return Err(Error::System(io::Error::other("a worker thread panicked")));
            }
        }
        Ok(cut?)
    }
}

/// Waits for the end, and then for the workers; cuts them off when their time is up.
async fn supervise(
    mut reports: mpsc::Receiver<io::Result<Cut>>,
    stop: Stop,
    times: Runtime,
) -> io::Result<Cut> {
    let early = tokio::select! {
        () = stop.draining.cancelled() => None,
        // A worker ends early only when it couldn't start. The others are brought to an orderly end, and the process fails.
        report = reports.recv() => {
            tracing::error!(?report, "a worker has ended");
            stop.draining.cancel();
            report
        }
    };
    tokio::select! {
        () = tokio::time::sleep(times.drain_delay) => {}
        () = stop.cut.cancelled() => {}
    }
    stop.closing.cancel();
    let ended = async {
        let mut cut = Cut::default();
        let mut failed = early.and_then(Result::err);
        while let Some(report) = reports.recv().await {
            match report {
                Ok(worker) => {
                    cut.connections += worker.connections;
                    cut.calls += worker.calls;
                }
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(cut), Err)
    };
    let mut ended = std::pin::pin!(ended);
    if let Ok(cut) = timeout(times.drain_timeout, ended.as_mut()).await {
        return cut;
    }
    stop.cut.cancel();
    ended.await
}

/// One worker's life: its own runtime, connections and pools.
fn work(
    proxy: Arc<Proxy>,
    listener: Arc<Listener>,
    door: std::net::TcpListener,
    stop: &Stop,
) -> io::Result<Cut> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let door = TcpListener::from_std(door)?;
        let (connections, attempts, drivers) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let worker = Arc::new(Worker::new(proxy, &drivers, attempts.clone()));
        let sweeper = tokio::spawn(sweep(Arc::clone(&worker)));
        let serving = Arc::clone(&worker);
        listener
            .run(door, stop.clone(), connections.clone(), move |peer, request| {
                let worker = Arc::clone(&serving);
                async move { worker.handle(&peer, request).await }
            })
            .await;
        connections.close();
        attempts.close();
        let ended = async {
            connections.wait().await;
            attempts.wait().await;
        };
        let cut = tokio::select! {
            () = ended => Cut::default(),
            () = stop.cut.cancelled() => Cut { connections: connections.len(), calls: attempts.len() },
        };
        sweeper.abort();
        worker.pools().for_each(|pool| pool.close());
        Ok(cut)
    })
}

async fn sweep(worker: Arc<Worker>) {
    let mut tick = interval(SWEEP_INTERVAL);
    loop {
        let wanted = worker.pools().map(|pool| Box::pin(pool.wanted()));
        tokio::select! {
            _ = tick.tick() => {}
            () = any(wanted.collect()) => {}
        }
        worker.sweep();
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
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let upstream: usize = config
        .upstreams
        .iter()
        .map(|route| route.upstream.connections_max)
        .sum();
    let needed = (config.door.settings.connections_max + upstream) as u64 + DESCRIPTORS_RESERVED;
    if needed > hard {
        return Err(Error::Descriptors {
            needed,
            limit: hard,
        });
    }
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
