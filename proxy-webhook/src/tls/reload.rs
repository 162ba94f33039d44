// SPDX-License-Identifier: Apache-2.0

//! Takes changed certificates into use while the process runs.
//!
//! The files' contents are compared, not their times or inodes: kubelet exchanges a symbolic link to
//! their directory, others write the files in place, and not every file system tells of either. What
//! cannot be used is told once, and what was in use before stays.

use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use tracing::{error, info, warn};

use super::{Files, Identity, Paths, TlsError};
use crate::limits;
use crate::metrics::Metrics;

/// How often files that change while they are read are read again.
const ATTEMPTS: usize = 5;

/// What new connections are accepted with.
#[derive(Debug, Clone)]
pub struct Current(Arc<RwLock<Identity>>);

impl Current {
    /// rustls' configuration, for one connection.
    ///
    /// # Panics
    /// Never: nothing panics while it holds the lock.
    #[must_use]
    pub fn config(&self) -> Arc<rustls::ServerConfig> {
        self.0
            .read()
            .expect("no panic with the lock")
            .config
            .clone()
    }
}

/// Watches the files.
#[derive(Debug)]
pub struct Reloader {
    paths: Paths,
    current: Current,
    metrics: Arc<Metrics>,
    /// What is in use.
    used: Files,
    /// What was told to be of no use: the contents, or the message of an error.
    refused: Option<Refused>,
}

#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Unreadable(String),
    Useless(Files),
}

impl Reloader {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn new(paths: Paths, metrics: Arc<Metrics>) -> Result<Self, TlsError> {
        let used = paths.read()?;
        let identity = paths.identity(&used)?;
        tell(&identity, &metrics);
        Ok(Self {
            paths,
            current: Current(Arc::new(RwLock::new(identity))),
            metrics,
            used,
            refused: None,
        })
    }

    /// What is in use, now and later.
    #[must_use]
    pub fn current(&self) -> Current {
        self.current.clone()
    }

    /// Looks at the files for as long as the process lives, on a thread of its own.
    ///
    /// # Errors
    /// There can be no further thread.
    pub fn watch(mut self) -> anyhow::Result<()> {
        thread::Builder::new()
            .name("reload".to_owned())
            .spawn(move || {
                loop {
                    thread::sleep(limits::RELOAD);
                    self.look();
                }
            })
            .map(drop)
            .context("cannot start the thread that looks for changed certificates")
    }

    /// Takes changed files into use.
    fn look(&mut self) {
        let files = match self.stable() {
            Ok(files) => files,
            Err(error) => return self.refuse(Refused::Unreadable(chain(&error)), &error),
        };
        if files == self.used {
            self.refused = None;
            return;
        }
        match self.paths.identity(&files) {
            Ok(identity) => {
                tell(&identity, &self.metrics);
                *self.current.0.write().expect("no panic with the lock") = identity;
                self.used = files;
                self.refused = None;
                self.metrics.reloaded.inc();
            }
            Err(error) => self.refuse(Refused::Useless(files), &error),
        }
    }

    /// The files' contents, read again until they were the same twice: a pair that is being exchanged must
    /// not be taken for one that does not match.
    fn stable(&self) -> Result<Files, TlsError> {
        let mut files = self.paths.read()?;
        for _ in 1..ATTEMPTS {
            if files == self.used {
                break;
            }
            let again = self.paths.read()?;
            if again == files {
                break;
            }
            files = again;
        }
        Ok(files)
    }

    fn refuse(&mut self, refused: Refused, error: &TlsError) {
        if self.refused.as_ref() == Some(&refused) {
            return;
        }
        error!(
            "the changed certificates cannot be used, those from before still are: {}",
            chain(error)
        );
        self.refused = Some(refused);
        self.metrics.refused.inc();
    }
}

/// Logs and counts what is in use from now on.
fn tell(identity: &Identity, metrics: &Metrics) {
    metrics.server_ends.set(identity.ends.as_secs_f64());
    let ends = x509_cert::der::DateTime::from_unix_duration(identity.ends);
    let ends = ends.map_or_else(|_| "never".to_owned(), |date| date.to_string());
    let clients = match identity.client_ca_ends {
        Some(first) => {
            metrics.client_ca_ends(first);
            "clients need a certificate"
        }
        None => "clients need no certificate",
    };
    info!("the server's certificate is in use, until {ends}; {clients}");
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    if identity.ends <= now {
        warn!("the server's certificate has expired: clients will refuse it");
    }
}

/// An error with its causes, in one line.
fn chain(error: &TlsError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
