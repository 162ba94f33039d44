// SPDX-License-Identifier: Apache-2.0

//! Prints the results as a table, and draws the targets as a picture.

use std::fmt::Write as _;

use benchmark::plot::{self, Chart};
use benchmark::statistics::Summary;

/// A target of a measured quantity.
#[derive(Debug, Clone, Copy)]
pub enum Bar {
    /// Our value is at most this.
    AtMost(f64),
    /// The ratio of our value to upstream's is at least this.
    RatioAtLeast(f64),
    /// The ratio is at most this.
    RatioAtMost(f64),
}

/// A measured quantity with its samples.
#[derive(Debug)]
pub struct Row {
    /// The measured quantity.
    pub what: String,
    /// The unit of the samples.
    pub unit: &'static str,
    /// Our samples, one for each round.
    pub ours: Vec<f64>,
    /// Upstream's samples, one for each round; empty without upstream's programs.
    pub upstream: Vec<f64>,
    /// The target, if there is one.
    pub bar: Option<Bar>,
}

impl Row {
    /// Returns the measured value as a fraction of the target's bound: the target is reached up to
    /// 1.
    fn part(&self) -> Option<Summary> {
        let ratio = || Summary::of_ratio(&self.ours, &self.upstream);
        let scaled = |of: Summary, part: &dyn Fn(f64) -> f64| Summary {
            median: part(of.median),
            low: part(of.low).min(part(of.high)),
            high: part(of.high).max(part(of.low)),
        };
        Some(match self.bar? {
            Bar::AtMost(bound) => scaled(Summary::of(&self.ours)?, &|value| value / bound),
            Bar::RatioAtMost(bound) => scaled(ratio()?, &|value| value / bound),
            Bar::RatioAtLeast(bound) => scaled(ratio()?, &|value| bound / value),
        })
    }

    fn verdict(&self) -> Option<(String, bool)> {
        let ratio = || Summary::of_ratio(&self.ours, &self.upstream);
        let (text, is_reached) = match self.bar? {
            Bar::AtMost(bound) => (
                format!("≤ {bound} {}", self.unit),
                Summary::of(&self.ours)?.median <= bound,
            ),
            Bar::RatioAtLeast(bound) => (format!("≥ {bound} ×"), ratio()?.median >= bound),
            Bar::RatioAtMost(bound) => (format!("≤ {bound} ×"), ratio()?.median <= bound),
        };
        Some((text, is_reached))
    }
}

/// Returns the rows as a Markdown table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| what | unit | ours | upstream's | ours ÷ upstream's (quartiles) | bar | |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let value = |samples: &[f64]| {
            Summary::of(samples).map_or_else(|| "–".to_owned(), |s| number(s.median))
        };
        let ratio = Summary::of_ratio(&row.ours, &row.upstream).map_or_else(
            || "–".to_owned(),
            |s| format!("{:.2} ({:.2} to {:.2})", s.median, s.low, s.high),
        );
        let (bar, verdict) = match row.verdict() {
            Some((bar, true)) => (bar, "reached"),
            Some((bar, false)) => (bar, "**missed**"),
            None => ("–".to_owned(), ""),
        };
        let (ours, upstream) = (value(&row.ours), value(&row.upstream));
        let _ = writeln!(
            text,
            "| {} | {} | {ours} | {upstream} | {ratio} | {bar} | {verdict} |",
            row.what, row.unit
        );
    }
    text
}

/// Returns the targets and the measured values as SVG.
#[must_use]
pub fn picture(rows: &[Row]) -> String {
    let row = |row: &Row| {
        let (bar, is_reached) = row.verdict()?;
        let value = match row.bar? {
            Bar::AtMost(_) => Summary::of(&row.ours)?,
            Bar::RatioAtLeast(_) | Bar::RatioAtMost(_) => {
                Summary::of_ratio(&row.ours, &row.upstream)?
            }
        };
        Some(plot::Row {
            label: row.what.clone(),
            value: row.part()?,
            note: format!("{}, bar {bar}", number(value.median)),
            colour: if is_reached { plot::OURS } else { plot::BAD },
        })
    };
    Chart {
        title: "The tunnel: what is to be reached, and what was measured".to_owned(),
        axis: "part of what is allowed — up to 1 it is reached".to_owned(),
        origin: 0.0,
        most: 1.5,
        groups: vec![("median".to_owned(), rows.iter().filter_map(row).collect())],
    }
    .draw()
}

/// Formats a number with three significant digits or more.
fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_reached_or_missed() {
        let row = |bar, upstream: &[f64]| Row {
            what: "x".into(),
            unit: "MB/s",
            ours: vec![4.0, 6.0],
            upstream: upstream.to_vec(),
            bar: Some(bar),
        };
        let verdict = |row: Row| row.verdict().map(|(_, is_reached)| is_reached);
        assert_eq!(
            verdict(row(Bar::RatioAtLeast(2.0), &[2.0, 3.0])),
            Some(true)
        );
        assert_eq!(
            verdict(row(Bar::RatioAtLeast(2.5), &[2.0, 3.0])),
            Some(false)
        );
        assert_eq!(
            verdict(row(Bar::RatioAtMost(0.4), &[20.0, 30.0])),
            Some(true)
        );
        assert_eq!(verdict(row(Bar::RatioAtMost(0.4), &[])), None);
        let part = row(Bar::RatioAtLeast(2.5), &[2.0, 3.0]).part().unwrap();
        assert!((part.median - 1.25).abs() < 1e-9, "{part:?}");
        let picture = picture(&[row(Bar::AtMost(4.0), &[]), row(Bar::RatioAtMost(0.4), &[])]);
        assert!(picture.contains("5.00, bar ≤ 4 MB/s"), "{picture}");
        assert_eq!(verdict(row(Bar::AtMost(5.0), &[])), Some(true));
        assert_eq!(verdict(row(Bar::AtMost(4.9), &[])), Some(false));
    }
}
