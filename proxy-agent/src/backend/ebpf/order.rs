// SPDX-License-Identifier: Apache-2.0

//! The order of classifiers at the ingress of a link: which programs of others run before the agent's and may drop or redirect
//! packets first.
//!
//! tcx programs run first, then filters by priority. Filters of one priority belong to one classifier, and `cls_bpf` puts a new
//! one before existing ones, regardless of handle and name: `cls_bpf_change` in
//! <https://github.com/torvalds/linux/blob/v5.4/net/sched/cls_bpf.c>. It lists them in execution order.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io;

use proxy_kernel::bpf;
use proxy_netlink::route::DumpError;
use proxy_netlink::route::traffic_control::Filter;

use super::attachment::filter_handle;
use super::filters;
use super::hook::Hook;
use super::names::{Names, Unnamed};
use crate::instance::Instance;

/// The position of a program on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A tcx program.
    Tcx,
    /// A filter of this priority.
    Filter(u16),
}

/// A classifier of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// The name of its program, or its kind.
    pub name: String,
    /// Its position.
    pub place: Place,
}

/// The classifiers of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The ifindex.
    pub index: u32,
    /// The link's name.
    pub link: String,
    /// Position of the agent's classifier.
    pub own: Option<Place>,
    /// Those that run before it, in order; all if it is missing.
    pub before: Vec<Other>,
    /// Those that run after it, in order.
    pub behind: Vec<Other>,
}

/// Failure to read the classifiers of a link.
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
    #[error("cannot query the tcx programs")]
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

/// Reads the classifiers of links. `own` is the id of the agent's program, if known: without `SYS_ADMIN` the kernel does not
/// reveal names of programs.
///
/// # Errors
///
/// If the filters of a link could not be read completely. Links that are gone are left out.
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
            // The kernel has no tcx.
            Err(answer) if answer.raw_os_error() == Some(libc::EINVAL) => Vec::new(),
            ids => ids.map_err(|answer| failed(Cause::Tcx(answer)))?,
        };
        if own.is_none() {
            names.check(&ids).map_err(|cause| failed(cause.into()))?;
        }
        let filters = match filters::filters(Hook::Ingress, *index).await {
            Ok(filters) => filters,
            // The link has no such qdisc.
            Err(error) if filters::is_gone(&error) => Vec::new(),
            Err(source) => return Err(failed(source.into())),
        };
        let programs = ids.iter().map(|id| of_tcx(*id, &names, own));
        let filters = filters
            .iter()
            .filter_map(|filter| of_filter(filter, instance));
        orders.push(order(*index, link, programs.chain(filters)));
    }
    Ok(orders)
}

/// A classifier, and whether it is the agent's.
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

/// A filter; none where the message only names a priority, or the filter is in a chain that packets meet only when
/// another filter sends them there.
fn of_filter(filter: &Filter, instance: Instance) -> Option<Found> {
    if !filter.has_options || filter.chain != 0 {
        return None;
    }
    let is_own = filter.name.as_deref() == Some(Hook::Ingress.program())
        && filter.handle == filter_handle(instance);
    let name = match &filter.name {
        Some(name) => name.clone(),
        None => format!("a filter of kind {}", filter.kind),
    };
    let place = Place::Filter(filter.priority);
    Some((Other { name, place }, is_own))
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
    use super::*;

    fn filter(priority: u16, handle: u32, kind: &str, name: Option<&str>, chain: u32) -> Filter {
        Filter {
            handle,
            priority,
            kind: kind.to_owned(),
            chain,
            has_options: true,
            name: name.map(str::to_owned),
            program: None,
        }
    }

    /// The names are chosen so that sorting would change the order.
    #[test]
    fn filters_of_one_priority_run_in_the_order_of_the_list() {
        let instance = Instance::default();
        let own = filter_handle(instance);
        let filters = [
            // The head of a priority: no filter.
            Filter {
                has_options: false,
                ..filter(1, 0, "bpf", None, 0)
            },
            filter(1, 7, "bpf", Some("zzz"), 0),
            filter(1, own, "bpf", Some("vip_ingress"), 0),
            // Ours of another instance, and one before ours by its name.
            filter(1, own + 1, "bpf", Some("vip_ingress"), 0),
            filter(1, 1, "bpf", Some("aaa"), 0),
            filter(2, 1, "u32", None, 0),
            filter(1, 1, "u32", None, 5),
        ];
        let found = filters
            .iter()
            .filter_map(|filter| of_filter(filter, instance));
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
    fn the_agents_tcx_program_is_identified_by_id_or_name() {
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
}
