//! Callers, accounts and operations: what a request costs when there are many of them and all accounts and operations are used, in turn, and
//! what memory that takes. The load's part is the same in each case: as many different requests in its memory, as large, over as many
//! connections. It comes as all callers that have a certificate, which are 64, or as one where there's one.

use kybio_gateway::operations::Catalogue;

use crate::street::gateway::{Gateway, Shape};
use crate::street::load::Plan;
use crate::street::report::{Figure, Samples};
use crate::street::stub::Stub;
use crate::street::{BESIDE, CALLERS, MEASURED, OPERATION, Result, clock, metrics};
use crate::{Reach, Scene, ask, compared, counted};

/// Those of callers, accounts and operations.
const SERIES: &str = "kybio_gateway_metrics_series";

/// What there are many of.
#[derive(Clone, Copy)]
struct Case {
    callers: bool,
    accounts: bool,
    operations: bool,
}

const NONE: Case = Case {
    callers: false,
    accounts: false,
    operations: false,
};

/// All, none, and each by itself.
const CASES: [Case; 5] = [
    Case {
        callers: true,
        accounts: true,
        operations: true,
    },
    NONE,
    Case {
        callers: true,
        ..NONE
    },
    Case {
        accounts: true,
        ..NONE
    },
    Case {
        operations: true,
        ..NONE
    },
];

/// In the order of [`CASES`].
#[derive(Default)]
pub struct Names {
    cpu_us: [Samples; 5],
    memory_mb: [Samples; 5],
    series: [Samples; 5],
}

impl Names {
    /// Measures each case once.
    pub fn measure(&mut self, scene: &Scene<'_>, round: usize) -> Result<()> {
        let mut stub = Stub::start(&scene.street, 1, BESIDE)?;
        for at in 0..CASES.len() {
            let at = (at + round) % CASES.len();
            let (gateway, plan) = CASES[at].begin(scene, &stub)?;
            let outcome = ask(&plan, &mut stub)?;
            let memory = clock::memory(gateway.process.pid(), "VmRSS")?;
            self.cpu_us[at].0.push(outcome.cpu_us);
            self.memory_mb[at].0.push(memory as f64 / 1e6);
            self.series[at].0.push(metrics::sum(gateway.admin, SERIES)?);
        }
        Ok(())
    }

    /// What came out.
    pub fn figures(self, reach: &Reach) -> Vec<Figure> {
        if self.cpu_us[0].0.is_empty() {
            return Vec::new();
        }
        let [all, none, each @ ..] = &self.cpu_us;
        let mut demands = vec![compared(all, none, "x one of each", Some(1.05), Some(1.01))];
        let titles = titles(reach);
        for (cpu_us, title) in each.iter().zip(&titles[2..]) {
            let of = format!("x one of each: {title} alone");
            demands.push(compared(cpu_us, none, of, None, None));
        }
        let figure = |name, unit, samples: [Samples; 5]| {
            Figure::new(name, unit, titles.iter().cloned().zip(samples).collect())
        };
        let cost = figure("names: a request", "µs CPU", self.cpu_us);
        vec![
            demands.into_iter().fold(cost, Figure::demand),
            figure("names: memory", "MB", self.memory_mb),
            figure("names: their series in the metrics", "series", self.series),
        ]
    }
}

fn titles(reach: &Reach) -> [String; 5] {
    [
        "all of these".to_owned(),
        "one of each".to_owned(),
        counted(reach.callers, "caller"),
        counted(reach.accounts, "account"),
        counted(operations().len(), "operation"),
    ]
}

/// The whole catalogue.
fn operations() -> Vec<String> {
    let catalogue = Catalogue::shipped();
    let names = catalogue.iter().map(|operation| operation.name.to_string());
    names.collect()
}

impl Case {
    /// A gateway, and what it's asked.
    fn begin(self, scene: &Scene<'_>, stub: &Stub) -> Result<(Gateway, Plan)> {
        let reach = &scene.reach;
        let shape = Shape {
            callers: if self.callers { reach.callers } else { 1 },
            accounts: if self.accounts { reach.accounts } else { 1 },
            ..Shape::PLAIN
        };
        let gateway = Gateway::start(&scene.street, &stub.ports, shape, MEASURED)?;
        let all = operations();
        let plan = Plan {
            callers: shape.callers.min(CALLERS),
            accounts: shape.accounts,
            // Each account has been used by the time that anything counts, and so has each operation.
            prepared: reach.accounts.max(reach.first),
            operations: if self.operations {
                all
            } else {
                vec![OPERATION.to_owned()]
            },
            ..scene.plan(&gateway)
        };
        Ok((gateway, plan))
    }
}
