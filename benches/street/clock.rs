//! What the scheduler and the kernel say of a process: the time it has had a processor, and the memory it holds.

use std::fs;

use super::Result;

/// Nanoseconds that all threads of these processes have run for. The scheduler's own count, not a sampled one
/// (Documentation/scheduler/sched-stats.rst: `/proc/<pid>/schedstat`).
pub fn run_ns(pids: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = thread?.path().join("schedstat");
            // A thread that has just ended has no file any more.
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            let first = text.split_whitespace().next().unwrap_or_default();
            sum += first.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// A line of `/proc/PID/status` in bytes, such as `VmRSS` or `VmHWM`, which is the largest that it has been.
pub fn memory(pid: u32, line: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = status.lines().find_map(|each| {
        let (name, value) = each.split_once(':')?;
        (name == line).then(|| value.trim().trim_end_matches(" kB").to_owned())
    });
    let kilobytes: u64 = found.ok_or_else(|| format!("no {line}"))?.parse()?;
    Ok(kilobytes * 1_024)
}

/// Lets `VmHWM` begin anew.
pub fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    Ok(())
}

/// Processes that this one has started.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text
        .split_whitespace()
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?)
}
