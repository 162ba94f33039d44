// SPDX-License-Identifier: Apache-2.0

//! Runs ipset: lists the sets, and carries operations out. New sets are filled with the connections
//! that the proxy has, so that these stay as they are: untracked, or tracked.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::super::Error;
use super::super::command::{self, CommandError};
use super::super::flavour;
use super::super::rules::Family;
use super::{Op, Role, SavedSet, Set, TYPE, parse};
use crate::backend::live::{Connection, Live};
use crate::instance::Instance;
use crate::reconcile::Mode;

/// iptables-nft ends before the kernel has let go of the sets of a deleted rule: an RCU grace period
/// later.
const ATTEMPTS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(25);

/// Where the kernel shows that it knows of sets at all.
const MODULE: &str = "/sys/module/ip_set";

/// The ipset program.
#[derive(Debug, Clone)]
pub struct Ipset {
    program: PathBuf,
    /// Whose sets it is used for.
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
    /// Finds the program for an instance's sets; none if it is not installed.
    pub fn find(owner: Instance) -> Option<Self> {
        let program = flavour::find_program("ipset")?;
        Some(Self { program, owner })
    }

    /// Tries whether sets of our type can be made for these families. A dry run only looks whether
    /// the kernel answers.
    ///
    /// # Errors
    /// ipset's answer.
    pub async fn probe(&self, families: &[Family], mode: Mode) -> Result<(), CommandError> {
        if mode == Mode::DryRun {
            return self.run(&["list", "-name"], "").await.map(drop);
        }
        let mut script = String::new();
        for family in families {
            // No proxy listens on port 0: such a set is no other's.
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
        self.run(&["-exist", "restore"], &script).await.map(drop)
    }

    /// The instance's sets.
    ///
    /// # Errors
    /// ipset's answer, or that it cannot be relied on.
    pub async fn list(&self) -> Result<Vec<SavedSet>, Error> {
        let text = self.run(&["list", "-terse"], "").await?;
        parse(&text, self.owner).map_err(|source| Error::Dump {
            program: self.program.display().to_string(),
            source,
        })
    }

    /// The sets that an earlier agent may have left. Where the kernel knows of no sets, none.
    ///
    /// # Errors
    /// As [`Ipset::list`].
    pub async fn list_leftovers(&self) -> Result<Vec<SavedSet>, Error> {
        if !Path::new(MODULE).exists() {
            return Ok(Vec::new());
        }
        match self.list().await {
            Err(Error::Command(cause)) if cause.is_without_sets() => Ok(Vec::new()),
            observed => observed,
        }
    }

    async fn run(&self, args: &[&str], input: &str) -> Result<String, CommandError> {
        command::run(&self.program, args, input).await
    }
}

impl<'a> Apply<'a> {
    /// New sets are filled with the connections of these endpoints.
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
    /// ipset's answer.
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
        self.ipset.run(&["-exist", "restore"], &script).await?;
        Ok(())
    }

    async fn destroy(&self, name: &str) -> Result<(), Error> {
        let mut attempt = 1;
        loop {
            match self.ipset.run(&["destroy", name], "").await {
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
                    part = super::super::PART,
                    "cannot read the proxy's connections: those that are untracked now will be \
                     tracked: {cause}"
                );
                Live::default()
            })
        })
    }
}

/// The lines that create a set of that name with its first members.
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
