// SPDX-License-Identifier: Apache-2.0

//! The metrics, with upstream's names, labels and buckets. Families that upstream's dashboards and tests compare have
//! upstream's HELP texts too. As in upstream, a label's value appears when it is first counted.

pub mod agent;
pub mod certificates;
pub mod packets;
pub mod server;
pub mod sidecar;
pub mod tenants;

use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricFamily};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// The prefix of all metric names.
pub const NAMESPACE: &str = "konnectivity_network_proxy";

/// The values of a family without labels. Such a family appears when it is first used.
pub const NONE: [&str; 0] = [];

/// Creates and registers the metric families of one program.
#[derive(Debug)]
struct Maker {
    registry: Registry,
    subsystem: &'static str,
}

impl Maker {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let family = made.expect("names and labels are constants that tests make");
        self.registry
            .register(Box::new(family.clone()))
            .expect("names are unique, as tests show");
        family
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help)
            .namespace(NAMESPACE)
            .subsystem(self.subsystem)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(self.opts(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(self.opts(name, help), labels))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets.to_vec());
        self.add(HistogramVec::new(opts, labels))
    }
}

/// Returns the counters of a family with one label, by the values of the label that have been counted.
fn counted(family: &IntCounterVec) -> Vec<(String, f64)> {
    let families = family.collect();
    let samples = families.iter().flat_map(MetricFamily::get_metric);
    let value = |sample: &Metric| {
        let label = sample.get_label().first()?.value().to_owned();
        Some((label, sample.get_counter().get_value()))
    };
    samples.filter_map(value).collect()
}

/// Counts a connection in a gauge until this value is dropped.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    /// Increments the gauge. The drop of the returned value decrements it.
    #[must_use]
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
