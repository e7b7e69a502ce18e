//! How often a request finds a connection to its host open, when there are few requests, many hosts, and a long way to them. Requests come at
//! random times, for hosts at random: at equal distances all would find their host's connection open.

use crate::street::gateway::{Gateway, Shape};
use crate::street::load::{Mode, Plan};
use crate::street::relay::{self, Relay};
use crate::street::report::{Demand, Figure, Samples};
use crate::street::stub::Stub;
use crate::street::{BESIDE, MEASURED, Result, metrics};
use crate::{Scene, ask};

const HOSTS: usize = 14;

const ROUND_TRIP_MS: u64 = 100;

/// The share, and how it came about.
pub fn measure(scene: &Scene<'_>) -> Result<(Figure, String)> {
    let reach = &scene.reach;
    let mut stub = Stub::start(&scene.street, HOSTS, BESIDE)?;
    let distance = relay::Plan {
        to: stub.ports.clone(),
        round_trip_ms: ROUND_TRIP_MS,
    };
    let relay = Relay::start(&distance, BESIDE)?;
    let shape = Shape {
        accounts: HOSTS,
        ..Shape::PLAIN
    };
    let gateway = Gateway::start(&scene.street, &relay.ports, shape, MEASURED)?;
    let plan = Plan {
        mode: Mode::Open {
            rate: reach.warmth_rate,
        },
        // More than are ever under way: none waits for another.
        connections: 16,
        accounts: HOSTS,
        shuffled: true,
        prepared: 1,
        window_ms: reach.warmth_ms,
        ..scene.plan(&gateway)
    };
    ask(&plan, &mut stub)?;
    let attempts = metrics::sum(gateway.admin, "kybio_gateway_attempts_total")?;
    let opened = "kybio_gateway_upstream_connections_opened_total";
    let opened = metrics::values(gateway.admin, opened)?;
    let reused = "kybio_gateway_upstream_connections_reused_total";
    let reused = metrics::sum(gateway.admin, reused)?;
    let hosts = opened.iter().filter(|count| **count > 0.0).count();
    let share = 100.0 * reused / (attempts - hosts as f64);
    let figure = Figure::new(
        "warmth: requests that find a connection open",
        "%",
        vec![("gateway", Samples(vec![share]))],
    );
    let demand = Demand {
        of: "%".to_owned(),
        value: share,
        must: Some(95.0),
        aim: Some(97.0),
        least: true,
    };
    let note = format!(
        "warmth: {} requests a second on average, at random, to {HOSTS} hosts {ROUND_TRIP_MS} ms away: {attempts} requests, {} connections \
         opened. The first connection to a host can't be open before; those of {hosts} hosts, and the requests that waited for them, are left out.",
        reach.warmth_rate,
        opened.iter().sum::<f64>(),
    );
    Ok((figure.demand(demand), note))
}
