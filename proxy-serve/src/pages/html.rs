// SPDX-License-Identifier: Apache-2.0

//! The page for browsers: what programs put into it, and the only place where HTML is written. Programs hand over texts,
//! never markup, and the template escapes every text that it is not told to take as markup: it takes only [`STYLE`] so.
//!
//! The page has no script and does not load itself again: that takes the place of who reads it, or hears it read (WCAG 2.2,
//! F41).

use std::cmp::Ordering;
use std::fmt::Display;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::visible::visible;
use crate::quantity;

/// Rows of a table at most. Further ones are counted.
pub const MOST_ROWS: usize = 100;

/// Characters of a text at most.
const MOST_CHARACTERS: usize = 400;

/// Stands in the page itself: a page of one answer is whole, also behind a proxy that knows one path only.
pub(super) const STYLE: &str = include_str!("style.css");

/// What a program shows.
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

/// A text, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

/// Whether a text says something good. Colour alone says nothing: the text must say it too.
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

/// Rows of texts.
#[derive(Debug)]
pub struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<Cell>>,
    total: usize,
}

impl Page {
    /// The page of a process with this name among those of its program.
    #[must_use]
    pub fn named(name: impl Display) -> Self {
        Self {
            name: visible(name, MOST_CHARACTERS),
            sections: Vec::new(),
        }
    }

    /// Adds what is known once.
    pub fn facts(
        &mut self,
        title: &'static str,
        facts: impl IntoIterator<Item = (&'static str, Cell)>,
    ) {
        let content = Content::Facts(facts.into_iter().collect());
        self.sections.push(Section { title, content });
    }

    /// Adds what is known of several things.
    pub fn table(&mut self, title: &'static str, table: Table) {
        let content = Content::Table(table);
        self.sections.push(Section { title, content });
    }
}

impl Cell {
    /// Any text. It may be a peer's.
    #[must_use]
    pub fn text(text: impl Display) -> Self {
        Self {
            text: visible(text, MOST_CHARACTERS),
            tone: Tone::Plain,
        }
    }

    /// Something that is as it should be.
    #[must_use]
    pub fn good(text: impl Display) -> Self {
        Self {
            tone: Tone::Good,
            ..Self::text(text)
        }
    }

    /// Something that somebody should look at.
    #[must_use]
    pub fn bad(text: impl Display) -> Self {
        Self {
            tone: Tone::Bad,
            ..Self::text(text)
        }
    }

    /// Good or bad.
    #[must_use]
    pub fn judged(is_good: bool, text: impl Display) -> Self {
        if is_good {
            Self::good(text)
        } else {
            Self::bad(text)
        }
    }

    /// A number.
    #[must_use]
    pub fn count(number: u64) -> Self {
        Self::text(quantity::count(number))
    }

    /// How many of something there are.
    #[must_use]
    pub fn size(number: usize) -> Self {
        Self::count(u64::try_from(number).unwrap_or(u64::MAX))
    }

    /// A number of bytes.
    #[must_use]
    pub fn bytes(number: u64) -> Self {
        Self::text(quantity::bytes(number))
    }
}

impl Column {
    /// Of words.
    #[must_use]
    pub const fn words(name: &'static str) -> Self {
        Self {
            name,
            is_number: false,
        }
    }

    /// Of numbers.
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
    /// A row for each of the first [`MOST_ROWS`] items: its first cell is its name.
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

/// Puts the first [`MOST_ROWS`] items by `order` to the front, in order. Of many items only these are sorted.
pub fn smallest<T>(items: &mut [T], mut order: impl FnMut(&T, &T) -> Ordering) {
    let shown = items.len().min(MOST_ROWS);
    if items.len() > MOST_ROWS {
        items.select_nth_unstable_by(MOST_ROWS, &mut order);
    }
    items[..shown].sort_by(order);
}

/// What all programs show.
pub(super) struct Head {
    pub program: &'static str,
    pub version: &'static str,
    /// How long it runs.
    pub up: String,
    /// When the page was made.
    pub now: String,
    pub paths: Vec<&'static str>,
}

/// A whole document.
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
                // Browsers ask for an icon otherwise, and there is none.
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
                                // Relative: the page may be seen through a proxy.
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
            // A wide table is scrolled, by keyboard too.
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
