//! How noisy the machine is: the same piece of work, timed again and again between the rounds, and what the hypervisor has taken.

use std::fs;
use std::time::Instant;

use md5::{Digest, Md5};

use super::Result;

/// What was seen of the machine during a run.
#[derive(Debug)]
pub struct Noise {
    spins_ms: Vec<f64>,
    before: Ticks,
}

#[derive(Clone, Copy, Debug)]
struct Ticks {
    all: u64,
    stolen: u64,
}

impl Noise {
    /// Begins to look.
    pub fn begin() -> Result<Self> {
        Ok(Self {
            spins_ms: Vec::new(),
            before: ticks()?,
        })
    }

    /// Does the piece of work once more.
    pub fn spin(&mut self) {
        let began = Instant::now();
        let mut digest = Md5::new();
        for _ in 0..256 {
            digest.update([7; 64 * 1_024]);
        }
        std::hint::black_box(digest.finalize());
        self.spins_ms.push(began.elapsed().as_secs_f64() * 1_000.0);
    }

    /// In a sentence.
    pub fn told(&self) -> Result<String> {
        let now = ticks()?;
        let all = (now.all - self.before.all).max(1) as f64;
        let stolen = 100.0 * (now.stolen - self.before.stolen) as f64 / all;
        let mut spins = self.spins_ms.clone();
        spins.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (spins.first(), spins.last()) else {
            return Ok("nothing was seen of the machine".to_owned());
        };
        let median = spins[spins.len() / 2];
        Ok(format!(
            "The same piece of work (MD5 of 16 MiB), {} times between rounds: {median:.1} ms, from {:.0} % to {:.0} % of that. \
             The hypervisor took {stolen:.1} % of the processors' time.",
            spins.len(),
            100.0 * least / median,
            100.0 * most / median,
        ))
    }
}

/// The first line of `/proc/stat` (proc_stat(5)).
fn ticks() -> Result<Ticks> {
    let text = fs::read_to_string("/proc/stat")?;
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    Ok(Ticks {
        all: fields.iter().take(8).sum(),
        stolen: fields.get(7).copied().unwrap_or(0),
    })
}
