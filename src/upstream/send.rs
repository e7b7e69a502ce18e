//! One attempt: a request of our own, built from nothing, and its whole reply.

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::StatusCode;
use http::Uri;
use http::header;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::LengthLimitError;
use http_body_util::Limited;
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::clock::Stamp;
use crate::operation::OperationName;
use crate::sign::SignedBody;
use crate::upstream::Error;
use crate::upstream::Left;
use crate::upstream::pool::Connection;
use crate::upstream::pool::Pool;

/// What one attempt sends.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Its canonical name makes the path.
    pub operation: &'a OperationName,
    /// The body with its signature.
    pub signed: &'a SignedBody,
    /// New for each attempt.
    pub stamp: Stamp,
}

/// A whole reply, as it came.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status. KYBIO's own failures come with 200.
    pub status: StatusCode,
    /// All header fields.
    pub headers: HeaderMap,
    /// All bytes, still compressed if they came so.
    pub body: Bytes,
}

/// Sends a call, and reads the whole reply. Exactly one attempt: nothing is sent twice, and no redirect is followed.
///
/// # Errors
/// When no whole reply came; the error says what may have left.
pub async fn send(pool: &Pool, call: &Call<'_>, deadline: Instant) -> Result<Answer, Error> {
    let request = request(pool, call);
    let mut connection = pool.checkout(deadline).await?;
    let before = connection.accepted.count();
    let reply_bytes_max = pool.upstream().settings().reply_bytes_max;
    match timeout_at(
        deadline,
        exchange(&mut connection, request, reply_bytes_max),
    )
    .await
    {
        Ok(Ok(answer)) => {
            pool.checkin(connection);
            Ok(answer)
        }
        Ok(Err(error)) => Err(unless_unsent(connection, before, error)),
        Err(_) => Err(unless_unsent(
            connection,
            before,
            Error::Timeout(Left::Perhaps),
        )),
    }
}

/// The second proof: not one byte was accepted since the request was handed over.
fn unless_unsent(connection: Connection, before: u64, error: Error) -> Error {
    let accepted = connection.accepted.clone();
    // The driver shares this thread, so that it can't be writing now; and once cut it never writes again.
    connection.cut();
    match error {
        Error::Broken(cause) if accepted.count() == before => Error::Unsent(cause),
        Error::Timeout(_) if accepted.count() == before => Error::Timeout(Left::Nothing),
        other => other,
    }
}

async fn exchange(
    connection: &mut Connection,
    request: Request<Full<Bytes>>,
    reply_bytes_max: usize,
) -> Result<Answer, Error> {
    let reply = connection
        .sender
        .try_send_request(request)
        .await
        .map_err(|mut error| {
            // The first proof: the request was handed back.
            let handed_back = error.take_message().is_some();
            if handed_back {
                Error::Unsent(error.into_error())
            } else {
                Error::Broken(error.into_error())
            }
        })?;
    let (head, body) = reply.into_parts();
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: whole(body, reply_bytes_max).await?,
    })
}

async fn whole(body: Incoming, bytes_max: usize) -> Result<Bytes, Error> {
    match Limited::new(body, bytes_max).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Error::TooLarge(bytes_max)),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(Error::Broken(*error)),
            // `Limited` has no third kind of error; what it can't be counts as a reply that isn't whole.
            Err(_) => Err(Error::TooLarge(bytes_max)),
        },
    }
}

/// The request as documented (contract, section 2), with nothing of the caller's but the body.
fn request(pool: &Pool, call: &Call<'_>) -> Request<Full<Bytes>> {
    let base_url = &pool.upstream().settings().base_url;
    let path = format!("{}/openapi/v1/{}", base_url.path, call.operation);
    let mut signature = HeaderValue::from_bytes(call.signed.expose_signature())
        .expect("hex digits are a header value");
    signature.set_sensitive(true);
    let mut request = Request::new(Full::new(call.signed.body().clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() =
        Uri::try_from(path).expect("a base URL's path and an operation's name are a path");
    let headers = request.headers_mut();
    headers.insert(header::HOST, base_url.authority.clone());
    headers.insert(header::USER_AGENT, HeaderValue::from_static("openApi"));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("gzip,deflate"),
    );
    headers.insert("time-stamp", HeaderValue::from(call.stamp.unix_ms()));
    headers.insert("data-signature", signature);
    request
}
