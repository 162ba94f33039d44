// SPDX-License-Identifier: Apache-2.0

//! The file of `--tenants-config`. The server reads it at startup and whenever it changes. If the new rules are
//! invalid, the previous rules stay in effect.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::Utf8Error;
use std::sync::Arc;

use proxy_serve::reload::{Change, Files, Reloader, Source};
use thiserror::Error;
use tracing::{info, warn};

use super::entrances::{EntranceError, Entrances};
use super::settings::{Frontend, Settings};
use crate::server::Server;
use crate::server::tenants::file::{self, Offered};
use crate::server::tenants::rules::{Rules, RulesError, Side};

/// The reason why the file cannot be used.
#[derive(Debug, Error)]
pub enum RulesFileError {
    /// The file cannot be read.
    #[error("cannot read the rules of tenants in {}; --tenants-config says where they are", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error that the kernel returned.
        #[source]
        source: io::Error,
    },
    /// The file is not valid UTF-8.
    #[error("the rules of tenants in {} are no UTF-8", path.display())]
    Text {
        /// The path of the file.
        path: PathBuf,
        /// The position of the invalid bytes.
        #[source]
        source: Utf8Error,
    },
    /// The rules are invalid.
    #[error("the rules of tenants in {} cannot be used", path.display())]
    Rules {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: RulesError,
    },
    /// A listener that the rules specify cannot be opened.
    #[error("a listening socket of the rules in {} cannot be opened", path.display())]
    Entrance {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: EntranceError,
    },
}

/// The file and the settings that its rules depend on.
pub struct RulesFile {
    path: PathBuf,
    offered: Offered,
    entrances: Arc<Entrances>,
}

impl Source for RulesFile {
    type Made = Rules;
    type Error = RulesFileError;

    const CONTENT: &'static str = "rules of tenants";

    fn read(&self) -> Result<Files, RulesFileError> {
        Ok(Files::new(vec![read(&self.path)?]))
    }

    fn make(&self, files: &Files) -> Result<Rules, RulesFileError> {
        let rules = parse(&self.path, files.at(0), self.offered)?;
        self.entrances
            .open(&rules)
            .map_err(|source| RulesFileError::Entrance {
                path: self.path.clone(),
                source,
            })?;
        Ok(rules)
    }

    fn announce(rules: &Rules) {
        info!("rules of {} tenants are in force", rules.tenants().count());
        for (side, peers) in [(Side::Agent, "agents"), (Side::Client, "clients")] {
            for tenant in rules.unproved(side) {
                warn!(
                    "tenant {tenant}: a rule for {peers} asks for no certificate and no token; any peer that the CA \
                     accepts can choose to match it"
                );
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RulesFileError> {
    fs::read(path).map_err(|source| RulesFileError::Read {
        path: path.to_owned(),
        source,
    })
}

fn parse(path: &Path, content: &[u8], offered: Offered) -> Result<Rules, RulesFileError> {
    let text = std::str::from_utf8(content).map_err(|source| RulesFileError::Text {
        path: path.to_owned(),
        source,
    })?;
    file::parse(text, offered).map_err(|source| RulesFileError::Rules {
        path: path.to_owned(),
        source,
    })
}

fn offered(settings: &Settings, has_reviewer: bool) -> Offered {
    Offered {
        agent_certificates: settings.agents.1.client_ca.is_some(),
        client_tls: matches!(settings.frontend, Frontend::Tls(..)),
        tokens: has_reviewer,
    }
}

/// Reads and validates the file without applying its rules.
///
/// # Errors
/// Returns an error if the file cannot be used.
pub fn examine(path: &Path, settings: &Settings) -> Result<Rules, RulesFileError> {
    let offered = offered(settings, settings.kubeconfig.is_some());
    parse(path, &read(path)?, offered)
}

/// Reads the file and applies its rules, now and whenever the file changes.
///
/// # Errors
/// Returns an error if the file cannot be used.
pub fn load(
    path: &Path,
    settings: &Settings,
    server: &Arc<Server>,
    entrances: Arc<Entrances>,
) -> Result<Reloader<RulesFile>, RulesFileError> {
    let source = RulesFile {
        path: path.to_owned(),
        offered: offered(settings, server.reviewer.is_some()),
        entrances: Arc::clone(&entrances),
    };
    let (server, metrics) = (Arc::clone(server), Arc::clone(&server.metrics));
    let apply = move |rules: &Rules| {
        server.tenants.apply(rules);
        entrances.accept(rules);
    };
    Reloader::new(source, move |change| match change {
        Change::Loaded(rules) => apply(rules),
        Change::Reloaded(rules) => {
            apply(rules);
            metrics.tenants.reloaded(true);
        }
        Change::Refused(_) => metrics.tenants.reloaded(false),
    })
}
