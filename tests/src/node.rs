// SPDX-License-Identifier: Apache-2.0

//! A Kubernetes node: its network namespace in the state that kubelet and a CNI plugin set up, an uplink, and pods that
//! are connected by a veth pair each (routed, like Calico) or to a bridge (like the bridge plugin).

use std::fmt::{self, Write as _};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::setting::Setting;
use crate::{Family, cmd, leftovers};

/// The way in which pods are connected to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// A routed veth pair for each pod
    Veth,
    /// Ports of the bridge `cni0`
    Bridge,
    /// Ports of the bridge `cni0`, with bridged packets passing iptables
    BridgeNetfilter,
}

impl Topology {
    /// All topologies.
    pub const ALL: [Self; 3] = [Self::Veth, Self::Bridge, Self::BridgeNetfilter];
}

/// A pod in its network namespace; its link is `eth0`.
#[derive(Debug)]
pub struct Pod {
    /// Its network namespace.
    pub netns: Netns,
    /// The node's end of its veth pair.
    pub host_link: String,
    /// Its IPv4 address.
    pub ipv4: IpAddr,
    /// Its IPv6 address.
    pub ipv6: IpAddr,
}

impl Pod {
    /// Returns its address in a family.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }
}

/// The maximum number of logs that are shown, the most recent ones.
const SHOWN: usize = 12;

/// The log of a process, shared with the node so that it can be shown when a test fails.
pub type SharedLog = Arc<Mutex<String>>;

/// Returns the address of the node's uplink, `eth0`.
#[must_use]
pub const fn uplink_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 168, 100, 10)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 0x10)),
    }
}

/// Returns the address of the node's default gateway, in [`Node::uplink`].
#[must_use]
pub const fn gateway_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 168, 100, 1)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 1)),
    }
}

/// Returns the address at which an API server behind the uplink listens, if a test starts one.
#[must_use]
pub const fn api_server(family: Family) -> SocketAddr {
    SocketAddr::new(gateway_address(family), API_PORT)
}

/// The port of API servers behind the uplink, which differs from the proxy's.
pub const API_PORT: u16 = 6443;

/// The flag that makes the proxy's own connections to [`api_server`] of both families untracked.
pub const UPSTREAM: &str = "--proxy-upstream=192.168.100.1:6443,[fd00:100::1]:6443";

/// A node with its pods. Everything is removed when this is dropped.
#[derive(Debug)]
pub struct Node {
    /// The pods, in the order in which they were added.
    pub pods: Vec<Pod>,
    /// The node's own network namespace.
    pub netns: Netns,
    /// The host at the other end of the node's uplink, see [`gateway_address`].
    pub uplink: Netns,
    /// `<pid>-<n>`
    id: String,
    dir: PathBuf,
    logs: Mutex<Vec<(String, SharedLog)>>,
}

impl Node {
    /// Creates a node without pods: with an uplink and a default route in both families, with forwarding enabled, and
    /// with its own bpffs at [`Node::bpffs`].
    ///
    /// # Errors
    /// Returns an error if a namespace, link or mount cannot be created, for example because the user is not root.
    pub fn new() -> Result<Self> {
        let id = leftovers::unique_id()?;
        let dir = PathBuf::from(leftovers::STATE_DIR).join(&id);
        let netns = Netns::new(&format!("pa-{id}-node"))?;
        let uplink = Netns::new(&format!("pa-{id}-up"))?;
        let node = Self {
            pods: Vec::new(),
            netns,
            uplink,
            id,
            dir,
            logs: Mutex::default(),
        };
        node.mount_bpffs()?;
        node.set_up()?;
        Ok(node)
    }

    /// Creates a node with `pods` pods that are connected by `topology`.
    ///
    /// # Errors
    /// Returns the same errors as [`Node::new`].
    pub fn with_pods(topology: Topology, pods: usize) -> Result<Self> {
        let mut node = Self::new()?;
        for _ in 0..pods {
            node.add_pod(topology)?;
        }
        Ok(node)
    }

    /// Runs the body of a test: creates a node with two pods and runs `body` on it. If `body` fails, this prints the
    /// logs of the node's processes and the commands that open shells in its namespaces.
    ///
    /// # Panics
    /// Panics if `body` fails: the test has failed.
    pub fn test(topology: Topology, body: impl FnOnce(&mut Self) -> Result<()>) {
        let mut node = Self::with_pods(topology, 2).expect("making a node and two pods");
        if let Err(error) = body(&mut node) {
            // The check runs while the node exists, because its drop prints the state of the node.
            panic!("{error:#}");
        }
    }

    /// Returns the mount point of the node's own bpffs.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// Returns a directory for files of the node's processes, which is removed with the node.
    #[must_use]
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// Creates a cgroup for processes of the node.
    ///
    /// # Errors
    /// Returns an error if there is no cgroup2 file system, or if the name is in use.
    pub fn cgroup(&self, name: &str) -> Result<Cgroup> {
        Cgroup::new(&format!("pa-{}-{name}", self.id))
    }

    /// Adds a log that is shown when the test fails.
    ///
    /// # Panics
    /// Panics if another thread panicked while it added a log.
    pub fn add_log(&self, name: &str, log: SharedLog) {
        self.logs
            .lock()
            .expect("no panic while held")
            .push((name.to_owned(), log));
    }

    /// Adds the VIPs of both families to a link, as an agent would.
    ///
    /// # Errors
    /// Returns an error if the link does not exist or already has one of them.
    pub fn add_vips(&self, link: &str) -> Result<()> {
        let mut lines = String::new();
        for family in Family::ALL {
            let (vip, len) = (family.vip(), family.host_prefix());
            writeln!(lines, "address add {vip}/{len} dev {link}{}", nodad(family))?;
        }
        self.netns.ip(&lines)
    }

    /// Returns the logs of the node's processes.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let Ok(logs) = self.logs.lock() else {
            return text;
        };
        let dropped = logs.len().saturating_sub(SHOWN);
        if dropped > 0 {
            let _ = writeln!(text, "---- {dropped} older logs are not shown");
        }
        for (name, log) in &logs[dropped..] {
            let log = log.lock().map(|log| log.clone()).unwrap_or_default();
            let _ = writeln!(text, "---- {name}\n{}", log.trim_end());
        }
        text
    }

    /// Adds a pod.
    ///
    /// # Errors
    /// Returns an error if a namespace or link cannot be created.
    pub fn add_pod(&mut self, topology: Topology) -> Result<&Pod> {
        let n = self.pods.len();
        let netns = Netns::new(&format!("pa-{}-pod{n}", self.id))?;
        let host_link = format!("pod{n}");
        // In the routed topology every pod has /32 and /128 addresses; behind the bridge all pods share a subnet.
        let subnet = u8::from(topology != Topology::Veth);
        let host = u8::try_from(n + 10)?;
        let pod = Pod {
            ipv4: IpAddr::from([10, 244, subnet, host]),
            ipv6: IpAddr::from([0xfd00, 0x244, 0, u16::from(subnet), 0, 0, 0, host.into()]),
            netns,
            host_link,
        };
        let (link, v4, v6) = (&pod.host_link, pod.ipv4, pod.ipv6);
        let to_node = format!(
            "link add {link} type veth peer name eth0 netns {}\n",
            pod.netns.name()
        );
        if topology == Topology::Veth {
            self.netns.ip(&format!(
                "{to_node}link set {link} up\n\
                 address add fe80::1/64 dev {link} nodad\n\
                 route add {v4}/32 dev {link}\n\
                 route add {v6}/128 dev {link}\n"
            ))?;
            self.netns
                .sysctl(&format!("net/ipv4/conf/{link}/proxy_arp"), "1")?;
            // Calico sets this, too: by default the kernel delays proxy ARP replies by up to 0.8 s, and drops some.
            self.netns
                .sysctl(&format!("net/ipv4/neigh/{link}/proxy_delay"), "0")?;
            pod.netns.ip(&format!(
                "link set eth0 up\n\
                 address add {v4}/32 dev eth0\n\
                 address add {v6}/128 dev eth0 nodad\n\
                 route add 169.254.1.1 dev eth0 scope link\n\
                 route add default via 169.254.1.1 dev eth0\n\
                 route add default via fe80::1 dev eth0\n"
            ))?;
        } else {
            self.ensure_bridge()?;
            self.netns
                .ip(&format!("{to_node}link set {link} master cni0 up\n"))?;
            self.netns
                .exec(&format!("bridge link set dev {link} hairpin on"))?;
            pod.netns.ip(&format!(
                "link set eth0 up\n\
                 address add {v4}/24 dev eth0\n\
                 address add {v6}/64 dev eth0 nodad\n\
                 route add default via 10.244.1.1 dev eth0\n\
                 route add default via fd00:244:0:1::1 dev eth0\n"
            ))?;
        }
        if subnet == 1 {
            self.set_bridge_netfilter(topology == Topology::BridgeNetfilter)?;
        }
        self.pods.push(pod);
        self.pods.last().context("a pod was just added")
    }

    /// Removes the pod that was added last.
    ///
    /// # Errors
    /// Returns an error if there is none, or if its link cannot be removed.
    pub fn remove_pod(&mut self) -> Result<()> {
        let pod = self.pods.pop().context("there is no pod")?;
        // The link would be removed with the namespace, but later, and the next pod needs its name.
        self.netns.exec(&format!("ip link del {}", pod.host_link))?;
        Ok(())
    }

    /// Sets, for this node, whether bridged packets pass iptables.
    ///
    /// # Errors
    /// Returns an error if the kernel has no `br_netfilter`.
    pub fn set_bridge_netfilter(&self, on: bool) -> Result<()> {
        let value = if on { "1" } else { "0" };
        for key in ["iptables", "ip6tables"] {
            self.netns
                .sysctl(&format!("net/bridge/bridge-nf-call-{key}"), value)
                .context("br_netfilter is needed: modprobe br_netfilter")?;
        }
        Ok(())
    }

    /// Returns true if this kernel has links of the kind `dummy`.
    ///
    /// # Errors
    /// Returns an error if ip(8) cannot be run, or if the link cannot be removed again.
    pub fn has_dummy_links(&self) -> Result<bool> {
        let name = "dummy-probe";
        let mut add = self.netns.command("ip");
        let output = cmd::output(add.args(["link", "add", name, "type", "dummy"]), "")?;
        if output.status.success() {
            self.netns.exec(&format!("ip link del {name}"))?;
        }
        Ok(output.status.success())
    }

    fn mount_bpffs(&self) -> Result<()> {
        let target = self.bpffs();
        fs::create_dir_all(&target).with_context(|| format!("creating {}", target.display()))?;
        cmd::run(
            std::process::Command::new("mount")
                .args(["-t", "bpf", "bpf"])
                .arg(&target),
            "",
        )
        .map(drop)
    }

    fn set_up(&self) -> Result<()> {
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.netns.sysctl(key, "1")?;
        }
        Setting::current().apply(&self.netns)?;
        // The entries of connections that ended with RST must remain long enough to be counted.
        self.netns
            .sysctl("net/netfilter/nf_conntrack_tcp_timeout_close", "120")?;
        let up = self.uplink.name();
        self.netns.ip(&format!(
            "link add eth0 type veth peer name node netns {up}\n\
             link set eth0 up\n\
             address add 192.168.100.10/24 dev eth0\n\
             address add fd00:100::10/64 dev eth0 nodad\n"
        ))?;
        self.uplink.ip("link set node up\n\
             address add 192.168.100.1/24 dev node\n\
             address add fd00:100::1/64 dev node nodad\n\
             route add 10.244.0.0/16 via 192.168.100.10\n\
             route add fd00:244::/56 via fd00:100::10\n")?;
        self.netns
            .ip("route add default via 192.168.100.1 dev eth0\n\
             route add default via fd00:100::1 dev eth0\n")
    }

    fn ensure_bridge(&self) -> Result<()> {
        if self.netns.ifindex("cni0").is_ok() {
            return Ok(());
        }
        // The bridge has its own address, as the bridge plugin sets it. Otherwise it has the address of one of its
        // ports, and the pods' neighbour entries for it become wrong when that port is removed.
        self.netns
            .ip("link add cni0 address 0a:58:0a:f4:01:01 type bridge\n\
             link set cni0 up\n\
             address add 10.244.1.1/24 dev cni0\n\
             address add fd00:244:0:1::1/64 dev cni0 nodad\n")
    }
}

/// Returns the option of `ip address add` that skips duplicate address detection.
fn nodad(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", Postmortem(self));
            if leftovers::keep_failed() {
                self.netns.keep();
                self.uplink.keep();
                self.pods.iter_mut().for_each(|pod| pod.netns.keep());
                return;
            }
        }
        // Pins keep programs attached to links; without links the kernel has fewer objects to release.
        leftovers::remove_state(&self.dir);
    }
}

/// Prints the state of the node that helps to find out why a test failed.
struct Postmortem<'a>(&'a Node);

impl fmt::Display for Postmortem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.0;
        write!(f, "{}", node.logs())?;
        writeln!(f, "---- to look into the namespaces:")?;
        writeln!(f, "{}", node.netns.nsenter())?;
        for pod in &node.pods {
            writeln!(f, "{}", pod.netns.nsenter())?;
        }
        if !leftovers::keep_failed() {
            writeln!(f, "(they stay when PROXY_AGENT_TEST_KEEP=1 is set)")?;
        }
        Ok(())
    }
}
