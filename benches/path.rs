//! A guard against slow-downs: how many instructions a call's way from its head to its signature takes, part by part.
//!
//! Times differ from machine to machine and from minute to minute; instructions, counted under valgrind, hardly do. The counts that are
//! expected are in `benches/instructions.toml`, and whatever changes one by more than the tolerance says so there.
//!
//! `cargo bench --profile guard --bench path -- check` compares, `-- update` writes the file anew. Without a command each part runs once,
//! and nothing is counted.
#![allow(clippy::print_stdout, reason = "a program that people read")]

mod order;

use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use figment::Figment;
use figment::providers::{Format, Toml};
use http::{HeaderMap, Method, Uri, Version, header};
use kybio_gateway::account::{Account, AppId, AppKey};
use kybio_gateway::identity::{Caller, Callers, Identity, Presented};
use kybio_gateway::name::{AccountName, CallerName, UpstreamName};
use kybio_gateway::operations::Catalogue;
use kybio_gateway::pattern::Pattern;
use kybio_gateway::payload::{Draft, Payload, Whole};
use kybio_gateway::policy::{AccountBy, CallerRules, Grant, Head, Permit, Policy};
use kybio_gateway::{payload, sign};
use zeroize::Zeroizing;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    // Cargo tells every benchmark that it's one.
    let arguments: Vec<_> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["check"] => check(),
        ["update"] => update(),
        ["repeat", name, times, prepared] => {
            let case = cases().find(|case| case.to_string() == *name);
            let case = case.with_context(|| format!("there's no part {name}"))?;
            case.repeat(times.parse()?, prepared.parse()?);
            Ok(ExitCode::SUCCESS)
        }
        // Other benchmarks' options and filters mean nothing here.
        _ => {
            cases().for_each(|case| case.repeat(1, 1));
            println!("each part ran once, and nothing was counted: {CHECK} does that");
            Ok(ExitCode::SUCCESS)
        }
    }
}

const CHECK: &str = "`cargo bench --profile guard --bench path -- check`";
const UPDATE: &str = "`cargo bench --profile guard --bench path -- update`";

/// The stretches of the way that are counted.
#[derive(Clone, Copy)]
enum Part {
    /// The target and headers against what's granted, up to the account. No byte of the body matters.
    Policy,
    /// The pass over the body.
    Scan,
    /// Putting `appId` in.
    Splice,
    /// Digest and digits.
    Sign,
    /// All of them, in the order in which a call meets them.
    Whole,
}

/// A part with a body of some size.
#[derive(Clone, Copy)]
struct Case {
    part: Part,
    size: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Policy => return f.write_str("policy"),
            Part::Scan => "scan",
            Part::Splice => "splice",
            Part::Sign => "sign",
            Part::Whole => "whole",
        };
        write!(f, "{part} {}", self.size)
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let policy = Case {
        part: Part::Policy,
        size: SIZES[0],
    };
    let parts = [Part::Scan, Part::Splice, Part::Sign, Part::Whole];
    let sized = parts
        .into_iter()
        .flat_map(|part| SIZES.map(|size| Case { part, size }));
    std::iter::once(policy).chain(sized)
}

/// Bodies: the vendor's own example has about 300 bytes, and few callers send more than 4 KiB.
const SIZES: [usize; 3] = [300, 4_096, 65_536];

impl Case {
    /// Does the part so many times, with so many times' needs made ready.
    fn repeat(self, times: usize, prepared: usize) {
        let body = Bytes::from(order::order(self.size));
        let app_id = AppId::new("abcdefghijklmn").expect("an appId");
        let key = AppKey::new(&Zeroizing::new(b"1234567890123456789".to_vec())).expect("a key");
        let check = || -> Draft {
            payload::check(Whole::in_one_piece(body.clone())).expect("an order is JSON")
        };
        let address = |draft: Draft, app_id: &AppId| -> Payload {
            draft.address(app_id).expect("an order names no account")
        };
        match self.part {
            Part::Scan => repeat(times, prepared, || (), |()| payload::scan::scan(&body)),
            Part::Splice => repeat(times, prepared, check, |draft| draft.address(&app_id)),
            Part::Sign => {
                let payload = address(check(), &app_id);
                repeat(times, prepared, || (), |()| sign::sign(&payload, &key));
            }
            Part::Policy => {
                let gate = Gate::new(app_id, key);
                let settle = |permit: Permit| permit.settle(None);
                repeat(times, prepared, || (), |()| settle(gate.permit()));
            }
            Part::Whole => {
                let gate = Gate::new(app_id, key);
                let whole = |()| {
                    let permit = gate.permit();
                    let draft = check();
                    let grant: Grant = permit.settle(draft.app_id()).expect("it's granted");
                    let payload = address(draft, &grant.account().app_id);
                    sign::sign(&payload, grant.key())
                };
                repeat(times, prepared, || (), whole);
            }
        }
    }
}

/// Does the work on the first so many of what was made ready. What's left of it is never dropped, so that making ready is the same work
/// however often something is done.
fn repeat<Need, Made>(
    times: usize,
    prepared: usize,
    ready: impl Fn() -> Need,
    work: impl Fn(Need) -> Made,
) {
    let mut needs: Vec<_> = (0..prepared).map(|_| ready()).collect();
    for need in needs.drain(..times) {
        black_box(work(black_box(need)));
    }
    std::mem::forget(needs);
}

/// What decides about calls, and one call's head.
struct Gate {
    policy: Policy,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
}

impl Gate {
    /// A small shop's: ten accounts, some callers with a few patterns each.
    fn new(app_id: AppId, key: Arc<AppKey>) -> Self {
        let accounts = (0..10).map(|number| {
            Arc::new(Account {
                name: AccountName::new(&format!("store-{number}")).expect("a name"),
                app_id: app_id.clone(),
                upstream: UpstreamName::new("kybio").expect("a name"),
                key: Ok(Arc::clone(&key)),
                paused: false,
                in_flight_max: 8,
            })
        });
        let callers = ["orders", "members", "reports"].map(|name| CallerRules {
            name: CallerName::new(name).expect("a name"),
            accounts: vec![Pattern::new("store-*")],
            default_account: None,
            account_by: AccountBy::Header,
            operations: vec![Pattern::new("customerOpenApi/*"), Pattern::new("order*")],
            paused: false,
            in_flight_max: 8,
        });
        let known = callers
            .iter()
            .map(|rules| (Identity::Loopback, rules.name.clone()));
        let identified = Callers::new(known.take(1)).identify(&Presented::Loopback);
        let headers = [
            ("host", "gateway.internal:8443"),
            ("content-type", "application/json; charset=utf-8"),
            ("content-length", "300"),
            ("accept", "*/*"),
            ("user-agent", "orders/1.0"),
            ("kybio-gateway-account", "store-3"),
        ];
        let headers = headers.map(|(name, value)| {
            let name = header::HeaderName::from_static(name);
            (name, header::HeaderValue::from_static(value))
        });
        Self {
            policy: Policy::new(
                &Catalogue::shipped(),
                &accounts.collect::<Vec<_>>(),
                &callers,
            ),
            caller: identified.expect("it's known"),
            uri: Uri::from_static("/pospal-api2/openapi/v1/orderOpenApi/addOnLineOrder"),
            headers: HeaderMap::from_iter(headers),
        }
    }

    fn permit(&self) -> Permit {
        let head = Head {
            method: &Method::POST,
            uri: &self.uri,
            version: Version::HTTP_11,
            headers: &self.headers,
            from_loopback: false,
        };
        let asked = self.policy.resolve(&head).expect("there's such a one");
        let permit = self.policy.authorize(&self.caller, asked, &self.headers);
        permit.expect("it's granted")
    }
}

/// `benches/instructions.toml`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    tolerance_percent: f64,
    counted_with: BTreeMap<String, String>,
    instructions: BTreeMap<String, u64>,
}

fn file() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.toml")
}

fn expected() -> anyhow::Result<Expected> {
    let read = Figment::from(Toml::file_exact(file())).extract();
    read.context("benches/instructions.toml can't be read")
}

/// Compares, and says what to do about what differs.
fn check() -> anyhow::Result<ExitCode> {
    let expected = expected()?;
    let tools = tools()?;
    let counted = count_all()?;
    println!("{:<14}{:>12}{:>12}{:>10}", "", "expected", "now", "change");
    let (mut slower, mut faster) = (Vec::new(), Vec::new());
    for (name, now) in &counted {
        let Some(then) = expected.instructions.get(name) else {
            bail!("{name} isn't in benches/instructions.toml: {UPDATE} puts it in");
        };
        let percent = (*now as f64 / *then as f64 - 1.0) * 100.0;
        println!("{name:<14}{then:>12}{now:>12}{percent:>+9.2}%");
        if percent > expected.tolerance_percent {
            slower.push(name.as_str());
        } else if percent < -expected.tolerance_percent {
            faster.push(name.as_str());
        }
    }
    for gone in expected.instructions.keys() {
        let is_counted = counted.iter().any(|(name, _)| name == gone);
        ensure!(
            is_counted,
            "{gone} isn't counted any more: {UPDATE} takes it out of benches/instructions.toml"
        );
    }
    let limit = expected.tolerance_percent;
    if !slower.is_empty() {
        println!(
            "\nSlower by more than {limit} %: {}. Find what made it so (callgrind_annotate shows where instructions go); if it's worth that much, {UPDATE} makes it what's expected, and the commit says why.",
            slower.join(", ")
        );
    }
    if !faster.is_empty() {
        println!(
            "\nFaster by more than {limit} %: {}. If that was meant, keep it: {UPDATE} makes it what's expected. If it wasn't, see whether something is left out.",
            faster.join(", ")
        );
    }
    for (tool, version) in &tools {
        let then = expected
            .counted_with
            .get(*tool)
            .map_or("nothing", String::as_str);
        if then != version {
            println!(
                "\nThe expected counts were taken with {then}, and these with {version}: a difference may come of that alone. Take them anew with {UPDATE}, from a commit that is known to be good."
            );
        }
    }
    Ok(if slower.is_empty() && faster.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Writes what's counted now; the comment at the head of the file and the tolerance stay.
fn update() -> anyhow::Result<ExitCode> {
    let tolerance = expected()?.tolerance_percent;
    let before = std::fs::read_to_string(file())?;
    let mut lines: Vec<_> = before
        .lines()
        .take_while(|line| line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    lines.push(format!("tolerance_percent = {tolerance:?}"));
    lines.push("\n[counted_with]".to_owned());
    lines.extend(
        tools()?
            .iter()
            .map(|(tool, version)| format!("{tool} = \"{version}\"")),
    );
    lines.push("\n[instructions]".to_owned());
    lines.extend(
        count_all()?
            .iter()
            .map(|(name, count)| format!("\"{name}\" = {count}")),
    );
    std::fs::write(file(), lines.join("\n") + "\n")?;
    println!("benches/instructions.toml says what's counted now");
    Ok(ExitCode::SUCCESS)
}

/// What the counts depend on besides the code.
fn tools() -> anyhow::Result<Vec<(&'static str, String)>> {
    let first_line = |program: &str, argument| -> anyhow::Result<String> {
        let output = Command::new(program).arg(argument).output();
        let output = output.with_context(|| format!("{program} can't be started"))?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    };
    Ok(vec![
        ("rustc", first_line("rustc", "--version")?),
        ("libc", first_line("getconf", "GNU_LIBC_VERSION")?),
        ("valgrind", first_line("valgrind", "--version")?),
        ("machine", std::env::consts::ARCH.to_owned()),
    ])
}

/// Each case's name with its instructions for one time.
fn count_all() -> anyhow::Result<Vec<(String, u64)>> {
    let program = std::env::current_exe()?;
    // Other profiles inline otherwise.
    let profile = program.ancestors().nth(2);
    let is_guard = profile.is_some_and(|folder| folder.ends_with("guard"));
    ensure!(
        is_guard,
        "instructions are counted of the profile `guard` alone: {CHECK}"
    );
    cases()
        .map(|case| {
            let name = case.to_string();
            // About as many instructions for each, so that what isn't the work itself is as small a share.
            let times = (2_000_000 / case.size).clamp(20, 1_000) as u64;
            let once = count(&program, &name, times, 2 * times)?;
            let twice = count(&program, &name, 2 * times, 2 * times)?;
            // What both do, from the start of the process on, goes out.
            Ok((name, twice.saturating_sub(once) / times))
        })
        .collect()
}

/// The instructions of a whole process.
fn count(program: &Path, name: &str, times: u64, prepared: u64) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        // A copy by `rep movsb` would count as an instruction for each byte, and hide what's copied beside it.
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["repeat", name, &times.to_string(), &prepared.to_string()])
        .output()
        .context("valgrind can't be started: is it installed?")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "counting {name} failed: {told}");
    let collected = told
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, count) = collected.with_context(|| format!("valgrind has counted nothing: {told}"))?;
    Ok(count.trim().parse()?)
}
