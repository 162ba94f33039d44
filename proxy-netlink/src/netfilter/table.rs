// SPDX-License-Identifier: Apache-2.0

//! One of this project's tables as a value, which is written as a whole in one transaction. `outline.rs` reads it back
//! and compares it.

mod counters;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod outline;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Expressions, Hook as HookAttribute, HookNumber, InetHookNumber,
    NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableMessage,
};

pub use self::outline::Outline;
use super::set::Set;
use super::{Error, Family, Socket, title};

/// `NF_ACCEPT`, the policy of this project's chains.
const ACCEPT: u32 = 1;
/// The type of this project's chains.
const CHAIN_TYPE: &str = "filter";
/// The type of the user data that nft displays as a rule's comment (`NFTNL_UDATA_RULE_COMMENT`).
const COMMENT: u8 = 0;
/// The length of the longest comment that nft accepts (`NFTNL_UDATA_COMMENT_MAXLEN`), including the terminating zero.
const COMMENT_LENGTH: usize = 128;

/// A table with all its sets, chains and rules.
#[derive(Debug, Clone)]
pub struct Table {
    /// The family, `ip` or `ip6`.
    pub family: Family,
    /// The name.
    pub name: String,
    /// The sets.
    pub sets: Vec<Set>,
    /// The chains, in any order.
    pub chains: Vec<Chain>,
}

/// A chain. A base chain has the policy accept.
#[derive(Debug, Clone)]
pub struct Chain {
    /// The name.
    pub name: &'static str,
    /// The hook that calls the chain, or `None` if only rules call it.
    pub base: Option<Base>,
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// True if the rules are written separately ([`Table::rewrite`]). They are then not compared with those in the
    /// kernel.
    pub is_filled_later: bool,
}

/// The place where a base chain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// The hook.
    pub hook: Hook,
    /// The position among the chains of the hook: chains with a lower priority are called first.
    pub priority: i32,
}

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The purpose of the rule, which is unique in its chain. nft displays it after the rule.
    pub purpose: String,
    /// The expressions of the rule.
    pub expressions: Vec<Expressions>,
}

/// A netfilter hook of the IP families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Received packets, before routing.
    Prerouting,
    /// Packets for processes of this host.
    Input,
    /// Packets that processes of this host send.
    Output,
}

impl Hook {
    fn number(self) -> InetHookNumber {
        match self {
            Self::Prerouting => InetHookNumber::PreRouting,
            Self::Input => InetHookNumber::LocalIn,
            Self::Output => InetHookNumber::LocalOut,
        }
    }
}

impl Table {
    /// Replaces the tables with these names in one transaction: each packet meets either the old tables or the new
    /// ones, never a part of them.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error; the old tables are then still in place.
    pub fn replace(tables: &[Self], socket: &mut Socket) -> Result<(), Error> {
        let titles: Vec<_> = tables.iter().map(Self::title).collect();
        let what = format!("install table {}", titles.join(" and "));
        let mut messages = Vec::new();
        for table in tables {
            let exists = has_table(table.family, &table.name, socket)?;
            messages.extend(table.replacement(exists));
        }
        match socket.transact(&what, messages) {
            // Another program has created one of the tables in the meantime.
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                let messages = tables.iter().flat_map(|table| table.replacement(true));
                socket.transact(&what, messages.collect())
            }
            result => result,
        }
    }

    /// Returns the messages that replace the table. No deletion is requested if the table does not exist: the kernel
    /// waits for an RCU grace period after each deletion, and makes the next nfnetlink socket that is closed wait for
    /// it (`nft_rcv_nl_event` of <https://github.com/torvalds/linux/blob/v6.12/net/netfilter/nf_tables_api.c>).
    fn replacement(&self, exists: bool) -> Vec<(u16, Family, NfTablesMessage)> {
        let create = |flags| {
            let flags = NLM_F_CREATE | flags;
            (flags, self.family, NfTablesMessage::NewTable(self.named()))
        };
        let mut messages = Vec::new();
        if exists {
            // The table is created first, so that the deletion succeeds in any case.
            let deletion = NfTablesMessage::DeleteTable(self.named());
            messages.extend([create(0), (0, self.family, deletion)]);
            messages.push(create(0));
        } else {
            messages.push(create(NLM_F_EXCL));
        }
        messages.extend(self.content());
        messages
    }

    /// Returns the messages that create the sets, chains and rules in an existing table.
    fn content(&self) -> Vec<(u16, Family, NfTablesMessage)> {
        let create = NLM_F_CREATE;
        let mut messages = Vec::new();
        for (id, set) in (1..).zip(&self.sets) {
            messages.push((
                create,
                self.family,
                set.creation((self.family, &self.name), id),
            ));
            let elements = set.insertions(&self.name);
            messages.extend(elements.map(|message| (create, self.family, message)));
        }
        // All chains are created before any rule that jumps to one of them.
        let chains = self.chains.iter();
        messages.extend(chains.map(|chain| (create, self.family, self.new_chain(chain))));
        messages.extend(self.rules());
        messages
    }

    /// Returns the messages that create the rules in existing chains.
    fn rules(&self) -> impl Iterator<Item = (u16, Family, NfTablesMessage)> + '_ {
        let of = |chain: &'_ Chain| {
            let make = |rule| {
                let flags = NLM_F_CREATE | NLM_F_APPEND;
                (flags, self.family, self.new_rule(chain, rule))
            };
            chain.rules.iter().map(make).collect::<Vec<_>>()
        };
        self.chains.iter().flat_map(of)
    }

    /// Replaces all rules in the chains of this value, in one transaction. Other chains of the table and its sets,
    /// including their members, stay as they are.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error; the old rules are then still in place.
    pub fn rewrite(&self, socket: &mut Socket) -> Result<(), Error> {
        let flush = |chain: &Chain| {
            let attributes = vec![
                RuleAttribute::Table(self.name.clone()),
                RuleAttribute::Chain(chain.name.to_owned()),
            ];
            let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
            (0, self.family, message)
        };
        let messages = self.chains.iter().map(flush).chain(self.rules()).collect();
        let what = format!("change the rules of table {}", self.title());
        socket.transact(&what, messages)
    }

    /// Makes the kernel validate all objects of a table: the table is created and deleted in one transaction, and no
    /// packet reaches it. Its name must be unused, because an existing table with that name would be deleted.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error.
    pub fn rehearse(&self, socket: &mut Socket) -> Result<(), Error> {
        let create = NLM_F_CREATE;
        let mut table = self.clone();
        for chain in &mut table.chains {
            // A base chain would be called during the transaction, while it is still empty.
            chain.base = None;
        }
        let mut messages = vec![(create, self.family, NfTablesMessage::NewTable(self.named()))];
        messages.extend(table.content());
        messages.push((0, self.family, NfTablesMessage::DeleteTable(self.named())));
        let what = format!("try the rules of table {}", self.title());
        socket.transact(&what, messages)
    }

    /// Deletes the table if it exists.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error.
    pub fn delete(&self, socket: &mut Socket) -> Result<(), Error> {
        let what = format!("delete table {}", self.title());
        let message = NfTablesMessage::DeleteTable(self.named());
        match socket.transact(&what, vec![(0, self.family, message)]) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Returns the family and the name in nft's notation.
    #[must_use]
    pub fn title(&self) -> String {
        title(self.family, &self.name)
    }

    fn named(&self) -> TableMessage {
        TableMessage {
            attributes: vec![TableAttribute::Name(self.name.clone())],
        }
    }

    fn new_chain(&self, chain: &Chain) -> NfTablesMessage {
        let mut attributes = vec![
            ChainAttribute::Table(self.name.clone()),
            ChainAttribute::Name(chain.name.to_owned()),
        ];
        if let Some(base) = chain.base {
            attributes.extend([
                ChainAttribute::Hook(vec![
                    HookAttribute::Number(HookNumber::Inet(base.hook.number())),
                    HookAttribute::Priority(base.priority.cast_unsigned()),
                ]),
                ChainAttribute::Policy(ACCEPT),
                ChainAttribute::Type(CHAIN_TYPE.to_owned()),
            ]);
        }
        NfTablesMessage::NewChain(ChainMessage { attributes })
    }

    fn new_rule(&self, chain: &Chain, rule: &Rule) -> NfTablesMessage {
        NfTablesMessage::NewRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(self.name.clone()),
                RuleAttribute::Chain(chain.name.to_owned()),
                RuleAttribute::Expressions(
                    rule.expressions.iter().cloned().map(Into::into).collect(),
                ),
                RuleAttribute::UserData(encode_comment(&rule.purpose)),
            ],
        })
    }
}

/// Returns true if a table with this name exists.
///
/// # Errors
///
/// Returns the kernel's error, unless it means that there is no such table.
pub fn has_table(family: Family, name: &str, socket: &mut Socket) -> Result<bool, Error> {
    let request = NfTablesMessage::GetTable(TableMessage {
        attributes: vec![TableAttribute::Name(name.to_owned())],
    });
    let what = format!("look for table {}", title(family, name));
    Ok(socket.get(&what, family, request)?.is_some())
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

#[cfg(test)]
mod tests;
