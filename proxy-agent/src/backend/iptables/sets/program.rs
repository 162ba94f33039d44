// SPDX-License-Identifier: Apache-2.0

//! Runs ipset: lists the sets, and carries out operations. New sets are filled with the proxy's open connections, so that these stay
//! untracked or tracked.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use proxy_rules::ipset::{self, SavedSet};
use proxy_rules::xtables::{self, CommandError, Family};
use tokio::time::sleep;
use tracing::warn;

use super::super::Error;
use super::{Op, Role, Set, TYPE, own};
use crate::backend::live::{Connection, Live};
use crate::instance::Instance;
use crate::reconcile::Mode;

/// Attempts to destroy a set, and their interval: iptables-nft ends an RCU grace period before the kernel releases the sets of a
/// deleted rule.
const ATTEMPTS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(25);

/// The ipset program, used for the sets of an instance.
#[derive(Debug, Clone)]
pub struct Ipset {
    program: ipset::Ipset,
    owner: Instance,
}

/// Carries out the operations of one pass.
#[derive(Debug)]
pub struct Apply<'a> {
    ipset: &'a Ipset,
    endpoints: &'a [SocketAddr],
    live: Option<Live>,
}

impl Ipset {
    /// Finds the program; none if it is not installed.
    pub fn find(owner: Instance) -> Option<Self> {
        let program = ipset::Ipset::find()?;
        Some(Self { program, owner })
    }

    /// Tries whether sets of the needed type can be created for these families. A dry run only checks that the kernel answers.
    ///
    /// # Errors
    /// ipset's error.
    pub async fn probe(&self, families: &[Family], mode: Mode) -> Result<(), CommandError> {
        if mode == Mode::DryRun {
            return self.program.run(&["list", "-name"], "").await.map(drop);
        }
        let mut script = String::new();
        for family in families {
            // No proxy listens on port 0, so the name is unused.
            let set = Set {
                owner: self.owner,
                role: Role::Decided,
                family: *family,
                port: 0,
                max_elements: 1,
            };
            let (name, family) = (set.unfinished(), set.family_name());
            let _ = writeln!(script, "create {name} {TYPE} family {family} timeout 1");
            let _ = writeln!(script, "destroy {name}");
        }
        self.program
            .run(&["-exist", "restore"], &script)
            .await
            .map(drop)
    }

    /// The instance's sets.
    ///
    /// # Errors
    /// ipset's error, or unexpected output.
    pub async fn list(&self) -> Result<Vec<SavedSet>, xtables::Error> {
        Ok(own(self.program.list().await?, self.owner))
    }

    /// The sets that an earlier agent may have left; empty if the kernel does not support sets.
    ///
    /// # Errors
    /// As [`Ipset::list`].
    pub async fn list_leftovers(&self) -> Result<Vec<SavedSet>, xtables::Error> {
        Ok(own(self.program.list_if_any().await?, self.owner))
    }
}

impl<'a> Apply<'a> {
    /// `endpoints` are those whose open connections fill new sets.
    pub fn new(ipset: &'a Ipset, endpoints: &'a [SocketAddr]) -> Self {
        Self {
            ipset,
            endpoints,
            live: None,
        }
    }

    /// Carries out one operation.
    ///
    /// # Errors
    /// ipset's error.
    pub async fn apply(&mut self, op: &Op) -> Result<(), Error> {
        let script = match op {
            Op::Create(set) => creation(*set, &set.name(), self.live()),
            Op::Replace(set) => {
                let (name, unfinished) = (set.name(), set.unfinished());
                creation(*set, &unfinished, self.live())
                    + &format!("swap {unfinished} {name}\ndestroy {unfinished}\n")
            }
            Op::Destroy(name) => return self.destroy(name).await,
        };
        self.ipset
            .program
            .run(&["-exist", "restore"], &script)
            .await?;
        Ok(())
    }

    async fn destroy(&self, name: &str) -> Result<(), Error> {
        let mut attempt = 1;
        loop {
            match self.ipset.program.run(&["destroy", name], "").await {
                Ok(_) => return Ok(()),
                Err(cause) if !cause.is_set_in_use() => return Err(cause.into()),
                Err(source) if attempt == ATTEMPTS => {
                    let name = name.to_owned();
                    return Err(Error::SetInUse { name, source });
                }
                Err(_) => sleep(PAUSE).await,
            }
            attempt += 1;
        }
    }

    fn live(&mut self) -> &Live {
        let endpoints = self.endpoints;
        self.live.get_or_insert_with(|| {
            Live::read(endpoints).unwrap_or_else(|cause| {
                warn!(
                    part = super::super::PART.name(),
                    "cannot read the proxy's connections: untracked ones become \
                     tracked: {cause}"
                );
                Live::default()
            })
        })
    }
}

/// The commands that create a set of this name with its initial members.
pub(super) fn creation(set: Set, name: &str, live: &Live) -> String {
    let mut script = format!("create {name} {}\n", set.parameters());
    let clients = match set.role {
        Role::Decided => &live.untracked,
        Role::Translated => &live.translated,
    };
    let belongs = |connection: &&Connection| {
        Family::of(connection.vip.ip()) == set.family && connection.vip.port() == set.port
    };
    let room = usize::try_from(set.max_elements).unwrap_or(usize::MAX);
    for Connection { client, vip } in clients.iter().filter(belongs).take(room) {
        let (address, port) = (client.ip(), client.port());
        let _ = writeln!(script, "add {name} {address},tcp:{port},{}", vip.ip());
    }
    script
}
