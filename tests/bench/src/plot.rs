// SPDX-License-Identifier: Apache-2.0

//! Results as pictures (SVG): one kind of chart, rows with a value each and its quartiles, measured from
//! a line that everything is compared with.
//!
//! A plotting library would bring axes and styles for what is a list of rectangles and words here.

use std::fmt::Write as _;

use super::bars::{self, Bar, Verdict, thousands};
use super::result::{Cell, Results};
use super::statistics::Summary;
use super::traffic::Work;
use super::variant::Variant;

const WIDTH: f64 = 1000.0;
/// Where the plot begins and ends; to the left are names, to the right numbers.
const LEFT: f64 = 420.0;
const RIGHT: f64 = 840.0;
const ROW: f64 = 20.0;
const GROUP: f64 = 30.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 44.0;

/// The colour of ours, and of targets that are reached.
pub const OURS: &str = "#1a7f37";
const OTHERS: &str = "#8c959f";
const RULES: &str = "#bf8700";
/// The colour of targets that are missed.
pub const BAD: &str = "#cf222e";
const TEXT: &str = "#1f2328";
const FAINT: &str = "#d0d7de";

/// A value with its name.
#[derive(Debug)]
pub struct Row {
    /// To the left of the value.
    pub label: String,
    /// The value.
    pub value: Summary,
    /// To the right of it.
    pub note: String,
    /// A colour of SVG.
    pub colour: &'static str,
}

/// Rows in groups, each with its heading.
#[derive(Debug)]
pub struct Chart {
    /// The heading of all.
    pub title: String,
    /// The label of the value axis.
    pub axis: String,
    /// The line that values are compared with.
    pub origin: f64,
    /// Bars are cut off at this value; the number beside the bar gives the full value.
    pub most: f64,
    /// The rows by their headings.
    pub groups: Vec<(String, Vec<Row>)>,
}

/// All pictures that there is something for, with their names.
#[must_use]
pub fn all(results: &Results) -> Vec<(String, String)> {
    let mut pictures = Vec::new();
    let mut add = |name: &str, chart: Chart| {
        if !chart.groups.is_empty() {
            pictures.push((name.to_owned(), chart.draw()));
        }
    };
    add("bars", bars_chart(results));
    for work in Work::ALL {
        add(work.name(), work_chart(results, work));
    }
    add("scale", scale_chart(results));
    add("programs", programs_chart(results));
    pictures
}

fn colour(variant: &str) -> &'static str {
    let is = |variants: &[Variant]| variants.iter().any(|one| one.name() == variant);
    if is(&[
        Variant::Iptables,
        Variant::Nftables,
        Variant::Ebpf,
        Variant::Service,
    ]) {
        OURS
    } else if is(&[Variant::LegacyNotrack, Variant::NftNotrack, Variant::Native]) {
        RULES
    } else {
        OTHERS
    }
}

fn work_chart(results: &Results, work: Work) -> Chart {
    let mut groups: Vec<(String, Vec<Row>)> = Vec::new();
    let clock = results.clock();
    let cells = results.paths.iter().filter(|cell| cell.work == work.name());
    for cell in cells.filter(|cell| cell.family == 4) {
        let other = Results::beside(&results.paths, cell, Variant::NoHooks.name());
        let ratio = other.and_then(|other| Summary::of_ratio(cell.by(clock), other.by(clock)));
        let (Some(ratio), Some(time)) = (ratio, Summary::of(cell.by(clock))) else {
            continue;
        };
        let row = Row {
            label: cell.variant.clone(),
            value: ratio,
            note: format!("{:.2} ×, {:.1} µs", ratio.median, time.median / 1000.0),
            colour: colour(&cell.variant),
        };
        let heading = match cell.way.as_str() {
            "host" => "process on the node → API server",
            "veth pod" => "pod behind a veth pair → API server",
            "bridge pod" => "pod behind a bridge → API server",
            _ => "pod → port 443 of another host (unrelated)",
        };
        match groups.iter_mut().find(|(name, _)| name == heading) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((heading.to_owned(), vec![row])),
        }
    }
    Chart {
        title: format!("{work}: time of one"),
        axis: "× a kernel without any netfilter hook — further left is faster; whiskers: quartiles"
            .to_owned(),
        origin: 1.0,
        most: 2.0,
        groups,
    }
}

fn scale_chart(results: &Results) -> Chart {
    let mut groups: Vec<(String, Vec<Row>)> = Vec::new();
    for (cell, ratio) in bars::growth(results, |_| true) {
        let heading = format!("{} {} instead of 1", thousands(cell.size), cell.of);
        let row = Row {
            label: format!("{}: {}", short_name(cell), what(cell)),
            value: ratio,
            note: format!("{:.2} ×", ratio.median),
            colour: colour(&cell.variant),
        };
        match groups.iter_mut().find(|(name, _)| *name == heading) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((heading, vec![row])),
        }
    }
    Chart {
        title: "The same node with much of something: time of one operation".to_owned(),
        axis: "× the time with one of it — at 1 nothing grows".to_owned(),
        origin: 1.0,
        most: 2.0,
        groups,
    }
}

fn short_name(cell: &Cell) -> &str {
    cell.variant.trim_start_matches("proxy-agent ")
}

fn what(cell: &Cell) -> &'static str {
    match (cell.work.as_str(), cell.way.as_str()) {
        ("exchange", "unrelated") => "request, unrelated",
        ("connect", "unrelated") => "connect, unrelated",
        ("connect", _) => "connect",
        _ => "request",
    }
}

fn programs_chart(results: &Results) -> Chart {
    let mut groups: Vec<(String, Vec<Row>)> = Vec::new();
    for program in &results.programs {
        let (Some(value), Some(packet)) = (
            Summary::of(&program.nanoseconds),
            program.packet.strip_prefix("IPv4: "),
        ) else {
            continue;
        };
        let row = Row {
            label: packet.to_owned(),
            value,
            note: format!("{:.0} ns", value.median),
            colour: OURS,
        };
        match groups.iter_mut().find(|(name, _)| *name == program.name) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((program.name.clone(), vec![row])),
        }
    }
    let longest = groups
        .iter()
        .flat_map(|(_, rows)| rows)
        .map(|row| row.value.high)
        .fold(50.0, f64::max);
    Chart {
        title: "Each eBPF program alone: time for one packet (IPv4)".to_owned(),
        axis: "nanoseconds".to_owned(),
        origin: 0.0,
        most: longest,
        groups,
    }
}

fn bars_chart(results: &Results) -> Chart {
    let row = |bar: &Bar| {
        let (_, worst) = bar.worst()?;
        let part = |value: f64| value / bar.most;
        let (digits, unit) = match bar.unit {
            "" => (2, "×"),
            "MiB" => (1, "MiB"),
            "%" => (3, "%"),
            unit => (0, unit),
        };
        Some(Row {
            label: bar.what.replace('`', ""),
            value: Summary {
                median: part(worst.median),
                low: part(worst.low),
                high: part(worst.high),
            },
            note: format!("{:.digits$} of {:.digits$} {unit}", worst.median, bar.most),
            colour: match bar.verdict() {
                Verdict::Reached => OURS,
                Verdict::Close => RULES,
                Verdict::Missed => BAD,
            },
        })
    };
    let rows: Vec<Row> = bars::bars(results).iter().filter_map(row).collect();
    let groups = if rows.is_empty() {
        Vec::new()
    } else {
        vec![("worst median".to_owned(), rows)]
    };
    Chart {
        title: "What is to be reached, and what was measured".to_owned(),
        axis: "part of what is allowed — up to 1 it is reached".to_owned(),
        origin: 0.0,
        most: 1.5,
        groups,
    }
}

impl Chart {
    /// The ends of the axis.
    fn range(&self) -> (f64, f64) {
        let values = || self.groups.iter().flat_map(|(_, rows)| rows);
        let low = values()
            .map(|row| row.value.low)
            .fold(self.origin, f64::min);
        let high = values()
            .map(|row| row.value.high)
            .fold(self.origin, f64::max);
        let high = high
            .min(self.most)
            .max(if self.origin > 0.0 { 1.05 } else { 1.0 });
        let margin = (high - low) * 0.04;
        (if low > 0.0 { low - margin } else { 0.0 }, high + margin)
    }

    /// The picture, as SVG.
    #[must_use]
    pub fn draw(&self) -> String {
        let (low, high) = self.range();
        let x = |value: f64| {
            let part = (value - low) / (high - low);
            LEFT + part.clamp(0.0, 1.0) * (RIGHT - LEFT)
        };
        let mut body = String::new();
        let mut y = TOP;
        for (heading, rows) in &self.groups {
            y += GROUP;
            let _ = writeln!(
                body,
                r#"<text x="12" y="{:.1}" font-weight="bold">{}</text>"#,
                y - 9.0,
                escape(heading)
            );
            for row in rows {
                draw_row(&mut body, row, y, (&x, self.origin, high));
                y += ROW;
            }
        }
        let height = y + BOTTOM;
        let mut text = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="{TEXT}">
<rect width="{WIDTH}" height="{height}" fill="white"/>
<text x="12" y="26" font-size="16" font-weight="bold">{}</text>
<text x="12" y="46">{}</text>
"#,
            escape(&self.title),
            escape(&self.axis)
        );
        let step = step(high - low);
        #[expect(clippy::cast_possible_truncation, reason = "a handful of ticks")]
        let (first, last) = ((low / step).ceil() as i32, (high / step).floor() as i32);
        for n in first..=last {
            let value = f64::from(n) * step;
            let at = x(value);
            let is_one = (value - 1.0).abs() < 1e-9 && high < 10.0;
            let (colour, width) = if is_one { (TEXT, 1.2) } else { (FAINT, 1.0) };
            let digits = usize::from(step < 0.1) + usize::from(step < 1.0);
            let _ = writeln!(
                text,
                r#"<line x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{y:.1}" stroke="{colour}" stroke-width="{width}"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{value:.digits$}</text>"#,
                y + 18.0
            );
        }
        text + &body + "</svg>\n"
    }
}

fn draw_row(
    body: &mut String,
    row: &Row,
    y: f64,
    (x, origin, high): (&impl Fn(f64) -> f64, f64, f64),
) {
    let middle = y + ROW / 2.0;
    let (from, to) = (x(origin), x(row.value.median));
    let (left, width) = (from.min(to), (to - from).abs().max(1.0));
    let colour = row.colour;
    let _ = write!(
        body,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text><rect x="{left:.1}" y="{:.1}" width="{width:.1}" height="9" fill="{colour}"/>"#,
        LEFT - 8.0,
        middle + 4.0,
        escape(&row.label),
        middle - 4.5,
    );
    if row.value.median > high {
        // Cut off: an arrow says that it goes on.
        let _ = write!(
            body,
            r#"<path d="M{to:.1} {:.1} l8 9 l-8 9 z" fill="{colour}"/>"#,
            middle - 9.0
        );
    } else {
        let (low, high) = (x(row.value.low), x(row.value.high));
        let _ = write!(
            body,
            r#"<path d="M{low:.1} {middle:.1} H{high:.1} M{low:.1} {:.1} v8 M{high:.1} {:.1} v8" stroke="{TEXT}" fill="none"/>"#,
            middle - 4.0,
            middle - 4.0
        );
    }
    let _ = writeln!(
        body,
        r#"<text x="{:.1}" y="{:.1}">{}</text>"#,
        RIGHT + 14.0,
        middle + 4.0,
        escape(&row.note)
    );
}

/// A round number that divides the range into a few pieces.
fn step(range: f64) -> f64 {
    let rough = range / 6.0;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::Effort;
    use super::super::result::Cost;
    use super::*;

    #[test]
    fn steps_are_round() {
        let steps = [0.31, 1.5, 700.0].map(step);
        for (step, wanted) in steps.into_iter().zip([0.1, 0.5, 200.0]) {
            assert!((step - wanted).abs() < 1e-9, "{step} is not {wanted}");
        }
    }

    #[test]
    fn there_is_a_picture_for_what_was_measured_only() {
        let mut results = Results::begin(Effort::SHORT).expect("procfs");
        assert!(all(&results).is_empty());
        results.costs.push(Cost {
            what: super::super::costs::START.to_owned(),
            unit: "ms".to_owned(),
            samples: vec![90.0, 80.0, 120.0],
        });
        let pictures = all(&results);
        assert_eq!(pictures.len(), 1);
        let (name, picture) = &pictures[0];
        assert_eq!(name, "bars");
        assert!(picture.contains("90 of 100 ms"), "{picture}");
        assert_eq!(
            picture.matches("<svg").count(),
            picture.matches("</svg>").count()
        );
    }
}
