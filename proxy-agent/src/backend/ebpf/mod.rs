// SPDX-License-Identifier: Apache-2.0

//! The `ebpf` backend: connections to the VIPs are decided by native rules of `nf_tables`
//! ([`crate::backend::decisions`]); those to Services by a TC program at their SYN, and from then on the
//! proxy's socket is the state that the rules ask for.
//!
//! Everything it keeps in the kernel lives on without the agent: pinned maps, the links that hold the
//! programs, routes, and tables.

mod apply;
mod attach;
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
mod plan;
mod probe;
mod qdisc;
mod routes;
pub mod services;
mod settings;
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

pub use attach::{AttachMode, filter_handle};
pub use drain::is_over as is_drained;
pub use hook::{Hook, SocketHook};
pub use layout::{VERSION as LAYOUT, others as other_layouts};
pub use load::{Ids, LoadError, Programs};
pub use maps::{Error as MapError, pinned_vips};
pub use plan::attachable;
pub use qdisc::notes_dir;
pub use routes::{OUTSIDE, is_own_address, source_towards};
pub use settings::Settings;
pub use teardown::{Drained, Tables};
pub use verifier::{Verified, measure as verify_programs};

use observe::Observed;
use pace::Pace;
use plan::{Desired, Op};

use crate::backend::live::Live;
use crate::backend::{decisions, tables};
use crate::config::Service;
use crate::guard;
use crate::kernel::{bpffs, cgroup, features};
use crate::link::LinkTable;
use crate::netfilter;
use crate::reconcile::{Mode, Report, carry_out, failed, part};

/// The name of this part in reports and logs.
pub const PART: &str = part::EBPF;

/// The backend with its programs loaded; in a dry run without.
pub struct Ebpf {
    settings: Settings,
    attach_mode: AttachMode,
    programs: Option<Programs>,
    /// In a dry run: the programs of the agent that runs.
    known: Ids,
    /// The root of the cgroup2 hierarchy, if there is one and services are translated.
    cgroup: Option<PathBuf>,
    /// What is attached in the other way is looked for: at first, since an earlier agent may have left it, and as long as
    /// filters stand in for tcx programs.
    look_for_leftovers: bool,
    /// No pass was made yet.
    is_first: bool,
    /// Pins of other layouts, until this one has taken over from them.
    others: Vec<Settings>,
    /// The links that the last pass found, by ifindex.
    seen: BTreeSet<u32>,
    /// What they are to the guard.
    links: guard::Links,
    /// The XDP programs on them.
    front: xdp::Front,
    /// Services that are given up, until their connections have ended.
    drain: drain::Drain,
    /// Services that are left alone, because they are addresses of the node.
    left: BTreeSet<SocketAddr>,
    /// When links were first seen, where others may have to put a qdisc on them before the agent does.
    young: attach::Young,
}

/// Something that could not be done.
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
    /// nf_tables does not take the rules.
    #[error(
        "the kernel does not take the rules beside the programs; it needs CONFIG_NFT_SOCKET \
         (`modprobe nft_socket`; on some distributions it is in a package of extra modules)"
    )]
    Rules {
        /// The kernel's answer.
        #[source]
        source: netfilter::Error,
    },
    /// A question about the kernel failed for a passing reason, and its answer stays.
    #[error(
        "what this kernel can do was misjudged, because a call failed for a passing reason; the \
         agent has to be started again"
    )]
    Misjudged,
    /// The trial itself failed.
    #[error("cannot try to attach a program")]
    Trial(#[source] io::Error),
    /// A program could not be attached or detached.
    #[error(transparent)]
    Attach(#[from] attach::AttachError),
    /// A map could not be read or written.
    #[error(transparent)]
    Map(#[from] maps::Error),
    /// A route could not be read or changed.
    #[error("the kernel refused the route")]
    Route(#[source] rtnetlink::Error),
    /// The proxy's listeners could not be kept for the socket look-up.
    #[error(transparent)]
    Listeners(#[from] listeners::Error),
    /// Connections could not be listed or reset.
    #[error(transparent)]
    Drain(#[from] drain::Error),
}

impl Ebpf {
    /// Checks what the backend needs and loads the programs, unless it is a dry run. Nothing is
    /// attached yet; what an earlier agent attached stays as it is.
    ///
    /// # Errors
    ///
    /// If the kernel cannot do it: names what is missing and what to do.
    pub fn open(settings: Settings, mode: Mode) -> Result<Self, Error> {
        bpffs::check(&settings.bpffs)?;
        netfilter::Socket::open()?;
        if mode == Mode::Apply && !features::are_enough() && features::are_misjudged() {
            return Err(Error::Misjudged);
        }
        let attach_mode = AttachMode::choose(settings.tc_attach)?;
        let cgroup = (!settings.services.is_empty()).then(cgroup::root).flatten();
        if cgroup.is_none() && !settings.services.is_empty() {
            warn!(
                part = PART,
                "the root of the host's cgroup2 hierarchy is not mounted here: connections of processes on \
                 the host to a Service go kube-proxy's way, those of pods end on the proxy (in Kubernetes \
                 mount /sys/fs/cgroup as a hostPath volume)"
            );
        }
        let programs = match mode {
            Mode::Apply => Some(Programs::load(&settings, cgroup.as_deref())?),
            Mode::DryRun => None,
        };
        let others = settings.other_layouts()?;
        let given_up = programs.as_ref().map(Programs::given_up);
        let drain = drain::Drain::new(given_up.unwrap_or_default(), settings.drain_timeout);
        Ok(Self {
            drain,
            left: BTreeSet::new(),
            young: attach::Young::default(),
            attach_mode,
            cgroup,
            settings,
            programs,
            known: Ids::new(),
            look_for_leftovers: true,
            is_first: true,
            others,
            seen: BTreeSet::new(),
            links: guard::Links::default(),
            front: xdp::Front::default(),
        })
    }

    /// Tries what loading the programs does not show. Without effect in a dry run.
    ///
    /// # Errors
    ///
    /// If the kernel cannot do it: names what is missing and what to do.
    pub fn probe(&mut self) -> Result<(), Error> {
        let Some(programs) = self.programs.as_mut() else {
            return Ok(());
        };
        probe::rules(&self.settings)?;
        // What an earlier agent attached shows that it can be done.
        if !attach::any_pins(&self.settings) {
            probe::attachment(programs, self.attach_mode).unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// In a dry run: goes by the programs that another agent has loaded. Without, none is known, and
    /// all are found to be missing.
    pub fn go_by(&mut self, known: Ids) {
        self.known = known;
    }

    /// Ids of the loaded programs.
    pub fn ids(&self) -> Ids {
        self.programs
            .as_ref()
            .map_or_else(|| self.known.clone(), Programs::ids)
    }

    /// Removes what was counted of links in the past that are not in `table` any more.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn forget_counters(&self, table: &LinkTable) -> Result<(), Error> {
        Ok(statistics::forget_gone(&self.settings, table)?)
    }

    /// How programs are attached to links on this kernel.
    pub fn attach_mode(&self) -> AttachMode {
        self.attach_mode
    }

    /// Makes verdicts and programs as desired for the links in `table`, which must be fresh, and for what
    /// they are to the guard.
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
            self.leave_own(table, report);
            self.go_on_draining(report);
            self.keep_listeners(report);
        }
        let desired = self.desired(table, handle, mode, report).await;
        let observed = Observed::read(
            &self.settings,
            &desired,
            handle,
            self.look_for_leftovers,
            report,
        )
        .await;
        let waiting = pace::waiting(&desired, &observed);
        let ops = plan::plan(&desired, &observed, &waiting);
        let routine = ops
            .iter()
            .filter(|op| op.follows_links(&self.seen, &desired.links) || op.ends_a_wait(&desired));
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
            if let Err(error) = qdisc::tidy(&self.settings, table, unused, handle).await {
                failed(PART, "remove what is left of clsact", &error, report);
            }
            self.is_first = false;
            self.look_for_leftovers = !waiting.is_empty();
            if self.look_for_leftovers {
                report.look_again_after(pace::BETWEEN);
            }
        }
    }

    /// Whether the agent has to see to it that the programs know the proxy's listeners.
    pub fn follows_listeners(&self) -> bool {
        let programs = self.programs.as_ref();
        programs.is_some_and(Programs::keeps_listeners)
    }

    /// Whether the proxy listens with another socket than at the last pass, and it is for the agent to notice.
    pub fn have_listeners_changed(&self) -> bool {
        let programs = self.programs.as_ref();
        programs.is_some_and(|programs| programs.have_listeners_changed(&self.proxy()))
    }

    fn keep_listeners(&mut self, report: &mut Report) {
        let vips = self.proxy();
        let Some(programs) = self.programs.as_mut() else {
            return;
        };
        if let Err(error) = programs.keep_listeners(&vips) {
            failed(PART, "keep the proxy's listeners", &error, report);
        }
    }

    /// Where the proxy should listen for the sake of Services.
    fn proxy(&self) -> Vec<SocketAddr> {
        let services = self.settings.services.iter();
        let vips: BTreeSet<_> = services.map(|service| service.vip).collect();
        vips.into_iter().collect()
    }

    /// Looks whether connections to Services that were given up have ended, or their time is over.
    fn go_on_draining(&mut self, report: &mut Report) {
        match self.drain.go_on() {
            Ok(ended) => {
                for service in ended {
                    info!(
                        part = PART,
                        "no connection to {} is left", service.cluster_ip
                    );
                    self.drain.ended.push(service);
                }
            }
            Err(error) => failed(PART, "drain connections to Services", &error, report),
        }
        if self.drain.is_going_on() {
            report.look_again_after(drain::LOOK);
        }
    }

    /// Forgets Services whose connections have ended, and of which nothing is left: as long as the pinned map has a
    /// Service, an agent that starts after a kill, or a clean-up, finds its route.
    fn forget_ended(&mut self, report: &mut Report) {
        let Some(programs) = self.programs.as_mut() else {
            return;
        };
        for service in std::mem::take(&mut self.drain.ended) {
            if let Err(error) = programs.forget_service(&service) {
                failed(PART, "forget a Service", &error, report);
            }
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
            // Without the root cgroup nothing can be attached to it; `open` has said so.
            sockets.retain(|hook, _| !hook.is_of_cgroup());
        }
        let mut links = attachable(table);
        if self.attach_mode == AttachMode::Clsact {
            let wait = self.young.hold_back(&mut links, &self.links.guarded);
            if let Some(wait) = wait {
                report.look_again_after(wait);
            }
        }
        Desired {
            // The guard of another backend is not needed beside the programs.
            tables: [
                decisions::tables(&self.settings.decisions(), &Live::default()),
                services::tables(self.settings.instance, &services, &own),
                tables::empty_guard(self.settings.instance).to_vec(),
            ]
            .concat(),
            links,
            mode: self.attach_mode,
            pace: Pace::of(&self.settings, self.attach_mode, self.is_first, run),
            maps,
            hooks,
            sockets,
            routes: self.routes(&services, &own, handle, report).await,
            former_routes: self.drain.former.clone(),
            guard: plan::guard_links(&self.links, table),
            guarded: self.links.guarded.clone(),
        }
    }

    /// The addresses that should be local, each with the source of packets to it.
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
        let not = [self.settings.vips.as_slice(), addresses.as_slice()].concat();
        let sources = routes::sources(handle, &addresses, &not).await;
        let sources = sources.unwrap_or_else(|error| {
            failed(PART, "ask for the node's own address", &error, report);
            BTreeMap::new()
        });
        let source = |ip: &IpAddr| sources.get(&ip.is_ipv6()).copied();
        addresses.iter().map(|ip| (*ip, source(ip))).collect()
    }

    /// The agent that runs has Services end on the proxy, and its kernel does not have this program.
    fn known_to_be_missing(&self, hook: SocketHook) -> bool {
        let ends = self.known.contains_key(SocketHook::Steer.program());
        ends && hook.is_optional() && !self.known.contains_key(hook.program())
    }

    /// Passes the programs' debug lines on.
    pub fn forward_logs(&mut self) {
        if let Some(programs) = self.programs.as_mut() {
            programs.forward_logs();
        }
    }
}

/// Programs as they are desired: with the ids they have now.
fn loaded<H: Ord + Copy>(programs: &BTreeMap<H, u32>) -> BTreeMap<H, Option<u32>> {
    programs
        .iter()
        .map(|(hook, id)| (*hook, Some(*id)))
        .collect()
}
