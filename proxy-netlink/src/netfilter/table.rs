// SPDX-License-Identifier: Apache-2.0

//! A table of ours as a value, written whole in one transaction. `outline.rs` reads it back and compares
//! it.

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

/// `NF_ACCEPT`, the policy of our chains.
const ACCEPT: u32 = 1;
/// The type of our chains.
const CHAIN_TYPE: &str = "filter";
/// Type of the user data that nft shows as a rule's comment (`NFTNL_UDATA_RULE_COMMENT`).
const COMMENT: u8 = 0;
/// Longest comment nft accepts (`NFTNL_UDATA_COMMENT_MAXLEN`), with its terminating zero.
const COMMENT_LENGTH: usize = 128;

/// A table with everything in it.
#[derive(Debug, Clone)]
pub struct Table {
    /// `ip` or `ip6`.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its sets.
    pub sets: Vec<Set>,
    /// Its chains, in any order.
    pub chains: Vec<Chain>,
}

/// A chain; a base chain has policy accept.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// The hook that calls it; none if only rules do.
    pub base: Option<Base>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// Where a base chain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// The hook.
    pub hook: Hook,
    /// In which order among the chains of the hook; below zero comes before.
    pub priority: i32,
}

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its purpose, unique in its chain: nft shows it behind the rule.
    pub purpose: String,
    /// What it does.
    pub expressions: Vec<Expressions>,
}

/// A netfilter hook of the IP families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that came in, before routing.
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
    /// Replaces the tables with these names in one transaction: packets meet either the old ones or the
    /// new ones, never a part of them.
    ///
    /// # Errors
    ///
    /// The kernel's answer; the old tables are then still in place.
    pub fn replace(tables: &[Self], socket: &mut Socket) -> Result<(), Error> {
        let titles: Vec<_> = tables.iter().map(Self::title).collect();
        let what = format!("install table {}", titles.join(" and "));
        let mut messages = Vec::new();
        for table in tables {
            let exists = has_table(table.family, &table.name, socket)?;
            messages.extend(table.replacement(exists));
        }
        match socket.transact(&what, messages) {
            // Another program has created one of them in between.
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                let messages = tables.iter().flat_map(|table| table.replacement(true));
                socket.transact(&what, messages.collect())
            }
            result => result,
        }
    }

    /// No deletion is requested where there is nothing to delete: the kernel waits for an RCU grace period
    /// behind each, and has the next nfnetlink socket that is closed wait for it (`nft_rcv_nl_event` of
    /// <https://github.com/torvalds/linux/blob/v6.12/net/netfilter/nf_tables_api.c>).
    fn replacement(&self, exists: bool) -> Vec<(u16, Family, NfTablesMessage)> {
        let create = |flags| {
            let flags = NLM_F_CREATE | flags;
            (flags, self.family, NfTablesMessage::NewTable(self.named()))
        };
        let mut messages = Vec::new();
        if exists {
            // Created first, so that the deletion finds one in any case.
            let deletion = NfTablesMessage::DeleteTable(self.named());
            messages.extend([create(0), (0, self.family, deletion)]);
            messages.push(create(0));
        } else {
            messages.push(create(NLM_F_EXCL));
        }
        messages.extend(self.content());
        messages
    }

    /// What makes the sets, chains and rules; the table is there.
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
        // All chains before any rule that goes to one of them.
        let chains = self.chains.iter();
        messages.extend(chains.map(|chain| (create, self.family, self.new_chain(chain))));
        messages.extend(self.rules());
        messages
    }

    /// What makes the rules; the chains and sets are there.
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

    /// Replaces all rules in the chains, in one transaction. Chains and sets stay as
    /// they are, with the members of sets.
    ///
    /// # Errors
    ///
    /// The kernel's answer; the old rules are then still in place.
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

    /// Has the kernel check everything in a table: it is created and deleted in one transaction, and
    /// no packet reaches it. Its name must be unused, since a table of that name would be deleted.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn rehearse(&self, socket: &mut Socket) -> Result<(), Error> {
        let create = NLM_F_CREATE;
        let mut table = self.clone();
        for chain in &mut table.chains {
            // Otherwise it would be called during the transaction, while it is still empty.
            chain.base = None;
        }
        let mut messages = vec![(create, self.family, NfTablesMessage::NewTable(self.named()))];
        messages.extend(table.content());
        messages.push((0, self.family, NfTablesMessage::DeleteTable(self.named())));
        let what = format!("try the rules of table {}", self.title());
        socket.transact(&what, messages)
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

/// Whether there is a table of this name.
///
/// # Errors
///
/// The kernel's answer, if it is another one than that there is none.
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
