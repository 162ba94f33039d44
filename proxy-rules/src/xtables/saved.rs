// SPDX-License-Identifier: Apache-2.0

//! The content of the tables, parsed from the output of `iptables-save`. `command.rs` runs the programs.
//!
//! The parser understands the parts that this project needs and skips the rest. A dump that ends early is an error: a
//! rule that was not printed must not be mistaken for a rule that does not exist.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::Marks;

/// The existing tables of one family in one flavour, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    tables: BTreeMap<String, SavedTable>,
    incompatible: Vec<String>,
}

/// One printed table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedTable {
    /// The chains in printed order.
    pub chains: Vec<SavedChain>,
    /// The rules of all chains in printed order.
    pub rules: Vec<SavedRule>,
}

/// The declaration of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedChain {
    /// The name of the chain.
    pub name: String,
    /// The policy for packets that no rule decides about; `-` for user-defined chains.
    pub policy: String,
}

/// One printed rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedRule {
    /// The chain of the rule.
    pub chain: String,
    /// The text after the chain, verbatim: with it, exactly this rule can be deleted.
    pub spec: String,
}

/// The reason why the output of `iptables-save` or `ipset list` is not reliable. Lines are counted from 1.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Another table begins, or the output ends, within a table.
    #[error("table {table:?} is cut off: no COMMIT before line {line}")]
    Truncated {
        /// The table.
        table: String,
        /// The line at which COMMIT was missing.
        line: usize,
    },
    /// An existing table was not printed.
    #[error("table {table:?} is not in it")]
    Absent {
        /// The table.
        table: String,
    },
    /// The list of sets ends, or the next set begins, within a set.
    #[error("set {name:?} is cut off")]
    Set {
        /// The set.
        name: String,
    },
    /// A rule, a chain or COMMIT is outside of any table.
    #[error("line {line} stands in no table")]
    NoTable {
        /// The number of the line.
        line: usize,
    },
}

impl Saved {
    /// Parses the output of `iptables-save`.
    ///
    /// # Errors
    /// Returns an error if the output is truncated.
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

    /// Returns the table with this name, if it exists.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&SavedTable> {
        self.tables.get(name)
    }

    /// Returns true if the table exists but contains rules that iptables cannot print.
    #[must_use]
    pub fn is_incompatible(&self, name: &str) -> bool {
        self.incompatible.iter().any(|table| table == name)
    }
}

impl SavedTable {
    /// Returns true if other programs have added a rule, a chain or a policy to the table.
    #[must_use]
    pub fn has_foreign_content(&self, marks: Marks) -> bool {
        let foreign = |chain: &SavedChain| chain.policy == "-" && !(marks.is_own_name)(&chain.name);
        self.filters(marks) || self.chains.iter().any(foreign)
    }

    /// Returns true if the table affects packets by anything other than rules of the caller: a foreign rule, or a
    /// policy that is not ACCEPT.
    #[must_use]
    pub fn filters(&self, marks: Marks) -> bool {
        let is_own = |rule: &SavedRule| {
            let comments = rule.comments_with(marks.word);
            comments
                .iter()
                .any(|comment| (marks.is_own_comment)(comment))
        };
        let by_policy = |chain: &SavedChain| chain.policy != "ACCEPT" && chain.policy != "-";
        self.rules.iter().any(|rule| !is_own(rule)) || self.chains.iter().any(by_policy)
    }

    /// Returns true if the table has a chain with this name.
    #[must_use]
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
    /// Returns the address, among these, whose packets the rule untracks, in either of the two spellings.
    #[must_use]
    pub fn untracks(&self, addresses: &[IpAddr]) -> Option<IpAddr> {
        let words = words(&self.spec)?;
        let pair = |option: &str, value: &str| {
            let mut pairs = words.windows(2);
            pairs.any(|pair| pair[0] == option && pair[1] == value)
        };
        if !pair("-j", "NOTRACK") && !words.iter().any(|word| word == "--notrack") {
            return None;
        }
        addresses.iter().copied().find(|ip| {
            let prefix = format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
            pair("-d", &prefix) || pair("-s", &prefix)
        })
    }

    /// Returns the comments of the rule that contain `word`. For efficiency, rules without the word are not split into
    /// words, because every pass examines thousands of foreign rules.
    #[must_use]
    pub fn comments_with(&self, word: &str) -> Vec<String> {
        if !self.spec.contains(word) {
            return Vec::new();
        }
        let words = words(&self.spec).unwrap_or_default();
        let pairs = words.windows(2).filter(|pair| pair[0] == "--comment");
        pairs.map(|pair| pair[1].clone()).collect()
    }

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
        })
    }
}

/// Returns true if a printed network (`10.96.0.0/16`, `fd00::2`) contains an address, or `None` if the network cannot
/// be parsed. An address is never in a network of the other family.
#[must_use]
pub fn contains(network: &str, ip: IpAddr) -> Option<bool> {
    let (first, length) = network.split_once('/').unwrap_or((network, ""));
    let first: IpAddr = first.parse().ok()?;
    let (bits, of_first) = (bits(ip), bits(first));
    let length = match length {
        "" => of_first.1,
        length => length.parse().ok()?,
    };
    let differ = bits.0 ^ of_first.0;
    Some(ip.is_ipv4() == first.is_ipv4() && (length == 0 || differ.leading_zeros() >= length))
}

/// Returns an address as a number, left-aligned, and its number of bits.
fn bits(ip: IpAddr) -> (u128, u32) {
    match ip {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

/// Splits a rule into words like `iptables-restore`: double quotes hold words together, and a backslash within quotes
/// escapes the next character. Returns `None` if a quote is not closed.
#[must_use]
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

/// Returns the table in the remark that iptables-nft-save prints instead of a table.
fn incompatible_table(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("# Table `")?.split_once('\'')?;
    rest.starts_with(" is incompatible")
        .then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_notrack_are_known() {
        let vips = [IpAddr::from([10, 96, 0, 2])];
        let found = |spec: &str| {
            let rule = SavedRule {
                chain: "OUTPUT".to_owned(),
                spec: spec.to_owned(),
            };
            rule.untracks(&vips).is_some()
        };
        assert!(found(
            "-d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK"
        ));
        assert!(found(
            "-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j CT --notrack"
        ));
        assert!(!found("-d 10.96.0.3/32 -j NOTRACK"));
        assert!(!found("-d 10.96.0.2/32 -j DROP"));
    }

    #[test]
    fn networks_are_read_as_printed() {
        let holds = |network: &str, ip: &str| contains(network, ip.parse().unwrap());
        assert_eq!(holds("10.96.0.0/16", "10.96.0.2"), Some(true));
        assert_eq!(holds("10.96.0.0/16", "10.97.0.2"), Some(false));
        assert_eq!(holds("10.96.0.2", "10.96.0.2"), Some(true));
        assert_eq!(holds("10.96.0.2", "10.96.0.3"), Some(false));
        assert_eq!(holds("fd00::/8", "fd00:96::2"), Some(true));
        assert_eq!(holds("fd00::2", "fd00::3"), Some(false));
        assert_eq!(holds("0.0.0.0/0", "fd00::2"), Some(false));
        assert_eq!(holds("10.0.0.0/255.0.0.0", "10.0.0.1"), None);
        assert_eq!(holds("", "10.0.0.1"), None);
    }
}
