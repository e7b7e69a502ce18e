//! How far this machine's clock is from a host's, by the `Date` of its answers. The stamps of calls come from this clock, and a vendor that
//! looked at them would refuse those of a clock that's wrong.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use http::HeaderMap;
use http::header;
use prometheus::Gauge;

use crate::name::UpstreamName;

/// Between two warnings of one host.
const SAID_AGAIN: Duration = Duration::from_secs(3_600);

/// `Date` counts whole seconds, cut off (RFC 9110 section 5.6.7): on the average it's half a second later than it says.
const CUT_OFF: f64 = 0.5;

/// One host's, as it was seen last.
pub(super) struct Skew {
    upstream: UpstreamName,
    max: Duration,
    shown: Gauge,
    /// Wall time since 1970-01-01 UTC of the last warning.
    said: Mutex<Option<Duration>>,
}

impl Skew {
    pub(super) fn new(upstream: UpstreamName, max: Duration, shown: Gauge) -> Self {
        Self {
            upstream,
            max,
            shown,
            said: Mutex::default(),
        }
    }

    /// An answer to a call that was sent and whose head was received at these wall times since 1970-01-01 UTC.
    pub(super) fn see(&self, headers: &HeaderMap, sent: Duration, received: Duration) {
        let Some(skew) = skew(headers, sent, received) else {
            return;
        };
        self.shown.set(skew);
        if skew.abs() <= self.max.as_secs_f64() {
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_some_and(|said| received.saturating_sub(said) < SAID_AGAIN) {
            return;
        }
        *said = Some(received);
        drop(said);
        tracing::warn!(upstream = %self.upstream, behind_seconds = skew.round(), "this machine's clock and the host's differ: is time synchronised?");
    }
}

/// Seconds that the host's clock is ahead of ours, if it tells the time of this very answer.
fn skew(headers: &HeaderMap, sent: Duration, received: Duration) -> Option<f64> {
    // From a cache: it's the time of another answer (RFC 9111 section 5.1).
    if headers.contains_key(header::AGE) {
        return None;
    }
    let date = headers.get(header::DATE)?.to_str().ok()?;
    let date = httpdate::parse_http_date(date).ok()?;
    let date = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    let middle = (sent.as_secs_f64() + received.as_secs_f64()) / 2.0;
    Some(date.as_secs_f64() + CUT_OFF - middle)
}

#[cfg(test)]
mod tests {
    use super::skew;
    use http::HeaderMap;
    use http::HeaderValue;
    use http::header;
    use std::time::Duration;

    #[test]
    fn the_clocks_are_compared_at_the_middle_of_the_call() {
        let at = |seconds: f64| Duration::from_secs_f64(784_111_777.0 + seconds);
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (date, sent, received, expected) in [
            (date, 0.4, 0.6, Some(0.0)),
            (date, 0.0, 10.0, Some(-4.5)),
            (date, -60.0, -59.0, Some(60.0)),
            (date, 100.0, 101.0, Some(-100.0)),
            ("yesterday", 0.0, 1.0, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::DATE, HeaderValue::from_static(date));
            let seen = skew(&headers, at(sent), at(received));
            let seen = seen.map(|seen| (seen * 1_000.0).round() / 1_000.0);
            assert_eq!(seen, expected, "{sent} {received}");
            headers.insert(header::AGE, HeaderValue::from_static("1"));
            assert_eq!(skew(&headers, at(sent), at(received)), None);
        }
        assert_eq!(skew(&HeaderMap::new(), at(0.0), at(1.0)), None);
    }
}
