// SPDX-License-Identifier: Apache-2.0

//! The `ebpf` backend: TC programs decide each connection at its SYN, BPF verdicts in nf_tables
//! tables of our own untrack what was decided.
//!
//! Everything it keeps in the kernel lives on without the agent: the pinned map of decisions, the
//! links that hold the programs, and the tables, which hold references to the verdicts.

mod apply;
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
mod settings;
pub mod statistics;
mod takeover;
mod teardown;
mod verifier;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use rtnetlink::Handle;
use tracing::warn;

pub use attach::{AttachMode, filter_handle};
pub use cgroup::root as cgroup_root;
pub use hook::{Hook, SocketHook};
pub use layout::{VERSION as LAYOUT, others as other_layouts};
pub use load::{Ids, LoadError, Programs};
pub use maps::{Error as MapError, pinned_vips};
pub use plan::attachable;
pub use qdisc::notes_dir;
pub use settings::Settings;
pub use teardown::Tables;
pub use verifier::{Verified, measure as verify_programs};

use observe::Observed;
use plan::{Desired, Op};

use crate::backend::tables;
use crate::guard;
use crate::kernel::{bpffs, features};
use crate::link::LinkTable;
use crate::netfilter;
use crate::reconcile::{Mode, Report, carry_out, failed};

/// The name of this part in reports and logs.
pub const PART: &str = "ebpf";

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
