// SPDX-License-Identifier: Apache-2.0

//! The counters of a chain's rules.

use netlink_packet_core::Nla as _;
use netlink_packet_netfilter::nftables::{
    ExpressionAttribute, Expressions, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage,
};

use super::Table;
use super::outline::comment_of;
use crate::netfilter::{Error, Socket};

/// The counter of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The comment of the rule.
    pub comment: String,
    /// The number of packets since the rule was created.
    pub packets: u64,
    /// The number of bytes of these packets, from the IP header on.
    pub bytes: u64,
}

impl Table {
    /// Reads the counters of a chain, in the order of its rules. Returns an empty list if the chain does not exist.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel's response is incomplete.
    pub fn counters(&self, chain: &str, socket: &mut Socket) -> Result<Vec<Count>, Error> {
        let request = NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(self.name.clone()),
                RuleAttribute::Chain(chain.to_owned()),
            ],
        });
        let what = format!("read the counters of table {}", self.title());
        let rules = match socket.dump(&what, self.family, &request) {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(Vec::new()),
            rules => rules?,
        };
        let counts = rules.iter().filter_map(|message| match message {
            NfTablesMessage::NewRule(rule) => count(rule),
            _ => None,
        });
        Ok(counts.collect())
    }
}

/// Returns the counter of a rule, or `None` if it has no counter.
pub(super) fn count(rule: &RuleMessage) -> Option<Count> {
    let expressions = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Expressions(expressions) => Some(expressions),
            _ => None,
        })?;
    let (packets, bytes) = expressions.iter().find_map(counter)?;
    Some(Count {
        comment: comment_of(rule),
        packets,
        bytes,
    })
}

/// Returns the packets and bytes if the expression is a counter (`enum nft_counter_attributes`).
fn counter(expression: &ListAttribute<ExpressionAttribute>) -> Option<(u64, u64)> {
    const BYTES: u16 = 1;
    const PACKETS: u16 = 2;
    let ListAttribute::Element(parts) = expression else {
        return None;
    };
    let data = parts.iter().find_map(|part| match part {
        ExpressionAttribute::Data(Expressions::Other {
            expression_type,
            attributes,
        }) if expression_type == "counter" => Some(attributes),
        _ => None,
    })?;
    let value = |kind| {
        let attribute = data.iter().find(|attribute| attribute.kind() == kind)?;
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        Some(u64::from_be_bytes(value.try_into().ok()?))
    };
    Some((value(PACKETS)?, value(BYTES)?))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DefaultNla;

    use super::*;

    fn rule(expressions: Vec<Expressions>) -> RuleMessage {
        RuleMessage {
            attributes: vec![RuleAttribute::Expressions(
                expressions.into_iter().map(Into::into).collect(),
            )],
        }
    }

    fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
        Expressions::Other {
            expression_type: name.to_owned(),
            attributes,
        }
    }

    #[test]
    fn a_counter_is_read() {
        let attribute = |kind, value: u64| DefaultNla::new(kind, value.to_be_bytes().to_vec());
        let counter = other("counter", vec![attribute(1, 1500), attribute(2, 3)]);
        let found = count(&rule(vec![other("notrack", Vec::new()), counter]));
        let count = found.unwrap();
        assert_eq!((count.packets, count.bytes), (3, 1500));
    }

    #[test]
    fn a_rule_without_counter_or_with_a_strange_one_has_none() {
        assert_eq!(count(&rule(vec![other("notrack", Vec::new())])), None);
        let strange = DefaultNla::new(1, vec![1, 2, 3]);
        assert_eq!(count(&rule(vec![other("counter", vec![strange])])), None);
    }
}
