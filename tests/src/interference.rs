// SPDX-License-Identifier: Apache-2.0

//! Interference by other programs while the agent runs: each kind removes or changes objects of the agent, or makes
//! changes beside them. The tests decide which kind occurs when.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::kubeproxy::KubeProxy;
use crate::node::Node;
use crate::{Family, cmd};

/// The link that carries the VIPs of a node with interference.
pub const VIP_LINK: &str = "vips";
/// The time for which a link is in another namespace or has another name.
const AWAY: Duration = Duration::from_millis(20);

/// One kind of interference. The link of the node's last pod is the one that is moved and renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interference {
    /// `nft flush ruleset`, after which kube-proxy recreates its rules.
    FlushRuleset,
    /// Our tables are deleted.
    DeleteTables,
    /// The clsact qdiscs of all pods' links are deleted.
    DeleteClsact,
    /// Every pin of a link to a TC hook is removed.
    DetachTcx,
    /// The pins of links to the cgroup and to the network namespace are removed.
    DetachSockets,
    /// The routes of the ClusterIPs are removed.
    DeleteRoutes,
    /// The pins of maps are removed.
    UnpinMaps,
    /// The BPF file system is unmounted, and another one is mounted.
    RemountBpffs,
    /// The VIPs are removed.
    DeleteVips,
    /// The link of the VIPs is set down.
    DownVipLink,
    /// The link of the VIPs has another name for a moment.
    RenameVipLink,
    /// A pod's link has another name for a moment.
    RenamePodLink,
    /// A pod's link is moved to another network namespace and back.
    MovePodLink,
    /// A link is created and deleted.
    PassingLink,
    /// conntrack entries of other connections are deleted.
    ConntrackOfOthers,
    /// kube-proxy recreates its rules.
    KubeProxyAgain,
    /// `iptables -F` of each table except nat.
    FlushIptables,
    /// The sets are emptied.
    FlushSets,
    /// All sets are destroyed that can be destroyed.
    DestroySets,
    /// The files in the run directory are made unreadable, or removed.
    RunDirectory,
}

/// All kinds of interference.
pub const ALL: [Interference; 20] = [
    Interference::FlushRuleset,
    Interference::DeleteTables,
    Interference::DeleteClsact,
    Interference::DetachTcx,
    Interference::DetachSockets,
    Interference::DeleteRoutes,
    Interference::UnpinMaps,
    Interference::RemountBpffs,
    Interference::DeleteVips,
    Interference::DownVipLink,
    Interference::RenameVipLink,
    Interference::RenamePodLink,
    Interference::MovePodLink,
    Interference::PassingLink,
    Interference::ConntrackOfOthers,
    Interference::KubeProxyAgain,
    Interference::FlushIptables,
    Interference::FlushSets,
    Interference::DestroySets,
    Interference::RunDirectory,
];

impl Interference {
    /// Interferes. It is no error if there is nothing to remove or change.
    ///
    /// # Errors
    /// Returns an error if an object that is removed for a moment cannot be restored.
    pub fn happen(self, node: &Node, kube_proxy: KubeProxy) -> Result<()> {
        let pins = node.agent_bpffs();
        let victim = &node.pods.last().context("a pod")?.host_link;
        match self {
            Self::FlushRuleset => {
                attempt(node, "nft flush ruleset");
                return kube_proxy.install_without_masquerade(&node.netns);
            }
            Self::DeleteTables => {
                for table in ["proxy-agent", "proxy-agent_services"] {
                    attempt(node, &format!("nft delete table ip {table}"));
                    attempt(node, &format!("nft delete table ip6 {table}"));
                }
            }
            Self::DeleteClsact => {
                for pod in &node.pods {
                    attempt(node, &format!("tc qdisc del dev {} clsact", pod.host_link));
                }
            }
            Self::DetachTcx => {
                for directory in directories(&pins) {
                    if !directory.ends_with("sockets") {
                        remove_files(&directory);
                    }
                }
            }
            Self::DetachSockets => remove_files(&pins.join("sockets")),
            Self::DeleteRoutes => {
                for family in Family::ALL {
                    let (ip, len) = (family.cluster_ip(), family.host_prefix());
                    attempt(node, &format!("ip route del local {ip}/{len} table local"));
                }
            }
            Self::UnpinMaps => remove_files(&pins),
            Self::RemountBpffs => return remount(&node.bpffs()),
            Self::DeleteVips => {
                for family in Family::ALL {
                    let (vip, len) = (family.vip(), family.host_prefix());
                    attempt(node, &format!("ip address del {vip}/{len} dev {VIP_LINK}"));
                }
            }
            Self::DownVipLink => attempt(node, &format!("ip link set {VIP_LINK} down")),
            Self::RenameVipLink => rename(node, VIP_LINK),
            Self::RenamePodLink => {
                let _alone = away();
                rename(node, victim);
            }
            Self::MovePodLink => {
                let _alone = away();
                let (here, there) = (node.netns.name(), node.uplink.name());
                attempt(node, &format!("ip link set {victim} netns {there}"));
                sleep(AWAY);
                let back = format!("ip link set {victim} netns {here}");
                let _ = node.uplink.exec(&back);
                attempt(node, &format!("ip link set {victim} up"));
            }
            Self::PassingLink => {
                attempt(node, "ip link add passing type veth peer name by");
                sleep(AWAY);
                attempt(node, "ip link del passing");
            }
            Self::ConntrackOfOthers => attempt(node, "conntrack -D -s 203.0.113.1"),
            Self::KubeProxyAgain => return kube_proxy.install_without_masquerade(&node.netns),
            Self::FlushIptables => {
                for flavour in ["nft", "legacy"] {
                    for table in ["raw", "mangle", "filter"] {
                        attempt(node, &format!("iptables-{flavour} -w -t {table} -F"));
                        attempt(node, &format!("ip6tables-{flavour} -w -t {table} -F"));
                    }
                }
            }
            Self::FlushSets => attempt(node, "ipset flush"),
            Self::DestroySets => attempt(node, "ipset destroy"),
            Self::RunDirectory => {
                let state = node.run_dir().join("state.json");
                let no_rights = std::os::unix::fs::PermissionsExt::from_mode(0o000);
                let _ = fs::set_permissions(&state, no_rights);
                let _ = fs::remove_file(&state);
            }
        }
        Ok(())
    }
}

/// Returns a lock that is held while a pod's link is in another namespace or has another name: two such changes at once
/// would lose the link for good.
fn away() -> MutexGuard<'static, ()> {
    static POD_LINK: Mutex<()> = Mutex::new(());
    POD_LINK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a command that may find nothing to do.
fn attempt(node: &Node, line: &str) {
    let _ = node.netns.exec(line);
}

fn rename(node: &Node, link: &str) {
    // The temporary name depends on the link, because two links may be renamed at once.
    let other = format!("{link}-renamed");
    attempt(node, &format!("ip link set {link} name {other}"));
    sleep(AWAY);
    attempt(node, &format!("ip link set {other} name {link}"));
    // On a slow machine the agent may have created another link of that name by now.
    attempt(node, &format!("ip link del {other}"));
}

fn directories(above: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(above).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.is_dir()).collect()
}

fn remove_files(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
}

/// Mounts another file system over the old one; processes keep the files that they have open on the old one.
fn remount(bpffs: &Path) -> Result<()> {
    cmd::run(Command::new("umount").arg("--lazy").arg(bpffs), "")?;
    sleep(AWAY);
    cmd::run(
        Command::new("mount").args(["-t", "bpf", "bpf"]).arg(bpffs),
        "",
    )
    .map(drop)
}
