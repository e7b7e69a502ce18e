//! Processes of a user who may do nothing special. Only root can become somebody else; who isn't root is such a user already.

use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::gateway::Launch;
use crate::support::tools;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The folder and all that is in it are this user's from now on.
pub fn give(folder: &Path, user: u32) {
    if !is_root() {
        return;
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            give(&path, user);
        } else {
            chown(&path, Some(user), Some(user)).unwrap();
        }
    }
    chown(folder, Some(user), Some(user)).unwrap();
}

fn words(user: u32) -> String {
    format!("setpriv --reuid={user} --regid={user} --clear-groups --")
}

/// The gateway as this user, started by a shell that does something first. The program is opened before: the user may not be let into
/// the folder that it's in.
pub fn launch(user: u32, before: &str) -> Launch {
    if is_root() {
        let become_user = words(user);
        Launch::after(&format!(
            "{before} exec 9<\"$0\"; exec {become_user} /proc/self/fd/9 \"$@\";"
        ))
    } else {
        Launch::after(before)
    }
}

/// A shell's commands as this user.
pub fn shell(user: u32, script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    if is_root() {
        let mut become_user = Command::new("setpriv");
        let words = words(user);
        become_user.args(words.split(' ').skip(1));
        become_user.args(["/bin/sh", "-c", script]);
        return become_user;
    }
    command
}

pub fn run(user: u32, script: &str) -> Output {
    tools::run(&mut shell(user, script))
}
