// SPDX-License-Identifier: Apache-2.0

//! In which order classifiers run on what a link receives: which of others come before ours, and can hide
//! packets from it.
//!
//! Programs of tcx come first. Filters follow by priority. Filters of one priority belong to one classifier,
//! and `cls_bpf` puts a new one in front of those it has, whatever its handle or name is: `cls_bpf_change` in
//! <https://github.com/torvalds/linux/blob/v5.4/net/sched/cls_bpf.c>. It lists them in the order in which it
//! runs them.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt::{self, Display};
use std::io;

use netlink_packet_core::NlasIterator;

use super::attach::filter_handle;
use super::filters;
use super::hook::Hook;
use super::names::{Names, Unnamed};
use crate::instance::Instance;
use crate::kernel::bpf;
use crate::link::dump::DumpError;

/// Where handle and priority stand in `struct tcmsg`, and its length.
const HANDLE: usize = 8;
const INFO: usize = 16;
const HEADER: usize = 20;
// Attributes of linux/rtnetlink.h and linux/pkt_cls.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
/// The flag of attributes that hold others, `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

/// Where a program is on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Among the programs of tcx.
    Tcx,
    /// Among the filters of a priority.
    Filter(u16),
}

/// A classifier of somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// The name of its program, or its kind.
    pub name: String,
    /// Where it is.
    pub place: Place,
}

/// The classifiers of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The ifindex.
    pub index: u32,
    /// The link's name.
    pub link: String,
    /// Where ours is.
    pub own: Option<Place>,
    /// Those that run before ours, in order; all if ours is missing.
    pub before: Vec<Other>,
    /// Those that run behind it, in order.
    pub behind: Vec<Other>,
}

/// They could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the classifiers of link {link}")]
pub struct Error {
    link: String,
    #[source]
    source: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Filters(#[from] DumpError),
    #[error("cannot ask for the programs of tcx")]
    Tcx(#[source] io::Error),
    #[error(transparent)]
    Name(#[from] Unnamed),
}

impl Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Tcx => f.write_str(&self.name),
            Place::Filter(priority) => write!(f, "{} (priority {priority})", self.name),
        }
    }
}

/// What runs on what links receive. `own` is the id of our program, where it is known: without `SYS_ADMIN` the
/// kernel does not tell the names of programs.
///
/// # Errors
///
/// If the filters of a link could not be read to their end. A link that has gone meanwhile is left out.
pub async fn read(
    links: &BTreeMap<u32, String>,
    instance: Instance,
    own: Option<u32>,
) -> Result<Vec<Order>, Error> {
    let names = Names::read();
    let mut orders = Vec::new();
    for (index, link) in links {
        let failed = |source| Error {
            link: link.clone(),
            source,
        };
        let ids = match bpf::attached(*index, Hook::Ingress.tcx_type()) {
            Err(answer) if answer.raw_os_error() == Some(libc::ENODEV) => continue,
            // A kernel without tcx.
            Err(answer) if answer.raw_os_error() == Some(libc::EINVAL) => Vec::new(),
            ids => ids.map_err(|answer| failed(Cause::Tcx(answer)))?,
        };
        if own.is_none() {
            names.check(&ids).map_err(|cause| failed(cause.into()))?;
        }
        let filters = match filters::filters(Hook::Ingress, *index).await {
            Ok(filters) => filters,
            // It has no such qdisc.
            Err(DumpError::Io(answer)) if is_gone(&answer) => Vec::new(),
            Err(source) => return Err(failed(source.into())),
        };
        let programs = ids.iter().map(|id| of_tcx(*id, &names, own));
        let filters = filters.iter().filter_map(|body| of_filter(body, instance));
        orders.push(order(*index, link, programs.chain(filters)));
    }
    Ok(orders)
}

fn is_gone(answer: &io::Error) -> bool {
    matches!(answer.raw_os_error(), Some(libc::ENODEV | libc::EINVAL))
}

/// A classifier, and whether it is ours.
type Found = (Other, bool);

fn of_tcx(id: u32, names: &Names, own: Option<u32>) -> Found {
    let name = names.of(id);
    let is_own = match own {
        Some(own) => own == id,
        None => name == Hook::Ingress.program(),
    };
    let place = Place::Tcx;
    (Other { name, place }, is_own)
}

/// The filter in the body of a message; none where it only names a priority, or is of a chain that others are
/// sent to.
fn of_filter(body: &[u8], instance: Instance) -> Option<Found> {
    let field = |at: usize| {
        let bytes = body.get(at..).and_then(<[u8]>::first_chunk::<4>);
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    };
    let (mut kind, mut name, mut has_options, mut chain) = (String::new(), None, false, 0);
    for attribute in NlasIterator::new(body.get(HEADER..).unwrap_or_default()).flatten() {
        let value = attribute.value();
        match attribute.kind() & !NESTED {
            TCA_KIND => kind = text(value),
            TCA_OPTIONS => {
                has_options = !value.is_empty();
                let options = NlasIterator::new(value).flatten();
                let named = options.filter(|option| option.kind() & !NESTED == TCA_BPF_NAME);
                name = named.map(|option| text(option.value())).last();
            }
            TCA_CHAIN => {
                chain = value
                    .first_chunk()
                    .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
            }
            _ => {}
        }
    }
    if !has_options || chain != 0 {
        return None;
    }
    let is_bpf = kind == "bpf";
    let name = name.filter(|_| is_bpf);
    let is_own = name.as_deref() == Some(Hook::Ingress.program())
        && field(HANDLE) == filter_handle(instance);
    // The upper half is the priority, the lower one the protocol.
    let place = Place::Filter((field(INFO) >> 16) as u16);
    let name = name.unwrap_or_else(|| format!("a filter of kind {kind}"));
    Some((Other { name, place }, is_own))
}

fn text(value: &[u8]) -> String {
    match CStr::from_bytes_until_nul(value) {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => String::from_utf8_lossy(value).into_owned(),
    }
}

fn order(index: u32, link: &str, found: impl Iterator<Item = Found>) -> Order {
    let mut order = Order {
        index,
        link: link.to_owned(),
        own: None,
        before: Vec::new(),
        behind: Vec::new(),
    };
    for (program, is_own) in found {
        match order.own {
            None if is_own => order.own = Some(program.place),
            None => order.before.push(program),
            Some(_) => order.behind.push(program),
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn filter(priority: u32, handle: u32, kind: &str, options: &[u8], chain: u32) -> Vec<u8> {
        let mut body = vec![0; HEADER];
        body[HANDLE..HANDLE + 4].copy_from_slice(&handle.to_ne_bytes());
        body[INFO..INFO + 4].copy_from_slice(&(priority << 16 | 3).to_ne_bytes());
        body.extend(attribute(TCA_KIND, format!("{kind}\0").as_bytes()));
        body.extend(attribute(TCA_CHAIN, &chain.to_ne_bytes()));
        body.extend(attribute(TCA_OPTIONS | NESTED, options));
        body
    }

    fn named(name: &str) -> Vec<u8> {
        attribute(TCA_BPF_NAME, format!("{name}\0").as_bytes())
    }

    /// Names that the alphabet would sort the other way.
    #[test]
    fn equals_run_in_the_order_in_which_the_kernel_lists_them() {
        let instance = Instance::default();
        let own = filter_handle(instance);
        let bodies = [
            // The head of a priority: no filter.
            filter(1, 0, "bpf", &[], 0),
            filter(1, 7, "bpf", &named("zzz"), 0),
            filter(1, own, "bpf", &named("vip_ingress"), 0),
            // Ours of another instance, and one before ours by its name.
            filter(1, own + 1, "bpf", &named("vip_ingress"), 0),
            filter(1, 1, "bpf", &named("aaa"), 0),
            filter(2, 1, "u32", &named("no name"), 0),
            filter(1, 1, "u32", &named(""), 5),
        ];
        let found = bodies.iter().filter_map(|body| of_filter(body, instance));
        let order = order(9, "pod0", found);
        let names = |others: &[Other]| others.iter().map(Other::to_string).collect::<Vec<_>>();
        assert_eq!(order.own, Some(Place::Filter(1)));
        assert_eq!(names(&order.before), ["zzz (priority 1)"]);
        let behind = [
            "vip_ingress (priority 1)",
            "aaa (priority 1)",
            "a filter of kind u32 (priority 2)",
        ];
        assert_eq!(names(&order.behind), behind);
    }

    #[test]
    fn ours_among_tcx_programs_is_known_by_its_id_or_its_name() {
        let program = |id, name: &str| Ok((id, Some(name.to_owned())));
        let list = [program(3, "vip_ingress"), program(4, "other")];
        let names = Names::from_list(list.into_iter());
        assert!(of_tcx(3, &names, None).1);
        assert!(!of_tcx(3, &names, Some(5)).1);
        let unnamed = of_tcx(5, &names, Some(5));
        assert!(unnamed.1);
        assert_eq!(unnamed.0.name, "program 5");
        assert!(!of_tcx(4, &names, None).1);
    }

    proptest! {
        #[test]
        fn any_message_is_read(body in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = of_filter(&body, Instance::default());
        }
    }
}
