//! What the dashboards and the log see: one record for each exchange, and the families it's counted in.

pub mod bucket;
pub mod exchange;
pub mod families;
mod json;
pub mod lines;
pub mod log;
pub mod metrics;
pub mod process;
pub mod ration;
pub mod remote;
pub mod series;
pub mod trace;
