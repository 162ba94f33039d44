// SPDX-License-Identifier: Apache-2.0

//! What agents with one run directory have put on the node and nothing else tells to be theirs: which
//! address on which link, and where they pinned. A file in the run directory, written before the first
//! change of an agent, with what is still there from earlier starts; that leaves it once it is gone from
//! the node. So it names all of it at every moment, whenever an agent is killed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, remembered};
use crate::claims::Claim;
use crate::config::Config;
use crate::link::LinkTable;

/// The file's name in the run directory.
const FILE: &str = "owned.json";
/// The kernel's name for the time since it was booted: no address outlives it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// An address on a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// The VIP of some start.
    pub ip: IpAddr,
    /// The name of the link that carried it then.
    pub link: String,
}

/// What is, or may be, on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owned {
    /// The boot that it is of.
    boot: String,
    /// The VIPs, each with its link.
    pub addresses: BTreeSet<Address>,
    /// The links that carried them, as their names were said.
    pub links: BTreeSet<String>,
    /// The directories of pins.
    pub bpffs: BTreeSet<PathBuf>,
    /// The file could not be read: there may be more in it, which must not be lost.
    #[serde(skip)]
    is_partial: bool,
}

impl Owned {
    /// What the agents with this run directory have told since the node was booted.
    pub fn load(run_dir: &Path) -> Self {
        Self::of_boot(run_dir, &boot())
    }

    fn of_boot(run_dir: &Path, boot: &str) -> Self {
        let mut owned = Self {
            boot: boot.to_owned(),
            ..Self::default()
        };
        match read(run_dir) {
            Ok(told) if told.boot == boot => owned = told,
            // The state beside it is of that boot too.
            Ok(told) if !told.boot.is_empty() => return owned,
            Ok(_) => {}
            Err(_) => owned.is_partial = true,
        }
        // Agents of older versions wrote nothing but this, and such a one may have run last.
        let last = remembered(run_dir);
        if let Some(link) = last.interface {
            owned.add(&last.vips, &link);
        }
        owned.bpffs.extend(last.bpffs);
        owned
    }

    /// True if no agent has told anything.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.links.is_empty() && self.bpffs.is_empty()
    }

    /// Adds VIPs on a link, and the link.
    pub fn add(&mut self, vips: &[IpAddr], link: &str) {
        let address = |ip: &IpAddr| Address {
            ip: *ip,
            link: link.to_owned(),
        };
        self.addresses.extend(vips.iter().map(address));
        self.links.insert(link.to_owned());
    }

    /// Adds what an agent with these settings is about to have.
    pub fn add_of(&mut self, config: &Config) {
        self.add(&config.vips, &config.interface);
        self.bpffs.insert(config.bpffs.clone());
    }

    /// Leaves out the addresses that another agent looks after by now, or may.
    pub async fn without_claimed(mut self, own: &[IpAddr]) -> Self {
        let ips: BTreeSet<_> = self.addresses.iter().map(|address| address.ip).collect();
        for ip in ips.into_iter().filter(|ip| !own.contains(ip)) {
            if Claim::Vip(ip).may_be_held().await {
                self.addresses.retain(|address| address.ip != ip);
            }
        }
        self
    }

    /// The VIPs, each once.
    pub fn ips(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(|address| address.ip).collect()
    }

    /// What is left of it, going by a table that was read to its end, and what `config` wants.
    pub fn still(&self, table: &LinkTable, config: &Config) -> Self {
        let mut left = self.clone();
        left.addresses.retain(|address| {
            let link = table.by_name(&address.link);
            let mut copies = table.addresses.iter();
            link.is_some_and(|link| {
                copies.any(|copy| copy.index == link.index && copy.ip == address.ip)
            })
        });
        left.links
            .retain(|name| table.by_name(name).is_some_and(|link| link.owned));
        left.bpffs.retain(|directory| directory.exists());
        left.add_of(config);
        left
    }

    /// Puts the file in the place of an older one, at once.
    ///
    /// # Errors
    ///
    /// The file system's answer.
    pub fn store(&self, run_dir: &Path) -> Result<(), Error> {
        let [path, fresh] = files(run_dir);
        let write = || {
            let mut all = self.clone();
            if self.is_partial {
                let told = read(run_dir)?;
                if told.boot == self.boot {
                    all.addresses.extend(told.addresses);
                    all.links.extend(told.links);
                    all.bpffs.extend(told.bpffs);
                }
            }
            fs::write(&fresh, serde_json::to_vec(&all).map_err(io::Error::other)?)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })
    }
}

/// The files that [`Owned::store`] leaves in a run directory.
pub fn files(run_dir: &Path) -> [PathBuf; 2] {
    [run_dir.join(FILE), run_dir.join(format!("{FILE}-new"))]
}

/// What is in the file; nothing if there is none, or somebody else's.
fn read(run_dir: &Path) -> io::Result<Owned> {
    match fs::read(run_dir.join(FILE)) {
        Ok(content) => Ok(serde_json::from_slice(&content).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Owned::default()),
        Err(error) => Err(error),
    }
}

/// The name of this boot; empty where the kernel does not tell.
fn boot() -> String {
    let id = fs::read_to_string(BOOT_ID).unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Link, LinkAddress, LinkKind};
    use crate::state::tests::example;

    const OLD: &str = "10.96.0.2";

    fn table(addresses: Vec<LinkAddress>) -> LinkTable {
        let mut dummy = Link::new(5, "vips", LinkKind::Dummy);
        dummy.owned = true;
        LinkTable {
            links: vec![Link::new(1, "lo", LinkKind::Loopback), dummy],
            addresses,
            ..LinkTable::default()
        }
    }

    fn names(owned: &Owned) -> Vec<String> {
        let addresses = owned.addresses.iter();
        addresses
            .map(|address| format!("{} on {}", address.ip, address.link))
            .collect()
    }

    #[test]
    fn what_is_gone_is_forgotten_and_nothing_else() {
        let mut config = example().as_dry_run(Path::new("/none"));
        let mut owned = Owned::default();
        owned.add(&[OLD.parse().unwrap()], "lo");
        owned.add(&[OLD.parse().unwrap()], "vips");
        owned.bpffs.insert("/proc/no-such-directory".into());
        config.vips = vec!["10.96.0.3".parse().unwrap()];
        owned.add_of(&config);

        let there = table(vec![LinkAddress::new(1, OLD, 32)]);
        let left = owned.still(&there, &config);
        assert_eq!(names(&left), ["10.96.0.2 on lo", "10.96.0.3 on lo"]);
        assert!(left.links.contains("vips"), "it is there and ours");
        assert!(!left.bpffs.contains(Path::new("/proc/no-such-directory")));

        let mut gone = table(Vec::new());
        gone.links.pop();
        let left = owned.still(&gone, &config);
        assert_eq!(names(&left), ["10.96.0.3 on lo"]);
        assert!(!left.links.contains("vips"));
    }

    #[test]
    fn another_boot_has_left_nothing() {
        let dir = std::env::temp_dir().join(format!("proxy-agent-owned-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert!(Owned::load(&dir).is_empty());
        // An agent that knew no such file.
        let state = example();
        state.store(&dir).unwrap();
        let told = Owned::of_boot(&dir, "now");
        assert_eq!(names(&told), ["10.96.0.2 on lo"]);
        assert!(told.bpffs.contains(&state.settings.bpffs));
        let mut more = told.clone();
        more.add(&["10.96.0.9".parse().unwrap()], "vips");
        more.store(&dir).unwrap();
        assert_eq!(Owned::of_boot(&dir, "now"), more);
        assert!(Owned::of_boot(&dir, "later").is_empty());
        // One that could not read the file leaves nothing out.
        let mut partial = told.clone();
        partial.is_partial = true;
        partial.store(&dir).unwrap();
        assert_eq!(Owned::of_boot(&dir, "now"), more);
        // Cut short: as if it were not there.
        fs::write(dir.join(FILE), "{\"boot\":\"now\",").unwrap();
        assert_eq!(Owned::of_boot(&dir, "now"), told);
        fs::remove_dir_all(&dir).unwrap();
    }
}
