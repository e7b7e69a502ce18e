//! Metrics and health, for Prometheus and for whoever restarts containers. Plain HTTP, no secrets, nothing that changes anything.

use std::collections::VecDeque;
use std::convert::Infallible;
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
            let response = self.answer(request.method(), request.uri().path());
            async move { Ok::<_, Infallible>(response) }
        });
        // A scraper that goes away is no news.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        const TEXT: &str = "text/plain; charset=utf-8";
        if method != Method::GET && method != Method::HEAD {
            let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD\n");
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/metrics" => page(StatusCode::OK, Metrics::CONTENT_TYPE, self.metrics.render()),
            "/livez" => page(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" if self.draining.is_cancelled() => {
                page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n")
            }
            "/readyz" if !self.usable.load(Ordering::Acquire) => page(
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                "no account has a usable key\n",
            ),
            "/readyz" => page(StatusCode::OK, TEXT, "ok\n"),
            "/" => page(
                StatusCode::OK,
                TEXT,
                "kybio-gateway\n\n/metrics  for Prometheus\n/livez    the process runs\n/readyz   it takes requests\n",
            ),
            _ => page(
                StatusCode::NOT_FOUND,
                TEXT,
                "there is /metrics, /livez and /readyz\n",
            ),
        }
    }
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
