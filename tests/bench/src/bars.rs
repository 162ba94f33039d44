// SPDX-License-Identifier: Apache-2.0

//! The agent's targets, and whether a run reaches them.

use std::fmt::{self, Display};

use super::costs;
use super::result::{Cell, Clock, Results};
use super::scale;
use super::statistics::Summary;
use super::traffic::Work;
use super::upstream;
use super::variant::Variant;

/// Something that must not be more than a number.
#[derive(Debug, Clone)]
pub struct Bar {
    /// The measured quantity.
    pub what: String,
    /// The number.
    pub most: f64,
    /// The unit; empty for ratios.
    pub unit: &'static str,
    /// The measured value, and where it was measured.
    pub measured: Vec<(String, Summary)>,
}

/// Whether it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// By every median.
    Reached,
    /// The median misses the target, but at least a quarter of the samples reach it: too close to
    /// decide.
    Close,
    /// It is not.
    Missed,
}

impl Bar {
    /// The worst.
    #[must_use]
    pub fn worst(&self) -> Option<&(String, Summary)> {
        let by_median =
            |a: &&(String, Summary), b: &&(String, Summary)| a.1.median.total_cmp(&b.1.median);
        self.measured.iter().max_by(by_median)
    }

    /// Of each measurement.
    #[must_use]
    pub fn verdict_of(&self, summary: &Summary) -> Verdict {
        if summary.median <= self.most {
            Verdict::Reached
        } else if summary.low <= self.most {
            Verdict::Close
        } else {
            Verdict::Missed
        }
    }

    /// Of all of them.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let verdicts = || {
            self.measured
                .iter()
                .map(|(_, summary)| self.verdict_of(summary))
        };
        if verdicts().any(|verdict| verdict == Verdict::Missed) {
            Verdict::Missed
        } else if verdicts().any(|verdict| verdict == Verdict::Close) {
            Verdict::Close
        } else {
            Verdict::Reached
        }
    }

    /// How many of the measurements reach it.
    #[must_use]
    pub fn reached(&self) -> usize {
        let verdicts = self
            .measured
            .iter()
            .map(|(_, summary)| self.verdict_of(summary));
        verdicts
            .filter(|verdict| *verdict == Verdict::Reached)
            .count()
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reached => "reached",
            Self::Close => "too close to decide",
            Self::Missed => "**missed**",
        })
    }
}

/// All bars of which a run has measured something.
#[must_use]
pub fn bars(results: &Results) -> Vec<Bar> {
    let mut bars = traffic(results);
    bars.extend(through(results));
    bars.extend(flat(results));
    bars.extend(agent(results));
    bars.retain(|bar| !bar.measured.is_empty());
    bars
}

/// How a variant compares with another one, wherever both have done a kind of work that `concerns`.
fn compare(
    what: &str,
    most: f64,
    (cells, clock): (&[Cell], Clock),
    (variant, to): (&str, &str),
    concerns: impl Fn(&Cell) -> bool,
) -> Bar {
    let of_variant = cells
        .iter()
        .filter(|cell| cell.variant == variant && concerns(cell));
    let measured = of_variant.filter_map(|cell| {
        let other = Results::beside(cells, cell, to)?;
        let ratio = Summary::of_ratio(cell.by(clock), other.by(clock))?;
        Some((place(cell), ratio))
    });
    Bar {
        what: what.to_owned(),
        most,
        unit: "",
        measured: measured.collect(),
    }
}

fn place(cell: &Cell) -> String {
    let work = [Work::Exchange, Work::Connect, Work::Send, Work::Receive]
        .into_iter()
        .find(|work| work.name() == cell.work)
        .map_or_else(String::new, |work| work.to_string());
    format!("{work}, {} IPv{}", cell.way, cell.family)
}

fn traffic(results: &Results) -> Vec<Bar> {
    let clock = results.clock();
    let cells = (results.paths.as_slice(), clock);
    let to_vip =
        |work: Work| move |cell: &Cell| cell.work == work.name() && cell.way != "unrelated";
    let unrelated = |cell: &Cell| cell.way == "unrelated";
    let many_links =
        |cell: &Cell| cell.way == "unrelated" && cell.of == scale::LINKS && cell.size > 1;
    let to_service = |works: &'static [Work]| {
        move |cell: &Cell| {
            works.iter().any(|work| cell.work == work.name())
                && cell.way != "unrelated"
                && cell.way != "host"
        }
    };
    let (vip, service) = (Variant::Ebpf, Variant::Service);
    let mut bars = vec![
        compare(
            "request/response, pod → ClusterIP ÷ kube-proxy's tracked DNAT",
            0.95,
            cells,
            (service.name(), Variant::KubeProxy.name()),
            to_service(&[Work::Exchange]),
        ),
        compare(
            "connect + request + close, pod → ClusterIP ÷ kube-proxy's tracked DNAT",
            0.90,
            cells,
            (service.name(), Variant::KubeProxy.name()),
            to_service(&[Work::Connect]),
        ),
        compare(
            "1 MiB, pod → ClusterIP ÷ kube-proxy's tracked DNAT",
            1.0,
            cells,
            (service.name(), Variant::KubeProxy.name()),
            to_service(&[Work::Send, Work::Receive]),
        ),
        compare(
            "everything to the VIP ÷ tracked",
            1.0,
            cells,
            (vip.name(), Variant::Tracked.name()),
            |cell| !unrelated(cell),
        ),
        compare(
            "connect + request + close to the VIP ÷ tracked",
            0.95,
            cells,
            (vip.name(), Variant::Tracked.name()),
            to_vip(Work::Connect),
        ),
        compare(
            "everything to the VIP ÷ native nft notrack",
            1.02,
            cells,
            (vip.name(), Variant::Native.name()),
            |cell| !unrelated(cell),
        ),
    ];
    for variant in [vip, service] {
        let name = if variant == vip {
            "`ebpf`"
        } else {
            "`ebpf` with --service-address"
        };
        bars.push(compare(
            &format!("unrelated traffic, {name} ÷ without the agent"),
            1.01,
            cells,
            (variant.name(), Variant::Tracked.name()),
            unrelated,
        ));
        bars.push(compare(
            &format!("unrelated traffic with 1,000 links, {name} ÷ without the agent"),
            1.01,
            (&results.scale, clock),
            (variant.name(), Variant::Tracked.name()),
            many_links,
        ));
    }
    bars
}

/// A proxy's work is in wall time only.
fn through(results: &Results) -> [Bar; 2] {
    let to = [
        ("with the agent in both", upstream::ONLY_THE_VIP),
        ("without the agent", Variant::Tracked.name()),
    ];
    to.map(|(beside, name)| {
        compare(
            &format!(
                "request/response through HAProxy, its connection untracked ÷ tracked, {beside}"
            ),
            1.0,
            (&results.upstream, Clock::Wall),
            (Variant::Ebpf.name(), name),
            |cell| cell.work == Work::Exchange.name(),
        )
    })
}

/// How much the same node takes with much of something, compared with little.
#[must_use]
pub fn growth(results: &Results, concerns: impl Fn(&Cell) -> bool) -> Vec<(&Cell, Summary)> {
    let (cells, clock) = (&results.scale, results.clock());
    let mut found = Vec::new();
    for many in cells.iter().filter(|cell| cell.size > 1 && concerns(cell)) {
        let few = Cell {
            size: 1,
            ..many.clone()
        };
        let few = Results::beside(cells, &few, &many.variant);
        let ratio = few.and_then(|few| Summary::of_ratio(many.by(clock), few.by(clock)));
        found.extend(ratio.map(|ratio| (many, ratio)));
    }
    found
}

fn flat(results: &Results) -> Vec<Bar> {
    let ours = [Variant::Ebpf.name(), Variant::Service.name()];
    [scale::ENTRIES, scale::DECIDED, scale::ALIVE]
        .into_iter()
        .map(|of| {
            let concerns = |cell: &Cell| {
                cell.of == of && cell.way != "unrelated" && ours.contains(&cell.variant.as_str())
            };
            let grown = growth(results, concerns);
            let most = grown.iter().map(|(cell, _)| cell.size).max();
            Bar {
                what: format!("{} {of} ÷ 1", thousands(most.unwrap_or_default())),
                most: 1.05,
                unit: "",
                measured: grown
                    .into_iter()
                    .map(|(cell, ratio)| (format!("{}: {}", cell.variant, place(cell)), ratio))
                    .collect(),
            }
        })
        .collect()
}

fn agent(results: &Results) -> Vec<Bar> {
    let cost = |what: String, most, unit| Bar {
        measured: results
            .cost(&what)
            .map(|summary| (String::new(), summary))
            .into_iter()
            .collect(),
        what,
        most,
        unit,
    };
    let mut bars = vec![
        cost(costs::START.to_owned(), 100.0, "ms"),
        cost(costs::MEMORY.to_owned(), 7.0, "MiB"),
        cost(costs::IDLE.to_owned(), 0.02, "%"),
    ];
    let repairs = results.costs.iter().filter_map(|cost| {
        let what = cost.what.strip_prefix(costs::REPAIR)?;
        Some((what.to_owned(), Summary::of(&cost.samples)?))
    });
    bars.push(Bar {
        what: "repair by event".to_owned(),
        most: 50.0,
        unit: "ms",
        measured: repairs.collect(),
    });
    bars.push(cost(costs::attach(1_000, costs::AUTO), 2_000.0, "ms"));
    bars.push(cost(costs::resync(1_000), 50.0, "ms"));
    bars
}

/// As people write numbers.
#[must_use]
pub fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(samples: &[&[f64]]) -> Bar {
        let measured = samples.iter().filter_map(|samples| Summary::of(samples));
        Bar {
            what: "x".to_owned(),
            most: 1.0,
            unit: "",
            measured: measured.map(|summary| (String::new(), summary)).collect(),
        }
    }

    #[test]
    fn a_bar_is_reached_by_all_or_missed() {
        assert_eq!(bar(&[&[0.9], &[1.0]]).verdict(), Verdict::Reached);
        let close: &[f64] = &[0.9, 0.95, 1.1, 1.2];
        assert_eq!(bar(&[&[0.9], close]).verdict(), Verdict::Close);
        let missed = bar(&[&[0.9], &[1.1], close]);
        assert_eq!((missed.verdict(), missed.reached()), (Verdict::Missed, 1));
        let worst = missed.worst().map(|(_, summary)| summary.median);
        assert_eq!(worst, Some(1.1));
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [1, 1_000, 100_000].map(thousands),
            ["1", "1,000", "100,000"]
        );
    }
}
