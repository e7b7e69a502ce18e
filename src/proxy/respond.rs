//! The only place that turns what happened into HTTP. The client reads a code and a hint; the log reads the cause; they're separate.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header;
use serde::Serialize;
use uuid::Uuid;

use crate::answers::AnswerClass;
use crate::identity::UID_UNKNOWN;
use crate::identity::Unknown;
use crate::name::AccountName;
use crate::observe::exchange::Exchange;
use crate::observe::exchange::Progress;
use crate::observe::log::chain;
use crate::observe::series::Series;
use crate::operation::Class;
use crate::operation::Operation;
use crate::operation::OperationName;
use crate::outcome::Outcome;
use crate::payload;
use crate::payload::room::Full;
use crate::policy;
use crate::policy::path::BadTarget;
use crate::proxy::error::Error;
use crate::reply;
use crate::reply::Reply;
use crate::reply::encoding;
use crate::slots;
use crate::slots::Limit;
use crate::upstream;

/// What happened to the call: `done`, `rejected`, `not-sent` or `unknown`.
pub const OUTCOME: HeaderName = HeaderName::from_static("kybio-gateway-outcome");
/// Whether the caller may send the same again: `yes` or `no`.
pub const RETRYABLE: HeaderName = HeaderName::from_static("kybio-gateway-retryable");
/// The account that was used, once it's settled.
pub const ACCOUNT: HeaderName = HeaderName::from_static("kybio-gateway-account");
/// How many attempts were made at the upstream.
pub const ATTEMPTS: HeaderName = HeaderName::from_static("kybio-gateway-attempts");
/// The id that is in the gateway's log.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("kybio-gateway-request-id");

/// KYBIO refused a repeat because it has taken the first attempt: `yes`.
pub const DUPLICATE: HeaderName = HeaderName::from_static("kybio-gateway-duplicate");

/// Every code that an answer of the gateway's own making may have, for metrics that exist from zero.
pub const CODES: [&str; 44] = [
    "certificate-refused",
    "unknown-caller",
    "bad-path",
    "bad-host",
    "unknown-operation",
    "unsupported-path",
    "method-not-allowed",
    "upgrade-refused",
    "bad-framing",
    "too-many-headers",
    "operation-not-granted",
    "bad-account",
    "account-not-granted",
    "account-required",
    "paused",
    "account-disabled",
    "foreign-app-id",
    "idempotency-key",
    "bad-timeout",
    "unsupported-media-type",
    "content-encoding",
    "length-required",
    "body-too-large",
    "body-timeout",
    "body-broken",
    "invalid-body",
    "caller-timeout",
    "no-time-left",
    "caller-busy",
    "gateway-busy",
    "account-busy",
    "quota-used-up",
    "upstream-down",
    "upstream-unreachable",
    "upstream-connect-timeout",
    "upstream-busy",
    "upstream-connection-lost",
    "upstream-broken",
    "upstream-timeout",
    "reply-too-large",
    "upstream-refused",
    "upstream-status",
    "unreadable-reply",
    "internal",
];

/// What passes by itself passes soon.
const RETRY_SOON: Duration = Duration::from_secs(1);

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// What a caller is told of an [`Error`].
struct Told {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: Option<String>,
    /// Of what wasn't sent: whether the same request may be taken another time.
    may_pass_later: bool,
    /// Not before this time has passed.
    retry_after: Option<Duration>,
}

/// What an answer needs to know of an exchange that is still under way in a task of its own.
pub(super) struct Receipt {
    id: Uuid,
    series: Arc<Series>,
    account: Option<usize>,
    operation: Option<Arc<Operation>>,
    progress: Arc<Progress>,
}

impl Receipt {
    pub(super) fn of(exchange: &Exchange) -> Self {
        Self {
            id: exchange.id,
            series: Arc::clone(exchange.series()),
            account: exchange.account,
            operation: exchange.operation.clone(),
            progress: Arc::clone(&exchange.progress),
        }
    }

    fn account(&self) -> Option<&AccountName> {
        self.series.account(self.account?)
    }

    fn header(&self, outcome: Outcome, retryable: bool) -> Header<'_> {
        Header {
            id: self.id,
            outcome,
            retryable,
            attempts: self.progress.attempts.load(Ordering::Acquire),
            account: self.account(),
        }
    }
}

/// KYBIO's own answer, success or error, with its own bytes.
#[must_use]
pub fn reply(headers: &HeaderMap, reply: &Reply, mut exchange: Box<Exchange>) -> Response<Bytes> {
    let (body, encoding) = reply.body_for(headers);
    exchange.reply_bytes = body.len();
    // To ask again changes nothing, and KYBIO has said that it may help.
    let retryable = exchange.is_read() && reply.verdict().class == Some(AnswerClass::Transient);
    let mut response = told_in(&mut exchange, StatusCode::OK, body, retryable);
    let headers = response.headers_mut();
    if exchange.duplicate {
        headers.insert(DUPLICATE, HeaderValue::from_static("yes"));
    }
    if let Some(token) = encoding.token() {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(token));
    }
    response
}

/// An answer of our own making.
#[must_use]
pub fn refusal(error: &Error, mut exchange: Box<Exchange>) -> Response<Bytes> {
    let told = told(error);
    exchange.outcome = error.outcome();
    exchange.refusal = Some(told.code);
    exchange.cause = Some(chain(error));
    let retryable = match exchange.outcome {
        Outcome::NotSent => told.may_pass_later,
        Outcome::Unknown => exchange.is_read(),
        Outcome::Done | Outcome::Rejected => false,
    };
    let (offset, line, column) = place(error);
    let receipt = Receipt::of(&exchange);
    let mut gateway = gateway(&receipt, told.code, exchange.outcome, retryable);
    gateway.hint = told.hint.or(gateway.hint);
    let envelope = Envelope::new(
        told.status,
        told.message,
        Gateway {
            offset,
            line,
            column,
            upstream_status: upstream_status(error),
            ..gateway
        },
    );
    let body = envelope.bytes();
    exchange.reply_bytes = body.len();
    let retry_after = told.retry_after.or(exchange.retry_after);
    let mut response = told_in(&mut exchange, told.status, body, retryable);
    let headers = response.headers_mut();
    if matches!(
        error,
        Error::Payload(payload::Error::LengthMissing) | Error::Policy(policy::Error::Framing)
    ) {
        // What follows may be the body that was meant: it isn't to be read as a request. (On HTTP/2 the library drops the field.)
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if told.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    if let Some(after) = retry_after {
        // Rounded up: a caller that comes too early would be refused again.
        let seconds = after
            .as_secs()
            .saturating_add(u64::from(after.subsec_nanos() > 0));
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The caller's own time is up, and the attempt goes on without it.
#[must_use]
pub(super) fn gave_up(receipt: &Receipt) -> Response<Bytes> {
    let (status, code) = (StatusCode::GATEWAY_TIMEOUT, "caller-timeout");
    // Nobody else sets it.
    let _ = receipt.progress.gave_up.set((status.as_u16(), code));
    let retryable = receipt
        .operation
        .as_ref()
        .is_some_and(|operation| operation.class == Class::Read);
    let message = "the time that the caller gave is up; the call is under way".to_owned();
    let gateway = gateway(receipt, code, Outcome::Unknown, retryable);
    let body = Envelope::new(status, message, gateway).bytes();
    answer(status, body, &receipt.header(Outcome::Unknown, retryable))
}

/// A bug of ours: the task that made the attempt is gone. Its record has ended by itself, as unknown.
#[must_use]
pub(super) fn internal(receipt: &Receipt) -> Response<Bytes> {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let hint = "this is a fault of the gateway: please report it with the request id";
    let message = "the gateway failed while the call was under way".to_owned();
    let gateway = Gateway {
        hint: Some(hint.to_owned()),
        ..gateway(receipt, "internal", Outcome::Unknown, false)
    };
    let body = Envelope::new(status, message, gateway).bytes();
    answer(status, body, &receipt.header(Outcome::Unknown, false))
}

/// What every envelope says; for an unknown outcome, with how to find out.
fn gateway<'a>(
    receipt: &'a Receipt,
    code: &'static str,
    outcome: Outcome,
    retryable: bool,
) -> Gateway<'a> {
    let operation = receipt.operation.as_deref();
    let unknown = operation.filter(|_| outcome == Outcome::Unknown);
    let lookup = unknown.and_then(|operation| operation.lookup.as_ref());
    let hint = unknown.map(|operation| match &operation.lookup {
        _ if operation.class == Class::Read => "nothing was changed: ask again".to_owned(),
        Some(lookup) => format!(
            "the call may have taken effect: look it up with {lookup} before sending it again"
        ),
        None => "the call may have taken effect: look it up before sending it again".to_owned(),
    });
    Gateway {
        code,
        outcome: outcome.as_str(),
        retryable,
        request_id: receipt.id,
        account: receipt.account().map(AccountName::as_str),
        hint,
        lookup: lookup.map(OperationName::as_str),
        offset: None,
        line: None,
        column: None,
        upstream_status: None,
    }
}

/// The header fields that every answer has.
struct Header<'a> {
    id: Uuid,
    outcome: Outcome,
    retryable: bool,
    attempts: u32,
    account: Option<&'a AccountName>,
}

/// The exchange's own answer, which ends it.
fn told_in(
    exchange: &mut Exchange,
    status: StatusCode,
    body: Bytes,
    retryable: bool,
) -> Response<Bytes> {
    exchange.status = Some(status.as_u16());
    exchange.told = true;
    let about = Header {
        id: exchange.id,
        outcome: exchange.outcome,
        retryable,
        attempts: exchange.progress.attempts.load(Ordering::Acquire),
        account: exchange.account_name(),
    };
    answer(status, body, &about)
}

/// Of an answer, with those that its case and hyper add.
const HEADERS: usize = 12;

fn answer(status: StatusCode, body: Bytes, about: &Header<'_>) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.reserve(HEADERS);
    headers.insert(header::CONTENT_TYPE, JSON);
    // Members' data: no cache on the way is to keep it.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(OUTCOME, HeaderValue::from_static(about.outcome.as_str()));
    headers.insert(
        RETRYABLE,
        HeaderValue::from_static(if about.retryable { "yes" } else { "no" }),
    );
    headers.insert(ATTEMPTS, attempts_value(about.attempts));
    headers.insert(REQUEST_ID, id_value(about.id));
    if let Some(account) = about.account {
        let name = HeaderValue::from_str(account.as_str());
        headers.insert(ACCOUNT, name.expect("an account's name is a header value"));
    }
    response
}

fn attempts_value(attempts: u32) -> HeaderValue {
    match attempts {
        0 => HeaderValue::from_static("0"),
        1 => HeaderValue::from_static("1"),
        more => HeaderValue::from(more),
    }
}

fn id_value(id: Uuid) -> HeaderValue {
    let mut value = HeaderValue::from_str(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
        .expect("an id is a header value");
    // It never comes twice. In HTTP/2's table of fields, which is looked through for each answer, it would only be in the way
    // (RFC 7541 section 6.2.3).
    value.set_sensitive(true);
    value
}

/// KYBIO's own envelope, so that callers keep one parser, with ours beside it.
#[derive(Serialize)]
struct Envelope<'a> {
    status: &'static str,
    messages: [String; 1],
    /// Always negative, and never null: null would read as success.
    #[serde(rename = "errorCode")]
    error_code: i32,
    gateway: Gateway<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Gateway<'a> {
    code: &'static str,
    outcome: &'static str,
    retryable: bool,
    request_id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// The read that tells whether a write of unknown outcome took effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    lookup: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_status: Option<u16>,
}

impl<'a> Envelope<'a> {
    fn new(status: StatusCode, message: String, gateway: Gateway<'a>) -> Self {
        Self {
            status: "error",
            messages: [message],
            error_code: -i32::from(status.as_u16()),
            gateway,
        }
    }

    fn bytes(&self) -> Bytes {
        serde_json::to_vec(self)
            .expect("text and numbers can be written as JSON")
            .into()
    }
}

fn place(error: &Error) -> (Option<usize>, Option<usize>, Option<usize>) {
    match error {
        Error::Payload(payload::Error::Invalid(fault)) => {
            (Some(fault.offset), Some(fault.line), Some(fault.column))
        }
        Error::Payload(payload::Error::ForeignAppId { offset }) => (Some(*offset), None, None),
        _ => (None, None, None),
    }
}

fn upstream_status(error: &Error) -> Option<u16> {
    match error {
        Error::Reply(error) => error.upstream_status().map(|status| status.as_u16()),
        _ => None,
    }
}

/// One row for each way to fail.
fn told(error: &Error) -> Told {
    match error {
        Error::Identity(unknown) => identity(unknown),
        Error::Policy(error) => policy(error),
        Error::Payload(error) => payload(error),
        Error::IdempotencyKey => not_sent(StatusCode::BAD_REQUEST, "idempotency-key", error)
            .hint("remove the header; a write that may have left isn't sent again unless the operator trusts KYBIO to refuse it"),
        Error::BadTimeout => not_sent(StatusCode::BAD_REQUEST, "bad-timeout", error),
        Error::CallerTimeout => {
            not_sent(StatusCode::GATEWAY_TIMEOUT, "caller-timeout", error).later()
        }
        Error::NoTimeLeft | Error::Upstream(upstream::Error::Late) => not_sent(StatusCode::GATEWAY_TIMEOUT, "no-time-left", error)
            .hint("send the body faster, or fewer calls at a time; the operator sets the limit (total_timeout)")
            .later(),
        Error::Slots(refused) => busy(refused),
        Error::UsedUp(used_up) => not_sent(StatusCode::TOO_MANY_REQUESTS, "quota-used-up", error)
            .hint("wait for the vendor's midnight, or buy more calls: the gateway tries one now and then")
            .later()
            .after(used_up.retry_after),
        Error::NoUpstream => not_sent(StatusCode::INTERNAL_SERVER_ERROR, "internal", error),
        Error::Upstream(error) => upstream(error),
        Error::Reply(error) => unusable(error),
    }
}

fn not_sent(status: StatusCode, code: &'static str, error: &dyn std::error::Error) -> Told {
    Told {
        status,
        code,
        message: error.to_string(),
        hint: None,
        may_pass_later: false,
        retry_after: None,
    }
}

impl Told {
    fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    fn after(self, pause: Duration) -> Self {
        Self {
            retry_after: Some(pause),
            ..self
        }
    }

    fn later(self) -> Self {
        Self {
            may_pass_later: true,
            ..self
        }
    }
}

fn identity(unknown: &Unknown) -> Told {
    let hint = match unknown {
        Unknown::Refused(_) => "connect anew, with a certificate that is accepted now".to_owned(),
        Unknown::NotConfigured(_) | Unknown::NoIdentity | Unknown::OddUris | Unknown::Ambiguous => {
            "the operator adds one of the certificate's identities to a [callers.*] table of the gateway's configuration".to_owned()
        }
        Unknown::Uid(UID_UNKNOWN) => {
            "this is how every user looks that the kernel can't name where the gateway runs: the operator lets both share a user namespace (without PrivateUsers=yes, or in one pod)".to_owned()
        }
        Unknown::Uid(uid) => format!("the operator adds \"uid:{uid}\" to the identities of a [callers.*] table of the gateway's configuration"),
        Unknown::Loopback => "the operator adds \"loopback\" to the identities of a [callers.*] table of the gateway's configuration".to_owned(),
    };
    let code = match unknown {
        Unknown::Refused(_) => "certificate-refused",
        _ => "unknown-caller",
    };
    not_sent(StatusCode::FORBIDDEN, code, unknown).hint(hint)
}

fn policy(error: &policy::Error) -> Told {
    let told = |status, code| not_sent(status, code, error);
    match error {
        policy::Error::BadTarget(BadTarget::Host) => told(StatusCode::BAD_REQUEST, "bad-host"),
        policy::Error::BadTarget(BadTarget::ForeignHost) => told(StatusCode::BAD_REQUEST, "bad-host").hint("call localhost or 127.0.0.1, so that no page in a browser can have it call in your place"),
        policy::Error::BadTarget(_) => told(StatusCode::BAD_REQUEST, "bad-path").hint("call /openapi/v1/<module>/<method>, in any letter case, and nothing else"),
        policy::Error::UnknownOperation { suggestion: Some(name) } => told(StatusCode::NOT_FOUND, "unknown-operation").hint(format!("did you mean {name}?")),
        policy::Error::UnknownOperation { suggestion: None } => {
            told(StatusCode::NOT_FOUND, "unknown-operation").hint("call /openapi/v1/<module>/<method> as the vendor documents it, such as /openapi/v1/customerOpenApi/add")
        }
        policy::Error::Unsupported { .. } => told(StatusCode::NOT_FOUND, "unsupported-path"),
        policy::Error::Upgrade => told(StatusCode::BAD_REQUEST, "upgrade-refused").hint("remove Upgrade: HTTP/2 is agreed on in TLS (ALPN), and without TLS there's HTTP/1.1 alone (Java: HttpClient.Version.HTTP_1_1)"),
        policy::Error::TooManyFields => told(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too-many-headers").hint("of a caller's header fields none goes up: leave them out"),
        policy::Error::Framing => told(StatusCode::BAD_REQUEST, "bad-framing").hint("send one Content-Length, or Transfer-Encoding: chunked and nothing else"),
        policy::Error::Method => told(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed"),
        policy::Error::OperationNotGranted { explicit: true, .. } => {
            told(StatusCode::FORBIDDEN, "operation-not-granted").hint("the operator adds it to this caller's `operations` by its exact name: no pattern grants it")
        }
        policy::Error::OperationNotGranted { explicit: false, .. } => {
            told(StatusCode::FORBIDDEN, "operation-not-granted").hint("the operator adds it to this caller's `operations`")
        }
        policy::Error::BadAccountHeader => told(StatusCode::BAD_REQUEST, "bad-account").hint("send it once, with a name of a-z, 0-9 and -"),
        policy::Error::AccountNotGranted { .. } => told(StatusCode::FORBIDDEN, "account-not-granted").hint("the operator adds it to this caller's `accounts`"),
        policy::Error::AccountMissing { .. } => told(StatusCode::BAD_REQUEST, "account-required").hint("name it in the Kybio-Gateway-Account header"),
        policy::Error::Paused { .. } => told(StatusCode::SERVICE_UNAVAILABLE, "paused").hint("ask the operator; nothing was sent").later(),
        policy::Error::Disabled { .. } => {
            told(StatusCode::SERVICE_UNAVAILABLE, "account-disabled").hint("the operator mends the account's key file").later()
        }
        policy::Error::ForeignAppId { .. } => told(StatusCode::BAD_REQUEST, "foreign-app-id"),
    }
}

fn payload(error: &payload::Error) -> Told {
    let told = |status, code| not_sent(status, code, error);
    match error {
        payload::Error::ContentTypeMissing | payload::Error::ContentTypeOther => {
            told(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type").hint("add the header Content-Type: application/json (with curl: -H 'Content-Type: application/json')")
        }
        payload::Error::Charset => told(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type").hint("encode the body as UTF-8, and send Content-Type: application/json"),
        payload::Error::Encoded => told(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-encoding").hint("send the body uncompressed, without Content-Encoding"),
        payload::Error::LengthMissing => told(StatusCode::LENGTH_REQUIRED, "length-required").hint("send Content-Length, 0 for no body"),
        payload::Error::TooLarge(_) => told(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large").hint("send less at a time; the operator sets the limit (listener.body_bytes_max)"),
        payload::Error::NoRoom(Full::Caller(_)) => told(StatusCode::TOO_MANY_REQUESTS, "caller-busy")
            .hint("send fewer large bodies at a time; one caller has half of what the operator allows (listener.bodies_bytes_max)")
            .later()
            .after(RETRY_SOON),
        payload::Error::NoRoom(Full::All(_)) => told(StatusCode::SERVICE_UNAVAILABLE, "gateway-busy")
            .hint("try again soon; the operator sets how much all bodies together may take (listener.bodies_bytes_max)")
            .later()
            .after(RETRY_SOON),
        payload::Error::Slow => told(StatusCode::REQUEST_TIMEOUT, "body-timeout").hint("send the whole body at once").later(),
        payload::Error::Broken => told(StatusCode::BAD_REQUEST, "body-broken"),
        payload::Error::Invalid(fault) => {
            let told = told(StatusCode::BAD_REQUEST, "invalid-body");
            match fault.hint {
                Some(hint) => told.hint(hint),
                None => told,
            }
        }
        payload::Error::ForeignAppId { .. } => {
            told(StatusCode::BAD_REQUEST, "foreign-app-id").hint("leave `appId` out: the gateway puts it in; to use another account, name it in the Kybio-Gateway-Account header")
        }
    }
}

/// 429 is the caller's own doing, 503 is others' too.
fn busy(refused: &slots::Refused) -> Told {
    let (status, code) = match (refused.full, refused.reason) {
        (Limit::Caller, _) | (_, slots::Reason::ShareFull) => {
            (StatusCode::TOO_MANY_REQUESTS, "caller-busy")
        }
        (Limit::Account, _) => (StatusCode::SERVICE_UNAVAILABLE, "account-busy"),
        (Limit::Upstream, _) => (StatusCode::SERVICE_UNAVAILABLE, "upstream-busy"),
    };
    not_sent(status, code, refused)
        .hint("send fewer at a time, or try again; the operator sets the limits (in_flight_max, queue_max, queue_timeout)")
        .later()
        .after(RETRY_SOON)
}

fn upstream(error: &upstream::Error) -> Told {
    let told = |status, code| not_sent(status, code, error).later();
    match error {
        upstream::Error::Resolve(_)
        | upstream::Error::Destination(_)
        | upstream::Error::Connect(_)
        | upstream::Error::Tls(_) => {
            told(StatusCode::BAD_GATEWAY, "upstream-unreachable")
                .hint("try again later; the gateway's log has the cause under this request id")
        }
        upstream::Error::Exhausted(_) => told(StatusCode::SERVICE_UNAVAILABLE, "gateway-busy")
            .hint("try again soon; the operator raises the gateway's limit on descriptors (LimitNOFILE=), or lowers connections_max")
            .after(RETRY_SOON),
        upstream::Error::ConnectTimeout => {
            told(StatusCode::GATEWAY_TIMEOUT, "upstream-connect-timeout")
        }
        upstream::Error::Capacity => {
            told(StatusCode::SERVICE_UNAVAILABLE, "upstream-busy").after(RETRY_SOON)
        }
        upstream::Error::Down => told(StatusCode::SERVICE_UNAVAILABLE, "upstream-down")
            .hint("the gateway looks several times a second whether the host is back")
            .after(RETRY_SOON),
        // Late is told with those that had no time before; nobody is told of one that's unwanted.
        upstream::Error::Late | upstream::Error::Unwanted => {
            told(StatusCode::GATEWAY_TIMEOUT, "no-time-left")
        }
        upstream::Error::Unsent { .. } => told(StatusCode::BAD_GATEWAY, "upstream-connection-lost"),
        upstream::Error::Broken(_) => told(StatusCode::BAD_GATEWAY, "upstream-broken"),
        upstream::Error::Timeout(_) => told(StatusCode::GATEWAY_TIMEOUT, "upstream-timeout"),
        upstream::Error::TooLarge(_) => told(StatusCode::BAD_GATEWAY, "reply-too-large"),
    }
}

fn unusable(error: &reply::Error) -> Told {
    let told = |code| not_sent(StatusCode::BAD_GATEWAY, code, error);
    match error {
        reply::Error::Refused(StatusCode::TOO_MANY_REQUESTS, _) => {
            told("upstream-refused").hint("the host has too many calls: wait before the next one")
        }
        reply::Error::Refused(..) => told("upstream-refused")
            .hint("KYBIO's web server refused it: may this account call this operation?"),
        reply::Error::Status(..) => told("upstream-status"),
        reply::Error::Encoding(encoding::Error::TooLarge(_)) => told("reply-too-large"),
        reply::Error::Encoding(_) | reply::Error::NotAnAnswer(_) => told("unreadable-reply"),
    }
}
