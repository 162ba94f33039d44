// SPDX-License-Identifier: Apache-2.0

//! Loads the programs and keeps what user space holds of them.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

use aya::maps::{Map, MapData, MapError};
use aya::programs::{ProgramError, SchedClassifier, SocketFilter};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use proxy_common::{Connection, ConnectionKey, Endpoint};
use tracing::info;

use super::Settings;
use super::attach;
use super::ruleset::{Verdict, Verdicts};
use crate::kernel::bpffs;
use crate::telemetry::ebpf::ToTracing;

const CONNECTIONS: &str = "CONNECTIONS";
const VIPS: &str = "VIPS";
const INGRESS: &str = "vip_ingress";
const VERDICTS: [&str; 3] = ["vip_prerouting", "vip_output_request", "vip_output_reply"];

/// The map that carries debug lines, and its size in bytes while nobody asked for them.
const LOGS: &str = "AYA_LOGS";
const LOGS_OFF: u32 = 4096;

/// The compiled programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/proxy-ebpf"));

type Decisions = aya::maps::HashMap<MapData, ConnectionKey, Connection>;

/// Why the programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pins could not be prepared.
    #[error(transparent)]
    Bpffs(#[from] bpffs::Error),
    /// The kernel refused a map or the object.
    #[error(
        "cannot load the eBPF maps; the kernel needs CONFIG_BPF_SYSCALL and the agent CAP_BPF \
         (CAP_SYS_ADMIN before Linux 5.8)"
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
    #[error("cannot use the eBPF map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: MapError,
    },
}

/// The loaded programs and the maps they share.
pub struct Programs {
    ebpf: Ebpf,
    ingress: u32,
    verdicts: Verdicts,
    decisions: Decisions,
    /// Entries the map of decisions has room for.
    size: u32,
    logs: Option<EbpfLogger<ToTracing>>,
}

impl Programs {
    /// Loads programs and maps. The map of decisions of an earlier agent is taken over.
    ///
    /// # Errors
    ///
    /// The kernel's answer. What was pinned on the way is removed again.
    pub fn load(settings: &Settings) -> Result<Self, LoadError> {
        let fresh = !settings.bpffs.exists();
        Self::load_into(settings).inspect_err(|_| {
            if fresh {
                // The first error is the one to tell.
                let _ = remove_pins(settings);
            }
        })
    }

    fn load_into(settings: &Settings) -> Result<Self, LoadError> {
        allow_locked_memory();
        bpffs::create_dir(&attach::links_dir(settings))?;
        let pin = settings.bpffs.join(CONNECTIONS);
        let outgrown = set_aside_other_size(settings)?;

        let mut loader = EbpfLoader::new();
        loader
            // Nothing is relocated against the kernel's types, and reading them takes 30 MiB.
            .btf(None)
            .map_pin_path(CONNECTIONS, pin)
            .map_max_entries(CONNECTIONS, settings.max_connections)
            .override_global(aya_log::LEVEL, log_level(settings), true);
        if !settings.debug {
            loader.map_max_entries(LOGS, LOGS_OFF);
        }
        let mut ebpf = loader.load(OBJECT).map_err(LoadError::Object)?;

        fill_vips(&mut ebpf, settings)?;
        let mut decisions = take_decisions(&mut ebpf)?;
        if let Some((outgrown, size)) = outgrown {
            copy(&outgrown, size, &mut decisions)?;
        }
        let logs = settings
            .debug
            .then(|| EbpfLogger::init_with_logger(&mut ebpf, ToTracing).ok())
            .flatten();
        let ingress = load_classifier(&mut ebpf)?;
        let [prerouting, request, reply] = VERDICTS.map(|name| load_verdict(&mut ebpf, name));
        Ok(Self {
            ingress,
            verdicts: Verdicts {
                prerouting: prerouting?,
                request: request?,
                reply: reply?,
            },
            ebpf,
            decisions,
            size: settings.max_connections,
            logs,
        })
    }

    /// Id of the ingress program.
    pub fn ingress_id(&self) -> u32 {
        self.ingress
    }

    /// The verdicts.
    pub fn verdicts(&self) -> Verdicts {
        self.verdicts
    }

    /// The ingress program, to attach it.
    pub fn ingress(&mut self) -> &mut SchedClassifier {
        classifier(&mut self.ebpf)
    }

    /// Takes all decisions back: what they were about is tracked from then on.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn forget_decisions(&mut self) -> Result<(), MapError> {
        // The walk begins anew where an entry is removed under it: it must end all the same.
        let bound = 2 * self.size as usize;
        let keys = self
            .decisions
            .keys()
            .take(bound)
            .collect::<Result<Vec<_>, _>>()?;
        for key in keys {
            match self.decisions.remove(&key) {
                // Evicted or taken back by the programs meanwhile.
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(MapError::SyscallError(error))
                    if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
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

/// Removes the pinned map, the pinned links and their directories; what else is there stays.
///
/// # Errors
///
/// The kernel's answer.
pub fn remove_pins(settings: &Settings) -> Result<(), bpffs::Error> {
    bpffs::unpin(&settings.bpffs.join(CONNECTIONS))?;
    bpffs::remove_empty_dir(&attach::links_dir(settings))?;
    bpffs::remove_empty_dir(&settings.bpffs)?;
    // The parent of the versioned directory is ours too where it has our name.
    match settings.bpffs.parent() {
        Some(parent) if parent.ends_with("proxy-agent") => bpffs::remove_empty_dir(parent),
        _ => Ok(()),
    }
}

fn log_level(settings: &Settings) -> &'static u8 {
    if settings.debug {
        &(aya_log::Level::Debug as u8)
    } else {
        &0
    }
}

/// Before Linux 5.11 maps count against a limit that is far too small by default.
fn allow_locked_memory() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a valid structure. If it fails, the map creation tells.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

fn fill_vips(ebpf: &mut Ebpf, settings: &Settings) -> Result<(), LoadError> {
    let failed = |source| LoadError::Map { map: VIPS, source };
    let mut vips: aya::maps::HashMap<_, Endpoint, u32> = ebpf
        .map_mut(VIPS)
        .expect("the object has this map")
        .try_into()
        .map_err(failed)?;
    for vip in &settings.vips {
        for port in &settings.ports {
            vips.insert(Endpoint::from_host(*vip, *port), 0, 0)
                .map_err(failed)?;
        }
    }
    Ok(())
}

fn take_decisions(ebpf: &mut Ebpf) -> Result<Decisions, LoadError> {
    ebpf.take_map(CONNECTIONS)
        .expect("the object has this map")
        .try_into()
        .map_err(decisions_failed)
}

fn decisions_failed(source: MapError) -> LoadError {
    LoadError::Map {
        map: CONNECTIONS,
        source,
    }
}

/// Unpins a map of decisions whose size is not the one asked for; its content moves to the new one.
fn set_aside_other_size(settings: &Settings) -> Result<Option<(Decisions, u32)>, LoadError> {
    let pin: PathBuf = settings.bpffs.join(CONNECTIONS);
    if !pin.exists() {
        return Ok(None);
    }
    let map = MapData::from_pin(&pin).map_err(decisions_failed)?;
    let size = map.info().map_err(decisions_failed)?.max_entries();
    if size == settings.max_connections {
        return Ok(None);
    }
    info!(
        part = super::PART,
        "move decided connections to a map of {} entries (was {size})", settings.max_connections
    );
    bpffs::unpin(&pin)?;
    let decisions = Map::LruHashMap(map).try_into().map_err(decisions_failed)?;
    Ok(Some((decisions, size)))
}

fn copy(from: &Decisions, size: u32, to: &mut Decisions) -> Result<(), LoadError> {
    // The walk begins anew where an entry is removed under it: it must end all the same.
    for entry in from.iter().take(2 * size as usize) {
        let (key, connection) = entry.map_err(decisions_failed)?;
        to.insert(key, connection, 0).map_err(decisions_failed)?;
    }
    Ok(())
}

fn classifier(ebpf: &mut Ebpf) -> &mut SchedClassifier {
    ebpf.program_mut(INGRESS)
        .expect("the object has this program")
        .try_into()
        .expect("it is a classifier")
}

fn load_classifier(ebpf: &mut Ebpf) -> Result<u32, LoadError> {
    let failed = |source| LoadError::Program {
        program: INGRESS,
        source,
    };
    let program = classifier(ebpf);
    program.load().map_err(failed)?;
    Ok(program.info().map_err(failed)?.id())
}

fn load_verdict(ebpf: &mut Ebpf, name: &'static str) -> Result<Verdict, LoadError> {
    let failed = |source| LoadError::Program {
        program: name,
        source,
    };
    let program: &mut SocketFilter = ebpf
        .program_mut(name)
        .expect("the object has this program")
        .try_into()
        .expect("it is a socket filter");
    program.load().map_err(failed)?;
    Ok(Verdict {
        id: program.info().map_err(failed)?.id(),
        fd: program.fd().map_err(failed)?.as_fd().as_raw_fd(),
    })
}
