// SPDX-License-Identifier: Apache-2.0

//! Collects samples by metric and renders them as text.

use std::collections::BTreeMap;

use prometheus::HistogramVec;
use prometheus::TextEncoder;
use prometheus::core::Collector as _;
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};

use super::catalogue::{ALL, Metric};

/// The samples of one answer.
#[derive(Debug, Default)]
pub struct Exposition {
    samples: BTreeMap<&'static str, Vec<proto::Metric>>,
    histograms: BTreeMap<&'static str, Vec<MetricFamily>>,
}

/// The values of a sample's labels.
fn values(sample: &proto::Metric) -> impl Iterator<Item = &str> {
    sample.get_label().iter().map(LabelPair::value)
}

impl Exposition {
    /// Adds a sample with an integer value; `labels` are in the order of the metric's.
    #[expect(
        clippy::cast_precision_loss,
        reason = "the format has floating point numbers only"
    )]
    pub fn count(&mut self, metric: &'static Metric, labels: &[&str], value: u64) {
        self.set(metric, labels, value as f64);
    }

    /// Adds a sample of 0 or 1.
    pub fn flag(&mut self, metric: &'static Metric, labels: &[&str], value: bool) {
        self.set(metric, labels, f64::from(u8::from(value)));
    }

    /// Adds a sample; `labels` are in the order of the metric's.
    pub fn set(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        let pairs = metric.labels.iter().zip(labels).map(pair).collect();
        let mut sample = proto::Metric::from_label(pairs);
        if metric.kind == MetricType::COUNTER {
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            sample.set_counter(counter);
        } else {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            sample.set_gauge(gauge);
        }
        self.samples.entry(metric.name).or_default().push(sample);
    }

    /// Adds the samples of a histogram.
    pub fn observed(&mut self, metric: &'static Metric, histogram: &HistogramVec) {
        let mut families = histogram.collect();
        for family in &mut families {
            let samples = family.mut_metric();
            samples.sort_by(|one, other| values(one).cmp(values(other)));
        }
        self.histograms.insert(metric.name, families);
    }

    /// The Prometheus text format. Metrics without samples are left out.
    ///
    /// # Errors
    ///
    /// None known: the library refuses families without name or samples.
    pub fn text(mut self) -> prometheus::Result<String> {
        let mut families = Vec::new();
        for metric in ALL {
            families.extend(self.histograms.remove(metric.name).unwrap_or_default());
            let Some(samples) = self.samples.remove(metric.name) else {
                continue;
            };
            let mut family = MetricFamily::default();
            family.set_name(metric.name.to_owned());
            family.set_help(metric.help.to_owned());
            family.set_field_type(metric.kind);
            family.set_metric(samples);
            families.push(family);
        }
        TextEncoder::new().encode_to_string(&families)
    }
}
