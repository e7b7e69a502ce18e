//! The stand-in KYBIO host behind `kybio-gateway simulate`: the vendor's protocol, signature, quota and a small shop for each account,
//! kept in memory. It must never be taken for the real one, and it must never borrow the gateway's own signing code.
//!
//! Every answer says what it is: `x-kybio-simulator: stand-in`, and `x-kybio-simulator-answer: documented` or `assumed`.
//!
//! **Documented**, by a vendor's page or a live client's source: the signature rule; paths in any letter case, with doubled
//! slashes; business failures as HTTP 200; the envelope; 404 for an unknown method; pages of 100 and their mark that is echoed;
//! the replies marked so in `operations`; the texts marked so in `reply`; the refusal of a second change with the same
//! `customerUid` and `dataChangeTime`; codes 5001 and 5004; a quota for each day and account, which failed calls and questions
//! about the quota use up too, and which begins anew at midnight UTC+8; and the vendor's misspellings.
//!
//! **Assumed**: every other text and that it has no code; that a wrong signature uses up a call; that a look-up of what isn't
//! there is a success without `data`; the numbers of order states but 0, and which step is allowed from which; the fields of
//! stock flows and coupons; that deletion is `enable` -1; and whatever a function's own documentation calls assumed. Operations
//! without state answer with an empty list or page, and writes without state are taken and forgotten.
//!
//! **To see the refusals of the samples**: send `customer-increment` or `product-add` twice; delete the product with
//! `updateProductInfo` and `"enable":-1` before `product-update-missing`; start with a small `quota_per_day` and use it up before
//! `quota-exhausted`. `order-complete` comes before `order-cancel`, since both name the seeded order. `seed` lists what is there.
//!
//! **To see it misbehave**: `faults` is the book of what is to go wrong, `control` the calls that write in it, `misbehave` does it, and
//! `docs/simulator.md` says what each fault looks like to a caller. Without an entry there it's as honest as it can be.

mod amount;
mod call;
mod control;
mod coupons;
mod encoding;
pub mod faults;
mod host;
mod members;
mod misbehave;
mod moment;
mod money;
mod operations;
mod orders;
mod platform;
mod products;
mod protocol;
mod quota;
mod record;
mod reply;
mod seed;
mod shop;
mod stock;
mod table;
mod tickets;

#[cfg(test)]
mod bench;
#[cfg(test)]
mod samples;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::simulator::call::Call;
use crate::simulator::call::Chain;
use crate::simulator::call::locked;
use crate::simulator::encoding::Encoding;
use crate::simulator::faults::Fault;
use crate::simulator::faults::Faults;
use crate::simulator::moment::Moment;
use crate::simulator::operations::Operation;
use crate::simulator::quota::Quota;
use crate::simulator::record::Record;
use crate::simulator::reply::Outcome;
use crate::simulator::reply::Refusal;
use crate::simulator::shop::Shop;

/// Who may call the stand-in, and how often.
#[derive(Debug)]
pub struct Settings {
    /// The accounts, all of one chain; the first is its head office. Of two with one appId the last counts.
    pub accounts: Vec<Account>,
    /// Calls that each account has for a day, failures counted; [`QUOTA_PER_DAY`] is what the vendor gives.
    pub quota_per_day: u32,
}

/// One account's credentials, for the stand-in alone: never put a live key here.
pub struct Account {
    /// The appId, as request bodies name it.
    pub app_id: String,
    /// The appKeys that may sign its bodies: several while one takes the place of another.
    pub app_keys: Vec<String>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("app_id", &self.app_id)
            .field("app_keys", &"..")
            .finish()
    }
}

/// The vendor's daily quota without an upgrade (contract, section 5).
pub const QUOTA_PER_DAY: u32 = 300;

/// The stand-in host.
pub struct Simulator {
    keys: ArcSwap<BTreeMap<String, Vec<String>>>,
    shops: BTreeMap<String, Mutex<Shop>>,
    chain: Chain,
    faults: Faults,
    received: AtomicU64,
    took_effect: AtomicU64,
    bad_signatures: AtomicU64,
    clock: Clock,
    watcher: Option<mpsc::Sender<Seen>>,
}

/// A request as it arrived, for whoever watches.
#[derive(Debug)]
pub struct Seen {
    /// The request's target.
    pub target: String,
    /// All header fields; the signature is among them.
    pub headers: HeaderMap,
    /// The exact bytes.
    pub body: Bytes,
}

impl Simulator {
    /// A stand-in whose shops are as `seed` makes them.
    #[must_use]
    pub fn new(settings: Settings, clock: Clock) -> Self {
        let mut quota = Quota::new(settings.quota_per_day);
        let mut app_ids = Vec::new();
        let mut keys = BTreeMap::new();
        let mut shops = BTreeMap::new();
        for account in settings.accounts {
            if keys
                .insert(account.app_id.clone(), account.app_keys)
                .is_none()
            {
                seed::remember_days(&mut quota, &account.app_id);
                shops.insert(account.app_id.clone(), Mutex::new(seed::shop()));
                app_ids.push(account.app_id);
            }
        }
        Self {
            keys: ArcSwap::from_pointee(keys),
            shops,
            chain: Chain {
                app_ids,
                quota: Mutex::new(quota),
            },
            faults: Faults::new(seed_of_chance(&clock)),
            received: AtomicU64::new(0),
            took_effect: AtomicU64::new(0),
            bad_signatures: AtomicU64::new(0),
            clock,
            watcher: None,
        }
    }

    /// Shows each request that arrives to `watcher`; what it has no room for it doesn't see.
    #[must_use]
    pub fn watched(self, watcher: mpsc::Sender<Seen>) -> Self {
        Self {
            watcher: Some(watcher),
            ..self
        }
    }

    /// From now on these are the keys of its accounts; one that isn't among them has none. There can't be more accounts.
    pub fn change_keys(&self, accounts: Vec<Account>) {
        let keys = accounts.into_iter();
        let keys = keys.map(|account| (account.app_id, account.app_keys));
        self.keys.store(Arc::new(keys.collect()));
    }

    /// What is to go wrong, on the connections that [`serve`](Self::serve) answers.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// How many calls there were since the start, on the connections that [`serve`](Self::serve) answers.
    #[must_use]
    pub fn calls(&self) -> Calls {
        Calls {
            received: self.received.load(Ordering::Relaxed),
            took_effect: self.took_effect.load(Ordering::Relaxed),
            bad_signatures: self.bad_signatures.load(Ordering::Relaxed),
        }
    }

    /// What is to go wrong with the call whose head has come. What isn't a call gets its 404 or 405 as ever.
    fn strike(&self, method: &Method, path: &str) -> Option<Fault> {
        let operation = Operation::find(&protocol::operation_name(path)?)?;
        if method != Method::POST {
            return None;
        }
        self.received.fetch_add(1, Ordering::Relaxed);
        self.faults.strike_call(operation.name)
    }

    fn show(&self, request: &Request<Bytes>) {
        if let Some(watcher) = &self.watcher {
            // To watch is to look on: it never holds up an answer.
            let _ = watcher.try_send(Seen {
                target: request.uri().to_string(),
                headers: request.headers().clone(),
                body: request.body().clone(),
            });
        }
    }

    /// Answers the listener's connections, over TLS when there is an acceptor, until `stop`; then lets calls in flight finish for
    /// a bounded time. Returns when the last connection has ended.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        stop: CancellationToken,
    ) {
        host::serve(self, listener, tls, stop).await;
    }

    /// Answers control calls on a listener of its own until `stop`: setting, listing and clearing faults. It asks nobody who they are,
    /// so the listener's address must be a loopback one.
    pub async fn control(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        control::serve(self, listener, stop).await;
    }

    /// Answers one request, whole. Does no IO but for one log line, which has neither key nor signature nor body.
    ///
    /// The faults that are set don't matter here.
    #[must_use]
    pub fn answer(&self, request: &Request<Bytes>) -> Response<Bytes> {
        self.answer_in(request, Encoding::chosen(request.headers()))
    }

    fn answer_in(&self, request: &Request<Bytes>, encoding: Encoding) -> Response<Bytes> {
        self.show(request);
        let name = protocol::operation_name(request.uri().path());
        let Some(operation) = name.and_then(|name| Operation::find(&name)) else {
            return protocol::infrastructure(StatusCode::NOT_FOUND, "no such method\n");
        };
        if request.method() != Method::POST {
            return protocol::infrastructure(StatusCode::METHOD_NOT_ALLOWED, "POST only\n");
        }
        let mut visit = Visit {
            app_id: "",
            signature: "unchecked",
        };
        let outcome = self.visit(operation, request, &mut visit);
        let (status, code) = match &outcome {
            Ok(_) => {
                self.took_effect.fetch_add(1, Ordering::Relaxed);
                ("success", None)
            }
            Err(refusal) => ("error", refusal.words().code),
        };
        let Visit { app_id, signature } = visit;
        tracing::info!(
            operation = operation.name,
            app_id,
            status,
            code,
            signature,
            "answered a simulated call"
        );
        protocol::business(outcome, operation.documented, encoding)
    }

    fn visit<'a>(
        &'a self,
        operation: &Operation,
        request: &Request<Bytes>,
        visit: &mut Visit<'a>,
    ) -> Outcome {
        let body = serde_json::from_slice(request.body())
            .ok()
            .and_then(Record::from_value)
            .ok_or(Refusal::BodyWrong)?;
        let app_id = body.need("appId").map_err(|_| Refusal::AccountMissing)?;
        let (app_id, shop) = self
            .shops
            .get_key_value(&app_id)
            .ok_or(Refusal::AccountMissing)?;
        visit.app_id = app_id;
        let now = Moment::local(self.clock.since_epoch());
        // Before the signature is looked at: failed calls count.
        let has_quota = self.chain.quota().take(app_id, &now.day());
        let keys = self.keys.load();
        let keys = keys.get(app_id).map(Vec::as_slice).unwrap_or_default();
        let verified = protocol::verify(request.headers(), keys, request.body());
        let is_forged = matches!(
            verified,
            Err(Refusal::SignatureMissing | Refusal::SignatureWrong)
        );
        visit.signature = if is_forged { "bad" } else { "good" };
        if is_forged {
            self.bad_signatures.fetch_add(1, Ordering::Relaxed);
        }
        verified?;
        if !has_quota {
            return Err(Refusal::QuotaUsedUp);
        }
        let call = Call {
            app_id,
            body,
            now,
            chain: &self.chain,
        };
        operation.answer(&mut locked(shop), &call)
    }
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulator")
            .field("app_ids", &self.chain.app_ids)
            .finish_non_exhaustive()
    }
}

/// How many calls there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// Whose head was read, whatever went wrong then.
    pub received: u64,
    /// That the business answered with success, whether or not the answer arrived.
    pub took_effect: u64,
    /// Without a signature, or with one that no key of the account's made.
    pub bad_signatures: u64,
}

/// Another one for each start, and the same one for a clock that stands still.
fn seed_of_chance(clock: &Clock) -> u64 {
    u64::try_from(clock.since_epoch().as_nanos()).unwrap_or(u64::MAX)
}

/// What the log says of a call that may have been refused at any step.
struct Visit<'a> {
    app_id: &'a str,
    signature: &'static str,
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::Mutex;

    use bytes::Bytes;
    use http::Method;
    use http::Request;
    use serde_json::Value;
    use serde_json::json;
    use tracing_subscriber::fmt::MakeWriter;

    use crate::simulator::Account;
    use crate::simulator::bench::APP_KEY;
    use crate::simulator::bench::Bench;

    const CATEGORIES: &str = "customerOpenApi/queryAllCustomerCategory";

    fn request(method: Method, path: &str, body: &'static str) -> Request<Bytes> {
        let mut request = Request::new(Bytes::from_static(body.as_bytes()));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap();
        request
    }

    #[test]
    fn only_an_unknown_method_is_a_404_and_only_another_verb_a_405() {
        let bench = Bench::new();
        let status = |method, path| bench.send(&request(method, path, "{}")).http_status();
        assert_eq!(
            status(Method::POST, "/openapi/v1/customerOpenApi/remove"),
            404
        );
        assert_eq!(status(Method::POST, "/"), 404);
        assert_eq!(status(Method::GET, "/openapi/v1/customerOpenApi/add"), 405);
        assert_eq!(status(Method::POST, "/openapi/v1/customeropenapi/ADD"), 200);
    }

    #[test]
    fn what_is_refused_at_the_door_is_a_business_error_of_assumed_text() {
        let bench = Bench::new();
        let path = "/openapi/v1/customerOpenApi/queryByNumber";
        let cases = [
            ("", "body is not a JSON object"),
            ("[]", "body is not a JSON object"),
            ("{\"appId\":", "body is not a JSON object"),
            ("{}", "appId does not exist"),
            ("{\"appId\":\"nobody\"}", "appId does not exist"),
            (
                "{\"appId\":\"abcdefghijklmn\"}",
                "data-signature is missing",
            ),
        ];
        for (body, message) in cases {
            let answered = bench.send(&request(Method::POST, path, body));
            assert_eq!(
                (answered.http_status(), answered.message()),
                (200, message.to_owned()),
                "{body}"
            );
            assert_eq!(
                answered.header("x-kybio-simulator-answer"),
                "assumed",
                "{body}"
            );
        }
    }

    #[test]
    fn every_answer_says_that_it_is_a_stand_ins() {
        let bench = Bench::new();
        let answers = [
            bench.call(CATEGORIES, json!({})),
            bench.send(&request(Method::GET, "/", "")),
        ];
        assert!(
            answers
                .iter()
                .all(|answered| answered.header("x-kybio-simulator") == "stand-in")
        );
        assert_eq!(answers[0].header("x-kybio-simulator-answer"), "documented");
    }

    #[test]
    fn a_call_leaves_one_log_line_without_key_signature_or_body() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let log = tracing_subscriber::fmt()
            .json()
            .with_writer(Log(Arc::clone(&written)));
        tracing::subscriber::with_default(log.finish(), || {
            // Whether anyone listens is remembered for the whole process, and a test that logs at this very moment, with nobody
            // listening, can spoil that once: then the event is lost, and the call is made again.
            for _ in 0..100 {
                if !written.lock().unwrap().is_empty() {
                    break;
                }
                tracing::callsite::rebuild_interest_cache();
                let body = json!({"customerNum": "8008010001"});
                Bench::new().call("customerOpenApi/queryByNumber", body);
            }
        });
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        let fields = line["fields"].as_object().unwrap();
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["app_id", "message", "operation", "signature", "status"]
        );
        assert_eq!(fields["signature"], json!("good"));
        assert!(
            !text.contains(APP_KEY) && !text.contains("8008010001"),
            "{text}"
        );
    }

    #[test]
    fn a_key_is_never_printed() {
        let account = Account {
            app_id: "shown".to_owned(),
            app_keys: vec!["secret".to_owned()],
        };
        let printed = format!("{account:?}");
        assert!(
            printed.contains("shown") && !printed.contains("secret"),
            "{printed}"
        );
    }

    /// Where a test's log goes.
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }
}
