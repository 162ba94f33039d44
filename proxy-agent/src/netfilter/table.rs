// SPDX-License-Identifier: Apache-2.0

//! A table of ours as a value: written whole in one transaction, read back as an outline.
//!
//! Rules are told apart by their comments, which name purpose and program: a dump of a rule shows
//! neither its program nor anything else to recognise it by.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Expressions, Hook as HookAttribute, HookNumber, InetHookNumber,
    NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage,
};

use super::{Error, Family, Socket};

/// `NF_ACCEPT`, the policy of our chains.
const ACCEPT: u32 = 1;
/// The type of our chains.
const CHAIN_TYPE: &str = "filter";
/// Type of the user data that nft shows as a rule's comment (`NFTNL_UDATA_RULE_COMMENT`).
const COMMENT: u8 = 0;
/// What stands between a rule's purpose and its program in its comment.
const PROGRAM: &str = " (program ";
/// Longest comment nft accepts (`NFTNL_UDATA_COMMENT_MAXLEN`), with its terminating zero.
const COMMENT_LENGTH: usize = 128;

/// A table with everything in it.
#[derive(Debug, Clone)]
pub struct Table {
    /// `ip` or `ip6`.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// A base chain with policy accept.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where it is called.
    pub hook: Hook,
    /// In which order among the chains of the hook; below zero comes before.
    pub priority: i32,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// What it is for, unique in its chain.
    pub purpose: String,
    /// Id of the BPF program it runs, so that a rule with an older one is seen as the drift it is.
    pub program: u32,
    /// What it does.
    pub expressions: Vec<Expressions>,
}

/// A netfilter hook of the IP families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that came in, before routing.
    Prerouting,
    /// Packets that processes of this host send.
    Output,
}

/// A table as far as two of them are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    dormant: bool,
    chains: Vec<ChainOutline>,
    /// Chains, sets and other objects in the table.
    objects: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ChainOutline {
    name: String,
    hook: Option<(u32, i32)>,
    policy: Option<u32>,
    kind: Option<String>,
    comments: Vec<String>,
}

impl Rule {
    /// What nft shows behind the rule.
    fn comment(&self) -> String {
        format!("{}{PROGRAM}{})", self.purpose, self.program)
    }
}

impl Outline {
    /// Whether the rules of two tables differ at most in the programs they run.
    pub fn has_rules_of(&self, other: &Self) -> bool {
        let purposes = |outline: &Self| {
            let mut outline = outline.clone();
            for comment in outline
                .chains
                .iter_mut()
                .flat_map(|chain| &mut chain.comments)
            {
                if let Some((purpose, _)) = comment.rsplit_once(PROGRAM) {
                    *comment = purpose.to_owned();
                }
            }
            outline
        };
        purposes(self) == purposes(other)
    }
}

impl Hook {
    fn number(self) -> InetHookNumber {
        match self {
            Self::Prerouting => InetHookNumber::PreRouting,
            Self::Output => InetHookNumber::LocalOut,
        }
    }
}

impl Table {
    /// What [`Table::observe`] returns when the table is in place.
    pub fn outline(&self) -> Outline {
        let chains: Vec<_> = self
            .chains
            .iter()
            .map(|chain| ChainOutline {
                name: chain.name.to_owned(),
                hook: Some((chain.hook.number().into(), chain.priority)),
                policy: Some(ACCEPT),
                kind: Some(CHAIN_TYPE.to_owned()),
                comments: chain.rules.iter().map(Rule::comment).collect(),
            })
            .collect();
        Outline {
            dormant: false,
            objects: u32::try_from(chains.len()).unwrap_or(u32::MAX),
            chains,
        }
    }

    /// Reads what is in the kernel under the name of this table, as far as it is compared.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer completely.
    pub fn observe(&self, socket: &mut Socket) -> Result<Option<Outline>, Error> {
        let name = self.name;
        let request = NfTablesMessage::GetTable(TableMessage {
            attributes: vec![TableAttribute::Name(name.to_owned())],
        });
        let what = format!("read table {}", self.title());
        let Some(NfTablesMessage::NewTable(table)) = socket.get(&what, self.family, request)?
        else {
            return Ok(None);
        };
        let mut outline = Outline {
            dormant: false,
            chains: Vec::new(),
            objects: 0,
        };
        for attribute in table.attributes {
            match attribute {
                TableAttribute::Flags(flags) => {
                    outline.dormant = flags.contains(TableFlags::Dormant);
                }
                TableAttribute::Use(objects) => outline.objects = objects,
                _ => {}
            }
        }
        for chain in &self.chains {
            if let Some(chain) = self.observe_chain(socket, chain.name)? {
                outline.chains.push(chain);
            }
        }
        Ok(Some(outline))
    }

    /// Puts tables in the place of whatever has their names, in one transaction: packets meet
    /// either the old ones or the new ones, never a part of them.
    ///
    /// # Errors
    ///
    /// The kernel's answer; the old tables are then still in place.
    pub fn replace(tables: &[Self], socket: &mut Socket) -> Result<(), Error> {
        let titles: Vec<_> = tables.iter().map(Self::title).collect();
        let messages = tables.iter().flat_map(Self::replacement).collect();
        socket.transact(&format!("install table {}", titles.join(" and ")), messages)
    }

    fn replacement(&self) -> Vec<(u16, Family, NfTablesMessage)> {
        let create = NLM_F_CREATE;
        let mut messages = vec![
            // So that the deletion finds one in any case.
            (create, self.family, NfTablesMessage::NewTable(self.named())),
            (0, self.family, NfTablesMessage::DeleteTable(self.named())),
            (create, self.family, NfTablesMessage::NewTable(self.named())),
        ];
        for chain in &self.chains {
            messages.push((create, self.family, self.new_chain(chain)));
            for rule in &chain.rules {
                let flags = NLM_F_CREATE | NLM_F_APPEND;
                messages.push((flags, self.family, self.new_rule(chain, rule)));
            }
        }
        messages
    }

    /// Deletes the table, if it is there.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn delete(&self, socket: &mut Socket) -> Result<(), Error> {
        let what = format!("delete table {}", self.title());
        let message = NfTablesMessage::DeleteTable(self.named());
        match socket.transact(&what, vec![(0, self.family, message)]) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Family and name as nft writes them.
    pub fn title(&self) -> String {
        let family = match self.family {
            Family::IPv4 => "ip",
            Family::IPv6 => "ip6",
            _ => "inet",
        };
        format!("{family} {}", self.name)
    }

    fn named(&self) -> TableMessage {
        TableMessage {
            attributes: vec![TableAttribute::Name(self.name.to_owned())],
        }
    }

    fn new_chain(&self, chain: &Chain) -> NfTablesMessage {
        NfTablesMessage::NewChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(self.name.to_owned()),
                ChainAttribute::Name(chain.name.to_owned()),
                ChainAttribute::Hook(vec![
                    HookAttribute::Number(HookNumber::Inet(chain.hook.number())),
                    HookAttribute::Priority(chain.priority.cast_unsigned()),
                ]),
                ChainAttribute::Policy(ACCEPT),
                ChainAttribute::Type(CHAIN_TYPE.to_owned()),
            ],
        })
    }

    fn new_rule(&self, chain: &Chain, rule: &Rule) -> NfTablesMessage {
        NfTablesMessage::NewRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(self.name.to_owned()),
                RuleAttribute::Chain(chain.name.to_owned()),
                RuleAttribute::Expressions(
                    rule.expressions.iter().cloned().map(Into::into).collect(),
                ),
                RuleAttribute::UserData(encode_comment(&rule.comment())),
            ],
        })
    }

    fn observe_chain(
        &self,
        socket: &mut Socket,
        name: &str,
    ) -> Result<Option<ChainOutline>, Error> {
        let request = NfTablesMessage::GetChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(self.name.to_owned()),
                ChainAttribute::Name(name.to_owned()),
            ],
        });
        let what = format!("read chain {name} of table {}", self.title());
        let Some(NfTablesMessage::NewChain(chain)) = socket.get(&what, self.family, request)?
        else {
            return Ok(None);
        };
        let mut outline = ChainOutline {
            name: name.to_owned(),
            hook: None,
            policy: None,
            kind: None,
            comments: self.observe_rules(socket, name)?,
        };
        for attribute in chain.attributes {
            match attribute {
                ChainAttribute::Hook(hook) => outline.hook = hook_and_priority(&hook),
                ChainAttribute::Policy(policy) => outline.policy = Some(policy),
                ChainAttribute::Type(kind) => outline.kind = Some(kind),
                _ => {}
            }
        }
        Ok(Some(outline))
    }

    fn observe_rules(&self, socket: &mut Socket, chain: &str) -> Result<Vec<String>, Error> {
        let request = NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(self.name.to_owned()),
                RuleAttribute::Chain(chain.to_owned()),
            ],
        });
        let what = format!("read the rules of chain {chain} of table {}", self.title());
        let rules = socket.dump(&what, self.family, &request)?;
        Ok(rules
            .into_iter()
            .filter_map(|message| match message {
                NfTablesMessage::NewRule(rule) => Some(comment_of(&rule)),
                _ => None,
            })
            .collect())
    }
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

fn encode_comment(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    assert!(
        usize::from(length) <= COMMENT_LENGTH,
        "comments are written by backends and are short: {comment}"
    );
    let mut data = vec![COMMENT, length];
    data.extend_from_slice(comment.as_bytes());
    data.push(0);
    data
}

/// The comment of a rule; empty for a rule without one, which is therefore not ours.
fn comment_of(rule: &RuleMessage) -> String {
    let data = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::UserData(data) => Some(data.as_slice()),
            _ => None,
        });
    let mut rest = data.unwrap_or_default();
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

#[cfg(test)]
mod tests;
