// SPDX-License-Identifier: Apache-2.0

//! The certificates of upstream's examples, with the file names of their commands: `frontend` for clients and server,
//! `agent` for server and agents, each with a CA of its own.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// The validity of the certificates, which are for experiments.
const VALIDITY: Duration = Duration::from_hours(365 * 24);

/// The certificates are valid from this long ago, because clocks may be behind.
const SLACK: Duration = Duration::from_hours(1);

/// The names in every certificate of the examples, in addition to the requested ones.
const NAMES: [&str; 4] = ["kubernetes", "localhost", "127.0.0.1", "::1"];

/// A CA and the certificates that it signs.
struct Group {
    name: &'static str,
    members: [Member; 2],
}

struct Member {
    name: &'static str,
    usage: ExtendedKeyUsagePurpose,
}

const GROUPS: [Group; 2] = [
    Group {
        name: "frontend",
        members: [
            Member {
                name: "proxy-frontend",
                usage: ExtendedKeyUsagePurpose::ServerAuth,
            },
            Member {
                name: "proxy-client",
                usage: ExtendedKeyUsagePurpose::ClientAuth,
            },
        ],
    },
    Group {
        name: "agent",
        members: [
            Member {
                name: "proxy-frontend",
                usage: ExtendedKeyUsagePurpose::ServerAuth,
            },
            Member {
                name: "proxy-agent",
                usage: ExtendedKeyUsagePurpose::ClientAuth,
            },
        ],
    },
];

/// The treatment of files that exist already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// An existing file is an error, and nothing is written.
    Keep,
    /// Existing files are replaced.
    Replace,
}

/// A file to be written.
struct Content {
    path: PathBuf,
    text: String,
    mode: u32,
}

/// Writes all certificates and keys below `directory`; the servers' certificates are for `names` too. Returns the paths
/// of the files.
///
/// # Errors
/// Returns an error if a file exists and must be kept, or if a file cannot be written.
pub fn write(directory: &Path, names: &[String], existing: Existing) -> Result<Vec<PathBuf>> {
    let mut contents = Vec::new();
    for group in &GROUPS {
        contents.extend(group.make(&directory.join(group.name), names)?);
    }
    if existing == Existing::Keep
        && let Some(file) = contents.iter().find(|content| content.path.exists())
    {
        bail!(
            "{} is there already; give another directory, or --force to replace everything in this one",
            file.path.display()
        );
    }
    for content in &contents {
        content.write()?;
    }
    Ok(contents.into_iter().map(|content| content.path).collect())
}

/// Writes one more client certificate of a group's CA, and its key, for a name and an organization.
///
/// # Errors
/// Returns an error if the CA does not exist, or if a file cannot be written.
pub fn issue(directory: &Path, group: &str, name: &str, organization: &str) -> Result<()> {
    let directory = directory.join(group);
    let key = fs::read_to_string(directory.join("private/ca.key"))
        .with_context(|| format!("no CA in {}", directory.display()))?;
    let key = KeyPair::from_pem(&key).context("the CA's key cannot be read")?;
    let authority = Issuer::new(authority_params(&authority_name(group))?, key);
    let mut params = base(name, Vec::new())?;
    let names = &mut params.distinguished_name;
    names.push(DnType::OrganizationName, organization);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let own = KeyPair::generate().context("cannot make a key")?;
    let signed = params.signed_by(&own, &authority);
    let signed = signed.with_context(|| format!("cannot sign {name}"))?;
    certificate(&directory, name, signed.pem()).write()?;
    private(&directory, name, &own).write()
}

fn certificate(directory: &Path, name: &str, text: String) -> Content {
    Content {
        path: directory.join("issued").join(format!("{name}.crt")),
        text,
        mode: 0o644,
    }
}

fn private(directory: &Path, name: &str, key: &KeyPair) -> Content {
    Content {
        path: directory.join("private").join(format!("{name}.key")),
        text: key.serialize_pem(),
        mode: 0o600,
    }
}

fn authority_name(group: &str) -> String {
    format!("konnectivity {group} CA")
}

impl Group {
    fn make(&self, directory: &Path, names: &[String]) -> Result<Vec<Content>> {
        let authority = authority(&authority_name(self.name))?;
        let mut contents = vec![
            certificate(directory, "ca", authority.pem()),
            private(directory, "ca", authority.key()),
        ];
        for member in &self.members {
            let own = KeyPair::generate().context("cannot make a key")?;
            let issued = member.params(names)?.signed_by(&own, &authority);
            let issued = issued.with_context(|| format!("cannot sign {}", member.name))?;
            contents.push(certificate(directory, member.name, issued.pem()));
            contents.push(private(directory, member.name, &own));
        }
        Ok(contents)
    }
}

impl Member {
    fn params(&self, names: &[String]) -> Result<CertificateParams> {
        let own = NAMES.iter().map(ToString::to_string);
        let mut params = base(self.name, own.chain(names.iter().cloned()).collect())?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![self.usage.clone()];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let key = KeyPair::generate().context("cannot make a key")?;
    CertifiedIssuer::self_signed(authority_params(name)?, key)
        .with_context(|| format!("cannot sign {name}"))
}

fn authority_params(name: &str) -> Result<CertificateParams> {
    let mut params = base(name, Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Returns the parameters that all certificates have in common.
fn base(name: &str, names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)
        .with_context(|| format!("a name for the certificate of {name} is neither DNS nor IP"))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - SLACK).into();
    params.not_after = (now + VALIDITY).into();
    Ok(params)
}

impl Content {
    fn write(&self) -> Result<()> {
        let context = || format!("cannot write {}", self.path.display());
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        // The file is created anew: an existing one may have another mode, and may be a link.
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(context);
            }
            _ => {}
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.mode)
            .open(&self.path)
            .and_then(|mut file| file.write_all(self.text.as_bytes()))
            .with_context(context)
    }
}
