//! Every key there is, once: its kind, bounds, default and meaning. The reference file, the schema and the suggestions come from this table.

use std::fmt::Write;
use std::time::Duration;

/// One key. `*` in its path stands for a name that the operator chooses.
#[derive(Debug)]
pub struct Key {
    /// Table and name.
    pub path: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What holds when it isn't written, in the spelling of a file.
    pub default: Fallback,
    /// For people.
    pub doc: &'static str,
}

/// What holds when a key isn't written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// This value.
    Value(&'static str),
    /// Nothing: it must be written. The text is an example.
    Required(&'static str),
    /// Nothing: it must be written where the listener has TLS, and not elsewhere. The text is an example.
    RequiredWithTls(&'static str),
    /// Nothing: it may be left out. The text is an example.
    Absent(&'static str),
}

impl Fallback {
    /// The value, or an example of one, in the spelling of a file.
    #[must_use]
    pub fn example(self) -> &'static str {
        match self {
            Self::Value(text)
            | Self::Required(text)
            | Self::RequiredWithTls(text)
            | Self::Absent(text) => text,
        }
    }
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `"5s"`, `"10m"`, between two bounds.
    Duration(Duration, Duration),
    /// A whole number between two bounds.
    Integer(i64, i64),
    /// `true` or `false`.
    Boolean,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `"address:port"`.
    Address,
    /// Several of them.
    Addresses,
    /// `"address:port"`, or `"unix:path"` with a path relative to the file that names it.
    Listen,
    /// Any text; what it means is checked where it's used.
    Text,
    /// Several of them.
    Texts,
    /// A file, relative to the one that names it, or below `$CREDENTIALS_DIRECTORY/`.
    File,
    /// Several of them.
    Files,
    /// `"system"`, `"bundled"`, or a file.
    Roots,
}

impl Kind {
    /// Its values are names of files.
    #[must_use]
    pub fn is_of_files(self) -> bool {
        matches!(self, Self::File | Self::Files | Self::Roots)
    }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

const fn key(path: &'static str, kind: Kind, default: Fallback, doc: &'static str) -> Key {
    Key {
        path,
        kind,
        default,
        doc,
    }
}

/// The table, in the order of the reference file.
pub const KEYS: &[Key] = &[
    key(
        "include",
        Kind::Files,
        Fallback::Absent(r#"["accounts.d/*.toml"]"#),
        "More files with tables of the same shape. `*` matches within a name. Included files can't include.",
    ),
    key(
        "listener.address",
        Kind::Listen,
        Fallback::Value(r#""0.0.0.0:8443""#),
        "Where callers connect. TCP with TLS and a client certificate; or a unix socket, such as \"unix:/run/kybio-gateway/gateway.sock\", with HTTP/1.1 alone and no TLS, where callers are known by their users. In a folder that only the gateway's user can write.",
    ),
    key(
        "listener.plaintext",
        Kind::Boolean,
        Fallback::Value("false"),
        "HTTP/1.1 without TLS on TCP, at a loopback address alone. Everything on the machine, or in the pod, can connect then, and all of it is the one caller \"loopback\". A unix socket tells users apart.",
    ),
    key(
        "listener.socket_mode",
        Kind::Text,
        Fallback::Absent(r#""0660""#),
        "Permissions of a unix socket's file, octal; \"0660\" unless written. Who may write to it may connect. A socket that was passed keeps its own.",
    ),
    key(
        "listener.certificate",
        Kind::File,
        Fallback::RequiredWithTls(r#""tls/gateway.pem""#),
        "The gateway's certificate and what leads to its CA, PEM.",
    ),
    key(
        "listener.private_key",
        Kind::File,
        Fallback::RequiredWithTls(r#""tls/gateway.key""#),
        "Its key, PEM.",
    ),
    key(
        "listener.client_ca",
        Kind::File,
        Fallback::RequiredWithTls(r#""tls/callers-ca.pem""#),
        "Whom callers' certificates must lead to, PEM.",
    ),
    key(
        "listener.client_crl",
        Kind::Files,
        Fallback::Absent(r#"["tls/callers.crl"]"#),
        "Revocation lists, PEM. With at least one, a certificate of unknown status is refused.",
    ),
    key(
        "listener.crl_expired",
        Kind::Choice(&["deny", "warn"]),
        Fallback::Value(r#""deny""#),
        "What a revocation list past its next update does: refuse everybody it covers, or go on.",
    ),
    key(
        "listener.handshake_timeout",
        Kind::Duration(MS, MINUTE),
        Fallback::Value(r#""5s""#),
        "From TCP to TLS.",
    ),
    key(
        "listener.header_timeout",
        Kind::Duration(MS, MINUTE),
        Fallback::Value(r#""10s""#),
        "From a request head's first byte to its last.",
    ),
    key(
        "listener.body_timeout",
        Kind::Duration(MS, HOUR),
        Fallback::Value(r#""10s""#),
        "From a request's head to the end of its body.",
    ),
    key(
        "listener.write_timeout",
        Kind::Duration(MS, HOUR),
        Fallback::Value(r#""30s""#),
        "Without the caller taking a byte of an answer.",
    ),
    key(
        "listener.idle_timeout",
        Kind::Duration(MS, DAY),
        Fallback::Value(r#""120s""#),
        "Without any request on a connection. Longer than callers keep theirs, so that it's they who close.",
    ),
    key(
        "listener.body_bytes_max",
        Kind::Integer(1, 64 * 1024 * 1024),
        Fallback::Value("1048576"),
        "The largest request body, in bytes.",
    ),
    key(
        "listener.bodies_bytes_max",
        Kind::Integer(1, 64 * 1024 * 1024 * 1024),
        Fallback::Value("268435456"),
        "What all request bodies may take of the memory at a time, in bytes, from their first piece to their answer; one caller may hold half of it, and more is refused. Those that come in one piece, as small ones do, aren't counted. For a moment each takes up to three times its length.",
    ),
    key(
        "listener.connections_max",
        Kind::Integer(1, 1_000_000),
        Fallback::Value("10000"),
        "Connections at a time; more wait in the kernel's queue. Must fit the descriptor limit.",
    ),
    key(
        "listener.connections_per_address_max",
        Kind::Integer(1, 1_000_000),
        Fallback::Absent("5000"),
        "Connections at a time from one address, or one IPv6 network of 64 bits; more are closed before TLS. Half of connections_max unless written, all of them without TLS. Not for a unix socket.",
    ),
    key(
        "listener.connections_per_caller_max",
        Kind::Integer(1, 1_000_000),
        Fallback::Absent("5000"),
        "Connections at a time of one caller; more are closed after the handshake. Certificates that belong to no caller count as one. Half of connections_max unless written, all of them in plaintext on loopback.",
    ),
    key(
        "listener.connection_age_max",
        Kind::Duration(SECOND, DAY),
        Fallback::Value(r#""1h""#),
        "After this time, give or take a tenth, a connection ends with its next answer.",
    ),
    key(
        "listener.reuse_port",
        Kind::Boolean,
        Fallback::Value("false"),
        "Let a second process listen on the same port (SO_REUSEPORT), if it's told so too. Otherwise that's an error. Not quite without loss: a connection that comes while the one that ends closes its own queue is reset. A passed socket has one queue for both.",
    ),
    key(
        "admin.address",
        Kind::Address,
        Fallback::Value(r#""127.0.0.1:9464""#),
        "Metrics and health, plain HTTP; shows no secrets. In a container 0.0.0.0.",
    ),
    key(
        "metrics.series_max",
        Kind::Integer(1_000, 1_000_000),
        Fallback::Value("20000"),
        "Series that operations, callers and accounts may have in the metrics, each bucket of a histogram counted; the rest is folded into `other`, and counted as such.",
    ),
    key(
        "upstreams.*.base_url",
        Kind::Text,
        Fallback::Required(r#""https://area1.example.com/pospal-api2""#),
        "A KYBIO host. The operation's path, /openapi/v1/..., is appended. http:// to loopback only.",
    ),
    key(
        "upstreams.*.roots",
        Kind::Roots,
        Fallback::Value(r#""system""#),
        "Whom its certificate must lead to: \"system\", \"bundled\" (Mozilla's), or a PEM file.",
    ),
    key(
        "upstreams.*.resolve",
        Kind::Addresses,
        Fallback::Absent(r#"["127.0.0.1:9443"]"#),
        "Addresses instead of DNS. Host, SNI and verification stay those of base_url.",
    ),
    key(
        "upstreams.*.allow_private",
        Kind::Boolean,
        Fallback::Value("false"),
        "Let the host's name lead into a private network, or to this machine. Otherwise DNS can't send a signed body there: an address that isn't public isn't connected to, unless resolve or a base_url of this machine says so.",
    ),
    key(
        "upstreams.*.traceparent",
        Kind::Boolean,
        Fallback::Value("false"),
        "Send the trace (W3C Trace Context) that a call is part of: the caller's, or one that is begun here. The log has it in any case.",
    ),
    key(
        "upstreams.*.connect_timeout",
        Kind::Duration(MS, MINUTE),
        Fallback::Value(r#""5s""#),
        "DNS, TCP and TLS together, all addresses included.",
    ),
    key(
        "upstreams.*.attempt_timeout",
        Kind::Duration(MS, HOUR),
        Fallback::Value(r#""20s""#),
        "One attempt of what may be sent again: a read, or a write with repeat = \"identical-bytes\". Any other write's attempt has all the time that is left.",
    ),
    key(
        "upstreams.*.total_timeout",
        Kind::Duration(MS, HOUR),
        Fallback::Value(r#""45s""#),
        "All that a request may take.",
    ),
    key(
        "upstreams.*.idle_timeout",
        Kind::Duration(MS, HOUR),
        Fallback::Value(r#""20s""#),
        "How long an unused connection is kept. Shorter than the host keeps its own.",
    ),
    key(
        "upstreams.*.connection_age_max",
        Kind::Duration(SECOND, DAY),
        Fallback::Value(r#""10m""#),
        "How long any connection is used, so that address changes are seen.",
    ),
    key(
        "upstreams.*.connections_max",
        Kind::Integer(1, 10_000),
        Fallback::Value("100"),
        "Connections to it at a time, in the whole process.",
    ),
    key(
        "upstreams.*.attempts_max",
        Kind::Integer(1, 10),
        Fallback::Value("3"),
        "Attempts for one request. Reads are tried again after most failures, writes only when nothing left.",
    ),
    key(
        "upstreams.*.backoff_min",
        Kind::Duration(MS, MINUTE),
        Fallback::Value(r#""50ms""#),
        "The longest pause before the second attempt; doubled for the third, and so on. Pauses are random, from nothing to that.",
    ),
    key(
        "upstreams.*.backoff_max",
        Kind::Duration(MS, MINUTE),
        Fallback::Value(r#""1s""#),
        "Where that doubling ends.",
    ),
    key(
        "upstreams.*.in_flight_max",
        Kind::Integer(1, 10_000),
        Fallback::Absent("100"),
        "Calls to it at a time, in the whole process; more wait for their turn. As many as connections_max unless written. A call that tries whether a host is back gives its place to others once it's late.",
    ),
    key(
        "upstreams.*.queue_max",
        Kind::Integer(0, 100_000),
        Fallback::Value("1000"),
        "Calls that wait for their turn. Callers take turns, and none may hold more than half of the places.",
    ),
    key(
        "upstreams.*.queue_timeout",
        Kind::Duration(MS, HOUR),
        Fallback::Value(r#""10s""#),
        "How long a call waits for its turn.",
    ),
    key(
        "upstreams.*.breaker_failures",
        Kind::Integer(1, 10_000),
        Fallback::Value("10"),
        "So many attempts that fail in a row open the breaker: calls are refused until the host is back. An attempt fails by its connection or by time; whatever is answered, an HTTP 503 too, is no failure.",
    ),
    key(
        "upstreams.*.breaker_percent",
        Kind::Integer(1, 100),
        Fallback::Value("50"),
        "So does this share of failed attempts, in percent,",
    ),
    key(
        "upstreams.*.breaker_volume",
        Kind::Integer(1, 1_000_000),
        Fallback::Value("100"),
        "of at least so many attempts,",
    ),
    key(
        "upstreams.*.breaker_window",
        Kind::Duration(SECOND, HOUR),
        Fallback::Value(r#""10s""#),
        "within this time.",
    ),
    key(
        "upstreams.*.utc_offset",
        Kind::Text,
        Fallback::Value(r#""+08:00""#),
        "The host's time zone, at whose midnight the daily quota begins anew.",
    ),
    key(
        "upstreams.*.quota_trial_interval",
        Kind::Duration(SECOND, DAY),
        Fallback::Value(r#""15m""#),
        "Once KYBIO has said that an account's calls for the day are used up, one call each so often finds out whether there are some again.",
    ),
    key(
        "upstreams.*.clock_skew_max",
        Kind::Duration(SECOND, DAY),
        Fallback::Value(r#""30s""#),
        "How far this machine's clock may be from the host's, by the Date of its answers, before the log warns.",
    ),
    key(
        "upstreams.*.reply_bytes_max",
        Kind::Integer(1_024, 256 * 1024 * 1024),
        Fallback::Value("16777216"),
        "The largest reply, in bytes, compressed or not.",
    ),
    key(
        "accounts.*.upstream",
        Kind::Text,
        Fallback::Required(r#""kybio""#),
        "The host that has it, by its name above.",
    ),
    key(
        "accounts.*.app_id",
        Kind::Text,
        Fallback::Required(r#""abcdefghijklmn""#),
        "The vendor's appId.",
    ),
    key(
        "accounts.*.app_key_file",
        Kind::File,
        Fallback::Required(r#""secrets/main.key""#),
        "A file with the appKey alone, not open to others; the process's group may read it. White space around it is dropped.",
    ),
    key(
        "accounts.*.paused",
        Kind::Boolean,
        Fallback::Value("false"),
        "Kill switch: its calls are refused with 503.",
    ),
    key(
        "accounts.*.in_flight_max",
        Kind::Integer(1, 10_000),
        Fallback::Value("50"),
        "Calls with it at a time; more wait for their turn.",
    ),
    key(
        "callers.*.identities",
        Kind::Texts,
        Fallback::Required(r#"["spiffe://shop.example/orders", "dns:orders.internal"]"#),
        "Names in its certificate: the SPIFFE URI if there is one, else DNS names. Without TLS: \"uid:1000\", the user at the other end of a unix socket, or \"loopback\".",
    ),
    key(
        "callers.*.accounts",
        Kind::Texts,
        Fallback::Required(r#"["main", "store-*"]"#),
        "Accounts it may use, by name or pattern.",
    ),
    key(
        "callers.*.default_account",
        Kind::Text,
        Fallback::Absent(r#""main""#),
        "The account of requests that name none; needed only when there are several.",
    ),
    key(
        "callers.*.account_by",
        Kind::Choice(&["header", "app-id"]),
        Fallback::Value(r#""header""#),
        "How requests name their account: the Kybio-Gateway-Account header, or also the body's appId.",
    ),
    key(
        "callers.*.operations",
        Kind::Texts,
        Fallback::Required(r#"["customerOpenApi/*", "productOpenApi/query*"]"#),
        "Operations it may call, by name or pattern. Security-sensitive ones are granted by exact name alone.",
    ),
    key(
        "callers.*.paused",
        Kind::Boolean,
        Fallback::Value("false"),
        "Kill switch: its requests are refused with 503.",
    ),
    key(
        "callers.*.in_flight_max",
        Kind::Integer(1, 10_000),
        Fallback::Value("50"),
        "Its calls at a time; more wait for their turn.",
    ),
    key(
        "operations.*.class",
        Kind::Choice(&[
            "read",
            "absolute-write",
            "naturally-keyed-write",
            "deduplicated-write",
            "state-transition",
            "non-idempotent-write",
        ]),
        Fallback::Absent(r#""deduplicated-write""#),
        "What a call does, instead of what the catalogue says.",
    ),
    key(
        "operations.*.explicit",
        Kind::Boolean,
        Fallback::Absent("false"),
        "Granted by its exact name alone.",
    ),
    key(
        "operations.*.repeat",
        Kind::Choice(&["never", "identical-bytes"]),
        Fallback::Absent(r#""never""#),
        "Whether a deduplicated-write that may have left may be sent again, the very same bytes, where the operator trusts KYBIO to refuse the second.",
    ),
    key(
        "operations.*.lookup",
        Kind::Text,
        Fallback::Absent(r#""customerOpenApi/queryByUid""#),
        "The read that tells whether a write took effect.",
    ),
    key(
        "operations.*.paused",
        Kind::Boolean,
        Fallback::Absent("false"),
        "Kill switch: calls are refused with 503.",
    ),
    key(
        "answers.*.match",
        Kind::Texts,
        Fallback::Required(r#"["5010", "请稍后再试"]"#),
        "Error answers of KYBIO's that mean the same: an errorCode, or a fragment of a message. These count before those that ship.",
    ),
    key(
        "answers.*.class",
        Kind::Choice(&[
            "rejected",
            "duplicate",
            "quota-exhausted",
            "credential",
            "transient",
        ]),
        Fallback::Required(r#""transient""#),
        "What it means. transient: may pass later, and a read is tried again. quota-exhausted: the account's calls are refused here until midnight, but for trials. duplicate: already there; see repeat. credential: appId or signature not accepted. rejected: an ordinary no.",
    ),
    key(
        "log.format",
        Kind::Choice(&["json", "human"]),
        Fallback::Value(r#""json""#),
        "One JSON object a line, or for people. To standard error.",
    ),
    key(
        "log.level",
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        Fallback::Value(r#""info""#),
        "The least severe that is written. Requests are \"info\".",
    ),
    key(
        "log.done_one_in",
        Kind::Integer(1, 1_000_000),
        Fallback::Value("1"),
        "Of the requests that are done, one in so many has a line; all others always have theirs. Metrics count all.",
    ),
    key(
        "runtime.workers",
        Kind::Integer(1, 64),
        Fallback::Value("1"),
        "Threads that serve. One carries thousands of requests a second; more mean colder connections to the vendor.",
    ),
    key(
        "runtime.on_bad_key",
        Kind::Choice(&["disable", "refuse"]),
        Fallback::Value(r#""disable""#),
        "What a bad key file does at start: disable its account alone, or refuse to start. At a reload an account keeps the key that it had; one that had none is disabled, or the reload is refused.",
    ),
    key(
        "runtime.reload_interval",
        Kind::Duration(Duration::ZERO, HOUR),
        Fallback::Value(r#""10s""#),
        "How often the configuration and all files that it names are looked at for a change, by their content. What has changed is taken as on SIGHUP. At 0s only SIGHUP counts.",
    ),
    key(
        "runtime.drain_delay",
        Kind::Duration(Duration::ZERO, HOUR),
        Fallback::Value(r#""5s""#),
        "How long serving goes on after readiness has failed, so that load balancers see it.",
    ),
    key(
        "runtime.drain_timeout",
        Kind::Duration(Duration::ZERO, HOUR),
        Fallback::Value(r#""25s""#),
        "How long answers under way may take after that.",
    ),
];

/// The tables whose entries the operator names.
pub const NAMED_TABLES: [&str; 5] = ["upstreams", "accounts", "callers", "operations", "answers"];

/// What a running process can't change.
pub const AT_START_ALONE: &[&str] = &[
    "listener.address",
    "listener.plaintext",
    "listener.socket_mode",
    "listener.connections_max",
    "listener.reuse_port",
    "admin.address",
    "log.format",
    "runtime.workers",
];

/// What the operator's names are in the reference file.
fn example_name(table: &str) -> &'static str {
    match table {
        "upstreams" => "kybio",
        "accounts" => "main",
        "callers" => "orders",
        "answers" => "busy",
        _ => "\"customerOpenApi/updateBalancePointByIncrement\"",
    }
}

/// The keys of each table by its path, in the order of the reference file.
pub fn tables() -> impl Iterator<Item = (&'static str, &'static [Key])> {
    let groups = KEYS.chunk_by(|one, other| one.table() == other.table());
    groups.map(|keys| (keys[0].table(), keys))
}

impl Key {
    /// The path of the table that has it; empty at the top of a file.
    #[must_use]
    pub fn table(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(table, _)| table)
    }

    /// What it's called in its table.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or(self.path, |(_, name)| name)
    }

    /// Unit, default and bounds in words.
    #[must_use]
    pub fn bounds(&self) -> String {
        let bounds = match self.kind {
            Kind::Duration(min, max) => format!(
                "duration, {} to {}",
                humantime::format_duration(min),
                humantime::format_duration(max)
            ),
            Kind::Integer(min, max) => format!("{min} to {max}"),
            Kind::Boolean => "true or false".to_owned(),
            Kind::Choice(words) => words
                .iter()
                .map(|word| format!("{word:?}"))
                .collect::<Vec<_>>()
                .join(", "),
            Kind::Address => "address:port".to_owned(),
            Kind::Addresses => "list of address:port".to_owned(),
            Kind::Listen => "address:port or unix:path".to_owned(),
            Kind::Text => "text".to_owned(),
            Kind::Texts => "list of texts".to_owned(),
            Kind::File => "file".to_owned(),
            Kind::Files => "list of files".to_owned(),
            Kind::Roots => "\"system\", \"bundled\" or a file".to_owned(),
        };
        let default = match self.default {
            Fallback::Value(default) => format!("default {default}"),
            Fallback::Required(_) => "required".to_owned(),
            Fallback::RequiredWithTls(_) => "required with TLS".to_owned(),
            Fallback::Absent(_) => "optional".to_owned(),
        };
        let restart = if AT_START_ALONE.contains(&self.path) {
            "; a change needs a restart"
        } else {
            ""
        };
        format!("{bounds}; {default}{restart}")
    }
}

/// The text of `config/gateway.toml`: every key, with its meaning, unit, default and bounds.
#[must_use]
pub fn reference() -> String {
    let mut out = String::from(
        "#:schema ./gateway.schema.json\n\
         # By the line above editors complete, explain and check keys (Even Better TOML, Taplo). `kybio-gateway config schema` prints\n\
         # that file; where it isn't beside this one, delete the line.\n\
         #\n\
         # Every key of kybio-gateway's configuration. Keys that are commented out may be left out; the others show their default or an\n\
         # example. Relative paths are relative to the file that has them. A key `section.key` can also be set by the environment\n\
         # variable KYBIO_GATEWAY__SECTION__KEY, or by `--set section.key=value`. Unknown keys are errors.\n",
    );
    let mut table = String::new();
    for key in KEYS {
        let (parent, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        let parent = parent.strip_suffix(".*").map_or_else(
            || parent.to_owned(),
            |table| format!("{table}.{}", example_name(table)),
        );
        if parent != table {
            let _ = write!(out, "\n[{parent}]\n");
            table = parent;
        } else if table.is_empty() {
            out.push('\n');
        }
        let _ = writeln!(out, "# {} ({})", key.doc, key.bounds());
        let value = key.default.example();
        let _ = match key.default {
            Fallback::Value(_) | Fallback::Required(_) | Fallback::RequiredWithTls(_) => {
                writeln!(out, "{name} = {value}")
            }
            Fallback::Absent(_) => writeln!(out, "# {name} = {value}"),
        };
    }
    out
}
