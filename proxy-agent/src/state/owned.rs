// SPDX-License-Identifier: Apache-2.0

//! Objects on the node that carry no mark of their agent: addresses with their links, and directories of pins. They are listed
//! in a file in the run directory, which is written before an agent's first change and keeps the entries of earlier starts;
//! an entry is deleted once the object is gone. So the file is complete at every moment, whenever the agent is killed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, remembered};
use crate::claims::Claim;
use crate::config::Config;
use crate::link::{Earlier, LinkTable, is_owned};

/// The file's name in the run directory.
const FILE: &str = "owned.json";
/// Identifies the boot: addresses do not survive a reboot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// An address on a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// The address, a VIP of this or an earlier start.
    pub ip: IpAddr,
    /// Name of the link that carries it.
    pub link: String,
}

/// The objects that are, or may be, on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owned {
    /// Boot id at the time of writing.
    boot: String,
    /// The VIPs, with their links.
    pub addresses: BTreeSet<Address>,
    /// The links that carried them, by the names that were set with `--interface`.
    pub links: BTreeSet<String>,
    /// The directories of pins.
    pub bpffs: BTreeSet<PathBuf>,
    /// The file could not be read: it may hold more entries, which [`Owned::store`] must keep.
    #[serde(skip)]
    is_partial: bool,
}

impl Owned {
    /// Reads the entries of all agents with this run directory since the node was booted.
    pub fn load(run_dir: &Path) -> Self {
        Self::of_boot(run_dir, &boot())
    }

    fn of_boot(run_dir: &Path, boot: &str) -> Self {
        let mut owned = Self {
            boot: boot.to_owned(),
            ..Self::default()
        };
        match read(run_dir) {
            Ok(stored) if stored.boot == boot => owned = stored,
            // The state file beside it is of the earlier boot too.
            Ok(stored) if !stored.boot.is_empty() => return owned,
            Ok(_) => {}
            Err(_) => owned.is_partial = true,
        }
        // Older versions wrote the state file only, and the last agent may have been one.
        let last = remembered(run_dir);
        if let Some(link) = last.interface {
            owned.add(&last.vips, &link);
        }
        owned.bpffs.extend(last.bpffs);
        owned
    }

    /// True if there are no entries.
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

    /// Adds the objects that an agent with these settings is going to create.
    pub fn add_of(&mut self, config: &Config) {
        self.add(&config.vips, &config.interface);
        self.bpffs.insert(config.bpffs.clone());
    }

    /// Removes addresses that another agent claims, or may claim.
    pub async fn without_claimed(mut self, own: &[IpAddr]) -> Self {
        let ips: BTreeSet<_> = self.addresses.iter().map(|address| address.ip).collect();
        for ip in ips.into_iter().filter(|ip| !own.contains(ip)) {
            if Claim::Vip(ip).may_be_held().await {
                self.addresses.retain(|address| address.ip != ip);
            }
        }
        self
    }

    /// The entries that concern links.
    pub fn of_links(&self) -> Earlier {
        let addresses = self.addresses.iter();
        Earlier {
            vips: addresses
                .map(|address| (address.ip, address.link.clone()))
                .collect(),
            links: self.links.iter().cloned().collect(),
        }
    }

    /// The VIPs, without duplicates.
    pub fn ips(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(|address| address.ip).collect()
    }

    /// The entries whose objects exist according to `table`, which must be complete, and those of `config`.
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
            .retain(|name| table.by_name(name).is_some_and(is_owned));
        left.bpffs.retain(|directory| directory.exists());
        left.add_of(config);
        left
    }

    /// Replaces the file atomically.
    ///
    /// # Errors
    ///
    /// The file system's error.
    pub fn store(&self, run_dir: &Path) -> Result<(), Error> {
        let [path, fresh] = files(run_dir);
        let write = || {
            let mut all = self.clone();
            if self.is_partial {
                let stored = read(run_dir)?;
                if stored.boot == self.boot {
                    all.addresses.extend(stored.addresses);
                    all.links.extend(stored.links);
                    all.bpffs.extend(stored.bpffs);
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

/// The files that [`Owned::store`] creates in a run directory.
pub fn files(run_dir: &Path) -> [PathBuf; 2] {
    [run_dir.join(FILE), run_dir.join(format!("{FILE}-new"))]
}

/// Reads the file; empty if there is none, or if its content is invalid.
fn read(run_dir: &Path) -> io::Result<Owned> {
    match fs::read(run_dir.join(FILE)) {
        Ok(content) => Ok(serde_json::from_slice(&content).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Owned::default()),
        Err(error) => Err(error),
    }
}

/// The boot id; empty if the kernel does not expose it.
fn boot() -> String {
    let id = fs::read_to_string(BOOT_ID).unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proxy_netlink::route::{Address, Link, LinkKind};

    use super::*;
    use crate::link::{OWN_GROUP, address};
    use crate::state::tests::example;

    const OLD: &str = "10.96.0.2";

    fn table(addresses: Vec<Address>) -> LinkTable {
        let mut dummy = Link::new(5, "vips", LinkKind::Dummy);
        dummy.group = OWN_GROUP;
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

        let there = table(vec![address(1, OLD, 32)]);
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
        // An agent of a version without this file.
        let state = example();
        state.store(&dir).unwrap();
        let stored = Owned::of_boot(&dir, "now");
        assert_eq!(names(&stored), ["10.96.0.2 on lo"]);
        assert!(stored.bpffs.contains(&state.settings.bpffs));
        let mut more = stored.clone();
        more.add(&["10.96.0.9".parse().unwrap()], "vips");
        more.store(&dir).unwrap();
        assert_eq!(Owned::of_boot(&dir, "now"), more);
        assert!(Owned::of_boot(&dir, "later").is_empty());
        // An agent that could not read the file removes nothing from it.
        let mut partial = stored.clone();
        partial.is_partial = true;
        partial.store(&dir).unwrap();
        assert_eq!(Owned::of_boot(&dir, "now"), more);
        // A truncated file counts as missing.
        fs::write(dir.join(FILE), "{\"boot\":\"now\",").unwrap();
        assert_eq!(Owned::of_boot(&dir, "now"), stored);
        fs::remove_dir_all(&dir).unwrap();
    }
}
