// SPDX-License-Identifier: Apache-2.0

//! The metrics that docs/metrics.md documents, and those that the agent exports. The same list serves to check alert
//! rules and dashboards.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};

/// The prefix of every metric's name.
pub const PREFIX: &str = "proxy_agent_";
/// The text of docs/metrics.md.
const DOCS: &str = include_str!("../../docs/metrics.md");

/// The type and labels of a metric.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metric {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// The names of its labels, without `le` of histograms.
    pub labels: BTreeSet<String>,
}

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The name; for a histogram, with its suffix.
    pub name: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// Returns the metrics in the tables of docs/metrics.md, by name.
///
/// # Errors
/// Returns an error if a line cannot be parsed.
pub fn documented() -> Result<BTreeMap<String, Metric>> {
    let mut metrics = BTreeMap::new();
    let is_row = |line: &&str| line.starts_with(&format!("| `{PREFIX}"));
    for line in DOCS.lines().filter(is_row) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, kind, labels, meaning, _] = cells[..] else {
            bail!("not five columns, in docs/metrics.md: {line}");
        };
        if meaning.is_empty() {
            bail!("nothing is said, in docs/metrics.md: {line}");
        }
        let labels = labels
            .split(',')
            .map(|label| label.trim().trim_matches('`'));
        let metric = Metric {
            kind: kind.to_owned(),
            labels: labels
                .filter(|label| !label.is_empty())
                .map(str::to_owned)
                .collect(),
        };
        metrics.insert(name.trim_matches('`').to_owned(), metric);
    }
    Ok(metrics)
}

/// Returns the metrics in a text in the Prometheus text format.
///
/// # Errors
/// Returns an error if the text is not in that format, or if a metric has no help text.
pub fn families(text: &str) -> Result<BTreeMap<String, Metric>> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    let helped: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next())
        .collect();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("# TYPE ") else {
            continue;
        };
        let (name, kind) = rest.split_once(' ').context("a name and a type")?;
        if !helped.contains(name) {
            bail!("no help for {name}");
        }
        let metric = Metric {
            kind: kind.to_owned(),
            ..Metric::default()
        };
        metrics.insert(name.to_owned(), metric);
    }
    for sample in samples(text)? {
        let name = family(&sample.name, &metrics).to_owned();
        let metric = metrics
            .get_mut(&name)
            .with_context(|| format!("no type for {name}"))?;
        let labels = sample.labels.into_keys().filter(|label| label != "le");
        metric.labels.extend(labels);
    }
    Ok(metrics)
}

/// Returns the names of metrics in any text, such as an alert rule or a dashboard.
#[must_use]
pub fn mentioned(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| word.len() > PREFIX.len() && word.starts_with(PREFIX))
        .collect()
}

/// Returns the metric to which a sample or a query refers, among those in `known`.
#[must_use]
pub fn family<'a>(sample: &'a str, known: &BTreeMap<String, Metric>) -> &'a str {
    let histogram = ["_bucket", "_sum", "_count"]
        .iter()
        .filter_map(|suffix| sample.strip_suffix(suffix))
        .find(|name| {
            known
                .get(*name)
                .is_some_and(|metric| metric.kind == "histogram")
        });
    histogram.unwrap_or(sample)
}

/// Returns the samples in a text in the Prometheus text format.
///
/// # Errors
/// Returns an error if the text is not in that format.
pub fn samples(text: &str) -> Result<Vec<Sample>> {
    let is_sample = |line: &&str| !line.is_empty() && !line.starts_with('#');
    text.lines()
        .filter(is_sample)
        .map(|line| sample(line).with_context(|| format!("not a sample: {line}")))
        .collect()
}

/// Returns the value of the sample with these labels, if there is one.
#[must_use]
pub fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has = |sample: &Sample| {
        let is_given = |(label, value): &(&str, &str)| {
            sample
                .labels
                .get(*label)
                .is_some_and(|found| found == value)
        };
        sample.name == name && labels.iter().all(is_given)
    };
    samples
        .iter()
        .find(|sample| has(sample))
        .map(|sample| sample.value)
}

fn sample(line: &str) -> Result<Sample> {
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let (name, mut rest) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').context("no end of labels")?),
        None => (series, ""),
    };
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (label, value) = rest.split_once("=\"").context("no value of a label")?;
        let mut content = String::new();
        let mut characters = value.char_indices();
        let end = loop {
            match characters.next().context("no end of a value")? {
                (end, '"') => break end,
                (_, '\\') => content.push(characters.next().context("no escaped character")?.1),
                (_, other) => content.push(other),
            }
        };
        labels.insert(label.to_owned(), content);
        rest = value[end + 1..].trim_start_matches(',');
    }
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().context("no number")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read() {
        let text = "# HELP a b\na 1\nb{c=\"d\\\"e, f\",g=\"\"} 2.5\n";
        let samples = samples(text).unwrap();
        assert_eq!(value(&samples, "a", &[]), Some(1.0));
        assert_eq!(
            value(&samples, "b", &[("c", "d\"e, f"), ("g", "")]),
            Some(2.5)
        );
        assert_eq!(value(&samples, "b", &[("c", "x")]), None);
    }
}
