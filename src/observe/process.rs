//! What the process itself takes, under the names that Prometheus' own clients use, so that every dashboard knows them.

use std::sync::Mutex;
use std::sync::PoisonError;

use procfs::process::LimitValue;
use procfs::process::Stat;
use prometheus::Counter;
use prometheus::IntGauge;

use crate::observe::families::Families;

/// Looked at by each scrape.
pub(super) struct Process {
    cpu_seconds: Counter,
    /// What `cpu_seconds` has come to.
    counted: Mutex<f64>,
    resident: IntGauge,
    virtual_memory: IntGauge,
    threads: IntGauge,
    descriptors: IntGauge,
    descriptors_max: IntGauge,
    started: prometheus::Gauge,
}

impl Process {
    pub(super) fn new(make: &mut Families) -> Self {
        Self {
            cpu_seconds: make.fractional_counter(
                "process_cpu_seconds_total",
                "Time on a processor, of user and system, in seconds.",
            ),
            counted: Mutex::default(),
            resident: make.gauge("process_resident_memory_bytes", "Resident memory."),
            virtual_memory: make.gauge("process_virtual_memory_bytes", "Virtual memory."),
            threads: make.gauge("process_threads", "Threads."),
            descriptors: make.gauge("process_open_fds", "Open descriptors."),
            descriptors_max: make.gauge("process_max_fds", "Descriptors that may be open."),
            started: make.fractional_gauge(
                "process_start_time_seconds",
                "When the process started, in Unix time.",
            ),
        }
    }

    /// What can't be found out stays as it was: a scrape isn't to fail for it.
    pub(super) fn look(&self) {
        let Ok(process) = procfs::process::Process::myself() else {
            return;
        };
        if let Ok(stat) = process.stat() {
            self.show(&stat);
        }
        if let Ok(count) = process.fd_count() {
            self.descriptors.set(signed(count as u64));
        }
        if let Ok(limits) = process.limits()
            && let LimitValue::Value(max) = limits.max_open_files.soft_limit
        {
            self.descriptors_max.set(signed(max));
        }
    }

    fn show(&self, stat: &Stat) {
        let ticks_per_second = procfs::ticks_per_second() as f64;
        let seconds = (stat.utime + stat.stime) as f64 / ticks_per_second;
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if seconds > *counted {
            self.cpu_seconds.inc_by(seconds - *counted);
            *counted = seconds;
        }
        drop(counted);
        self.resident
            .set(signed(stat.rss.saturating_mul(procfs::page_size())));
        self.virtual_memory.set(signed(stat.vsize));
        self.threads.set(stat.num_threads);
        if let Ok(booted) = procfs::boot_time_secs() {
            self.started
                .set(booted as f64 + stat.starttime as f64 / ticks_per_second);
        }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
