// SPDX-License-Identifier: Apache-2.0

//! Filters and queueing disciplines of traffic control, read completely or not at all: a list that ends early would
//! look like that of a link without filters.

use netlink_packet_core::{DecodeError, NlasIterator};

use super::attribute::{number_at, text, too_short};
use super::dump::{DumpError, dump};

// Message types of linux/rtnetlink.h.
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// The length of `struct tcmsg`, and the offsets of ifindex, handle, parent and info in it.
const HEADER: usize = 20;
const IFINDEX: usize = 4;
const HANDLE: usize = 8;
const PARENT: usize = 12;
const INFO: usize = 16;
/// `TC_H_MAKE(TC_H_CLSACT, …)` of `linux/pkt_sched.h`.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `TC_H_INGRESS` and `TC_H_CLSACT`, which have the same value: the parent of either qdisc.
const SHARED_PARENT: u32 = 0xffff_fff1;
const CLSACT: &str = "clsact";
// Attributes of linux/rtnetlink.h and linux/pkt_cls.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// The kind of a filter that is a BPF program.
const BPF: &str = "bpf";

/// A hook of a clsact qdisc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The hook for packets that the link receives.
    Ingress,
    /// The hook for packets that the link sends.
    Egress,
}

/// A filter on a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The handle, which is unique within its priority.
    pub handle: u32,
    /// The priority: filters with a lower one run first.
    pub priority: u16,
    /// The classifier; `bpf` for BPF programs.
    pub kind: String,
    /// The chain of the filter. Packets start in chain 0 and reach other chains only if a filter sends them there.
    pub chain: u32,
    /// False for a message that contains only a priority.
    pub has_options: bool,
    /// The name of the BPF program, if the filter is one.
    pub name: Option<String>,
    /// The id of the BPF program, if the filter is one.
    pub program: Option<u32>,
}

/// Returns true if a link has a clsact qdisc, false if it has an ingress qdisc, and `None` if it has neither. The
/// kernel permits only one of the two.
///
/// # Errors
///
/// Returns an error if the list could not be read completely.
pub async fn has_clsact(index: u32) -> Result<Option<bool>, DumpError> {
    let qdiscs = dump(
        RTM_GETQDISC,
        RTM_NEWQDISC,
        &header(index, 0),
        |qdiscs: &mut Vec<_>, body| {
            let field = |offset| number_at(body, offset).unwrap_or(0);
            let mut is_clsact = false;
            for attribute in NlasIterator::new(body.get(HEADER..).unwrap_or_default()) {
                let attribute = attribute?;
                if attribute.kind() == TCA_KIND {
                    is_clsact = attribute.value().starts_with(CLSACT.as_bytes());
                }
            }
            qdiscs.push((field(IFINDEX), field(PARENT), is_clsact));
            Ok(())
        },
    )
    .await?;
    let found = qdiscs
        .iter()
        .find(|(of, parent, _)| *of == index && *parent == SHARED_PARENT);
    Ok(found.map(|(_, _, is_clsact)| *is_clsact))
}

/// Returns the filters of a link in one direction, in the kernel's order. On an ingress qdisc the kernel also lists the
/// ingress filters if those of egress are requested.
///
/// # Errors
///
/// Returns an error if the list could not be read completely, and EINVAL if there is no such qdisc.
pub async fn filters(direction: Direction, index: u32) -> Result<Vec<Filter>, DumpError> {
    let parent = match direction {
        Direction::Ingress => INGRESS,
        Direction::Egress => EGRESS,
    };
    dump(
        RTM_GETTFILTER,
        RTM_NEWTFILTER,
        &header(index, parent),
        |filters: &mut Vec<_>, body| {
            filters.push(filter(body)?);
            Ok(())
        },
    )
    .await
}

/// Parses the filter in the body of a message.
fn filter(body: &[u8]) -> Result<Filter, DecodeError> {
    let attributes = body.get(HEADER..).ok_or_else(|| too_short("tcmsg"))?;
    let field = |offset| number_at(body, offset).unwrap_or(0);
    let [_, _, low, high] = field(INFO).to_le_bytes();
    let mut filter = Filter {
        handle: field(HANDLE),
        // The upper half is the priority; the lower half is the protocol.
        priority: u16::from_le_bytes([low, high]),
        ..Filter::default()
    };
    // An attribute that cannot be parsed ends the list of attributes; the filter itself still counts.
    for attribute in NlasIterator::new(attributes).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            TCA_KIND => filter.kind = text(value),
            TCA_CHAIN => filter.chain = number_at(value, 0).unwrap_or(0),
            TCA_OPTIONS => {
                filter.has_options = !value.is_empty();
                for option in NlasIterator::new(value).flatten() {
                    match option.kind() {
                        TCA_BPF_NAME => filter.name = Some(text(option.value())),
                        TCA_BPF_ID => filter.program = number_at(option.value(), 0),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if filter.kind != BPF {
        (filter.name, filter.program) = (None, None);
    }
    Ok(filter)
}

fn header(index: u32, parent: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[IFINDEX..IFINDEX + 4].copy_from_slice(&index.to_ne_bytes());
    header[PARENT..PARENT + 4].copy_from_slice(&parent.to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::attribute::attribute;
    use super::*;

    const NESTED: u16 = 1 << 15;

    fn read(kind: &str, options: &[u8]) -> Filter {
        let mut body = vec![0; HEADER];
        body[HANDLE..HANDLE + 4].copy_from_slice(&7_u32.to_ne_bytes());
        body[INFO..INFO + 4].copy_from_slice(&(2_u32 << 16 | 3).to_ne_bytes());
        body.extend(attribute(TCA_KIND, format!("{kind}\0").as_bytes()));
        body.extend(attribute(TCA_CHAIN, &5_u32.to_ne_bytes()));
        body.extend(attribute(TCA_OPTIONS | NESTED, options));
        filter(&body).expect("well formed")
    }

    #[test]
    fn a_filter_is_read_with_its_program() {
        let options = [
            attribute(TCA_BPF_NAME, b"vip_ingress\0"),
            attribute(TCA_BPF_ID, &77_u32.to_ne_bytes()),
        ]
        .concat();
        let expected = Filter {
            handle: 7,
            priority: 2,
            kind: "bpf".to_owned(),
            chain: 5,
            has_options: true,
            name: Some("vip_ingress".to_owned()),
            program: Some(77),
        };
        assert_eq!(read("bpf", &options), expected);
        // The same numbers have another meaning for another classifier.
        let other = read("u32", &options);
        assert_eq!((other.name, other.program), (None, None));
        assert!(!read("bpf", &[]).has_options);
        assert!(filter(&[0; HEADER - 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_message_is_read(body in prop::collection::vec(any::<u8>(), 0..120)) {
            assert_eq!(filter(&body).is_ok(), body.len() >= HEADER);
        }
    }
}
