//! Metrics and health, for Prometheus and for whoever restarts containers. Plain HTTP, no secrets, nothing that changes anything.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

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
    /// For `/readyz`: at least one account can be used.
    pub usable: Arc<AtomicBool>,
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
        let metrics = &self.metrics;
        let (accounts, disabled) = (metrics.accounts.get(), metrics.accounts_disabled.get());
        let now = self.clock.since_epoch().as_secs_f64();
        // Without TLS there's none.
        let left = metrics.certificate_end().map(|ends| ends - now);
        let checks = [
            Check {
                name: "not draining",
                // What comes after the end of the drain isn't taken.
                good: !self.draining.is_cancelled(),
                // One word, as it always was.
                fault: "draining",
                detail: String::new(),
            },
            Check {
                name: "accounts",
                good: self.usable.load(Ordering::Acquire),
                fault: "no account has a usable key",
                detail: format!("{} of {accounts} have a usable key", accounts - disabled),
            },
            Check {
                name: "certificate",
                good: left.is_none_or(|left| left > 0.0),
                fault: "the listener's certificate, or one of its chain, has ended",
                detail: left.map_or_else(
                    || "none is needed".to_owned(),
                    |left| format!("ends in {:.1} days", left / 86_400.0),
                ),
            },
            Check {
                // There's always one in force; that what is written is another isn't a reason to be taken out of service.
                name: "configuration",
                good: true,
                fault: "",
                detail: if metrics.reload_successful.get() == 1 {
                    "what is written is in force".to_owned()
                } else {
                    "an earlier one is in force: what is written was refused".to_owned()
                },
            },
        ];
        let failed = checks.iter().find(|check| !check.good);
        let ready = failed.is_none();
        if !verbose {
            let word = failed.map_or("ok", |check| check.fault);
            return (ready, format!("{word}\n"));
        }
        let mut text = String::new();
        for check in &checks {
            let mark = if check.good { "[+]" } else { "[-]" };
            let _ = write!(text, "{mark} {}", check.name);
            let detail = if check.good {
                &*check.detail
            } else {
                check.fault
            };
            if !detail.is_empty() {
                let _ = write!(text, ": {detail}");
            }
            text.push('\n');
        }
        text.push_str(if ready { "ready\n" } else { "not ready\n" });
        (ready, text)
    }
}

/// One thing that must be so for the gateway to take requests.
struct Check {
    name: &'static str,
    good: bool,
    fault: &'static str,
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
