//! Keeps the process's memory to itself. Every command may hold a secret: a key that it checks, a throwaway authority, a stand-in's keys.

use std::io;

use rustix::process::DumpableBehavior;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::set_dumpable_behavior;
use rustix::process::setrlimit;

/// From now on no other process of the same user can attach to this one, or read its memory or environment (prctl(2),
/// `PR_SET_DUMPABLE`), and no core file is written of it (core(5)). Root can do all that.
///
/// # Errors
/// When the kernel, or a filter in front of it, doesn't allow it.
pub(super) fn conceal() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // The kernel writes no core of an undumpable process. That it isn't to be tried either is said twice.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    Ok(setrlimit(Resource::Core, none)?)
}
