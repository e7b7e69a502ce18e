//! Large bodies: the most memory that is taken while several are under way.

use crate::street::gateway::{Gateway, Shape};
use crate::street::load::Plan;
use crate::street::report::{Figure, Samples};
use crate::street::stub::Stub;
use crate::street::{BESIDE, MEASURED, Result, clock};
use crate::{Scene, ask};

/// The peak in each round, in MB.
#[derive(Default)]
pub struct Bodies(Samples);

impl Bodies {
    /// Once.
    pub fn measure(&mut self, scene: &Scene<'_>) -> Result<()> {
        let mut stub = Stub::start(&scene.street, 1, BESIDE)?;
        let gateway = Gateway::start(&scene.street, &stub.ports, Shape::PLAIN, MEASURED)?;
        let pid = gateway.process.pid();
        clock::forget_peak(pid)?;
        let plan = Plan {
            connections: 8,
            body_bytes: 1_024 * 1_024,
            // Each has sent its own at least twice.
            prepared: 16,
            ..scene.plan(&gateway)
        };
        ask(&plan, &mut stub)?;
        self.0.0.push(clock::memory(pid, "VmHWM")? as f64 / 1e6);
        Ok(())
    }

    /// What came out.
    pub fn figures(self) -> Option<Figure> {
        let was_measured = !self.0.0.is_empty();
        was_measured.then(|| {
            let samples = vec![("gateway", self.0)];
            Figure::new("bodies: peak memory, 1 MiB, 8 in flight", "MB", samples)
                .itself(Some(40.0), None)
        })
    }
}
