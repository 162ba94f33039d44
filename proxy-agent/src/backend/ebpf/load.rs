// SPDX-License-Identifier: Apache-2.0

//! Loads the programs and keeps what user space holds of them.

mod object;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfError};
use aya_log::EbpfLogger;
use proxy_common::guard::Link;
use proxy_common::limits::{MAX_COUNTERS, MAX_VIPS};
use proxy_common::{ConnectionKey, CounterKey, Counters, Endpoint};
use tracing::{debug, info};

pub use self::object::{KEPT_BY_AGENT, Keeper};
use self::object::{
    attach_socket, classifier, load_classifier, load_object, load_sockets, load_xdp, xdp_program,
};
use super::attach::AttachError;
use super::hook::{Hook, SocketHook};
use super::listeners::{self, Listeners};
use super::maps::{
    self, GUARD_LINKS, GuardLinks, Kept, LISTENERS, OPENING, Outgrown, PEERS, SERVICES, Services,
    discard_unfit,
};
use super::statistics::STATISTICS;
use super::{PART, Settings, attach, layout, sockets, xdp};
use crate::config::{GuardMode, Service};
use crate::instance::Instance;
use crate::kernel::{bpffs, features, memory};
use crate::reconcile::report::chain;
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
    /// The proxy's listeners cannot be kept.
    #[error(transparent)]
    Listeners(#[from] listeners::Error),
}

/// Ids of loaded programs by their names.
pub type Ids = BTreeMap<String, u32>;

/// The loaded programs and the maps they share.
pub struct Programs {
    ebpf: Ebpf,
    /// Ids of the programs on links.
    hooks: BTreeMap<Hook, u32>,
    /// Ids of the programs of sockets.
    sockets: BTreeMap<SocketHook, u32>,
    /// The maps that are pinned.
    kept: BTreeMap<&'static str, Kept>,
    /// Id of the XDP program, or why there is none although it was asked for.
    xdp: Option<Result<u32, String>>,
    /// What the programs know of links.
    pub guard_links: GuardLinks,
    /// The Services that the programs know.
    services: Services,
    /// What an earlier agent had end on the proxy and this one does not.
    given_up: Vec<Service>,
    /// The proxy's listeners, where the programs do not keep them.
    listeners: Option<Listeners>,
    logs: Option<EbpfLogger<ToTracing>>,
}

/// The object with its programs on links, and what the agent has to keep for them.
type Loaded = (Ebpf, BTreeMap<Hook, u32>, Option<Listeners>);

impl Programs {
    /// Loads programs and maps. Maps of an earlier agent are taken over. `cgroup` is the root that programs
    /// of sockets will be attached to, if they will be.
    ///
    /// # Errors
    ///
    /// The kernel's answer. What was pinned on the way is removed again.
    pub fn load(settings: &Settings, cgroup: Option<&Path>) -> Result<Self, LoadError> {
        let fresh = !settings.bpffs.exists();
        Self::load_into(settings, cgroup).inspect_err(|_| {
            if fresh {
                // The first error is the one to report.
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
        bpffs::finish_pins(&sockets::pins_dir(settings))?;
        bpffs::finish_pins(&xdp::pins_dir(settings))?;
        let lru_size = maps::lru_size(settings.max_connections)?;
        discard_unfit::<ConnectionKey, u32>(OPENING, Some(lru_size), settings)?;
        discard_unfit::<Endpoint, u32>(LISTENERS, Some(MAX_VIPS), settings)?;
        discard_unfit::<CounterKey, Counters>(STATISTICS, Some(MAX_COUNTERS), settings)?;
        discard_unfit::<u32, Link>(GUARD_LINKS, None, settings)?;
        let peers = Outgrown::<u64, Endpoint>::set_aside(PEERS, lru_size, settings)?;
        // Those pinned elsewhere too, if they can be read: nothing else knows of their routes and connections.
        let earlier = settings
            .earlier_services()
            .or_else(|_| maps::earlier_services(&settings.bpffs))?;
        let given_up: Vec<_> = earlier
            .into_iter()
            .filter(|earlier| {
                let wanted = settings.services.iter();
                wanted
                    .map(|service| service.cluster_ip)
                    .all(|wanted| wanted != earlier.cluster_ip)
            })
            .collect();
        let ends = !settings.services.is_empty() || !given_up.is_empty();

        let load = |keeper| load_hooks(settings, &given_up, lru_size, cgroup, keeper);
        let first = if ends {
            Keeper::Program
        } else {
            Keeper::Nobody
        };
        let (mut ebpf, hooks, listeners) = load(first).or_else(|error| match error {
            LoadError::Program { program, source } if ends && !features::may_come(&source) => {
                let loaded = load(Keeper::Agent).map_err(|second| {
                    debug!(
                        part = PART,
                        "nor can the agent keep the proxy's listeners: {}",
                        chain(&second)
                    );
                    LoadError::Program { program, source }
                })?;
                info!(
                    part = PART,
                    "the kernel lets no program of traffic control keep the proxy's listeners (as Linux 7.3 and \
                     newer): the agent does, a second after the proxy begins to listen at the latest"
                );
                Ok(loaded)
            }
            error => Err(error),
        })?;
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

        let sockets = if ends {
            load_sockets(&mut ebpf)?
        } else {
            BTreeMap::new()
        };
        let xdp = (settings.guard && settings.guard_mode == GuardMode::Xdp)
            .then(|| load_xdp(&mut ebpf))
            .transpose()?;
        let kept = maps::PINNED
            .into_iter()
            .map(|name| Ok((name, Kept::of(&ebpf, name)?)))
            .collect::<Result<BTreeMap<_, _>, maps::Error>>()?;
        // The others are pinned since they were loaded; this one takes an older one's place, and has all
        // that was in it.
        if let Some(services) = kept.get(SERVICES) {
            services.pin(SERVICES, settings)?;
        }
        Ok(Self {
            xdp,
            guard_links: GuardLinks::of(&mut ebpf)?,
            services: Services::of(&mut ebpf)?,
            ebpf,
            hooks,
            sockets,
            kept,
            given_up,
            listeners,
            logs,
        })
    }

    /// Whether the agent has to keep the proxy's listeners.
    pub fn keeps_listeners(&self) -> bool {
        self.listeners.is_some()
    }

    /// Whether the agent has to keep the proxy's listeners, and one of them is another socket than before.
    pub fn have_listeners_changed(&self, vips: &[SocketAddr]) -> bool {
        let listeners = self.listeners.as_ref();
        listeners.is_some_and(|listeners| listeners.have_changed(vips))
    }

    /// Keeps the proxy's listeners of these endpoints, where the programs do not.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn keep_listeners(&mut self, vips: &[SocketAddr]) -> Result<(), listeners::Error> {
        match self.listeners.as_mut() {
            Some(listeners) => listeners.keep(&mut self.ebpf, vips),
            None => Ok(()),
        }
    }

    /// What an earlier agent had end on the proxy and this one does not.
    pub fn given_up(&self) -> &[Service] {
        &self.given_up
    }

    /// Forgets a Service that was given up.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn forget_service(&mut self, service: &Service) -> Result<(), maps::Error> {
        self.services.forget(service)?;
        self.given_up.retain(|given_up| given_up != service);
        Ok(())
    }

    /// Has the programs decide connections to a Service, or leave new ones alone.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn set_service(&mut self, service: &Service, is_draining: bool) -> Result<(), maps::Error> {
        self.services.set(service, is_draining)
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

    /// Ids of the programs of sockets.
    pub fn sockets(&self) -> &BTreeMap<SocketHook, u32> {
        &self.sockets
    }

    /// Ids of the maps that are pinned, by their names.
    pub fn maps(&self) -> BTreeMap<&'static str, u32> {
        let kept = self.kept.iter();
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

    /// Ids of all programs.
    pub fn ids(&self) -> Ids {
        let hooks = self.hooks.iter().map(|(hook, id)| (hook.program(), *id));
        let sockets = self.sockets.iter().map(|(hook, id)| (hook.program(), *id));
        let xdp = self.xdp.iter().flatten().map(|id| (xdp::PROGRAM, *id));
        hooks
            .chain(sockets)
            .chain(xdp)
            .map(|(name, id)| (name.to_owned(), id))
            .collect()
    }

    /// The program of a hook of links, to attach it.
    pub fn classifier(&mut self, hook: Hook) -> &mut SchedClassifier {
        classifier(&mut self.ebpf, hook.program())
    }

    /// Attaches the program of a hook of sockets to a network namespace or cgroup. It is detached when the
    /// link is dropped, unless that is pinned.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn attach_socket(&mut self, hook: SocketHook, place: File) -> Result<FdLink, AttachError> {
        attach_socket(&mut self.ebpf, hook, place)
    }

    /// Passes the programs' debug lines on, if they write any.
    pub fn forward_logs(&mut self) {
        if let Some(logs) = self.logs.as_mut() {
            logs.flush();
        }
    }
}

/// Opens the object, fills its maps and loads what goes on links.
fn load_hooks(
    settings: &Settings,
    given_up: &[Service],
    lru_size: u32,
    cgroup: Option<&Path>,
    keeper: Keeper,
) -> Result<Loaded, LoadError> {
    let mut ebpf = load_object(settings, given_up, lru_size, cgroup, keeper)?;
    maps::fill_services(&mut ebpf, settings, given_up)?;
    maps::fill_guard(&mut ebpf, settings, given_up)?;
    let ends = !settings.services.is_empty() || !given_up.is_empty();
    let mut hooks = BTreeMap::new();
    for hook in Hook::ALL {
        if hook == Hook::Ingress || ends {
            hooks.insert(hook, load_classifier(&mut ebpf, hook.program())?);
        }
    }
    let listeners = match keeper {
        Keeper::Program | Keeper::Nobody => None,
        Keeper::Agent => Some(Listeners::load(&mut ebpf, settings.proxy_listener)?),
    };
    Ok((ebpf, hooks, listeners))
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
        .chain(&[sockets::PINS, xdp::PINS])
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
