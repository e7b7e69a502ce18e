//! What it takes when nothing is asked: it looks after its configuration and key files every ten seconds, which no window of a second shows.

use std::thread::sleep;
use std::time::Duration;

use crate::street::gateway::{Gateway, Shape};
use crate::street::report::{Figure, Samples};
use crate::street::{MEASURED, Result, clock, free_port};
use crate::{Scene, counted};

/// Once with few accounts and once with many.
pub fn measure(scene: &Scene<'_>) -> Result<Figure> {
    let host = free_port()?;
    let [few, _, many] = scene.reach.starts;
    let mut samples = Vec::new();
    for accounts in [many, few] {
        let shape = Shape {
            accounts,
            ..Shape::PLAIN
        };
        let gateway = Gateway::start(&scene.street, &[host], shape, MEASURED)?;
        let watch = [gateway.process.pid()];
        let before = clock::run_ns(&watch)?;
        sleep(Duration::from_millis(scene.reach.standing_ms));
        let used_ms = (clock::run_ns(&watch)? - before) as f64 / 1e6;
        let each_second = used_ms * 1e3 / scene.reach.standing_ms as f64;
        samples.push((counted(accounts, "account"), Samples(vec![each_second])));
    }
    Ok(Figure::new(
        "standing: when nothing is asked",
        "ms CPU a second",
        samples,
    ))
}
