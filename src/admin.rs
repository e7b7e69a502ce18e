//! Metrics and health, for Prometheus and for whoever restarts containers. Plain HTTP, no secrets, nothing that changes anything.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::Uri;
use http::header;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::observe::log;
use crate::observe::metrics::Metrics;

/// Connections at a time. Another one takes the place of the oldest: who is silent can't keep Prometheus or a health check out.
const CONNECTIONS_MAX: usize = 64;

/// From connecting to the end of a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection ends after this time, whatever it does: scrapes are short.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the pages are made of.
pub struct Admin {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/readyz`.
    pub standing: Arc<Standing>,
    /// For `/readyz`: not ready once this is cancelled.
    pub draining: CancellationToken,
    /// For `/metrics`: lines of the log that were dropped.
    pub log: Option<Arc<log::Control>>,
    /// For `/readyz`: what has ended.
    pub clock: Clock,
}

impl Admin {
    /// Serves until `stop` is cancelled, and lets what is under way end with the runtime.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            open.retain(|connection| !connection.is_finished());
            if open.len() == CONNECTIONS_MAX
                && let Some(oldest) = open.pop_front()
            {
                oldest.abort();
            }
            let connection = timeout(CONNECTION_TIMEOUT, Arc::clone(&self).connection(stream));
            open.push_back(tokio::spawn(connection).abort_handle());
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(move |request: Request<Incoming>| {
            let response = self.answer(request.method(), request.uri());
            async move { Ok::<_, Infallible>(response) }
        });
        // A scraper that goes away is no news.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    fn answer(&self, method: &Method, uri: &Uri) -> Response<Full<Bytes>> {
        const TEXT: &str = "text/plain; charset=utf-8";
        if method != Method::GET && method != Method::HEAD {
            let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD\n");
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match uri.path() {
            "/metrics" => {
                if let Some(log) = &self.log {
                    self.metrics.show_dropped(log.dropped());
                }
                page(StatusCode::OK, Metrics::CONTENT_TYPE, self.metrics.render())
            }
            "/livez" => page(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" => {
                let (ready, text) = self.readiness(is_verbose(uri));
                let status = if ready {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                page(status, TEXT, text)
            }
            "/" => page(
                StatusCode::OK,
                TEXT,
                "kybio-gateway\n\n/metrics          for Prometheus\n/livez            the process runs\n/readyz           it takes requests\n/readyz?verbose   each of the checks\n",
            ),
            _ => page(
                StatusCode::NOT_FOUND,
                TEXT,
                "there is /metrics, /livez and /readyz\n",
            ),
        }
    }

    /// Whether it takes requests, and in words why not, or each check.
    fn readiness(&self, verbose: bool) -> (bool, String) {
        let standing = self.standing.0.load();
        let now = self.clock.since_epoch();
        let draining = self.draining.is_cancelled();
        let as_written = self.metrics.reload_successful.get() == 1;
        let checks = [
            Check {
                name: "not draining",
                fault: draining.then_some("draining"),
                detail: "new connections are taken".to_owned(),
            },
            Check {
                name: "accounts",
                fault: (standing.usable == 0).then_some("no account has a usable key"),
                detail: format!(
                    "{} of {} have a usable key",
                    standing.usable, standing.accounts
                ),
            },
            ending(
                "certificate",
                standing.certificate_ends,
                now,
                "the listener's certificate, or one of its chain, has ended",
            ),
            ending(
                "callers' authorities",
                standing.authorities_end,
                now,
                "all that client_ca names have ended",
            ),
            Check {
                // There's always one in force. That what is written is another is no reason to take the gateway away.
                name: "configuration",
                fault: None,
                detail: if as_written {
                    "what is written is in force".to_owned()
                } else {
                    "an earlier one is in force: what is written was refused".to_owned()
                },
            },
        ];
        let failed = checks.iter().find_map(|check| check.fault);
        let ready = failed.is_none();
        if !verbose {
            return (ready, format!("{}\n", failed.unwrap_or("ok")));
        }
        let mut text = String::new();
        for Check {
            name,
            fault,
            detail,
        } in &checks
        {
            let (mark, words) = fault.map_or(("[+]", &**detail), |fault| ("[-]", fault));
            // Writing to a text doesn't fail.
            let _ = writeln!(text, "{mark} {name}: {words}");
        }
        text.push_str(if ready { "ready\n" } else { "not ready\n" });
        (ready, text)
    }
}

/// What readiness knows of the configuration in force.
#[derive(Debug, Default)]
pub struct Standing(ArcSwap<Facts>);

/// Of a configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// How many accounts there are.
    pub accounts: usize,
    /// Of them, those with a usable key.
    pub usable: usize,
    /// When the listener's certificate ends, or the first of its chain, in wall time since 1970-01-01 UTC; `None` without TLS.
    pub certificate_ends: Option<Duration>,
    /// When the last of callers' authorities does.
    pub authorities_end: Option<Duration>,
}

impl Standing {
    /// It's another one now.
    pub fn set(&self, facts: Facts) {
        self.0.store(Arc::new(facts));
    }
}

/// That something hasn't ended.
fn ending(name: &'static str, ends: Option<Duration>, now: Duration, fault: &'static str) -> Check {
    let left = ends.map(|ends| ends.saturating_sub(now));
    Check {
        name,
        fault: left.is_some_and(|left| left.is_zero()).then_some(fault),
        detail: left.map_or_else(
            || "none is needed".to_owned(),
            |left| format!("ends in {:.1} days", left.as_secs_f64() / 86_400.0),
        ),
    }
}

/// One thing that must be so for the gateway to take requests.
struct Check {
    name: &'static str,
    /// Why it isn't so.
    fault: Option<&'static str>,
    detail: String,
}

/// `?verbose`, alone or with a value, as Kubernetes' own components have it.
fn is_verbose(uri: &Uri) -> bool {
    let mut parts = uri.query().unwrap_or_default().split('&');
    parts.any(|part| part.split('=').next() == Some("verbose"))
}

fn page(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
