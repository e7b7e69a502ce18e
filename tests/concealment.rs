//! Promise S1: what is in the gateway's memory stays there. Another process of its own user can't look into it, a crash leaves no core
//! file, and there a key is in one place, and in none once another has taken its place.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};

use tokio::time::Instant;

use crate::support::gateway::APP_KEY;
use crate::support::tools::PATIENCE;
use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Gateway, Pki, Setup, Upstream, tools, unprivileged};

const WRITE: &str = "customerOpenApi/add";
const READ: &str = "customerOpenApi/queryByUid";

/// Nobody else's.
const USER: u32 = 61_184;

/// Says whether a debugger could attach to a process (ptrace(2), `PTRACE_ATTACH`).
const ATTACH: &str = "import ctypes, os, sys\n\
    libc = ctypes.CDLL(None, use_errno=True)\n\
    pid = int(sys.argv[1])\n\
    failed = libc.ptrace(16, pid, None, None)\n\
    print('attached' if failed == 0 else os.strerror(ctypes.get_errno()))\n";

/// Something that doesn't conceal itself.
struct Open(Child);

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a process of the same user is told that wants to look: at the environment, the memory, the descriptors, as a debugger.
fn looks(pid: u32) -> [bool; 4] {
    let can = |script: String| unprivileged::run(USER, &script).status.success();
    let attached = unprivileged::run(USER, &format!("/usr/bin/python3 -c \"{ATTACH}\" {pid}"));
    let attached = tools::stdout(&attached);
    assert!(
        ["attached\n", "Operation not permitted\n"].contains(&&*attached),
        "{attached}"
    );
    [
        can(format!("cat /proc/{pid}/environ")),
        can(format!("exec 3</proc/{pid}/mem")),
        can(format!("ls /proc/{pid}/fd")),
        attached == "attached\n",
    ]
}

#[tokio::test]
async fn no_other_process_of_its_user_can_look_into_it() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    setup.write();
    unprivileged::give(setup.folder.path(), USER);
    let gateway = Gateway::start_by(unprivileged::launch(USER, ""), setup, &[]).await;
    assert_eq!(
        gateway.client(&pki).call(WRITE, "{}").await.status,
        200,
        "it works without any right"
    );
    assert_eq!(looks(gateway.pid()), [false; 4]);

    // They can be let in: into a process that has done nothing about it.
    let mut sleeping = unprivileged::shell(USER, "exec sleep 60");
    let open = Open(sleeping.stdout(Stdio::piped()).spawn().unwrap());
    let became = || std::fs::read_to_string(format!("/proc/{}/comm", open.0.id()));
    while became().unwrap() != "sleep\n" {
        std::thread::yield_now();
    }
    assert_eq!(looks(open.0.id()), [true; 4]);
}

/// Other commands hold keys too.
#[tokio::test]
async fn the_stand_in_conceals_itself_too() {
    let folder = tempfile::tempdir().unwrap();
    tools::write(&folder.path().join("main.key"), APP_KEY, 0o600);
    unprivileged::give(folder.path(), USER);
    let program = std::path::PathBuf::from(tools::binary().get_program());
    let program = File::open(program).unwrap();
    // Opened here: the user may not be let into the folder that it's in.
    let mut command = unprivileged::shell(
        USER,
        "exec /proc/self/fd/0 simulate --address 127.0.0.1:0 --account abcdefghijklmn=main.key",
    );
    let child = command
        .current_dir(folder.path())
        .stdin(program)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Open(child);
    let mut said = std::io::BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("127.0.0.1:"), "{line}");
    assert_eq!(looks(child.0.id()), [false; 4]);
}

#[tokio::test]
async fn a_crash_leaves_no_core_file() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    setup.write();
    unprivileged::give(setup.folder.path(), USER);
    let folder = setup.folder.path().display().to_string();
    let allowed = format!("ulimit -c unlimited; cd {folder};");
    let mut gateway = Gateway::start_by(unprivileged::launch(USER, &allowed), setup, &[]).await;
    gateway.client(&pki).call(WRITE, "{}").await;
    gateway.signal("ABRT");
    let status = gateway.ended().await;
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
    let left: Vec<_> = std::fs::read_dir(gateway.setup.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("core"))
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // Others that crash there leave one.
    let crash = format!("cd {folder}; ulimit -c unlimited; kill -ABRT $$");
    let status = unprivileged::run(USER, &crash).status;
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), true));
}

/// How often a text is in what a process may write of its memory. Only root may ask.
fn count_in_memory(pid: u32, text: &str) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut count = 0;
    let mut looked_at = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let at = |hex: &str| u64::from_str_radix(hex, 16).unwrap();
        let (from, to) = (at(from), at(to));
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        // Some regions of the kernel's can't be read.
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            looked_at += bytes.len();
            count += memchr::memmem::find_iter(&bytes, text).count();
        }
    }
    assert!(looked_at > 1 << 20, "{looked_at}");
    count
}

/// A key that isn't anything else's text.
fn key(number: usize) -> String {
    format!("{number}Canary7319In5520Memory{number}")
}

#[tokio::test]
async fn a_key_is_in_memory_once_and_gone_after_its_rotation() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| match seen.place {
        place if place.nth % 7 == 0 => Act::Close,
        _ => Act::ok(SUCCESS),
    })
    .await;
    let setup = Setup::reloaded_by_hand(&pki, &upstream);
    tools::write(&setup.path("main.key"), key(0), 0o600);
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let told = std::fs::metadata(format!("/proc/{}/mem", gateway.pid())).unwrap();
    if told.uid() != rustix::process::geteuid().as_raw() {
        // Not even the one who started it may look.
        let opened = File::open(format!("/proc/{}/mem", gateway.pid()));
        assert!(opened.is_err());
        return;
    }
    // What is read again, and is the same, is the same in memory.
    for level in ["warn", "info"] {
        tools::change(&gateway.setup.path("gateway.toml"), |text| {
            let (before, after) = text.split_once("level = \"").unwrap();
            let (_, after) = after.split_once('"').unwrap();
            format!("{before}level = \"{level}\"{after}")
        });
        gateway.signal("HUP");
    }
    for number in 0..4 {
        for operation in [WRITE, READ, READ, READ] {
            for _ in 0..10 {
                client.call(operation, "{\"a\":1}").await;
            }
        }
        // A wish to know doesn't spread it either.
        assert!(gateway.metrics().await.contains("key_taken"));
        let mut expected = vec![0; number];
        expected.push(1);
        let counts = || -> Vec<_> {
            let count = |number| count_in_memory(gateway.pid(), &key(number));
            (0..=number).map(count).collect()
        };
        // What goes by the configuration before may take a moment to see that there's another.
        let patience = Instant::now() + PATIENCE;
        while counts() != expected && Instant::now() < patience {}
        assert_eq!(counts(), expected);
        tools::write(&gateway.setup.path("main.key"), key(number + 1), 0o600);
        gateway.reload().await;
    }
    assert!(upstream.seen().len() > 100);
}
