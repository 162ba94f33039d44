// SPDX-License-Identifier: Apache-2.0

//! Tries what loading the programs does not verify: that the kernel accepts the rules, and that programs can be attached to links.
//! The node's own links and packets are not affected.

use std::collections::BTreeSet;
use std::io;
use std::thread;

use proxy_kernel::netns;

use super::attach;
use super::attachment::AttachMode;
use super::load::Programs;
use super::{Error, services};
use crate::backend::decisions::of_proxy;
use crate::backend::live::Live;
use crate::backend::{decisions, tables};
use crate::config::Config;

/// The only link of a new network namespace.
const LINK: &str = "lo";

/// Tries the rules, in a transaction that is not committed.
pub fn rules(config: &Config) -> Result<(), Error> {
    let of_vips = of_proxy::without(config);
    let decisions = decisions::tables(&of_vips, &Live::default());
    let services = services::tables(config.instance, &config.services, &BTreeSet::new());
    tables::rehearse([decisions, services].concat()).map_err(|source| Error::Rules { source })
}

/// Tries to attach a program: by tcx to no link, or as a filter to a link of a temporary network namespace. None if the agent may
/// not create one; then the first attachment to a real link shows it.
pub fn attachment(programs: &mut Programs, mode: AttachMode) -> Option<Result<(), Error>> {
    if mode == AttachMode::Tcx {
        return Some(attach::try_tcx(programs).map_err(Error::from));
    }
    thread::scope(|scope| {
        let trial = scope.spawn(|| {
            netns::enter_new().ok()?;
            Some(attach::try_clsact(programs, LINK).map_err(Error::from))
        });
        trial.join().unwrap_or_else(|_| {
            let died = io::Error::other("the thread died");
            Some(Err(Error::Trial(died)))
        })
    })
}
