// SPDX-License-Identifier: Apache-2.0

//! The listeners that rules of tenants specify, in addition to those of the flags. New listeners are opened before the
//! rules take effect, so that rules with an address that cannot be bound are rejected. Old listeners are closed
//! afterwards; their connections continue.

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

/// The source of a listener's address, for error messages.
const FLAG: &str = "a rule of --tenants-config";

/// The reason why a listener cannot be opened.
#[derive(Debug, Error)]
pub enum EntranceError {
    /// A port cannot be bound.
    #[error(transparent)]
    Port(#[from] ListenError),
    /// A Unix socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] UnixError),
}

/// A listener that has been opened and does not accept connections yet.
#[derive(Debug)]
enum Opened {
    Agents(u16, TcpListener),
    Clients(u16, TcpListener, Current<Identity>),
    Socket(std::path::PathBuf, Listener),
}

type Key = (u8, Entrance);

#[derive(Debug, Default)]
struct State {
    /// The listeners of rules that have not taken effect yet.
    opened: BTreeMap<Key, Opened>,
    /// The listeners of the rules in effect.
    accepting: BTreeMap<Key, JoinHandle<()>>,
}

/// The listeners of rules.
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
    /// Creates the state, without any listeners. Must be called within a Tokio runtime.
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

    /// Opens the listeners that these rules specify and that are not open yet.
    ///
    /// # Errors
    /// Returns an error if one of them cannot be opened; in that case all new listeners are closed.
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
            // Rules specify ports for clients only if clients use TLS.
            (_, Entrance::Port(port), _) => {
                Opened::Agents(port, listen::tcp(self.agents.0.with_port(port), FLAG)?)
            }
        })
    }

    /// Starts to accept on the listeners that were opened for these rules, and closes those that the rules do not
    /// contain.
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
