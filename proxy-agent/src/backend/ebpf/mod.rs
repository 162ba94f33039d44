// SPDX-License-Identifier: Apache-2.0

//! The `ebpf` backend: native rules of `nf_tables` decide connections to the VIPs ([`crate::backend::decisions`]); a TC program
//! decides those to Services at their SYN, and afterwards the rules identify them by the proxy's socket.
//!
//! Pinned maps, the pinned links of programs, routes and tables outlive the agent.

mod apply;
mod attach;
mod attachment;
mod debug_lines;
mod desired;
mod drain;
mod filters;
mod hook;
mod layout;
mod listeners;
mod load;
mod maps;
pub mod names;
mod observe;
pub mod order;
mod own;
mod pace;
mod pins;
mod plan;
mod probe;
mod qdisc;
mod routes;
pub mod services;
mod sockets;
pub mod statistics;
mod teardown;
mod verifier;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use rtnetlink::Handle;
use tracing::{info, warn};

pub use attachment::{AttachMode, filter_handle};
pub use drain::is_over as is_drained;
pub use hook::{Hook, SocketHook};
pub use layout::others as other_layouts;
pub use load::{Ids, LoadError, Programs};
pub use maps::{Error as MapError, earlier_services, pinned_vips, stop_deciding};
pub use plan::attachable;
pub use qdisc::notes_dir;
pub use routes::{OUTSIDE, is_own_address, source_towards};
pub use teardown::{Drained, Tables};
pub use verifier::{Verified, measure as verify_programs};

use desired::Desired;
use observe::Observed;
use pace::Pace;
use plan::Op;
use proxy_kernel::{bpffs, cgroup};
use proxy_netlink::netfilter;

use crate::backend::decisions::of_proxy::Known;
use crate::backend::live::Live;
use crate::backend::{decisions, tables};
use crate::config::{Config, Service};
use crate::features;
use crate::guard;
use crate::link::LinkTable;
use crate::reconcile::{Mode, Part, Report, carry_out};

/// The name of this part in reports and logs.
pub const PART: Part = Part::Ebpf;

/// The backend with its loaded programs; without them in a dry run.
pub struct Ebpf {
    config: Config,
    attach_mode: AttachMode,
    programs: Option<Programs>,
    /// In a dry run: ids of the programs of the running agent.
    known: Ids,
    /// The root of the cgroup2 hierarchy, if it is mounted and there are Services.
    cgroup: Option<PathBuf>,
    /// Attachments of the other mode are searched for: at first, because an earlier agent may have left them, and as long as
    /// filters replace tcx programs temporarily.
    look_for_leftovers: bool,
    /// No pass has been made yet.
    is_first: bool,
    /// For tables that are installed.
    of_proxy: Known,
    /// Pins of other layouts, until their connections are taken over.
    others: Vec<PathBuf>,
    /// The links of the last pass, by ifindex.
    seen: BTreeSet<u32>,
    /// The guard's classification of the links.
    links: guard::Links,
    /// The XDP programs of the guard.
    front: xdp::Front,
    /// Services being drained.
    drain: drain::Drain,
    /// Services that are ignored, because they are addresses of the node.
    left: BTreeSet<SocketAddr>,
    /// Age of links: on new ones the attachment is delayed.
    ages: attach::LinkAges,
}

/// Failure of an operation of the backend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The programs could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// nf_tables could not be read or written.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// The directory of pins could not be read or changed.
    #[error(transparent)]
    Bpffs(#[from] bpffs::Error),
    /// nf_tables rejects the rules.
    #[error(
        "the kernel rejects the rules that belong to the programs; it needs CONFIG_NFT_SOCKET \
         (`modprobe nft_socket`; on some distributions it is in a package of extra modules)"
    )]
    Rules {
        /// The kernel's error.
        #[source]
        source: netfilter::Error,
    },
    /// A feature probe failed with a transient error, and its result is cached.
    #[error(
        "the cached kernel features are wrong, because a probe failed with a transient error; the \
         agent has to be restarted"
    )]
    StaleFeatures,
    /// The trial could not be run.
    #[error("cannot try to attach a program")]
    Trial(#[source] io::Error),
    /// A program could not be attached or detached.
    #[error(transparent)]
    Attach(#[from] attachment::AttachError),
    /// A map could not be read or written.
    #[error(transparent)]
    Map(#[from] maps::Error),
    /// A route could not be read or changed.
    #[error("the kernel refused the route")]
    Route(#[source] rtnetlink::Error),
    /// The proxy's listeners could not be stored for the socket lookup.
    #[error(transparent)]
    Listeners(#[from] listeners::Error),
    /// Connections could not be listed or reset.
    #[error(transparent)]
    Drain(#[from] drain::Error),
}

impl Ebpf {
    /// Checks the requirements and loads the programs, unless it is a dry run. Nothing is attached; attachments of an earlier
    /// agent are kept.
    ///
    /// # Errors
    ///
    /// If the kernel lacks something; the error names it and the remedy.
    pub fn open(config: Config, mode: Mode) -> Result<Self, Error> {
        bpffs::check(&config.bpffs)?;
        netfilter::Socket::open()?;
        if mode == Mode::Apply && !features::are_enough() && features::are_stale() {
            return Err(Error::StaleFeatures);
        }
        let attach_mode = AttachMode::choose(config.tc_attach)?;
        let cgroup = (!config.services.is_empty()).then(cgroup::root).flatten();
        if cgroup.is_none() && !config.services.is_empty() {
            warn!(
                part = PART.name(),
                "the root of the host's cgroup2 hierarchy is not mounted here: connections of processes on \
                 the host to a Service go through kube-proxy, those of pods end on the proxy (in Kubernetes \
                 mount /sys/fs/cgroup as a hostPath volume)"
            );
        }
        let programs = match mode {
            Mode::Apply => Some(Programs::load(&config, cgroup.as_deref())?),
            Mode::DryRun => None,
        };
        let others = layout::earlier(&config)?;
        let given_up = programs.as_ref().map(Programs::given_up);
        let drain = drain::Drain::new(given_up.unwrap_or_default(), config.drain_timeout);
        Ok(Self {
            attach_mode,
            programs,
            cgroup,
            others,
            drain,
            ..Self::without_programs(config)
        })
    }

    /// A backend that has loaded nothing.
    fn without_programs(config: Config) -> Self {
        Self {
            attach_mode: AttachMode::Tcx,
            programs: None,
            known: Ids::new(),
            cgroup: None,
            look_for_leftovers: true,
            is_first: true,
            of_proxy: Known::default(),
            others: Vec::new(),
            seen: BTreeSet::new(),
            links: guard::Links::default(),
            front: xdp::Front::default(),
            drain: drain::Drain::new(&[], config.drain_timeout),
            left: BTreeSet::new(),
            ages: attach::LinkAges::default(),
            config,
        }
    }

    /// Tries what loading the programs does not verify. No effect in a dry run.
    ///
    /// # Errors
    ///
    /// If the kernel lacks something; the error names it and the remedy.
    pub fn probe(&mut self) -> Result<(), Error> {
        let Some(programs) = self.programs.as_mut() else {
            return Ok(());
        };
        probe::rules(&self.config)?;
        // Attachments of an earlier agent prove that it works.
        if !attach::any_pins(&self.config) {
            probe::attachment(programs, self.attach_mode).unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// For a dry run: assumes the programs that another agent has loaded. Without this call all programs count as missing.
    pub fn assume_programs(&mut self, known: Ids) {
        self.known = known;
    }

    /// Ids of the loaded programs.
    pub fn ids(&self) -> Ids {
        self.programs
            .as_ref()
            .map_or_else(|| self.known.clone(), Programs::ids)
    }

    /// Removes the counters of links that are not in `table` any more.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn forget_counters(&self, table: &LinkTable) -> Result<(), Error> {
        Ok(statistics::forget_gone(&self.config, table)?)
    }

    /// The attachment mode on this kernel.
    pub fn attach_mode(&self) -> AttachMode {
        self.attach_mode
    }

    /// One pass, for the links in `table`, which must be fresh, and the guard's classification of them.
    pub async fn reconcile(
        &mut self,
        handle: &Handle,
        (table, links): (&LinkTable, &guard::Links),
        mode: Mode,
        report: &mut Report,
    ) {
        let failures = report.failures.len();
        self.links.clone_from(links);
        if mode == Mode::Apply {
            self.ignore_own_addresses(table, report);
            self.continue_draining(report);
            self.store_listeners(report);
        }
        let desired = self.desired(table, handle, mode, report).await;
        let observed = Observed::read(
            &self.config,
            &desired,
            handle,
            self.look_for_leftovers,
            report,
        )
        .await;
        let waiting = plan::waiting(&desired, &observed);
        let ops = plan::plan(&desired, &observed, &waiting);
        let routine = ops.iter().filter(|op| {
            op.follows_links(&self.seen, &desired.links) || op.replaces_filter(&desired)
        });
        let routine: Vec<_> = routine.map(Op::to_string).collect();
        carry_out(PART, mode, ops, report, async |op| {
            self.apply(op, handle).await
        })
        .await;
        report.mark_routine(PART, &routine);
        self.seen = desired.links.into_keys().collect();
        if report.is_stopped() {
            return;
        }
        self.reconcile_xdp(table, mode, report);
        if report.failures.len() == failures {
            self.drain.former.clear();
            self.forget_ended(report);
            self.remove_others(handle, mode, report).await;
        }
        if mode == Mode::Apply {
            let is_tcx = self.attach_mode == AttachMode::Tcx;
            let unused = self.look_for_leftovers && is_tcx && waiting.is_empty();
            let tidied = qdisc::tidy(&self.config, table, unused, handle).await;
            report.attempt(PART, "remove unused clsact qdiscs", tidied);
            self.is_first = false;
            self.look_for_leftovers = !waiting.is_empty();
            if self.look_for_leftovers {
                report.look_again_after(pace::BETWEEN);
            }
        }
    }

    /// Whether the agent has to store the proxy's listeners for the programs.
    pub fn follows_listeners(&self) -> bool {
        let programs = self.programs.as_ref();
        programs.is_some_and(Programs::stores_listeners)
    }

    /// Whether the agent has to store the proxy's listeners, and one of them has changed since the last pass.
    pub fn have_listeners_changed(&self) -> bool {
        let programs = self.programs.as_ref();
        programs.is_some_and(|programs| programs.have_listeners_changed(&self.proxy()))
    }

    fn store_listeners(&mut self, report: &mut Report) {
        let vips = self.proxy();
        let Some(programs) = self.programs.as_mut() else {
            return;
        };
        let stored = programs.store_listeners(&vips);
        report.attempt(PART, "store the proxy's listeners", stored);
    }

    /// The endpoints on which the proxy should listen for Services.
    fn proxy(&self) -> Vec<SocketAddr> {
        let services = self.config.services.iter();
        let vips: BTreeSet<_> = services.map(|service| service.vip).collect();
        vips.into_iter().collect()
    }

    /// Checks whether drained connections have ended, and resets them after the deadline.
    fn continue_draining(&mut self, report: &mut Report) {
        let ended = self.drain.advance();
        let ended = report.attempt(PART, "drain connections to Services", ended);
        for service in ended.unwrap_or_default() {
            info!(
                part = PART.name(),
                "no connection to {} is open", service.cluster_ip
            );
            self.drain.ended.push(service);
        }
        if self.drain.is_active() {
            report.look_again_after(drain::LOOK);
        }
    }

    /// Removes drained Services from the maps after everything else of them is gone: as long as a Service is in the pinned map, an
    /// agent that starts after a kill, or a clean-up, finds its route.
    fn forget_ended(&mut self, report: &mut Report) {
        let Some(programs) = self.programs.as_mut() else {
            return;
        };
        for service in std::mem::take(&mut self.drain.ended) {
            let forgotten = programs.forget_service(&service);
            report.attempt(PART, "remove a drained Service", forgotten);
        }
    }

    async fn desired(
        &mut self,
        table: &LinkTable,
        handle: &Handle,
        run: Mode,
        report: &mut Report,
    ) -> Desired {
        let wanted = self.wanted(table);
        let services: Vec<_> = wanted
            .iter()
            .chain(self.drain.services())
            .copied()
            .collect();
        let own: BTreeSet<_> = table.services.keys().copied().collect();
        let ends = !services.is_empty();
        let (maps, hooks, mut sockets) = match &self.programs {
            Some(programs) => (
                loaded(&programs.maps()),
                loaded(programs.hooks()),
                loaded(programs.sockets()),
            ),
            None => (
                // Before there is an agent, loading pins them.
                maps::PINNED
                    .into_iter()
                    .filter(|_| !self.known.is_empty())
                    .map(|name| (name, None))
                    .collect(),
                Hook::ALL
                    .into_iter()
                    .map(|hook| (hook, self.known.get(hook.program()).copied()))
                    .collect(),
                SocketHook::ALL
                    .into_iter()
                    .filter(|hook| !self.known_to_be_missing(*hook))
                    .map(|hook| (hook, self.known.get(hook.program()).copied()))
                    .collect(),
            ),
        };
        let mut hooks: BTreeMap<_, _> = hooks;
        if !ends {
            hooks.remove(&Hook::Egress);
            sockets.clear();
        }
        if wanted.is_empty() || self.cgroup.is_none() {
            // Without the root cgroup nothing can be attached to it; `open` has logged that.
            sockets.retain(|hook, _| !hook.is_of_cgroup());
        }
        let mut links = attachable(table);
        if self.attach_mode == AttachMode::Clsact {
            let wait = self.ages.defer_new(&mut links, &self.links.guarded);
            if let Some(wait) = wait {
                report.look_again_after(wait);
            }
        }
        Desired {
            // Replaces the guard of another backend.
            tables: [
                decisions::tables(&self.config, &Live::default()),
                services::tables(self.config.instance, &services, &own),
                tables::empty_guard(self.config.instance).to_vec(),
            ]
            .concat(),
            links,
            mode: self.attach_mode,
            pace: Pace::of(&self.config, self.attach_mode, self.is_first, run),
            maps,
            hooks,
            sockets,
            routes: self.routes(&services, &own, handle, report).await,
            former_routes: self.drain.former.clone(),
            guard: plan::guard_links(&self.links, table),
            guarded: self.links.guarded.clone(),
        }
    }

    /// The addresses that should be local, with the source address of packets to each.
    async fn routes(
        &self,
        services: &[Service],
        own: &BTreeSet<IpAddr>,
        handle: &Handle,
        report: &mut Report,
    ) -> BTreeMap<IpAddr, Option<IpAddr>> {
        let addresses: Vec<_> = services
            .iter()
            .map(|service| service.cluster_ip.ip())
            .filter(|ip| !own.contains(ip))
            .collect();
        if addresses.is_empty() {
            return BTreeMap::new();
        }
        let not = [self.config.vips.as_slice(), addresses.as_slice()].concat();
        let sources = routes::sources(handle, &addresses, &not).await;
        let sources = report
            .attempt(PART, "look up the node's own address", sources)
            .unwrap_or_default();
        let source = |ip: &IpAddr| sources.get(&ip.is_ipv6()).copied();
        addresses.iter().map(|ip| (*ip, source(ip))).collect()
    }

    /// Whether the running agent handles Services but its kernel does not support this program.
    fn known_to_be_missing(&self, hook: SocketHook) -> bool {
        let ends = self.known.contains_key(SocketHook::Steer.program());
        ends && hook.is_optional() && !self.known.contains_key(hook.program())
    }

    /// Sets what is known of the proxy's own connections, for tables that are installed.
    pub fn place(&mut self, known: Known) {
        self.of_proxy = known;
    }

    /// Forwards the programs' debug lines.
    pub fn forward_logs(&mut self) {
        if let Some(programs) = self.programs.as_mut() {
            programs.forward_logs();
        }
    }
}

/// Loaded programs as desired ones.
fn loaded<H: Ord + Copy>(programs: &BTreeMap<H, u32>) -> BTreeMap<H, Option<u32>> {
    programs
        .iter()
        .map(|(hook, id)| (*hook, Some(*id)))
        .collect()
}
