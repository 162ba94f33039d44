// SPDX-License-Identifier: Apache-2.0

//! The `ebpf` backend: TC programs decide each connection at its SYN, BPF verdicts in nf_tables
//! tables of our own untrack what was decided.
//!
//! Everything it keeps in the kernel lives on without the agent: the pinned map of decisions, the
//! links that hold the programs, and the tables, which hold references to the verdicts.

mod attach;
mod cgroup;
mod handover;
mod hook;
mod layout;
mod load;
mod maps;
mod observe;
mod plan;
mod probe;
mod qdisc;
mod ruleset;
pub mod statistics;
mod takeover;
mod teardown;
mod verifier;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use proxy_common::limits::DEFAULT_MAX_CONNECTIONS;
use rtnetlink::Handle;
use tokio::time::sleep;
use tracing::warn;

pub use attach::{AttachMode, filter_handle};
pub use cgroup::root as cgroup_root;
pub use hook::{Hook, SocketHook};
pub use layout::{VERSION as LAYOUT, others as other_layouts};
pub use load::{Ids, LoadError, Programs};
pub use maps::{Error as MapError, pinned_vips};
pub use plan::attachable;
pub use qdisc::notes_dir;
pub use teardown::Tables;
pub use verifier::{Verified, measure as verify_programs};

use observe::Observed;
use plan::{Desired, Op};
use takeover::{take_back_contradicted, take_over_untracked};

use crate::backend::tables;
use crate::config::{self, Config, Guard, GuardMode, Service, TcAttach};
use crate::guard;
use crate::instance::Instance;
use crate::kernel::{bpffs, features};
use crate::link::LinkTable;
use crate::netfilter;
use crate::reconcile::{Mode, Report, carry_out, failed};

/// The name of this part in reports and logs.
pub const PART: &str = "ebpf";
/// How long the kernel may take to let go of a link whose pin was removed, and how often it is asked,
/// in milliseconds.
const LINGERING: u16 = 500;
const LINGERING_LOOK: u16 = 10;

/// What the backend works from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose tables, filters and pins they are.
    pub instance: Instance,
    /// The VIPs.
    pub vips: Vec<IpAddr>,
    /// The proxy's ports.
    pub ports: Vec<u16>,
    /// The services that are translated.
    pub services: Vec<Service>,
    /// Where maps and links are pinned.
    pub bpffs: PathBuf,
    /// Where it is noted which clsact qdiscs are ours.
    pub run_dir: PathBuf,
    /// Size of the map of decisions.
    pub max_connections: u32,
    /// How programs are attached.
    pub tc_attach: TcAttach,
    /// Anything is guarded.
    pub guard: bool,
    /// How.
    pub guard_mode: GuardMode,
    /// Networks that may come from outside.
    pub allow_from: Vec<IpNet>,
    /// Whether the programs write debug lines.
    pub debug: bool,
}

/// The backend with its programs loaded; in a dry run without.
pub struct Ebpf {
    settings: Settings,
    attach_mode: AttachMode,
    programs: Option<Programs>,
    /// In a dry run: the programs of the agent that runs.
    known: Ids,
    /// The root of the cgroup2 hierarchy, if there is one and services are translated.
    cgroup: Option<PathBuf>,
    /// What an earlier agent left, attached in the other way, is looked for once.
    look_for_leftovers: bool,
    /// Pins of other layouts, until this one has taken over from them.
    others: Vec<Settings>,
    /// The links that the last pass found, by ifindex.
    seen: BTreeSet<u32>,
    /// What they are to the guard.
    links: guard::Links,
    /// The XDP programs on them.
    front: xdp::Front,
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
    /// nf_tables cannot run the programs.
    #[error(
        "rules cannot run eBPF programs; the kernel needs CONFIG_NFT_COMPAT and \
         CONFIG_NETFILTER_XT_MATCH_BPF (`modprobe nft_compat xt_bpf`; on some distributions they \
         are in a package of extra modules)"
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
    /// Connections could not be handed over.
    #[error(transparent)]
    HandOver(#[from] handover::Error),
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            instance: config.instance,
            vips: config.vips.clone(),
            ports: config.ports.clone(),
            services: config.services.clone(),
            bpffs: config.bpffs.clone(),
            run_dir: config.run_dir.clone(),
            max_connections: config.max_connections,
            tc_attach: config.tc_attach,
            guard: config.guard != Guard::Off,
            guard_mode: config.guard_mode,
            allow_from: config.allow_from.clone(),
            debug: config.log.ebpf_debug(),
        }
    }
}

impl Settings {
    /// The settings with which everything is removed that is pinned in a directory.
    pub fn to_remove(instance: Instance, bpffs: &Path, run_dir: &Path) -> Self {
        Self {
            instance,
            vips: Vec::new(),
            ports: Vec::new(),
            services: Vec::new(),
            bpffs: bpffs.to_owned(),
            run_dir: run_dir.to_owned(),
            max_connections: DEFAULT_MAX_CONNECTIONS,
            tc_attach: TcAttach::Auto,
            guard: false,
            guard_mode: GuardMode::Tc,
            allow_from: Vec::new(),
            debug: false,
        }
    }

    /// The settings for the other layouts that are pinned beside this one.
    fn other_layouts(&self) -> Result<Vec<Self>, bpffs::Error> {
        let others = layout::others(&self.bpffs)?.into_iter();
        let other = |bpffs: PathBuf| Self::to_remove(self.instance, &bpffs, &self.run_dir);
        Ok(others.map(other).collect())
    }

    /// The same; an error goes to the report.
    fn other_layouts_or(&self, report: &mut Report) -> Vec<Self> {
        self.other_layouts().unwrap_or_else(|error| {
            failed(PART, "look for other layouts of pins", &error, report);
            Vec::new()
        })
    }

    /// The VIPs with each of the ports.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        config::endpoints(&self.vips, &self.ports)
    }
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
                "the root of the host's cgroup2 hierarchy is not mounted here: processes on the \
                 host are not translated, pods are (in Kubernetes mount /sys/fs/cgroup as a \
                 hostPath volume)"
            );
        }
        let programs = match mode {
            Mode::Apply => Some(Programs::load(&settings, cgroup.as_deref())?),
            Mode::DryRun => None,
        };
        let others = settings.other_layouts()?;
        Ok(Self {
            attach_mode,
            cgroup,
            settings,
            programs,
            known: Ids::new(),
            look_for_leftovers: true,
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
        probe::rules(&self.settings, programs)?;
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
        if !self.take_over_decisions(handle, table, report).await {
            return;
        }
        self.take_over_translated(handle, mode, report).await;
        let desired = self.desired(table);
        let observed = Observed::read(
            &self.settings,
            &desired,
            handle,
            self.look_for_leftovers,
            report,
        )
        .await;
        let ops = plan::plan(&desired, &observed);
        let routine = ops
            .iter()
            .filter(|op| op.follows_links(&self.seen, &desired.links));
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
            self.remove_others(handle, mode, report).await;
        }
        if mode == Mode::Apply {
            let unused = self.look_for_leftovers && self.attach_mode == AttachMode::Tcx;
            if let Err(error) = qdisc::tidy(&self.settings, table, unused, handle).await {
                failed(PART, "remove what is left of clsact", &error, report);
            }
            self.look_for_leftovers = false;
            if report.failures.len() == failures
                && let Some(programs) = self.programs.as_mut()
                && let Err(error) = programs.forget_given_up(&self.settings)
            {
                failed(PART, "pin the map of destinations", &error, report);
            }
        }
    }

    fn desired(&self, table: &LinkTable) -> Desired {
        let translates = !self.settings.services.is_empty();
        let (maps, hooks, sockets, verdicts, given_up) = match &self.programs {
            Some(programs) => (
                loaded(&programs.maps()),
                loaded(programs.hooks()),
                loaded(programs.sockets()),
                programs.verdicts(),
                programs.given_up.clone(),
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
                    .filter(|hook| translates || *hook == Hook::Ingress)
                    .map(|hook| (hook, self.known.get(hook.program()).copied()))
                    .collect(),
                SocketHook::ALL
                    .into_iter()
                    .filter(|hook| translates && !self.known_to_be_missing(*hook))
                    .map(|hook| (hook, self.known.get(hook.program()).copied()))
                    .collect(),
                ruleset::known(&self.known),
                Vec::new(),
            ),
        };
        Desired {
            // The guard of another backend is not needed beside the programs.
            tables: [
                ruleset::tables(&self.settings, &verdicts),
                tables::empty_guard(self.settings.instance).to_vec(),
            ]
            .concat(),
            links: attachable(table),
            mode: self.attach_mode,
            maps,
            hooks,
            // Without the root cgroup nothing can be attached to it; `open` has told.
            sockets: if self.cgroup.is_some() {
                sockets
            } else {
                BTreeMap::new()
            },
            guard: self.links.clone(),
            given_up,
        }
    }

    /// The agent that runs translates, and its kernel does not have this program.
    fn known_to_be_missing(&self, hook: SocketHook) -> bool {
        let translates = self.known.contains_key(load::SERVICE);
        translates && hook.is_optional() && !self.known.contains_key(hook.program())
    }

    async fn apply(&mut self, op: &Op, handle: &Handle) -> Result<(), Error> {
        match op {
            Op::PinMap { map, .. } => match &self.programs {
                Some(programs) => Ok(programs.pin_map(map, &self.settings)?),
                None => Ok(()),
            },
            Op::InstallTables { tables, unguarded } => {
                if *unguarded && let Some(programs) = self.programs.as_mut() {
                    take_back_contradicted(&mut programs.decisions, &self.settings)?;
                    // Later on, when somebody has removed the tables, untracked connections cannot
                    // be told from those whose entries somebody has deleted.
                    if self.look_for_leftovers {
                        take_over_untracked(&mut programs.decisions, &self.settings)?;
                    }
                }
                if !self.others.is_empty()
                    && let Some(programs) = self.programs.as_mut()
                {
                    take_over_untracked(&mut programs.decisions, &self.settings)?;
                }
                let tables: Vec<_> = tables.iter().map(|(table, _)| table.clone()).collect();
                Ok(tables::install(&tables)?)
            }
            Op::DeleteTable { table } => Ok(tables::delete(table)?),
            Op::Attach { hook, link, .. } => {
                let Some(programs) = self.programs.as_mut() else {
                    return Ok(());
                };
                let mode = self.attach_mode;
                let mut patience = LINGERING / LINGERING_LOOK;
                loop {
                    match attach::attach(mode, programs, *hook, link, &self.settings) {
                        Err(error) if attach::lingers(&error) && patience > 0 => {
                            patience -= 1;
                            sleep(Duration::from_millis(LINGERING_LOOK.into())).await;
                        }
                        result => return Ok(result?),
                    }
                }
            }
            Op::AttachSocket { hook, .. } => {
                let (Some(programs), Some(root)) = (self.programs.as_mut(), &self.cgroup) else {
                    return Ok(());
                };
                Ok(cgroup::attach(programs, *hook, root, &self.settings)?)
            }
            Op::DetachSocket { hook } => Ok(cgroup::detach(*hook, &self.settings)?),
            Op::HandOver { services } => self.hand_over(services.as_deref()),
            Op::RemovePins { directory } => Ok(load::remove_pins(directory)?),
            Op::Guard { links, .. } => match self.programs.as_mut() {
                Some(programs) => Ok(programs.guard_links.set(links)?),
                None => Ok(()),
            },
            Op::RemoveXdp { index } => Ok(xdp::unpin(*index, &self.settings)?),
            Op::RemovePin { hook, index } => Ok(attach::unpin(*hook, *index, &self.settings)?),
            Op::RemoveFilter { filter, .. } => {
                Ok(attach::remove_filter(filter, &self.settings, handle).await?)
            }
        }
    }

    fn hand_over(&mut self, services: Option<&[Service]>) -> Result<(), Error> {
        let concerns =
            |service: &Service| services.is_none_or(|services| services.contains(service));
        if let Some(programs) = self.programs.as_mut() {
            return Ok(handover::hand_over(&mut programs.decisions, concerns)?);
        }
        match maps::Decisions::pinned(&self.settings) {
            Ok(Some(mut decisions)) => Ok(handover::hand_over(&mut decisions, concerns)?),
            Ok(None) => Ok(()),
            Err(error) if error.is_of_another_layout() => {
                warn!(
                    part = PART,
                    "translated connections cannot be handed over, and end: the map in {} has \
                     another layout",
                    self.settings.bpffs.display()
                );
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
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
