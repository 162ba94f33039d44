// SPDX-License-Identifier: Apache-2.0

//! The listening sockets that rules of tenants name, beside those of the flags. New ones are opened before rules come into
//! force, so that rules with a socket that cannot be had are refused; the old ones are closed after it. Connections go on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proxy_serve::listen::unix::{Existing, Listener, UnixError};
use proxy_serve::listen::{self, Bind, ListenError};
use proxy_serve::reload::Current;
use proxy_serve::tls::server::Identity;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tracing::info;

use super::super::listeners::Accepting;
use super::settings::{Frontend, Settings};
use crate::server::tenants::peer::Entrance;
use crate::server::tenants::rules::{Rules, Side};

/// The place of a listening address, as errors name it.
const FLAG: &str = "a rule of --tenants-config";

/// Why a socket cannot be had.
#[derive(Debug, Error)]
pub enum EntranceError {
    /// A port.
    #[error(transparent)]
    Port(#[from] ListenError),
    /// A Unix socket.
    #[error(transparent)]
    Socket(#[from] UnixError),
}

/// A socket that listens and is not yet accepted from.
#[derive(Debug)]
enum Opened {
    Agents(u16, TcpListener),
    Clients(u16, TcpListener, Current<Identity>),
    Socket(std::path::PathBuf, Listener),
}

type Key = (u8, Entrance);

#[derive(Debug, Default)]
struct State {
    /// Those of rules that may come into force.
    opened: BTreeMap<Key, Opened>,
    /// Those of the rules in force.
    accepting: BTreeMap<Key, JoinHandle<()>>,
}

/// The listening sockets of rules.
#[derive(Debug)]
pub struct Entrances {
    accepting: Accepting,
    own: [Key; 2],
    agents: (Bind, Current<Identity>),
    clients: Option<(Bind, Current<Identity>)>,
    existing: Existing,
    runtime: Handle,
    state: Mutex<State>,
}

const fn key(side: Side, entrance: Entrance) -> Key {
    (side as u8, entrance)
}

impl Entrances {
    /// None yet. It is made within a runtime.
    #[must_use]
    pub fn new(
        accepting: Accepting,
        settings: &Settings,
        tls: (Option<Current<Identity>>, Current<Identity>),
    ) -> Arc<Self> {
        let (of_clients, of_agents) = tls;
        let (own, clients) = match &settings.frontend {
            Frontend::Unix(path, _) => (Entrance::Socket(path.clone()), None),
            Frontend::Tls(bind, _) => (
                Entrance::Port(bind.port()),
                of_clients.map(|tls| (*bind, tls)),
            ),
        };
        let agents = settings.agents.0;
        Arc::new(Self {
            accepting,
            own: [
                key(Side::Client, own),
                key(Side::Agent, Entrance::Port(agents.port())),
            ],
            agents: (agents, of_agents),
            clients,
            existing: settings.existing,
            runtime: Handle::current(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self, rules: &Rules) -> BTreeMap<Key, (Side, Entrance)> {
        [Side::Agent, Side::Client]
            .into_iter()
            .flat_map(|side| {
                let entrances = rules.entrances(side).into_iter();
                entrances.map(move |entrance| (key(side, entrance.clone()), (side, entrance)))
            })
            .filter(|(key, _)| !self.own.contains(key))
            .collect()
    }

    /// Opens the sockets that these rules name and that are not open.
    ///
    /// # Errors
    /// The kernel refuses one; none stays open.
    pub fn open(&self, rules: &Rules) -> Result<(), EntranceError> {
        let _within = self.runtime.enter();
        let mut state = self.state();
        state.opened.clear();
        for (key, (side, entrance)) in self.wanted(rules) {
            if state.accepting.contains_key(&key) {
                continue;
            }
            match self.listen(side, entrance) {
                Ok(opened) => drop(state.opened.insert(key, opened)),
                Err(error) => {
                    state.opened.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn listen(&self, side: Side, entrance: Entrance) -> Result<Opened, EntranceError> {
        Ok(match (side, entrance, &self.clients) {
            (_, Entrance::Socket(path), _) => {
                let listener = Listener::bind(&path, FLAG, self.existing)?;
                Opened::Socket(path, listener)
            }
            (Side::Client, Entrance::Port(port), Some((bind, tls))) => {
                let listener = listen::tcp(bind.with_port(port), FLAG)?;
                Opened::Clients(port, listener, tls.clone())
            }
            // Rules name ports of clients only where there is TLS for them.
            (_, Entrance::Port(port), _) => {
                Opened::Agents(port, listen::tcp(self.agents.0.with_port(port), FLAG)?)
            }
        })
    }

    /// Accepts on the sockets that were opened for these rules, and closes those that they do not name.
    pub fn accept(&self, rules: &Rules) {
        let mut state = self.state();
        let wanted = self.wanted(rules);
        state.accepting.retain(|key, task| {
            let stays = wanted.contains_key(key);
            if !stays {
                info!("{} is closed", key.1);
                task.abort();
            }
            stays
        });
        for (key, opened) in std::mem::take(&mut state.opened) {
            info!("{} is open", key.1);
            let accepting = self.accepting.clone();
            let tls = self.agents.1.clone();
            let task = self.runtime.spawn(async move {
                match opened {
                    Opened::Agents(port, listener) => accepting.agents(port, listener, tls).await,
                    Opened::Clients(port, listener, tls) => {
                        accepting.clients(port, listener, tls).await;
                    }
                    Opened::Socket(path, listener) => {
                        accepting.clients_on_socket(path, listener).await;
                    }
                }
            });
            state.accepting.insert(key, task);
        }
    }
}
