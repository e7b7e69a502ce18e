//! Idle connections: what a request costs beside them, and what memory each takes.

use crate::street::gateway::{Gateway, Shape};
use crate::street::load::{self, Idle, Plan};
use crate::street::report::{Figure, Samples};
use crate::street::stub::Stub;
use crate::street::{BESIDE, MEASURED, Result, clock, metrics};
use crate::{Reach, Scene, ask, compared, counted};

/// Those that are idle and hold no buffers any more.
const PARKED: &str = "kybio_gateway_downstream_connections_parked";

/// By how many there are, in the order of [`Reach::idle`].
#[derive(Default)]
pub struct Connections {
    cpu_us: [Samples; 3],
    each_kb: [Samples; 3],
}

impl Connections {
    /// Measures each number of them once.
    pub fn measure(&mut self, scene: &Scene<'_>, round: usize) -> Result<()> {
        let mut stub = Stub::start(&scene.street, 1, BESIDE)?;
        for at in 0..scene.reach.idle.len() {
            let at = (at + round) % scene.reach.idle.len();
            let (cpu_us, each_kb) = beside(scene, scene.reach.idle[at], &mut stub)?;
            self.cpu_us[at].0.push(cpu_us);
            self.each_kb[at].0.push(each_kb);
        }
        Ok(())
    }

    /// What came out.
    pub fn figures(self, reach: &Reach) -> Vec<Figure> {
        if self.cpu_us[0].0.is_empty() {
            return Vec::new();
        }
        let [none_us, some_us, many_us] = self.cpu_us;
        let [_, some_kb, many_kb] = self.each_kb;
        let [_, some, many] = reach.idle.map(|count| counted(count, "idle connection"));
        let demand = compared(&many_us, &none_us, "x none", Some(1.2), Some(1.05));
        let cost = vec![
            (many.clone(), many_us),
            (some.clone(), some_us),
            ("none".to_owned(), none_us),
        ];
        let memory = vec![(many, many_kb), (some, some_kb)];
        vec![
            Figure::new("connections: a request beside them", "µs CPU", cost).demand(demand),
            Figure::new("connections: memory of an idle one", "kB", memory)
                .itself(Some(20.0), Some(8.0)),
        ]
    }
}

/// What a request costs beside so many idle connections, and what memory each of those takes.
fn beside(scene: &Scene<'_>, count: usize, stub: &mut Stub) -> Result<(f64, f64)> {
    let gateway = Gateway::start(&scene.street, &stub.ports, Shape::PLAIN, MEASURED)?;
    let (pid, plan) = (gateway.process.pid(), scene.plan(&gateway));
    // What the first requests take once and for all isn't the idle connections'; what 64 active ones would leave behind
    // isn't to be theirs either.
    let first = Plan {
        connections: 1,
        prepared: 1,
        window_ms: 100,
        ..plan.clone()
    };
    load::measure(&first, BESIDE)?;
    let before = clock::memory(pid, "VmRSS")?;
    let mut each_kb = 0.0;
    let mut idle = None;
    if count > 0 {
        let held = Plan {
            connections: count,
            ..plan.clone()
        };
        idle = Some(Idle::open(&held, BESIDE)?);
        metrics::reaches(gateway.admin, PARKED, count as f64)?;
        let taken = clock::memory(pid, "VmRSS")?.saturating_sub(before);
        each_kb = taken as f64 / count as f64 / 1e3;
    }
    let outcome = ask(&plan, stub)?;
    let still = metrics::sum(gateway.admin, PARKED)?;
    if still < count as f64 {
        return Err(format!("{still} of {count} idle connections are left").into());
    }
    drop(idle);
    Ok((outcome.cpu_us, each_kb))
}
