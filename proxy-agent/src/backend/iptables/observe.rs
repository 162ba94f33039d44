// SPDX-License-Identifier: Apache-2.0

//! What the tables hold, read from the output of `iptables-save`. Runs no program: `command.rs`
//! does.
//!
//! The parser understands what we need and passes over the rest, but a dump that ends too early is
//! an error: a rule that was not printed must not look like a rule that is not there.

use std::collections::BTreeMap;

use super::rules;
use crate::backend::tables;
use crate::instance::Instance;

/// The tables of one family in one flavour, by name. A table that is not there is not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    tables: BTreeMap<String, SavedTable>,
    incompatible: Vec<String>,
}

/// One table as it was printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedTable {
    /// The chains in the order printed.
    pub chains: Vec<SavedChain>,
    /// The rules of all chains in the order printed.
    pub rules: Vec<SavedRule>,
}

/// The head of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedChain {
    /// Its name.
    pub name: String,
    /// What becomes of a packet no rule decides; `-` for chains made by users.
    pub policy: String,
}

/// One rule as it was printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedRule {
    /// The chain it stands in.
    pub chain: String,
    /// Everything behind the chain, verbatim: what deletes exactly this rule.
    pub spec: String,
    /// Whose its comment says it is: that of an agent, or nobody we know.
    pub owner: Option<Instance>,
}

/// Why the output of `iptables-save`, or of `ipset list`, cannot be relied on. Lines are counted from 1.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Another table begins, or the output ends, within a table.
    #[error("table {table:?} is cut off: no COMMIT before line {line}")]
    Truncated {
        /// The table.
        table: String,
        /// Where COMMIT was missed.
        line: usize,
    },
    /// A table that is there was not printed.
    #[error("table {table:?} is not in it")]
    Absent {
        /// The table.
        table: String,
    },
    /// The list of sets ends, or goes on with the next one, within a set.
    #[error("set {name:?} is cut off")]
    Set {
        /// The set.
        name: String,
    },
    /// A rule, a chain or COMMIT stands in no table.
    #[error("line {line} stands in no table")]
    NoTable {
        /// The line.
        line: usize,
    },
}

impl Saved {
    /// Parses what `iptables-save` printed.
    ///
    /// # Errors
    /// The output is cut off.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut saved = Self::default();
        let mut open: Option<(String, SavedTable)> = None;
        let mut last = 0;
        for (line, text) in (1..).zip(text.lines()) {
            last = line;
            let text = text.trim();
            let kind = text.chars().next();
            if kind == Some('*') {
                if let Some((table, _)) = open {
                    return Err(ParseError::Truncated { table, line });
                }
                open = Some((text[1..].trim().to_owned(), SavedTable::default()));
            } else if text == "COMMIT" {
                let (name, table) = open.take().ok_or(ParseError::NoTable { line })?;
                saved.tables.insert(name, table);
            } else if kind == Some(':') {
                let (_, table) = open.as_mut().ok_or(ParseError::NoTable { line })?;
                table.chains.extend(SavedChain::parse(&text[1..]));
            } else if let Some(rule) = SavedRule::parse(text) {
                let (_, table) = open.as_mut().ok_or(ParseError::NoTable { line })?;
                table.rules.push(rule);
            } else {
                saved.incompatible.extend(incompatible_table(text));
            }
        }
        if let Some((table, _)) = open {
            let line = last + 1;
            return Err(ParseError::Truncated { table, line });
        }
        Ok(saved)
    }

    /// The table of that name, if it is there.
    pub fn table(&self, name: &str) -> Option<&SavedTable> {
        self.tables.get(name)
    }

    /// True if the table is there but holds what iptables cannot print.
    pub fn is_incompatible(&self, name: &str) -> bool {
        self.incompatible.iter().any(|table| table == name)
    }
}

impl SavedTable {
    /// True if somebody else has put anything into it: a rule, a chain or a policy.
    pub fn has_foreign_content(&self) -> bool {
        let foreign = |chain: &SavedChain| chain.policy == "-" && !tables::is_owned(&chain.name);
        self.filters() || self.chains.iter().any(foreign)
    }

    /// True if packets can meet anything but rules of agents in it: a foreign rule or a policy that is
    /// not ACCEPT.
    pub fn filters(&self) -> bool {
        let by_policy = |chain: &SavedChain| chain.policy != "ACCEPT" && chain.policy != "-";
        self.rules.iter().any(|rule| rule.owner.is_none()) || self.chains.iter().any(by_policy)
    }

    /// True if it has a chain of that name.
    pub fn has_chain(&self, name: &str) -> bool {
        self.chains.iter().any(|chain| chain.name == name)
    }
}

impl SavedChain {
    /// Parses `NAME POLICY [packets:bytes]`.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        Some(Self {
            name: words.next()?.to_owned(),
            policy: words.next()?.to_owned(),
        })
    }
}

impl SavedRule {
    /// Parses `-A CHAIN SPEC`, with or without counters in front.
    fn parse(line: &str) -> Option<Self> {
        let line = match line.strip_prefix('[') {
            Some(counted) => counted.split_once("] ")?.1,
            None => line,
        };
        let (chain, spec) = line.strip_prefix("-A ")?.split_once(' ')?;
        Some(Self {
            chain: chain.to_owned(),
            spec: spec.to_owned(),
            owner: owner(spec),
        })
    }
}

fn owner(spec: &str) -> Option<Instance> {
    // Taking thousands of foreign rules apart in every pass would be a waste.
    if !rules::may_be_owned(spec) {
        return None;
    }
    let words = words(spec).unwrap_or_default();
    let mut comments = words.windows(2).filter(|pair| pair[0] == "--comment");
    comments.find_map(|pair| rules::owner(&pair[1]))
}

/// Splits a rule into words as `iptables-restore` does: double quotes hold words together, a
/// backslash within them takes the next character as it is. None if a quote stays open.
pub fn words(spec: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = spec.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().push(chars.next()?),
            ' ' | '\t' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

/// The table in the remark with which iptables-nft-save leaves a table out.
fn incompatible_table(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("# Table `")?.split_once('\'')?;
    rest.starts_with(" is incompatible")
        .then(|| name.to_owned())
}
