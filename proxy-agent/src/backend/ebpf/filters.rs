// SPDX-License-Identifier: Apache-2.0

//! The filters and queueing disciplines of traffic control, read completely or not at all. rtnetlink's own
//! dumps can end early and look complete; on the strength of such a one a qdisc would be removed with
//! the filters of others on it.

use std::collections::BTreeMap;

use netlink_packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcFilterBpf, TcFilterBpfOption, TcMessage, TcOption,
};

use super::attach::{Filter, filter_handle};
use super::hook::Hook;
use super::plan::Target;
use super::{PART, Settings};
use crate::kernel::netlink;
use crate::link::dump::{DumpError, dump};
use crate::reconcile::{Report, failed};

// Messages of linux/rtnetlink.h.
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// Length of `struct nlmsghdr`.
const NETLINK_HEADER: usize = 16;
/// Length of `struct tcmsg`, and where ifindex and parent stand in it.
const HEADER: usize = 20;
const IFINDEX: usize = 4;
const PARENT: usize = 12;
/// `TC_H_MAKE(TC_H_CLSACT, …)` of `linux/pkt_sched.h`.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `TC_H_INGRESS` and `TC_H_CLSACT`: the parent of either qdisc.
const SHARED_PARENT: u32 = 0xffff_fff1;
const CLSACT: &str = "clsact";
/// `TCA_KIND`.
const KIND: u16 = 1;

/// Our filters on these links, by hook and ifindex. A link whose filters could not be read is in the report.
pub async fn read(
    links: &BTreeMap<u32, String>,
    settings: &Settings,
    report: &mut Report,
) -> BTreeMap<(Hook, u32), Filter> {
    let mut found = BTreeMap::new();
    for (index, name) in links {
        let link = Target {
            index: *index,
            name: name.clone(),
        };
        for hook in Hook::ALL {
            match filters(hook, *index).await {
                Ok(filters) => {
                    let own = filters
                        .iter()
                        .filter_map(|body| parse(body))
                        .find_map(|message| own(hook, &message, &link, settings));
                    found.extend(own.map(|filter| ((hook, *index), filter)));
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => failed(PART, format!("read the filters of {link}"), &error, report),
            }
        }
    }
    found
}

/// Whether nothing is attached to the clsact qdisc of a link; also if the link is gone.
///
/// # Errors
///
/// If that could not be read to its end.
pub async fn are_none(index: u32) -> Result<bool, DumpError> {
    for hook in Hook::ALL {
        match filters(hook, index).await {
            Ok(filters) if filters.is_empty() => {}
            Ok(_) => return Ok(false),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Whether the ingress qdisc of a link is a clsact; none if it has neither. The kernel lets only one of the
/// two be there.
///
/// # Errors
///
/// If that could not be read to its end.
pub async fn has_clsact(index: u32) -> Result<Option<bool>, DumpError> {
    let mut kinds: Vec<(u32, u32, bool)> = Vec::new();
    dump(
        RTM_GETQDISC,
        RTM_NEWQDISC,
        &header(index, 0),
        &mut kinds,
        Vec::clear,
        |kinds, body| {
            let field = |at: usize| {
                let bytes = body.get(at..).and_then(<[u8]>::first_chunk::<4>);
                bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
            };
            let attributes = body.get(HEADER..).unwrap_or_default();
            let mut is_clsact = false;
            for attribute in netlink_packet_core::NlasIterator::new(attributes) {
                let attribute = attribute?;
                if attribute.kind() == KIND {
                    is_clsact = attribute.value().starts_with(CLSACT.as_bytes());
                }
            }
            kinds.push((field(IFINDEX), field(PARENT), is_clsact));
            Ok(())
        },
    )
    .await?;
    let found = kinds
        .iter()
        .find(|(of, parent, _)| *of == index && *parent == SHARED_PARENT);
    Ok(found.map(|(_, _, is_clsact)| *is_clsact))
}

/// The bodies of the messages about a hook's filters. On an ingress qdisc the kernel lists those of ingress
/// under the name of egress too: they are left out.
///
/// # Errors
///
/// If they could not be read to their end; EINVAL if there is no such qdisc.
pub async fn filters(hook: Hook, index: u32) -> Result<Vec<Vec<u8>>, DumpError> {
    let parent = match hook {
        Hook::Ingress => INGRESS,
        Hook::Egress => EGRESS,
    };
    let mut bodies = Vec::new();
    dump(
        RTM_GETTFILTER,
        RTM_NEWTFILTER,
        &header(index, parent),
        &mut bodies,
        Vec::clear,
        |bodies: &mut Vec<Vec<u8>>, body| {
            bodies.push(body.to_vec());
            Ok(())
        },
    )
    .await?;
    Ok(bodies)
}

/// A message whose attributes are not understood is none of ours.
fn parse(body: &[u8]) -> Option<TcMessage> {
    let length = u32::try_from(NETLINK_HEADER + body.len()).ok()?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(RTM_NEWTFILTER.to_ne_bytes());
    message.resize(NETLINK_HEADER, 0);
    message.extend(body);
    let message = netlink::decode::<RouteNetlinkMessage>(&message).ok()?;
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => Some(filter),
        _ => None,
    }
}

fn header(index: u32, parent: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[IFINDEX..IFINDEX + 4].copy_from_slice(&index.to_ne_bytes());
    header[PARENT..PARENT + 4].copy_from_slice(&parent.to_ne_bytes());
    header
}

/// The link is gone, or has no such qdisc.
fn is_gone(error: &DumpError) -> bool {
    let DumpError::Io(error) = error else {
        return false;
    };
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL))
}

/// Our filter, if this is it: known by its handle and its program's name.
fn own(hook: Hook, message: &TcMessage, link: &Target, settings: &Settings) -> Option<Filter> {
    if u32::from(message.header.handle) != filter_handle(settings.instance) {
        return None;
    }
    let (mut is_bpf, mut named, mut program) = (false, false, None);
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => is_bpf = kind == TcFilterBpf::KIND,
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
                            named = name == hook.program();
                        }
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(*id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (is_bpf && named).then_some(Filter {
        hook,
        link: link.clone(),
        // The upper half; the lower one is the protocol.
        priority: u16::try_from(message.header.info >> 16).ok()?,
        program: program?,
    })
}
