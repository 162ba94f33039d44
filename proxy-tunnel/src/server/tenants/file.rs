// SPDX-License-Identifier: Apache-2.0

//! The file with the rules; docs/tenants.md describes its format. Unknown keys are errors: otherwise a rule with a
//! misspelt condition would hold for every peer.

use std::path::PathBuf;

use serde::Deserialize;

use super::limits::Limits;
use super::peer::Entrance;
use super::rules::{Rule, Rules, RulesError, Side, TenantRules, TokenRule};
use crate::pattern::{HostPattern, Pattern};

/// The maximum number of tenants. Each of them has its own series in the metrics.
const MOST: usize = 10_000;

/// The maximum size of the file, in bytes.
const LONGEST: usize = 8 << 20;

/// The properties of peers that rules may use; they depend on the server's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered {
    /// Agents present certificates.
    pub agent_certificates: bool,
    /// Clients connect with TLS and present certificates.
    pub client_tls: bool,
    /// An API server reviews tokens.
    pub tokens: bool,
}

/// Parses and checks a file.
///
/// # Errors
/// Returns the first error and its place in the file.
pub fn parse(text: &str, offered: Offered) -> Result<Rules, RulesError> {
    if text.len() > LONGEST {
        let problem = format!("{} bytes, more than {LONGEST}", text.len());
        return Err(RulesError::new("the file", problem));
    }
    let file: File =
        serde_saphyr::from_str(text).map_err(|error| RulesError::new("the file", error))?;
    if file.tenants.is_empty() || file.tenants.len() > MOST {
        let problem = format!("{} of them; give 1 to {MOST}", file.tenants.len());
        return Err(RulesError::new("tenants", problem));
    }
    let tenants: Result<Vec<TenantRules>, RulesError> = file
        .tenants
        .into_iter()
        .enumerate()
        .map(|(index, entry)| entry.check(index, offered))
        .collect();
    Rules::new(tenants?)
}

/// Checks a tenant's name, which is used as a label in metrics and logs.
///
/// # Errors
/// Returns a description of valid names if the name is not valid.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_allowed = |byte: u8| is_inner(byte) || b"-.".contains(&byte);
    let bytes = name.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    let is_name = bytes.len() <= 63
        && bytes.iter().copied().all(is_allowed)
        && ends.is_some_and(|(first, last)| is_inner(*first) && is_inner(*last));
    if is_name {
        Ok(())
    } else {
        Err(
            "a name has 1 to 63 of a-z, 0-9, - and ., and begins and ends with one of the first two",
        )
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tenants: Vec<TenantEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantEntry {
    name: String,
    agents: Vec<RuleEntry>,
    clients: Vec<RuleEntry>,
    #[serde(default)]
    limits: LimitsEntry,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LimitsEntry {
    agents: Option<u32>,
    connections: Option<u32>,
    tunnels: Option<u32>,
    dials_per_second: Option<u32>,
    #[serde(rename = "bufferedMiB")]
    buffered_mib: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleEntry {
    certificate: Option<CertificateEntry>,
    token: Option<TokenEntry>,
    server_name: Option<String>,
    port: Option<u16>,
    unix_socket: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CertificateEntry {
    organization: Option<String>,
    organizational_unit: Option<String>,
    common_name: Option<String>,
    uri: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TokenEntry {
    audience: String,
    namespace: Option<String>,
    service_account: Option<String>,
}

impl TenantEntry {
    fn check(self, index: usize, offered: Offered) -> Result<TenantRules, RulesError> {
        let place = format!("tenants[{index}] ({})", self.name);
        check_name(&self.name).map_err(|problem| RulesError::new(place.clone(), problem))?;
        let rules = |side: Side, entries: Vec<RuleEntry>| {
            if entries.is_empty() {
                let place = format!("{place}, {}", side.key());
                return Err(RulesError::new(place, "give at least one rule"));
            }
            let checked = entries.into_iter().enumerate().map(|(number, entry)| {
                let place = format!("{place}, {}[{number}]", side.key());
                entry
                    .check(side, offered)
                    .map_err(|problem| RulesError::new(place, problem))
            });
            checked.collect()
        };
        let limits = self.limits.check(&place)?;
        Ok(TenantRules {
            limits,
            agents: rules(Side::Agent, self.agents)?,
            clients: rules(Side::Client, self.clients)?,
            name: self.name.into(),
        })
    }
}

impl LimitsEntry {
    fn check(&self, place: &str) -> Result<Limits, RulesError> {
        for (name, value) in [
            ("agents", self.agents),
            ("connections", self.connections),
            ("tunnels", self.tunnels),
            ("dialsPerSecond", self.dials_per_second),
            ("bufferedMiB", self.buffered_mib),
        ] {
            if value == Some(0) {
                let place = format!("{place}, limits.{name}");
                return Err(RulesError::new(place, "give 1 or more, or leave it out"));
            }
        }
        let count = |value: Option<u32>| value.map(|value| value as usize);
        Ok(Limits {
            agents: count(self.agents),
            connections: count(self.connections),
            tunnels: count(self.tunnels),
            dials_per_second: self.dials_per_second,
            buffered: count(self.buffered_mib).map(|mib| mib << 20),
        })
    }
}

impl RuleEntry {
    fn check(self, side: Side, offered: Offered) -> Result<Rule, String> {
        let entrance = match (self.port, self.unix_socket) {
            (None, None) => None,
            (Some(0), None) => return Err("port: give 1 to 65535".to_owned()),
            (Some(port), None) => Some(Entrance::Port(port)),
            (None, Some(path)) if side == Side::Client && path.is_absolute() => {
                Some(Entrance::Socket(path))
            }
            (None, Some(_)) => {
                return Err("unixSocket: only clients have one, by an absolute path".to_owned());
            }
            (Some(_), Some(_)) => return Err("give port or unixSocket, not both".to_owned()),
        };
        let has_tls = side == Side::Agent || offered.client_tls;
        let has_certificates = match side {
            Side::Agent => offered.agent_certificates,
            Side::Client => offered.client_tls,
        };
        let is_on_socket = matches!(entrance, Some(Entrance::Socket(_)));
        if self.certificate.is_some() && (!has_certificates || is_on_socket) {
            return Err(match side {
                Side::Agent => "certificate: agents show one only with --cluster-ca-cert",
                Side::Client => "certificate: clients show one only on TCP (--server-ca-cert)",
            }
            .to_owned());
        }
        if (self.server_name.is_some() || matches!(entrance, Some(Entrance::Port(_))))
            && (!has_tls || is_on_socket)
        {
            return Err("port and serverName: clients need --server-cert and TCP".to_owned());
        }
        if self.token.is_some() && side == Side::Client {
            return Err("token: only agents show one".to_owned());
        }
        if self.token.is_some() && !offered.tokens {
            let problem =
                "token: no API server can be asked about it; give --kubeconfig, or run in a pod";
            return Err(problem.to_owned());
        }
        if side == Side::Agent && !has_certificates && self.token.is_none() {
            // Otherwise every peer that can reach the port would belong to the tenant.
            let problem = "without --cluster-ca-cert a rule for agents needs a token";
            return Err(problem.to_owned());
        }
        let server_name = self.server_name.map(|name| {
            HostPattern::new(&name)
                .ok_or_else(|| format!("serverName: {name:?} is no name, nor `*.` and one"))
        });
        let rule = Rule {
            certificate: self.certificate.map(CertificateEntry::check).transpose()?,
            token: self.token.map(TokenEntry::check).transpose()?,
            server_name: server_name.transpose()?,
            entrance,
        };
        if rule == Rule::ANYTHING {
            return Err("give at least one condition".to_owned());
        }
        Ok(rule)
    }
}

impl CertificateEntry {
    fn check(self) -> Result<[Option<Pattern>; 4], String> {
        let fields = [
            ("organization", self.organization),
            ("organizationalUnit", self.organizational_unit),
            ("commonName", self.common_name),
            ("uri", self.uri),
        ];
        if fields.iter().all(|(_, text)| text.is_none()) {
            let problem = "certificate: give organization, organizationalUnit, commonName or uri";
            return Err(problem.to_owned());
        }
        let mut patterns = [const { None }; 4];
        for (pattern, (name, text)) in patterns.iter_mut().zip(fields) {
            let Some(text) = text else { continue };
            let read = Pattern::new(&text).ok_or_else(|| format!("certificate.{name} is empty"))?;
            *pattern = Some(read);
        }
        Ok(patterns)
    }
}

impl TokenEntry {
    fn check(self) -> Result<TokenRule, String> {
        let namespace = self.namespace.as_deref().unwrap_or("-");
        let account = self.service_account.as_deref().unwrap_or("-");
        if self.audience.is_empty() || namespace.is_empty() || account.is_empty() {
            return Err("token: audience, namespace and serviceAccount must not be empty".into());
        }
        Ok(TokenRule {
            audience: self.audience,
            namespace: self.namespace,
            account: self.service_account,
        })
    }
}
