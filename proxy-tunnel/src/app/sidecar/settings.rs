// SPDX-License-Identifier: Apache-2.0

//! The settings of the sidecar, parsed from its flags and its file and validated. Contradictions are rejected before
//! any socket is opened.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use proxy_serve::listen::Bind;

use super::super::args::{destinations, path};
use super::super::port;
use super::super::reach::Place;
use super::args::Args;
use super::file::{self, Entry};
use crate::client::Mode;
use crate::destinations::Destinations;
use crate::server::tenants::file::check_name;

/// The name of the only tenant if there is no file.
const ONLY: &str = "default";

/// The default listening address.
const LISTEN: &str = "127.0.0.1:8097";

/// The address for clients.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Listen {
    /// A TCP address on loopback.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The settings of one tenant.
#[derive(Debug)]
pub struct TenantSettings {
    /// The tenant's name.
    pub name: String,
    /// The address for the tenant's clients.
    pub listen: Listen,
    /// The address of the tenant's server.
    pub place: Place,
    /// The protocol of the server.
    pub mode: Mode,
    /// The targets that may be connected to.
    pub allowed: Destinations,
}

/// All settings from the flags and the file.
#[derive(Debug)]
pub struct Settings {
    /// The tenants; at least one.
    pub tenants: Vec<TenantSettings>,
    /// The maximum number of simultaneous client connections per tenant.
    pub max_connections: u32,
    /// The address for health and metrics.
    pub health: Bind,
}

impl Settings {
    /// Parses and validates the flags and the file that they name.
    ///
    /// # Errors
    /// Returns an error if settings contradict each other or a value is out of range.
    pub fn new(args: &Args) -> Result<Self> {
        let entries = path(&args.tenants_config).map(|path| file::read(&path));
        Self::with(args, entries.transpose()?)
    }

    /// Parses and validates the flags together with these entries of a file.
    ///
    /// # Errors
    /// Returns an error under the same conditions as [`Settings::new`].
    pub fn with(args: &Args, entries: Option<Vec<Entry>>) -> Result<Self> {
        ensure!(
            args.max_connections > 0,
            "--max-connections must be larger than 0"
        );
        let allowed = destinations("allow-destination", &args.allow_destination)?;
        let tenants = match entries {
            None => {
                let listen = Some(args.listen.as_str()).filter(|listen| !listen.is_empty());
                let listen = self::listen(listen.unwrap_or(LISTEN)).context("--listen")?;
                vec![tenant(ONLY.to_owned(), listen, args, allowed)?]
            }
            Some(entries) => {
                ensure!(
                    args.listen.is_empty(),
                    "--tenants-config excludes --listen: the file has an address for each tenant"
                );
                several(&entries, args, &allowed)?
            }
        };
        let health_port = port("health-port", args.health_port)?;
        Ok(Self {
            tenants,
            max_connections: args.max_connections,
            health: Bind::parse(
                "--health-bind-address",
                &args.health_bind_address,
                health_port,
            )?,
        })
    }
}

fn several(entries: &[Entry], args: &Args, allowed: &Destinations) -> Result<Vec<TenantSettings>> {
    let (mut names, mut places) = (HashSet::new(), HashSet::new());
    let checked = entries.iter().enumerate().map(|(index, entry)| {
        let mut check = || {
            check_name(&entry.name).map_err(anyhow::Error::msg)?;
            ensure!(names.insert(&entry.name), "another tenant has this name");
            let listen = listen(&entry.listen).context("listen")?;
            ensure!(
                places.insert(listen.clone()),
                "another tenant listens on {}",
                entry.listen
            );
            let allowed = entry.allowed(allowed.clone())?;
            tenant(entry.name.clone(), listen, &entry.change(args), allowed)
        };
        check().with_context(|| format!("--tenants-config: tenants[{index}] ({})", entry.name))
    });
    checked.collect()
}

fn tenant(
    name: String,
    listen: Listen,
    args: &Args,
    allowed: Destinations,
) -> Result<TenantSettings> {
    Ok(TenantSettings {
        name,
        listen,
        place: args.reach.place()?,
        mode: args.reach.mode()?,
        allowed,
    })
}

fn listen(text: &str) -> Result<Listen> {
    if text.starts_with('/') {
        return Ok(Listen::Unix(text.into()));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() && address.port() != 0 => {
            Ok(Listen::Tcp(address))
        }
        Ok(address) if address.port() != 0 => bail!(
            "{text} is not of loopback: this proxy asks its clients for nothing, and whoever reached it there would reach \
             the whole cluster; give 127.0.0.1:PORT, [::1]:PORT or the path of a Unix socket"
        ),
        _ => {
            bail!("{text:?} is none; give 127.0.0.1:PORT, [::1]:PORT or the path of a Unix socket")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::read_flags;
    use super::*;

    fn read(words: &[&str], file: Option<&str>) -> Result<Settings> {
        let line = ["--ca-cert=ca"].iter().chain(words);
        let entries = file.map(file::parse).transpose()?;
        Settings::with(&read_flags(line)?, entries)
    }

    #[test]
    fn one_tenant_by_flags() {
        let settings = read(&[], None).unwrap();
        assert_eq!(settings.tenants.len(), 1);
        let only = &settings.tenants[0];
        assert_eq!(only.name, "default");
        assert_eq!(only.listen, Listen::Tcp("127.0.0.1:8097".parse().unwrap()));
        assert_eq!(only.mode, Mode::Grpc);
        assert!(
            matches!(&only.place, Place::Tls { host, port: 8090, name: None, .. } if host == "localhost")
        );
        let words = [
            "--listen=/run/proxy",
            "--ca-cert=",
            "--proxy-uds=/s",
            "--proxy-host=",
            "--proxy-port=0",
        ];
        let settings = read(&words, None).unwrap();
        assert_eq!(
            settings.tenants[0].listen,
            Listen::Unix("/run/proxy".into())
        );
        assert!(matches!(&settings.tenants[0].place, Place::Unix(path) if path.ends_with("s")));
    }

    #[test]
    fn several_by_a_file() {
        let file = "tenants:\n\
            - {name: a, listen: '127.0.0.1:1', clientCert: a.crt, clientKey: a.key, proxyServerName: a.example,\n   \
               allowDestination: ['10.0.0.0/8:9100']}\n\
            - {name: b, listen: '[::1]:1', proxyHost: other, proxyPort: 1, caCert: b.ca, mode: http-connect}\n\
            - {name: c, listen: /run/c, proxyUds: /run/server}\n";
        let words = [
            "--client-cert=x",
            "--client-key=y",
            "--allow-destination=10.1.0.0/16",
        ];
        let settings = read(&words, Some(file)).unwrap();
        let [a, b, c] = &settings.tenants[..] else {
            panic!("{settings:?}");
        };
        let certificate = |tenant: &TenantSettings| match &tenant.place {
            Place::Tls { tls, .. } => tls.pair.clone().unwrap().certificate,
            Place::Unix(_) => panic!("{tenant:?}"),
        };
        assert!(
            matches!(&a.place, Place::Tls { name: Some(name), .. } if name.to_str() == "a.example")
        );
        assert_eq!(certificate(a).to_str(), Some("a.crt"));
        assert!(a.allowed.permit_target("10.0.0.1:9100") && !a.allowed.permit_target("10.1.0.1:1"));
        assert!(matches!(&b.place, Place::Tls { host, port: 1, .. } if host == "other"));
        assert_eq!(certificate(b).to_str(), Some("x"));
        assert_eq!((a.mode, b.mode), (Mode::Grpc, Mode::HttpConnect));
        assert!(b.allowed.permit_target("10.1.0.1:1") && !b.allowed.permit_target("10.0.0.1:9100"));
        assert!(matches!(&c.place, Place::Unix(path) if path.ends_with("server")));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let one = "tenants: [{name: a, listen: /a}]";
        for (words, file, want) in [
            (&["--listen=0.0.0.0:8097"][..], None, "not of loopback"),
            (&["--listen=8097"], None, "give 127.0.0.1:PORT"),
            (&["--listen=127.0.0.1:0"], None, "give 127.0.0.1:PORT"),
            (&["--ca-cert="], None, "--ca-cert"),
            (&["--max-connections=0"], None, "--max-connections"),
            (&["--health-port=80"], None, "--health-port"),
            (&["--mode=x"], None, "--mode"),
            (&["--allow-destination=a b"], None, "--allow-destination"),
            (&["--listen=/a"], Some(one), "excludes --listen"),
            (&[], Some("tenants: []"), "0 tenants"),
            (
                &[],
                Some("tenants: [{name: A, listen: /a}]"),
                "tenants[0] (A): a name has",
            ),
            (
                &[],
                Some("tenants: [{name: a, listen: x}]"),
                "tenants[0] (a): listen",
            ),
            (
                &[],
                Some("tenants: [{name: a, listen: /a, port: 1}]"),
                "port",
            ),
            (
                &[],
                Some("tenants: [{name: a, listen: /a}, {name: a, listen: /b}]"),
                "tenants[1] (a): another tenant has this name",
            ),
            (
                &[],
                Some("tenants: [{name: a, listen: /a}, {name: b, listen: /a}]"),
                "another tenant listens on /a",
            ),
            (
                &[],
                Some("tenants: [{name: a, listen: /a, clientCert: c}]"),
                "--client-cert needs --client-key",
            ),
            (
                &[],
                Some("tenants: [{name: a, listen: /a, allowDestination: []}]"),
                "allowDestination is empty",
            ),
            (
                &[],
                Some("tenants: [{name: a, listen: /a, allowDestination: ['a b']}]"),
                "\"a b\" has no host",
            ),
        ] {
            let error = format!("{:#}", read(words, file).unwrap_err());
            assert!(error.contains(want), "{words:?} {file:?}: {error}");
        }
    }
}
