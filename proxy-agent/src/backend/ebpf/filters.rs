// SPDX-License-Identifier: Apache-2.0

//! The agent's filters of traffic control, and whether a qdisc has any. Lists are read completely or with an error: after an
//! incomplete one a qdisc would be removed with filters of others on it.

use std::collections::BTreeMap;

use proxy_netlink::route::DumpError;
use proxy_netlink::route::traffic_control::{self, Direction};

use super::PART;
use super::attachment::{Filter, filter_handle};
use super::hook::{Hook, Target};
use crate::config::Config;
use crate::reconcile::Report;

/// The agent's filters on these links, by hook and ifindex. Links whose filters could not be read are in the report.
pub async fn read(
    links: &BTreeMap<u32, String>,
    config: &Config,
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
                        .find_map(|filter| own(hook, filter, &link, config));
                    found.extend(own.map(|filter| ((hook, *index), filter)));
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => report.failed(PART, format!("read the filters of {link}"), &error),
            }
        }
    }
    found
}

/// Whether nothing is attached to the clsact qdisc of a link; true if the link is gone.
///
/// # Errors
///
/// If the filters could not be read completely.
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

/// The filters of a hook. On an ingress qdisc the kernel lists those of ingress under the name of egress too.
///
/// # Errors
///
/// If they could not be read to their end; EINVAL if there is no such qdisc.
pub async fn filters(hook: Hook, index: u32) -> Result<Vec<traffic_control::Filter>, DumpError> {
    let direction = match hook {
        Hook::Ingress => Direction::Ingress,
        Hook::Egress => Direction::Egress,
    };
    traffic_control::filters(direction, index).await
}

/// The link is gone, or has no such qdisc.
pub fn is_gone(error: &DumpError) -> bool {
    let DumpError::Io(error) = error else {
        return false;
    };
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL))
}

/// Our filter, if this is it: recognised by its handle and its program's name.
fn own(
    hook: Hook,
    filter: &traffic_control::Filter,
    link: &Target,
    config: &Config,
) -> Option<Filter> {
    let is_own = filter.handle == filter_handle(config.instance)
        && filter.name.as_deref() == Some(hook.program());
    Some(Filter {
        hook,
        link: link.clone(),
        priority: filter.priority,
        program: filter.program.filter(|_| is_own)?,
    })
}
