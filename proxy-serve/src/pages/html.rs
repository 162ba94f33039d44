// SPDX-License-Identifier: Apache-2.0

//! The page for browsers: the data that programs put into it, and the only code that writes HTML. Programs supply text,
//! never markup. The template escapes every text except for [`STYLE`], which is the only one that it includes as
//! markup.
//!
//! The page has no script and does not reload itself, because a reload loses the position of a reader or of a screen
//! reader (WCAG 2.2, F41).

use std::cmp::Ordering;
use std::fmt::Display;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::visible::visible;
use crate::quantity;

/// The maximum number of rows of a table. Further rows are only counted.
pub const MOST_ROWS: usize = 100;

/// The maximum number of characters of a text.
const MOST_CHARACTERS: usize = 400;

/// The style, which is included in the page: the page consists of a single response, so it is complete even behind a
/// proxy that forwards only one path.
pub(super) const STYLE: &str = include_str!("style.css");

/// The data of a program's page.
#[derive(Debug, Default)]
pub struct Page {
    name: String,
    sections: Vec<Section>,
}

/// A part of a page.
#[derive(Debug)]
struct Section {
    title: &'static str,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Facts(Vec<(&'static str, Cell)>),
    Table(Table),
}

/// A text in the form in which it is displayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

/// The evaluation of a text, shown by its colour. The text must express it as well, because colour alone is not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Plain,
    Good,
    Bad,
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    name: &'static str,
    is_number: bool,
}

/// A table of texts.
#[derive(Debug)]
pub struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<Cell>>,
    total: usize,
}

impl Page {
    /// Creates the page of a process that has this name among the processes of its program.
    #[must_use]
    pub fn named(name: impl Display) -> Self {
        Self {
            name: visible(name, MOST_CHARACTERS),
            sections: Vec::new(),
        }
    }

    /// Adds a section with named values.
    pub fn facts(
        &mut self,
        title: &'static str,
        facts: impl IntoIterator<Item = (&'static str, Cell)>,
    ) {
        let content = Content::Facts(facts.into_iter().collect());
        self.sections.push(Section { title, content });
    }

    /// Adds a section with a table.
    pub fn table(&mut self, title: &'static str, table: Table) {
        let content = Content::Table(table);
        self.sections.push(Section { title, content });
    }
}

impl Cell {
    /// Creates a cell with any text, which may originate from a peer.
    #[must_use]
    pub fn text(text: impl Display) -> Self {
        Self {
            text: visible(text, MOST_CHARACTERS),
            tone: Tone::Plain,
        }
    }

    /// Creates a cell for a good value.
    #[must_use]
    pub fn good(text: impl Display) -> Self {
        Self {
            tone: Tone::Good,
            ..Self::text(text)
        }
    }

    /// Creates a cell for a value that requires attention.
    #[must_use]
    pub fn bad(text: impl Display) -> Self {
        Self {
            tone: Tone::Bad,
            ..Self::text(text)
        }
    }

    /// Creates a cell for a good or a bad value.
    #[must_use]
    pub fn judged(is_good: bool, text: impl Display) -> Self {
        if is_good {
            Self::good(text)
        } else {
            Self::bad(text)
        }
    }

    /// Creates a cell for a number.
    #[must_use]
    pub fn count(number: u64) -> Self {
        Self::text(quantity::count(number))
    }

    /// Creates a cell for a count.
    #[must_use]
    pub fn size(number: usize) -> Self {
        Self::count(u64::try_from(number).unwrap_or(u64::MAX))
    }

    /// Creates a cell for a number of bytes.
    #[must_use]
    pub fn bytes(number: u64) -> Self {
        Self::text(quantity::bytes(number))
    }
}

impl Column {
    /// Creates a column of text.
    #[must_use]
    pub const fn words(name: &'static str) -> Self {
        Self {
            name,
            is_number: false,
        }
    }

    /// Creates a column of numbers.
    #[must_use]
    pub const fn numbers(name: &'static str) -> Self {
        Self {
            name,
            is_number: true,
        }
    }

    const fn class(self) -> Option<&'static str> {
        if self.is_number { Some("number") } else { None }
    }
}

impl Table {
    /// Creates a table with a row for each of the first [`MOST_ROWS`] items. The first cell of a row is its header.
    #[must_use]
    pub fn of<T>(
        columns: &'static [Column],
        items: impl IntoIterator<Item = T>,
        row: impl FnMut(T) -> Vec<Cell>,
    ) -> Self {
        let mut items = items.into_iter();
        let rows: Vec<_> = items.by_ref().take(MOST_ROWS).map(row).collect();
        let total = rows.len() + items.count();
        Self {
            columns,
            rows,
            total,
        }
    }
}

/// Moves the first [`MOST_ROWS`] items by `order` to the front, sorted. Only these are sorted, even if there are many
/// more.
pub fn smallest<T>(items: &mut [T], mut order: impl FnMut(&T, &T) -> Ordering) {
    let shown = items.len().min(MOST_ROWS);
    if items.len() > MOST_ROWS {
        items.select_nth_unstable_by(MOST_ROWS, &mut order);
    }
    items[..shown].sort_by(order);
}

/// The data that the pages of all programs have in common.
pub(super) struct Head {
    pub program: &'static str,
    pub version: &'static str,
    /// The uptime.
    pub up: String,
    /// The time at which the page was created.
    pub now: String,
    pub paths: Vec<&'static str>,
}

/// Creates the whole document.
pub(super) fn document(head: &Head, page: &Page) -> String {
    let Head {
        program,
        version,
        up,
        now,
        paths,
    } = head;
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                // Without this, browsers would request an icon, which does not exist.
                link rel="icon" href="data:,";
                title { (program) @if !page.name.is_empty() { " " (page.name) } }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (program) @if !page.name.is_empty() { " " small { (page.name) } } }
                    p { "Version " (version) ", up " (up) ". As of " (now) "." }
                    nav aria-label="Other paths" {
                        ul {
                            @for path in paths.iter().filter(|path| **path != "/") {
                                // The links are relative, because the page may be served through a proxy.
                                li { a href=(path.trim_start_matches('/')) { (path) } }
                            }
                        }
                    }
                }
                main {
                    @for section in &page.sections {
                        section { (rendered(section)) }
                    }
                }
            }
        }
    };
    markup.into_string()
}

fn rendered(section: &Section) -> Markup {
    let title = section.title;
    match &section.content {
        Content::Facts(facts) => html! {
            h2 { (title) }
            dl {
                @for (name, cell) in facts {
                    div { dt { (name) } dd { (text(cell)) } }
                }
            }
        },
        Content::Table(table) if table.rows.is_empty() => html! {
            h2 { (title) }
            p { "None." }
        },
        Content::Table(table) => html! {
            h2 { (title) }
            @if table.total > table.rows.len() {
                p { (table.rows.len()) " of " (table.total) " are shown." }
            }
            // A wide table can be scrolled, also with the keyboard.
            div class="wide" role="region" aria-label=(title) tabindex="0" {
                table {
                    thead {
                        tr {
                            @for column in table.columns {
                                th scope="col" class=[column.class()] { (column.name) }
                            }
                        }
                    }
                    tbody {
                        @for row in &table.rows {
                            tr { (cells(table.columns, row)) }
                        }
                    }
                }
            }
        },
    }
}

fn cells(columns: &[Column], row: &[Cell]) -> Markup {
    html! {
        @for (index, (column, cell)) in columns.iter().zip(row).enumerate() {
            @if index == 0 {
                th scope="row" class=[column.class()] { (text(cell)) }
            } @else {
                td class=[column.class()] { (text(cell)) }
            }
        }
    }
}

fn text(cell: &Cell) -> Markup {
    let class = match cell.tone {
        Tone::Plain => return html! { (cell.text) },
        Tone::Good => "good",
        Tone::Bad => "bad",
    };
    html! { span class=(class) { (cell.text) } }
}
