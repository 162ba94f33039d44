// SPDX-License-Identifier: Apache-2.0

//! Loads the programs and holds their file descriptors.

mod object;

use std::collections::BTreeMap;
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
use proxy_kernel::{bpffs, memory};
use tracing::{debug, info};

pub use self::object::{KEPT_BY_AGENT, Keeper};
use self::object::{
    attach_socket, classifier, load_classifier, load_object, load_sockets, load_xdp, xdp_program,
};
use super::attachment::AttachError;
use super::debug_lines::ToTracing;
use super::hook::{Hook, SocketHook, XDP_PROGRAM};
use super::listeners::{self, Listeners};
use super::maps::{
    self, GUARD_LINKS, GuardLinks, LISTENERS, OPENING, PEERS, PinnedMap, Resize, SERVICES,
    STATISTICS, Services, discard_unfit,
};
use super::{PART, pins};
use crate::config::{Config, Guard, GuardMode, Service};
use crate::features;
use crate::reconcile::report::chain;

/// The compiled programs.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/proxy-ebpf"));

/// Failure to load the programs.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pins could not be prepared.
    #[error(transparent)]
    Bpffs(#[from] bpffs::Error),
    /// The kernel rejected a map or the object.
    #[error(
        "cannot load the eBPF maps; the kernel needs CONFIG_BPF_SYSCALL and the agent CAP_BPF \
         (CAP_SYS_ADMIN before Linux 5.8, CAP_SYS_RESOURCE too before 5.11)"
    )]
    Object(#[source] EbpfError),
    /// The kernel rejected a program.
    #[error(
        "cannot load the eBPF program {program}; the kernel needs CONFIG_BPF_SYSCALL and \
         CONFIG_NET_CLS_BPF, the agent CAP_BPF and CAP_NET_ADMIN (CAP_SYS_ADMIN before Linux 5.8)"
    )]
    Program {
        /// Its name.
        program: &'static str,
        /// The kernel's error.
        #[source]
        source: ProgramError,
    },
    /// A map could not be read or filled.
    #[error(transparent)]
    Map(#[from] maps::Error),
    /// The proxy's listeners cannot be stored.
    #[error(transparent)]
    Listeners(#[from] listeners::Error),
}

/// Ids of loaded programs, by name.
pub type Ids = BTreeMap<String, u32>;

/// The loaded programs and the maps they share.
pub struct Programs {
    ebpf: Ebpf,
    /// Ids of the programs on links.
    hooks: BTreeMap<Hook, u32>,
    /// Ids of the programs of sockets.
    sockets: BTreeMap<SocketHook, u32>,
    /// The pinned maps.
    kept: BTreeMap<&'static str, PinnedMap>,
    /// Id of the XDP program, or why it could not be loaded; none if it is not configured.
    xdp: Option<Result<u32, String>>,
    /// The guard's map of links.
    pub guard_links: GuardLinks,
    /// The map of Services.
    services: Services,
    /// Services that ended on the proxy with an earlier agent but are not configured any more.
    given_up: Vec<Service>,
    /// The proxy's listeners, if the agent has to store them.
    listeners: Option<Listeners>,
    logs: Option<EbpfLogger<ToTracing>>,
}

/// The object with its programs of links, and the listeners if the agent has to store them.
type Loaded = (Ebpf, BTreeMap<Hook, u32>, Option<Listeners>);

impl Programs {
    /// Loads programs and maps, and reuses the maps of an earlier agent. `cgroup` is the root to which programs of sockets will
    /// be attached, if any.
    ///
    /// # Errors
    ///
    /// The kernel's error. Pins created before the error are removed.
    pub fn load(config: &Config, cgroup: Option<&Path>) -> Result<Self, LoadError> {
        let fresh = !config.bpffs.exists();
        Self::load_into(config, cgroup).inspect_err(|_| {
            if fresh {
                // The first error is reported.
                let _ = pins::remove(&config.bpffs);
            }
        })
    }

    fn load_into(config: &Config, cgroup: Option<&Path>) -> Result<Self, LoadError> {
        memory::allow_locking();
        for hook in Hook::ALL {
            let pins = pins::links_dir(hook, config);
            bpffs::create_dir(&pins)?;
            bpffs::finish_pins(&pins)?;
        }
        bpffs::finish_pins(&pins::sockets_dir(config))?;
        bpffs::finish_pins(&pins::xdp_dir(config))?;
        // Including those of other directories, if they can be read: only these maps list their routes and connections.
        let earlier =
            maps::earlier_services(config).or_else(|_| maps::pinned_services(&config.bpffs))?;
        let given_up: Vec<_> = earlier
            .into_iter()
            .filter(|earlier| {
                let wanted = config.services.iter();
                wanted
                    .map(|service| service.cluster_ip)
                    .all(|wanted| wanted != earlier.cluster_ip)
            })
            .collect();
        let ends = !config.services.is_empty() || !given_up.is_empty();
        let lru_size = maps::lru_size(ends.then_some(config.max_connections), config)?;
        discard_unfit::<ConnectionKey, u32>(OPENING, Some(lru_size), config)?;
        discard_unfit::<Endpoint, u32>(LISTENERS, Some(MAX_VIPS), config)?;
        discard_unfit::<CounterKey, Counters>(STATISTICS, Some(MAX_COUNTERS), config)?;
        discard_unfit::<u32, Link>(GUARD_LINKS, None, config)?;
        let peers = Resize::<u64, Endpoint>::begin(PEERS, lru_size, config)?;

        let load = |keeper| load_hooks(config, &given_up, lru_size, cgroup, keeper);
        let first = if ends { Keeper::Program } else { Keeper::None };
        let (mut ebpf, hooks, listeners) = load(first).or_else(|error| match error {
            LoadError::Program { program, source } if ends && !features::is_transient(&source) => {
                let loaded = load(Keeper::Agent).map_err(|second| {
                    debug!(
                        part = PART.name(),
                        "the agent cannot store the proxy's listeners either: {}",
                        chain(&second)
                    );
                    LoadError::Program { program, source }
                })?;
                info!(
                    part = PART.name(),
                    "the kernel does not allow TC programs to store the proxy's listeners (Linux 7.3 and newer): the \
                     agent stores them, up to a second after the proxy starts to listen"
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
        let logs = config
            .debugs_programs()
            .then(|| EbpfLogger::init_with_logger(&mut ebpf, ToTracing).ok())
            .flatten();

        let sockets = if ends {
            load_sockets(&mut ebpf)?
        } else {
            BTreeMap::new()
        };
        let xdp = (config.guard != Guard::Off && config.guard_mode == GuardMode::Xdp)
            .then(|| load_xdp(&mut ebpf))
            .transpose()?;
        let kept = maps::PINNED
            .into_iter()
            .map(|name| Ok((name, PinnedMap::of(&ebpf, name)?)))
            .collect::<Result<BTreeMap<_, _>, maps::Error>>()?;
        // The other maps were pinned when they were loaded; this one replaces an older one and has all its entries.
        if let Some(services) = kept.get(SERVICES) {
            services.pin(SERVICES, config)?;
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

    /// Whether the agent has to store the proxy's listeners.
    pub fn stores_listeners(&self) -> bool {
        self.listeners.is_some()
    }

    /// Whether the agent has to store the proxy's listeners, and one of them has changed.
    pub fn have_listeners_changed(&self, vips: &[SocketAddr]) -> bool {
        let listeners = self.listeners.as_ref();
        listeners.is_some_and(|listeners| listeners.have_changed(vips))
    }

    /// Stores the proxy's listeners of these endpoints, if the programs do not.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn store_listeners(&mut self, vips: &[SocketAddr]) -> Result<(), listeners::Error> {
        match self.listeners.as_mut() {
            Some(listeners) => listeners.store(&mut self.ebpf, vips),
            None => Ok(()),
        }
    }

    /// Services that ended on the proxy with an earlier agent but are not configured any more.
    pub fn given_up(&self) -> &[Service] {
        &self.given_up
    }

    /// Removes a drained Service from the maps.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn forget_service(&mut self, service: &Service) -> Result<(), maps::Error> {
        self.services.forget(service)?;
        self.given_up.retain(|given_up| given_up != service);
        Ok(())
    }

    /// Makes the programs decide connections to a Service, or ignore new ones.
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

    /// Id of the XDP program, or why it could not be loaded; none if it is not configured.
    pub fn xdp_id(&self) -> Option<&Result<u32, String>> {
        self.xdp.as_ref()
    }

    /// The XDP program, for attachment.
    pub fn xdp(&mut self) -> &mut Xdp {
        xdp_program(&mut self.ebpf)
    }

    /// Ids of the programs of sockets.
    pub fn sockets(&self) -> &BTreeMap<SocketHook, u32> {
        &self.sockets
    }

    /// Ids of the pinned maps, by name.
    pub fn maps(&self) -> BTreeMap<&'static str, u32> {
        let kept = self.kept.iter();
        kept.map(|(name, map)| (*name, map.id)).collect()
    }

    /// Pins a map again.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn pin_map(&self, name: &'static str, config: &Config) -> Result<(), maps::Error> {
        match self.kept.get(name) {
            Some(map) => map.pin(name, config),
            None => Ok(()),
        }
    }

    /// Ids of all programs.
    pub fn ids(&self) -> Ids {
        let hooks = self.hooks.iter().map(|(hook, id)| (hook.program(), *id));
        let sockets = self.sockets.iter().map(|(hook, id)| (hook.program(), *id));
        let xdp = self.xdp.iter().flatten().map(|id| (XDP_PROGRAM, *id));
        hooks
            .chain(sockets)
            .chain(xdp)
            .map(|(name, id)| (name.to_owned(), id))
            .collect()
    }

    /// The program of a hook of links, for attachment.
    pub fn classifier(&mut self, hook: Hook) -> &mut SchedClassifier {
        classifier(&mut self.ebpf, hook.program())
    }

    /// Attaches the program of a hook of sockets to a network namespace or cgroup. Dropping the link detaches it, unless the
    /// link is pinned.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn attach_socket(&mut self, hook: SocketHook, place: File) -> Result<FdLink, AttachError> {
        attach_socket(&mut self.ebpf, hook, place)
    }

    /// Forwards the programs' debug lines, if there are any.
    pub fn forward_logs(&mut self) {
        if let Some(logs) = self.logs.as_mut() {
            logs.flush();
        }
    }
}

/// Opens the object, fills its maps and loads the programs of links.
fn load_hooks(
    config: &Config,
    given_up: &[Service],
    lru_size: u32,
    cgroup: Option<&Path>,
    keeper: Keeper,
) -> Result<Loaded, LoadError> {
    let mut ebpf = load_object(config, given_up, lru_size, cgroup, keeper)?;
    maps::fill_services(&mut ebpf, config, given_up)?;
    maps::fill_guard(&mut ebpf, config, given_up)?;
    let ends = !config.services.is_empty() || !given_up.is_empty();
    let mut hooks = BTreeMap::new();
    for hook in Hook::ALL {
        if hook == Hook::Ingress || ends {
            hooks.insert(hook, load_classifier(&mut ebpf, hook.program())?);
        }
    }
    let listeners = match keeper {
        Keeper::Program | Keeper::None => None,
        Keeper::Agent => Some(Listeners::load(&mut ebpf, config.proxy_listener)?),
    };
    Ok((ebpf, hooks, listeners))
}
