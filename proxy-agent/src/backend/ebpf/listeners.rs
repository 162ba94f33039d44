// SPDX-License-Identifier: Apache-2.0

//! Stores the proxy's listeners in the map of the socket lookup where the kernel does not allow `vip_ingress` to do so (since Linux
//! 7.3): by an iterator over the sockets of this network namespace. A map update from user space is no alternative, because it
//! needs the proxy's file descriptor.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::net::SocketAddr;

use aya::programs::links::LinkError;
use aya::programs::{Iter, ProgramError};
use aya::{Btf, BtfError, Ebpf};
use proxy_common::Endpoint;
use proxy_netlink::sock_diag::list::{self, Sock};

use super::maps::{self, HashMap, WANTED};
use crate::config::ProxyListener;

/// The name of the program.
pub const PROGRAM: &str = "vip_listeners";
/// The kernel's name of the kind of iterator.
pub const SOCKETS: &str = "tcp";

/// Failure to store listeners.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's BTF could not be read.
    #[error("cannot read the kernel's BTF; it needs CONFIG_DEBUG_INFO_BTF")]
    Btf(#[from] BtfError),
    /// The kernel rejected the program.
    #[error("cannot load the eBPF program {PROGRAM}")]
    Program(#[from] ProgramError),
    /// The map could not be used.
    #[error(transparent)]
    Map(#[from] maps::Error),
    /// The proxy's listeners could not be looked up.
    #[error("cannot look up the proxy's listeners")]
    Look(#[source] io::Error),
    /// The iterator failed.
    #[error("cannot iterate over the TCP sockets")]
    Iterate(#[source] io::Error),
    /// The iterator could not be created.
    #[error("cannot iterate over the TCP sockets")]
    Link(#[from] LinkError),
    /// The iterator did not store a listener that the lookup had found.
    #[error("the iterator over the TCP sockets did not find or did not store the listener of {0}")]
    NotFound(SocketAddr),
}

/// The iterator with the listeners that it has stored.
pub struct Listeners {
    wanted: HashMap<u64, Endpoint>,
    accepts: ProxyListener,
    /// The cookie of the stored socket, by VIP and port.
    kept: BTreeMap<SocketAddr, u64>,
}

impl Listeners {
    /// Loads the program of an object.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn load(ebpf: &mut Ebpf, accepts: ProxyListener) -> Result<Self, Error> {
        // The BTF is dropped after loading: it is larger than all other memory of the agent.
        program(ebpf)?.load(SOCKETS, &Btf::from_sys_fs()?)?;
        let wanted = ebpf.take_map(WANTED).expect("the object has this map");
        Ok(Self {
            wanted: wanted.try_into().map_err(maps::failed(WANTED))?,
            accepts,
            kept: BTreeMap::new(),
        })
    }

    /// Whether a VIP has another listener than the stored one. An endpoint whose lookup failed counts as changed, so that the
    /// next pass reports the error.
    pub fn have_changed(&self, vips: &[SocketAddr]) -> bool {
        vips.iter().any(|vip| {
            let now = self.listener(*vip);
            now.is_err() || now.is_ok_and(|now| now.is_some() && now != self.kept.get(vip).copied())
        })
    }

    /// Stores the listeners of these endpoints.
    ///
    /// # Errors
    ///
    /// The kernel's error, or a listener that was closed in the meantime.
    pub fn store(&mut self, ebpf: &mut Ebpf, vips: &[SocketAddr]) -> Result<(), Error> {
        // A wildcard listener may serve several VIPs, and each run stores a socket for one of them.
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
            self.store_sockets(ebpf, fresh)?;
        }
        Ok(())
    }

    /// Stores sockets, by their cookies.
    fn store_sockets(
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
            // The program removes the cookies of stored sockets.
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

/// Runs the program for each TCP socket of this network namespace.
fn run(ebpf: &mut Ebpf) -> Result<(), Error> {
    let program = program(ebpf)?;
    let link = program.attach()?;
    let mut sockets = program.take_link(link)?.into_file()?;
    // The program prints nothing, so the first read runs to the end, or until the kernel pauses after a million sockets.
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
