// SPDX-License-Identifier: Apache-2.0

//! Renders the table at the end of the demo.

use std::fmt::Write as _;

use crate::requests::Row;

/// The widths of a column's three fields: result, latency, entries.
const FIELDS: [usize; 3] = [9, 9, 8];

/// Renders the columns side by side; `columns[n]` holds the rows under `titles[n]`, all in the same
/// order.
pub fn render(titles: &[&str], columns: &[Vec<Row>]) -> String {
    let column_width = FIELDS.iter().sum::<usize>() + 2;
    let paths: Vec<&str> = columns[0].iter().map(|row| row.path.as_str()).collect();
    let path_width = paths
        .iter()
        .map(|path| path.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    let mut line = |first: &str, rest: Vec<String>| {
        // Formatting counts characters, and an arrow is one character.
        let _ = write!(text, "{first:path_width$}");
        for cell in rest {
            let _ = write!(text, " │ {cell:column_width$}");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    };
    line("", titles.iter().map(|&title| title.to_owned()).collect());
    let head = fields("result", "latency", "entries");
    line("way", vec![head; titles.len()]);
    let rule = "─".repeat(column_width);
    line(&"─".repeat(path_width), vec![rule; titles.len()]);
    for (n, path) in paths.iter().enumerate() {
        line(path, columns.iter().map(|rows| cell(&rows[n])).collect());
    }
    text
}

fn cell(row: &Row) -> String {
    let latency = row.latency.map_or_else(
        || "–".to_owned(),
        |time| format!("{:.1} ms", time.as_secs_f64() * 1000.0),
    );
    fields(&row.result, &latency, &row.entries.to_string())
}

fn fields(result: &str, latency: &str, entries: &str) -> String {
    let [a, b, c] = FIELDS;
    format!("{result:a$} {latency:>b$} {entries:>c$}")
}
