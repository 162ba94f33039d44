// SPDX-License-Identifier: Apache-2.0

//! Loads the programs and keeps what user space holds of them.

mod object;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

use aya::programs::{CgroupSockAddr, ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfError};
use aya_log::EbpfLogger;
use proxy_common::Endpoint;

use self::object::{
    classifier, load_classifier, load_object, load_sockets, load_translation, load_verdict,
    load_xdp, socket, xdp_program,
};
use super::hook::{Hook, SocketHook};
use super::maps::{
    self, CONNECTIONS, DESTINATIONS, Decisions, GuardLinks, Kept, Outgrown, OutgrownDecisions,
    PEERS,
};
use super::ruleset::Verdict;
use super::statistics;
use super::{Settings, attach, cgroup, layout, xdp};
use crate::config::{GuardMode, Service};
use crate::instance::Instance;
use crate::kernel::{bpffs, memory};
use crate::telemetry::ebpf::ToTracing;

/// The compiled programs.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/proxy-ebpf"));

/// Why the programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pins could not be prepared.
    #[error(transparent)]
    Bpffs(#[from] bpffs::Error),
    /// The kernel refused a map or the object.
    #[error(
        "cannot load the eBPF maps; the kernel needs CONFIG_BPF_SYSCALL and the agent CAP_BPF \
         (CAP_SYS_ADMIN before Linux 5.8, CAP_SYS_RESOURCE too before 5.11)"
    )]
    Object(#[source] EbpfError),
    /// The kernel refused a program.
    #[error(
        "cannot load the eBPF program {program}; the kernel needs CONFIG_BPF_SYSCALL and \
         CONFIG_NET_CLS_BPF, the agent CAP_BPF and CAP_NET_ADMIN (CAP_SYS_ADMIN before Linux 5.8)"
    )]
    Program {
        /// Its name.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        source: ProgramError,
    },
    /// A map could not be read or filled.
    #[error(transparent)]
    Map(#[from] maps::Error),
}

/// Names of the programs that rules run.
pub const PREROUTING: &str = "vip_prerouting";
/// OUTPUT, to the VIP.
pub const REQUEST: &str = "vip_output_request";
/// OUTPUT, from the VIP.
pub const REPLY: &str = "vip_output_reply";
/// PREROUTING, to a service.
pub const SERVICE: &str = "vip_service";
/// OUTPUT, from the VIP, to be translated.
pub const TRANSLATED_REPLY: &str = "vip_output_translated";

/// Ids of loaded programs by their names.
pub type Ids = BTreeMap<String, u32>;

/// The programs that rules run.
#[derive(Debug, Clone, Copy)]
pub struct Verdicts {
    /// PREROUTING, to the VIP.
    pub prerouting: Verdict,
    /// OUTPUT, to the VIP.
    pub request: Verdict,
    /// OUTPUT, from the VIP.
    pub reply: Verdict,
    /// Those of translated connections, if any service is translated.
    pub translation: Option<Translation>,
}

/// The programs of rules that translate.
#[derive(Debug, Clone, Copy)]
pub struct Translation {
    /// PREROUTING, to a service.
    pub service: Verdict,
    /// OUTPUT, from the VIP.
    pub reply: Verdict,
}

/// The loaded programs and the maps they share.
pub struct Programs {
    ebpf: Ebpf,
    /// Ids of the programs on links.
    hooks: BTreeMap<Hook, u32>,
    /// Ids of the programs on the root cgroup.
    sockets: BTreeMap<SocketHook, u32>,
    verdicts: Verdicts,
    /// The maps that are pinned.
    kept: BTreeMap<&'static str, Kept>,
    /// Id of the XDP program, or why there is none although it was asked for.
    xdp: Option<Result<u32, String>>,
    /// What the programs know of links.
    pub guard_links: GuardLinks,
    /// The decided connections.
    pub decisions: Decisions,
    /// The map of another size that programs in use decide by.
    outgrown: Option<OutgrownDecisions>,
    /// Whether what an earlier agent attached decides by the same map.
    shares_decisions: bool,
    /// What the agent before this one translated and this one does not.
    pub given_up: Vec<Service>,
    logs: Option<EbpfLogger<ToTracing>>,
}

impl Programs {
    /// Loads programs and maps. The map of decisions of an earlier agent is taken over. `cgroup` is the root
    /// that programs of sockets will be attached to, if they will be.
    ///
    /// # Errors
    ///
    /// The kernel's answer. What was pinned on the way is removed again.
    pub fn load(settings: &Settings, cgroup: Option<&Path>) -> Result<Self, LoadError> {
        let fresh = !settings.bpffs.exists();
        Self::load_into(settings, cgroup).inspect_err(|_| {
            if fresh {
                // The first error is the one to tell.
                let _ = remove_pins(&settings.bpffs);
            }
        })
    }

    fn load_into(settings: &Settings, cgroup: Option<&Path>) -> Result<Self, LoadError> {
        memory::allow_locking();
        for hook in Hook::ALL {
            let pins = attach::links_dir(hook, settings);
            bpffs::create_dir(&pins)?;
            bpffs::finish_pins(&pins)?;
        }
        bpffs::finish_pins(&cgroup::pins_dir(settings))?;
        bpffs::finish_pins(&xdp::pins_dir(settings))?;
        let outgrown = OutgrownDecisions::set_aside(CONNECTIONS, settings)?;
        let shares_decisions =
            outgrown.is_none() && maps::pinned_id(CONNECTIONS, settings)?.is_some();
        let peers = Outgrown::<u64, Endpoint>::set_aside(PEERS, settings)?;
        statistics::discard_unfit(settings)?;

        let mut ebpf = load_object(settings, cgroup)?;
        maps::fill_destinations(&mut ebpf, settings)?;
        maps::fill_guard(&mut ebpf, settings)?;
        if let Some(peers) = peers {
            let map = ebpf.map_mut(PEERS).expect("the object has this map");
            let mut map: aya::maps::HashMap<_, u64, Endpoint> =
                map.try_into().map_err(maps::failed(PEERS))?;
            peers.move_into(&mut map)?;
        }
        let logs = settings
            .debug
            .then(|| EbpfLogger::init_with_logger(&mut ebpf, ToTracing).ok())
            .flatten();

        let translates = !settings.services.is_empty();
        let mut hooks = BTreeMap::new();
        for hook in Hook::ALL {
            if hook == Hook::Ingress || translates {
                hooks.insert(hook, load_classifier(&mut ebpf, hook.program())?);
            }
        }
        let translation = translates
            .then(|| load_translation(&mut ebpf))
            .transpose()?;
        let verdicts = Verdicts {
            prerouting: load_verdict(&mut ebpf, PREROUTING)?,
            request: load_verdict(&mut ebpf, REQUEST)?,
            reply: load_verdict(&mut ebpf, REPLY)?,
            translation,
        };
        let sockets = if translates {
            load_sockets(&mut ebpf)?
        } else {
            BTreeMap::new()
        };
        let xdp = (settings.guard && settings.guard_mode == GuardMode::Xdp)
            .then(|| load_xdp(&mut ebpf))
            .transpose()?;
        let given_up: Vec<_> = maps::earlier_services(settings)?
            .into_iter()
            .filter(|service| !settings.services.contains(service))
            .collect();
        let kept = maps::PINNED
            .into_iter()
            .map(|name| Ok((name, Kept::of(&ebpf, name)?)))
            .collect::<Result<BTreeMap<_, _>, maps::Error>>()?;
        // The others are pinned since they were loaded; this one takes an older one's place, but not
        // before what the agent before has translated is handed over: should this agent die before,
        // the next one must know it as well.
        if given_up.is_empty()
            && let Some(destinations) = kept.get(DESTINATIONS)
        {
            destinations.pin(DESTINATIONS, settings)?;
        }
        Ok(Self {
            xdp,
            guard_links: GuardLinks::of(&mut ebpf)?,
            decisions: Decisions::of(&mut ebpf)?,
            outgrown,
            shares_decisions,
            ebpf,
            hooks,
            sockets,
            verdicts,
            kept,
            given_up,
            logs,
        })
    }

    /// Whether what is attached now decides by the map that these programs obey.
    pub fn shares_decisions(&self) -> bool {
        self.shares_decisions
    }

    /// Takes over what was decided by another map, when nothing decides any more.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn take_over_decisions(&mut self) -> Result<(), maps::Error> {
        if let Some(outgrown) = &self.outgrown {
            self.decisions.take_over_all(outgrown)?;
        }
        self.outgrown = None;
        self.shares_decisions = true;
        Ok(())
    }

    /// Ids of the programs on links.
    pub fn hooks(&self) -> &BTreeMap<Hook, u32> {
        &self.hooks
    }

    /// Id of the XDP program, or why it could not be loaded; none if it is not asked for.
    pub fn xdp_id(&self) -> Option<&Result<u32, String>> {
        self.xdp.as_ref()
    }

    /// The XDP program, to attach it.
    pub fn xdp(&mut self) -> &mut Xdp {
        xdp_program(&mut self.ebpf)
    }

    /// Ids of the programs on the root cgroup.
    pub fn sockets(&self) -> &BTreeMap<SocketHook, u32> {
        &self.sockets
    }

    /// Ids of the maps that are pinned, by their names.
    pub fn maps(&self) -> BTreeMap<&'static str, u32> {
        // Where services are given up, the agent before has pinned what they are.
        let is_due = |name: &str| self.given_up.is_empty() || name != DESTINATIONS;
        let kept = self.kept.iter().filter(|(name, _)| is_due(name));
        kept.map(|(name, map)| (*name, map.id)).collect()
    }

    /// Pins a map again.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn pin_map(&self, name: &'static str, settings: &Settings) -> Result<(), maps::Error> {
        match self.kept.get(name) {
            Some(map) => map.pin(name, settings),
            None => Ok(()),
        }
    }

    /// The verdicts.
    pub fn verdicts(&self) -> Verdicts {
        self.verdicts
    }

    /// Ids of all programs.
    pub fn ids(&self) -> Ids {
        let hooks = self.hooks.iter().map(|(hook, id)| (hook.program(), *id));
        let sockets = self.sockets.iter().map(|(hook, id)| (hook.program(), *id));
        let Verdicts {
            prerouting,
            request,
            reply,
            translation,
        } = self.verdicts;
        let mut verdicts = vec![(PREROUTING, prerouting), (REQUEST, request), (REPLY, reply)];
        if let Some(Translation { service, reply }) = translation {
            verdicts.extend([(SERVICE, service), (TRANSLATED_REPLY, reply)]);
        }
        let verdicts = verdicts
            .into_iter()
            .map(|(name, verdict)| (name, verdict.id));
        let xdp = self.xdp.iter().flatten().map(|id| (xdp::PROGRAM, *id));
        hooks
            .chain(sockets)
            .chain(xdp)
            .chain(verdicts)
            .map(|(name, id)| (name.to_owned(), id))
            .collect()
    }

    /// The program of a hook of links, to attach it.
    pub fn classifier(&mut self, hook: Hook) -> &mut SchedClassifier {
        classifier(&mut self.ebpf, hook.program())
    }

    /// The program of a hook of sockets, to attach it.
    pub fn socket(&mut self, hook: SocketHook) -> &mut CgroupSockAddr {
        socket(&mut self.ebpf, hook)
    }

    /// Notes that the services that were given up are handed over.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn forget_given_up(&mut self, settings: &Settings) -> Result<(), maps::Error> {
        if !self.given_up.is_empty() {
            self.pin_map(DESTINATIONS, settings)?;
            self.given_up.clear();
        }
        Ok(())
    }

    /// Passes the programs' debug lines on, if they write any.
    pub fn forward_logs(&mut self) {
        if let Some(logs) = self.logs.as_mut() {
            logs.flush();
        }
    }
}

/// Removes a directory of pins with all that is in it. Of a directory that is not called after a
/// layout only what we pin there: it may hold what others pinned.
///
/// # Errors
///
/// The kernel's answer.
pub fn remove_pins(directory: &Path) -> Result<(), bpffs::Error> {
    if layout::is_version(directory) {
        bpffs::remove_dir(directory)?;
    }
    for map in maps::PINNED {
        bpffs::unpin(&directory.join(map))?;
        bpffs::unpin(&bpffs::unfinished(&directory.join(map)))?;
        bpffs::unpin(&directory.join(format!("{map}{}", maps::OUTGROWN)))?;
    }
    for pins in Hook::ALL
        .map(Hook::pins)
        .iter()
        .chain(&[cgroup::PINS, xdp::PINS])
    {
        bpffs::remove_dir(&directory.join(pins))?;
    }
    bpffs::remove_empty_dir(directory)?;
    // The parent of the versioned directory is ours too where it has our name.
    let is_ours = |name: &OsStr| Instance::of_mark(&name.to_string_lossy()).is_some();
    match directory.parent() {
        Some(parent) if parent.file_name().is_some_and(is_ours) => bpffs::remove_empty_dir(parent),
        _ => Ok(()),
    }
}
