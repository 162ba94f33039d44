// SPDX-License-Identifier: Apache-2.0

//! The properties of a table in the kernel that are compared with the intended table.
//!
//! Rules are distinguished by their comments, which contain their purpose.

use netlink_packet_core::{DecodeError, NlasIterator};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, NfTablesMessage, RuleAttribute,
    RuleMessage, TableAttribute, TableFlags, TableMessage,
};

use super::{ACCEPT, CHAIN_TYPE, COMMENT, Chain, Table};
use crate::netfilter::set::SetOutline;
use crate::netfilter::{Error, Socket};

/// `NFTA_RULE_USERDATA` of `linux/netfilter/nf_tables.h`.
const NFTA_RULE_USERDATA: u16 = 7;

/// The properties of a table that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    pub(super) dormant: bool,
    pub(super) sets: Vec<SetOutline>,
    pub(super) chains: Vec<ChainOutline>,
    /// The number of chains, sets and other objects in the table.
    pub(super) objects: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChainOutline {
    name: String,
    hook: Option<(u32, i32)>,
    policy: Option<u32>,
    kind: Option<String>,
    comments: Vec<String>,
}

impl Outline {
    /// Returns true if both outlines have the same chains and their rules differ. Sets are not compared.
    #[must_use]
    pub fn differs_in_rules(&self, other: &Self) -> bool {
        let frame = |outline: &Self| {
            let mut chains = outline.chains.clone();
            for chain in &mut chains {
                chain.comments.clear();
            }
            chains
        };
        self.chains != other.chains && frame(self) == frame(other)
    }

    /// Returns the part of the outline that is in the table's own message. Sets and chains have separate messages.
    pub(super) fn of(table: &TableMessage) -> Self {
        let mut outline = Self {
            dormant: false,
            sets: Vec::new(),
            chains: Vec::new(),
            objects: 0,
        };
        for attribute in &table.attributes {
            match attribute {
                TableAttribute::Flags(flags) => {
                    outline.dormant = flags.contains(TableFlags::Dormant);
                }
                TableAttribute::Use(objects) => outline.objects = *objects,
                _ => {}
            }
        }
        outline
    }
}

impl ChainOutline {
    /// Returns the outline of a chain whose rules have these comments.
    pub(super) fn of(name: &str, chain: ChainMessage, comments: Vec<String>) -> Self {
        let mut outline = Self {
            name: name.to_owned(),
            hook: None,
            policy: None,
            kind: None,
            comments,
        };
        for attribute in chain.attributes {
            match attribute {
                ChainAttribute::Hook(hook) => outline.hook = hook_and_priority(&hook),
                ChainAttribute::Policy(policy) => outline.policy = Some(policy),
                ChainAttribute::Type(kind) => outline.kind = Some(kind),
                _ => {}
            }
        }
        outline
    }
}

impl Table {
    /// Returns the outline that [`Table::observe`] returns if the table is in place.
    #[must_use]
    pub fn outline(&self) -> Outline {
        let chains: Vec<_> = self
            .chains
            .iter()
            .map(|chain| ChainOutline {
                name: chain.name.to_owned(),
                hook: chain
                    .base
                    .map(|base| (base.hook.number().into(), base.priority)),
                policy: chain.base.map(|_| ACCEPT),
                kind: chain.base.map(|_| CHAIN_TYPE.to_owned()),
                comments: chain
                    .rules
                    .iter()
                    .filter(|_| !chain.is_filled_later)
                    .map(|rule| rule.purpose.clone())
                    .collect(),
            })
            .collect();
        Outline {
            dormant: false,
            objects: u32::try_from(self.sets.len() + chains.len()).unwrap_or(u32::MAX),
            sets: self
                .sets
                .iter()
                .map(|set| set.outline(self.family))
                .collect(),
            chains,
        }
    }

    /// Reads the outline of the table with this name from the kernel.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel's response is incomplete.
    pub fn observe(&self, socket: &mut Socket) -> Result<Option<Outline>, Error> {
        let name = &self.name;
        let request = NfTablesMessage::GetTable(TableMessage {
            attributes: vec![TableAttribute::Name(name.clone())],
        });
        let what = format!("read table {}", self.title());
        let Some(NfTablesMessage::NewTable(table)) = socket.get(&what, self.family, request)?
        else {
            return Ok(None);
        };
        let mut outline = Outline::of(&table);
        for set in &self.sets {
            outline
                .sets
                .extend(set.observe((self.family, &self.name), socket)?);
        }
        for chain in &self.chains {
            outline.chains.extend(self.observe_chain(socket, chain)?);
        }
        Ok(Some(outline))
    }

    fn observe_chain(
        &self,
        socket: &mut Socket,
        chain: &Chain,
    ) -> Result<Option<ChainOutline>, Error> {
        let name = chain.name;
        let request = NfTablesMessage::GetChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(self.name.clone()),
                ChainAttribute::Name(name.to_owned()),
            ],
        });
        let what = format!("read chain {name} of table {}", self.title());
        let Some(NfTablesMessage::NewChain(there)) = socket.get(&what, self.family, request)?
        else {
            return Ok(None);
        };
        let comments = if chain.is_filled_later {
            Vec::new()
        } else {
            self.comments(socket, name)?
        };
        Ok(Some(ChainOutline::of(name, there, comments)))
    }

    /// Reads the comments of the rules in one of the table's chains.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel's response is incomplete.
    pub fn comments(&self, socket: &mut Socket, chain: &str) -> Result<Vec<String>, Error> {
        let request = NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(self.name.clone()),
                RuleAttribute::Chain(chain.to_owned()),
            ],
        });
        let what = format!("read the rules of chain {chain} of table {}", self.title());
        // The rules are not decoded: decoding all expressions took three quarters of the time of a pass without
        // changes.
        let comments = socket.fold_raw(
            &what,
            self.family,
            &request,
            |comments: &mut Vec<_>, attributes| comments.push(comment_among(attributes)),
        )?;
        comments
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(Error::Decode)
    }
}

/// Returns the comment of a rule from its undecoded attributes.
fn comment_among(attributes: &[u8]) -> Result<String, DecodeError> {
    let mut comment = String::new();
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        if attribute.kind() == NFTA_RULE_USERDATA {
            comment = comment_in(attribute.value());
        }
    }
    Ok(comment)
}

fn hook_and_priority(attributes: &[HookAttribute]) -> Option<(u32, i32)> {
    let mut number = None;
    let mut priority = None;
    for attribute in attributes {
        match attribute {
            HookAttribute::Number(hook) => number = Some(u32::from(*hook)),
            HookAttribute::Priority(value) => priority = Some(value.cast_signed()),
            _ => {}
        }
    }
    number.zip(priority)
}

/// Returns the comment of a rule, or an empty text if it has none. A rule without a comment does not belong to this
/// project.
pub(super) fn comment_of(rule: &RuleMessage) -> String {
    let data = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::UserData(data) => Some(data.as_slice()),
            _ => None,
        });
    comment_in(data.unwrap_or_default())
}

/// Returns the comment in a rule's user data.
fn comment_in(data: &[u8]) -> String {
    let mut rest = data;
    while let [kind, length, tail @ ..] = rest {
        let Some((value, next)) = tail.split_at_checked(usize::from(*length)) else {
            break;
        };
        if *kind == COMMENT {
            return String::from_utf8_lossy(value)
                .trim_end_matches('\0')
                .to_owned();
        }
        rest = next;
    }
    String::new()
}
