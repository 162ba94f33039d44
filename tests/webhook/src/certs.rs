// SPDX-License-Identifier: Apache-2.0

//! Certificates, made with openssl(1).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use tests::cmd;

/// The extensions of each certificate that is issued.
const EXTENSIONS: &str = "subjectAltName=DNS:localhost,IP:127.0.0.1\n\
    extendedKeyUsage=serverAuth,clientAuth\n";

/// An authority that issues certificates.
#[derive(Debug, Clone)]
pub struct Authority {
    dir: PathBuf,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one that keeps its files in `dir`.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let authority = Self {
            dir: dir.to_owned(),
        };
        fs::write(authority.file("extensions"), EXTENSIONS)?;
        authority.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority \
             -addext keyUsage=keyCertSign -keyout ca.key -out ca.crt",
        )?;
        Ok(authority)
    }

    /// One whose certificate is in `dir` already, as `ca.crt`.
    #[must_use]
    pub fn existing(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Its own certificate, in PEM.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// Issues a certificate for `localhost` and 127.0.0.1, good for servers and clients.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn issue(&self, name: &str) -> Result<Pair> {
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} \
             -keyout {name}.key -out {name}.csr"
        ))?;
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 \
             -extfile extensions -out {name}.crt"
        ))?;
        Ok(Pair {
            certificate: self.file(&format!("{name}.crt")),
            key: self.file(&format!("{name}.key")),
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn openssl(&self, line: &str) -> Result<()> {
        let mut command = Command::new("openssl");
        command.args(line.split_whitespace()).current_dir(&self.dir);
        cmd::run(&mut command, "").map(drop)
    }
}

impl Pair {
    /// Copies it to where the webhook looks for it by default.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn install(&self, dir: &Path) -> Result<()> {
        for (from, name) in [(&self.certificate, "tls.crt"), (&self.key, "tls.key")] {
            fs::copy(from, dir.join(name))
                .with_context(|| format!("copying {}", from.display()))?;
        }
        Ok(())
    }
}

/// A directory as kubelet makes it of a Secret: files are links through `..data`, which is exchanged.
#[derive(Debug)]
pub struct Mounted {
    dir: PathBuf,
    versions: u32,
}

impl Mounted {
    /// Makes it with a first pair.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub fn new(dir: &Path, pair: &Pair) -> Result<Self> {
        let mut mounted = Self {
            dir: dir.to_owned(),
            versions: 0,
        };
        mounted.exchange(pair)?;
        for name in ["tls.crt", "tls.key"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), dir.join(name))?;
        }
        Ok(mounted)
    }

    /// Exchanges the pair, in one step.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub fn exchange(&mut self, pair: &Pair) -> Result<()> {
        self.versions += 1;
        let version = format!("..version-{}", self.versions);
        let dir = self.dir.join(&version);
        fs::create_dir_all(&dir)?;
        pair.install(&dir)?;
        let next = self.dir.join("..data_tmp");
        std::os::unix::fs::symlink(&version, &next)?;
        fs::rename(&next, self.dir.join("..data"))?;
        if self.versions > 1 {
            fs::remove_dir_all(self.dir.join(format!("..version-{}", self.versions - 1)))?;
        }
        Ok(())
    }
}
