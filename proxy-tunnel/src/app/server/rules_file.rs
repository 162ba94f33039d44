// SPDX-License-Identifier: Apache-2.0

//! The file of `--tenants-config`: read at the start, and again when it has changed. Rules that cannot be used change
//! nothing.

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

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub enum RulesFileError {
    /// It cannot be read.
    #[error("cannot read the rules of tenants in {}; --tenants-config says where they are", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is no text.
    #[error("the rules of tenants in {} are no UTF-8", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// Where that shows.
        #[source]
        source: Utf8Error,
    },
    /// It says something that cannot be.
    #[error("the rules of tenants in {} cannot be used", path.display())]
    Rules {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: RulesError,
    },
    /// A socket of its rules cannot be had.
    #[error("a listening socket of the rules in {} cannot be opened", path.display())]
    Entrance {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: EntranceError,
    },
}

/// The file.
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

/// Reads the file, and puts nothing in force.
///
/// # Errors
/// It cannot be used.
pub fn examine(path: &Path, settings: &Settings) -> Result<Rules, RulesFileError> {
    let offered = offered(settings, settings.kubeconfig.is_some());
    parse(path, &read(path)?, offered)
}

/// Reads the file for the first time, and puts its rules in force, now and whenever it changes.
///
/// # Errors
/// It cannot be used.
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
