// SPDX-License-Identifier: Apache-2.0

//! Keeps the proxy's listeners in the map that the socket look-up takes them from, where the kernel refuses
//! `vip_ingress` to do so (since Linux 7.3): by an iterator over the sockets of this network namespace.
//! No other way is open to user space: for the map's own call the proxy's descriptor would be needed.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::net::SocketAddr;

use aya::programs::links::LinkError;
use aya::programs::{Iter, ProgramError};
use aya::{Btf, BtfError, Ebpf};
use proxy_common::Endpoint;

use super::maps::{self, HashMap, WANTED};
use crate::config::ProxyListener;
use crate::kernel::sock_diag::list::{self, Sock};

/// The name of the program.
pub const PROGRAM: &str = "vip_listeners";
/// The kind of iterator, as the kernel calls it.
pub const SOCKETS: &str = "tcp";

/// Something that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's types could not be read.
    #[error("cannot read the kernel's types; it needs CONFIG_DEBUG_INFO_BTF")]
    Btf(#[from] BtfError),
    /// The kernel refused the program.
    #[error("cannot load the eBPF program {PROGRAM}")]
    Program(#[from] ProgramError),
    /// The map could not be used.
    #[error(transparent)]
    Map(#[from] maps::Error),
    /// The proxy's listeners could not be looked up.
    #[error("cannot look for the proxy's listeners")]
    Look(#[source] io::Error),
    /// The iterator could not be run.
    #[error("cannot go through the TCP sockets")]
    Iterate(#[source] io::Error),
    /// The iterator could not be made.
    #[error("cannot go through the TCP sockets")]
    Link(#[from] LinkError),
    /// The iterator has not seen a listener that a look-up found.
    #[error("the listener of {0} was not found among the TCP sockets, or not taken")]
    NotFound(SocketAddr),
}

/// What the iterator has kept.
pub struct Listeners {
    wanted: HashMap<u64, Endpoint>,
    accepts: ProxyListener,
    /// The cookie of the socket that is kept for each VIP and port.
    kept: BTreeMap<SocketAddr, u64>,
}

impl Listeners {
    /// Loads the program of an object.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn load(ebpf: &mut Ebpf, accepts: ProxyListener) -> Result<Self, Error> {
        // The types are not kept: they are larger than all that the agent holds otherwise.
        program(ebpf)?.load(SOCKETS, &Btf::from_sys_fs()?)?;
        let wanted = ebpf.take_map(WANTED).expect("the object has this map");
        Ok(Self {
            wanted: wanted.try_into().map_err(maps::failed(WANTED))?,
            accepts,
            kept: BTreeMap::new(),
        })
    }

    /// Whether another socket than the kept one takes the connections of a VIP. An endpoint that could not be
    /// looked up counts as changed, so that the error is reported.
    pub fn have_changed(&self, vips: &[SocketAddr]) -> bool {
        vips.iter().any(|vip| {
            let now = self.listener(*vip);
            now.is_err() || now.is_ok_and(|now| now.is_some() && now != self.kept.get(vip).copied())
        })
    }

    /// Sees to it that the listeners of these endpoints are kept.
    ///
    /// # Errors
    ///
    /// The kernel's answer, or that a listener has gone again meanwhile.
    pub fn keep(&mut self, ebpf: &mut Ebpf, vips: &[SocketAddr]) -> Result<(), Error> {
        // One on the wildcard address is that of several VIPs, and each turn keeps a socket for one of them.
        for _ in vips {
            let mut fresh = BTreeMap::new();
            for vip in vips {
                let now = self.listener(*vip)?;
                if let Some(cookie) = now.filter(|now| self.kept.get(vip) != Some(now)) {
                    fresh.insert(cookie, *vip);
                }
            }
            if fresh.is_empty() {
                return Ok(());
            }
            self.keep_these(ebpf, fresh)?;
        }
        Ok(())
    }

    /// Keeps sockets, by their cookies.
    fn keep_these(
        &mut self,
        ebpf: &mut Ebpf,
        fresh: BTreeMap<u64, SocketAddr>,
    ) -> Result<(), Error> {
        for (cookie, vip) in &fresh {
            let wanted = self.wanted.insert(cookie, Endpoint::from(*vip), 0);
            wanted.map_err(maps::failed(WANTED))?;
        }
        let run = run(ebpf);
        let mut missing = None;
        for (cookie, vip) in fresh {
            // The program takes out what it has kept.
            if self.wanted.remove(&cookie).is_ok() {
                missing = Some(vip);
            } else {
                self.kept.insert(vip, cookie);
            }
        }
        run?;
        missing.map_or(Ok(()), |vip| Err(Error::NotFound(vip)))
    }

    /// The socket that counts as the proxy at an endpoint.
    fn listener(&self, vip: SocketAddr) -> Result<Option<u64>, Error> {
        let found = list::listener(vip).map_err(Error::Look)?;
        let counts = |sock: &Sock| sock.local == vip || self.accepts == ProxyListener::Any;
        Ok(found.filter(counts).map(|sock| sock.cookie))
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Iter, ProgramError> {
    let program = ebpf.program_mut(PROGRAM);
    program.expect("the object has this program").try_into()
}

/// Has the program look at each TCP socket of this network namespace.
fn run(ebpf: &mut Ebpf) -> Result<(), Error> {
    let program = program(ebpf)?;
    let link = program.attach()?;
    let mut sockets = program.take_link(link)?.into_file()?;
    // The program prints nothing, so that the first read goes to the end, or to where the kernel takes a
    // break after a million of sockets.
    loop {
        match sockets.read(&mut [0; 64]) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Iterate(error)),
        }
    }
}
