//! Makes metric families, in a registry of their own, and remembers what each is called and means, for the page about them.

use prometheus::Counter;
use prometheus::Gauge;
use prometheus::GaugeVec;
use prometheus::Histogram;
use prometheus::HistogramOpts;
use prometheus::HistogramVec;
use prometheus::IntCounter;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Opts;
use prometheus::Registry;
use prometheus::core::Collector;

/// What a family is called and means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: Vec<String>,
    /// What it says.
    pub help: String,
}

/// A registry under construction.
#[derive(Default)]
pub(super) struct Families {
    pub(super) registry: Registry,
    pub(super) described: Vec<Described>,
}

impl Families {
    fn keep<C: Collector + Clone + 'static>(
        &mut self,
        kind: &'static str,
        collector: Result<C, prometheus::Error>,
    ) -> C {
        let collector = collector.expect("names and labels are constants, and legal");
        for family in collector.desc() {
            self.described.push(Described {
                name: family.fq_name.clone(),
                kind,
                labels: family.variable_labels.clone(),
                help: family.help.clone(),
            });
        }
        self.registry
            .register(Box::new(collector.clone()))
            .expect("each name stands once");
        collector
    }

    pub(super) fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        self.keep("counter", IntCounter::new(name, help))
    }

    pub(super) fn fractional_counter(&mut self, name: &str, help: &str) -> Counter {
        self.keep("counter", Counter::new(name, help))
    }

    pub(super) fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.keep("counter", IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        self.keep("gauge", IntGauge::new(name, help))
    }

    pub(super) fn fractional_gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.keep("gauge", Gauge::new(name, help))
    }

    pub(super) fn gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.keep("gauge", IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn fractional_gauges(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> GaugeVec {
        self.keep("gauge", GaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep("histogram", Histogram::with_opts(options))
    }

    pub(super) fn histograms(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep("histogram", HistogramVec::new(options, labels))
    }
}
