//! The only place that turns what happened into HTTP. The client reads a code and a hint; the log reads the cause; they're separate.

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header;
use serde::Serialize;
use uuid::Uuid;

use crate::identity::Unknown;
use crate::observe::exchange::Exchange;
use crate::operation::Class;
use crate::outcome::Outcome;
use crate::payload;
use crate::policy;
use crate::policy::path::BadTarget;
use crate::proxy::error::Error;
use crate::reply;
use crate::reply::Reply;
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

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// What a caller is told of an [`Error`].
struct Told {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: Option<String>,
    /// Of what wasn't sent: whether the same request may be taken another time.
    may_pass_later: bool,
}

/// KYBIO's own answer, success or error, with its own bytes.
#[must_use]
pub fn reply(headers: &HeaderMap, reply: &Reply, mut exchange: Exchange) -> Response<Bytes> {
    let (body, encoding) = reply.body_for(headers);
    exchange.reply_bytes = body.len();
    let mut response = response(StatusCode::OK, body, &mut exchange, false);
    if let Some(token) = encoding.token() {
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, HeaderValue::from_static(token));
    }
    response
}

/// An answer of our own making.
#[must_use]
pub fn refusal(error: &Error, mut exchange: Exchange) -> Response<Bytes> {
    let read = matches!(exchange.operation, Some((_, Class::Read)));
    let told = told(error);
    exchange.outcome = error.outcome();
    exchange.refusal = Some(told.code);
    exchange.cause = Some(cause(error));
    let retryable = match exchange.outcome {
        Outcome::NotSent => told.may_pass_later,
        Outcome::Unknown => read,
        Outcome::Done | Outcome::Rejected => false,
    };
    let hint = told
        .hint
        .or_else(|| (exchange.outcome == Outcome::Unknown).then(|| unknown_hint(read).to_owned()));
    let (offset, line, column) = place(error);
    let envelope = Envelope::new(
        told.status,
        told.message,
        Gateway {
            code: told.code,
            outcome: exchange.outcome.as_str(),
            retryable,
            request_id: exchange.id,
            account: exchange.account.as_ref().map(|account| account.as_str()),
            hint,
            offset,
            line,
            column,
            upstream_status: upstream_status(error),
        },
    );
    let body = envelope.bytes();
    exchange.reply_bytes = body.len();
    let mut response = response(told.status, body, &mut exchange, retryable);
    if matches!(error, Error::Payload(payload::Error::LengthMissing)) {
        // What follows may be the body that was meant: it isn't to be read as a request.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if told.status == StatusCode::METHOD_NOT_ALLOWED {
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    response
}

/// A bug of ours: the task that made the attempt is gone. Its record has ended by itself, as unknown.
#[must_use]
pub fn internal(id: Uuid) -> Response<Bytes> {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let envelope = Envelope::new(
        status,
        "the gateway failed while the call was under way".to_owned(),
        Gateway {
            code: "internal",
            outcome: Outcome::Unknown.as_str(),
            retryable: false,
            request_id: id,
            account: None,
            hint: Some(
                "this is a fault of the gateway: please report it with the request id".to_owned(),
            ),
            offset: None,
            line: None,
            column: None,
            upstream_status: None,
        },
    );
    let mut response = Response::new(envelope.bytes());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(OUTCOME, HeaderValue::from_static(Outcome::Unknown.as_str()));
    headers.insert(RETRYABLE, HeaderValue::from_static("no"));
    headers.insert(ATTEMPTS, HeaderValue::from_static("1"));
    headers.insert(REQUEST_ID, id_value(id));
    response
}

/// The header fields that every answer has.
fn response(
    status: StatusCode,
    body: Bytes,
    exchange: &mut Exchange,
    retryable: bool,
) -> Response<Bytes> {
    exchange.status = Some(status.as_u16());
    exchange.told = true;
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, JSON);
    // Members' data: no cache on the way is to keep it.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(OUTCOME, HeaderValue::from_static(exchange.outcome.as_str()));
    headers.insert(
        RETRYABLE,
        HeaderValue::from_static(if retryable { "yes" } else { "no" }),
    );
    headers.insert(
        ATTEMPTS,
        HeaderValue::from_static(if exchange.attempt.is_some() { "1" } else { "0" }),
    );
    headers.insert(REQUEST_ID, id_value(exchange.id));
    if let Some(account) = &exchange.account {
        let value =
            HeaderValue::from_str(account.as_str()).expect("an account's name is a header value");
        headers.insert(ACCOUNT, value);
    }
    response
}

fn id_value(id: Uuid) -> HeaderValue {
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
        .expect("an id is a header value")
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

/// For the log: the error and what caused it. Never a body, a key or a signature: no error holds one.
fn cause(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
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

fn unknown_hint(read: bool) -> &'static str {
    if read {
        "nothing was changed: ask again"
    } else {
        "the call may have taken effect: look it up before sending it again"
    }
}

/// One row for each way to fail.
fn told(error: &Error) -> Told {
    match error {
        Error::Identity(unknown) => identity(unknown),
        Error::Policy(error) => policy(error),
        Error::Payload(error) => payload(error),
        Error::IdempotencyKey => not_sent(StatusCode::BAD_REQUEST, "idempotency-key", error)
            .hint("remove the header; the gateway never sends a write twice by itself"),
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
    }
}

impl Told {
    fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
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
    not_sent(StatusCode::FORBIDDEN, "unknown-caller", unknown)
        .hint("the operator adds one of the certificate's identities to a [callers.*] table of the gateway's configuration")
}

fn policy(error: &policy::Error) -> Told {
    let told = |status, code| not_sent(status, code, error);
    match error {
        policy::Error::BadTarget(BadTarget::Host) => told(StatusCode::BAD_REQUEST, "bad-host"),
        policy::Error::BadTarget(_) => told(StatusCode::BAD_REQUEST, "bad-path").hint("call /openapi/v1/<module>/<method>, in any letter case, and nothing else"),
        policy::Error::UnknownOperation { suggestion: Some(name) } => told(StatusCode::NOT_FOUND, "unknown-operation").hint(format!("did you mean {name}?")),
        policy::Error::UnknownOperation { suggestion: None } => {
            told(StatusCode::NOT_FOUND, "unknown-operation").hint("call /openapi/v1/<module>/<method> as the vendor documents it, such as /openapi/v1/customerOpenApi/add")
        }
        policy::Error::Unsupported { .. } => told(StatusCode::NOT_FOUND, "unsupported-path"),
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

fn upstream(error: &upstream::Error) -> Told {
    let told = |status, code| not_sent(status, code, error).later();
    match error {
        upstream::Error::Resolve(_) | upstream::Error::Connect(_) | upstream::Error::Tls(_) => {
            told(StatusCode::BAD_GATEWAY, "upstream-unreachable")
                .hint("try again later; the gateway's log has the cause under this request id")
        }
        upstream::Error::ConnectTimeout => {
            told(StatusCode::GATEWAY_TIMEOUT, "upstream-connect-timeout")
        }
        upstream::Error::Capacity => told(StatusCode::SERVICE_UNAVAILABLE, "upstream-busy"),
        upstream::Error::Unsent(_) => told(StatusCode::BAD_GATEWAY, "upstream-connection-lost"),
        upstream::Error::Broken(_) => told(StatusCode::BAD_GATEWAY, "upstream-broken"),
        upstream::Error::Timeout(_) => told(StatusCode::GATEWAY_TIMEOUT, "upstream-timeout"),
        upstream::Error::TooLarge(_) => told(StatusCode::BAD_GATEWAY, "reply-too-large"),
    }
}

fn unusable(error: &reply::Error) -> Told {
    let told = |code| not_sent(StatusCode::BAD_GATEWAY, code, error);
    match error {
        reply::Error::Refused(_) => told("upstream-refused")
            .hint("KYBIO's web server refused it: may this account call this operation?"),
        reply::Error::Status(_) => told("upstream-status"),
        reply::Error::Encoding(_) | reply::Error::NotAnAnswer(_) => told("unreadable-reply"),
    }
}
