//! How long it takes from the start to the first connection that is taken, by the number of accounts.

use crate::street::gateway::{Gateway, Shape};
use crate::street::report::{Figure, Samples};
use crate::street::{MEASURED, Result, free_port};
use crate::{Reach, Scene, counted};

/// In the order of [`Reach::starts`].
#[derive(Default)]
pub struct Starts([Samples; 3]);

impl Starts {
    /// Starts it with each number of accounts once.
    pub fn measure(&mut self, scene: &Scene<'_>, round: usize) -> Result<()> {
        // Nobody is asked.
        let host = free_port()?;
        for at in 0..scene.reach.starts.len() {
            let at = (at + round) % scene.reach.starts.len();
            let shape = Shape {
                accounts: scene.reach.starts[at],
                ..Shape::PLAIN
            };
            let gateway = Gateway::start(&scene.street, &[host], shape, MEASURED)?;
            self.0[at].0.push(gateway.start.as_secs_f64() * 1e3);
        }
        Ok(())
    }

    /// What came out.
    pub fn figures(self, reach: &Reach) -> Option<Figure> {
        let [few, many, more] = self.0;
        let [few_title, many_title, more_title] =
            reach.starts.map(|count| counted(count, "account"));
        let samples = vec![(many_title, many), (few_title, few), (more_title, more)];
        let was_measured = !samples[0].1.0.is_empty();
        was_measured.then(|| {
            Figure::new("starts: until connections are taken", "ms", samples)
                .itself(Some(100.0), Some(50.0))
        })
    }
}
