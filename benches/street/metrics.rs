//! What the gateway counts itself, from its admin port.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Result;

/// No page takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// All values of a family, one for each of its series.
pub fn values(admin: u16, family: &str) -> Result<Vec<f64>> {
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], admin)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200") {
        return Err(format!("/metrics: {}", answer.lines().next().unwrap_or_default()).into());
    }
    let values: Vec<f64> = answer
        .lines()
        .filter_map(|line| line.strip_prefix(family))
        .filter(|rest| rest.starts_with([' ', '{']))
        .filter_map(|rest| rest.rsplit(' ').next())
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    if values.is_empty() {
        return Err(
            format!("/metrics has no {family}: was it renamed in src/observe/metrics.rs?").into(),
        );
    }
    Ok(values)
}

/// Their sum.
pub fn sum(admin: u16, family: &str) -> Result<f64> {
    Ok(values(admin, family)?.iter().sum())
}

/// Waits until their sum is this at least.
pub fn reaches(admin: u16, family: &str, least: f64) -> Result<()> {
    let began = Instant::now();
    loop {
        let sum = sum(admin, family)?;
        if sum >= least {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(
                format!("{family} is {sum} after {PATIENCE:?}, and should be {least}").into(),
            );
        }
        sleep(Duration::from_millis(50));
    }
}
