// SPDX-License-Identifier: Apache-2.0

//! Arbitrary command lines and values of flags.

use std::ffi::OsString;
use std::fmt::{Debug, Display};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use clap::error::ErrorKind;
use proxy_netlink::fuzzing::choice;

use super::values::{self, Endpoint, Listen};
use super::{Config, Invocation, MAX_VIPS, OsStr, parse_bool, try_parse_from};
use crate::config::AcceptRules;
use crate::instance::Instance;
use proxy_serve::fuzzing::written_log;
use proxy_serve::value::GoDuration;

/// A command line, one word a line.
///
/// A rejected line is invalid usage, with a message. An accepted one satisfies what [`Config`] documents, and written flag by flag
/// it has the same meaning.
pub fn command_line(data: &[u8]) {
    let words = data.split(|byte| *byte == b'\n').map(OsStr::from_bytes);
    let line = [OsStr::new("proxy-agent")].into_iter().chain(words);
    match try_parse_from(line) {
        Ok(Invocation::Run(mut config)) => {
            check(&config);
            let line = written(&config);
            let again = try_parse_from(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
            let Invocation::Run(mut again) = again else {
                panic!("{line:?} does not run the agent");
            };
            // They are about flags that have come to nothing.
            config.log.remarks.clear();
            again.log.remarks.clear();
            // `/flagz` shows the flags as they were given.
            again.serve.flags.clone_from(&config.serve.flags);
            assert_eq!(format!("{config:?}"), format!("{again:?}"));
        }
        Ok(_) => {}
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => assert_eq!(error.exit_code(), 0),
            _ => {
                assert_eq!(error.exit_code(), 2);
                assert!(error.to_string().starts_with("error: "), "{error}");
            }
        },
    }
}

fn check(config: &Config) {
    assert!(!config.vips.is_empty());
    assert!(!config.ports.is_empty() && !config.ports.contains(&0));
    let endpoints: Vec<_> = config.endpoints().collect();
    assert!(endpoints.len() <= MAX_VIPS as usize);
    assert!(is_unique(&endpoints));
    assert!((1..=15).contains(&config.interface.len()));
    assert!(config.sync_interval >= Duration::from_millis(1));
    assert!(config.bpffs.is_absolute() && config.run_dir.is_absolute());
    assert!((1024..=1 << 24).contains(&config.max_connections));
    let services = &config.services;
    assert!(
        services
            .iter()
            .all(|service| endpoints.contains(&service.vip))
    );
    let mut vips = services
        .iter()
        .map(|service| service.vip)
        .collect::<Vec<_>>();
    vips.sort();
    assert!(is_unique(&vips));
    let cluster_ips = services.iter().map(|service| service.cluster_ip);
    let repaired: Vec<_> = cluster_ips.chain(config.repair.iter().copied()).collect();
    assert!(is_unique(&repaired));
    assert!(
        repaired
            .iter()
            .all(|address| !config.vips.contains(&address.ip()))
    );
    let same_family =
        |service: &crate::config::Service| service.vip.is_ipv4() == service.cluster_ip.is_ipv4();
    assert!(services.iter().all(same_family));
}

fn is_unique<T: PartialEq>(values: &[T]) -> bool {
    let mut before = (0..).zip(values);
    before.all(|(at, value)| !values[..at].contains(value))
}

/// A command line that sets each setting.
fn written(config: &Config) -> Vec<OsString> {
    fn list<T: Display>(values: impl IntoIterator<Item = T>) -> String {
        let values: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();
        values.join(",")
    }
    let accept_rules = match config.accept_rules {
        AcceptRules::Auto => "auto",
        AcceptRules::Always => "always",
        AcceptRules::Never => "never",
    };
    let mut line = vec![
        "proxy-agent".to_owned(),
        format!("--instance={}", config.instance),
        format!("--ip-address={}", list(&config.vips)),
        format!("--port={}", list(&config.ports)),
        format!("--interface={}", config.interface),
        format!(
            "--address-scope={}",
            format!("{:?}", config.address_scope).to_lowercase()
        ),
        format!("--sync-interval={}ns", config.sync_interval.as_nanos()),
        format!("--daemon={}", config.daemon),
        format!("--cleanup={}", config.cleanup),
        format!("--dry-run={}", config.dry_run),
        format!("--backend={}", config.backend),
        format!("--accept-rules={accept_rules}"),
        format!(
            "--tc-attach={}",
            format!("{:?}", config.tc_attach).to_lowercase()
        ),
        format!("--max-connections={}", config.max_connections),
        format!("--guard={}", config.guard),
        format!(
            "--guard-mode={}",
            format!("{:?}", config.guard_mode).to_lowercase()
        ),
        format!("--listen={}", listen(&config.serve.addresses)),
        format!(
            "--ready-requires-listener={}",
            config.serve.ready_requires_listener
        ),
        format!("--bpffs={}", config.bpffs.display()),
        format!("--run-dir={}", config.run_dir.display()),
    ];
    if !config.allow_from.is_empty() {
        line.push(format!("--allow-from={}", list(&config.allow_from)));
    }
    if !config.services.is_empty() {
        let services = config.services.iter().map(|service| service.cluster_ip);
        line.push(format!("--service-address={}", list(services)));
    }
    if !config.repair.is_empty() {
        line.push(format!("--repair-conntrack={}", list(&config.repair)));
    }
    line.extend(written_log(&config.log));
    line.into_iter().map(OsString::from).collect()
}

/// The value of `--listen` that stands for these addresses.
fn listen(addresses: &[SocketAddr]) -> String {
    match addresses {
        [] => String::new(),
        [one] => one.to_string(),
        [any, ..] => format!(":{}", any.port()),
    }
}

/// A value of a flag, which the first byte selects. An accepted value in its normal form has the same meaning, and errors have a
/// message.
pub fn values(data: &[u8]) {
    let (kind, rest) = choice(data);
    let Ok(text) = str::from_utf8(rest) else {
        return;
    };
    match kind % 13 {
        0 => {
            if let Some(duration) = stable(text, str::parse::<GoDuration>) {
                // Signs are those of the text.
                let is_negative = text.starts_with('-') && duration != GoDuration::from_secs(0);
                assert_eq!(duration.to_std().is_none(), is_negative);
            }
        }
        1 => {
            if let Ok(interval) = values::interval(text) {
                let again = values::interval(&format!("{}ns", interval.as_nanos()));
                assert_eq!(again.ok(), Some(interval));
            }
        }
        2 => {
            if let Some(vip) = stable(text, values::vip) {
                assert!(!vip.is_unspecified() && !vip.is_loopback() && !vip.is_multicast());
                assert_eq!(vip.to_canonical(), vip);
            }
        }
        3 => {
            let address =
                |text: &str| values::endpoint(text).map(|Endpoint { address, .. }| address);
            if let Some(address) = stable(text, address) {
                assert_ne!(address.port(), 0);
                assert_eq!(address.ip().to_canonical(), address.ip());
            }
        }
        4 => {
            if let Some(port) = stable(text, values::port) {
                assert_ne!(port, 0);
            }
        }
        5 => {
            if let Some(name) = stable(text, values::link_name) {
                assert!((1..=15).contains(&name.len()) && name == text);
                assert!(!name.contains(['/', ':', '%', ' ', '\n', '\t']));
            }
        }
        6 => {
            if let Some(instance) = stable(text, str::parse::<Instance>) {
                assert_eq!(instance.name(), text);
                assert_eq!(Instance::of_mark(&instance.mark()), Some(instance));
            }
            // The reverse.
            if let Some(owner) = Instance::of_mark(text) {
                assert_eq!(owner.mark(), text);
            }
        }
        7 => {
            stable(text, |text| {
                values::directory(text).map(|path| path.display().to_string())
            });
        }
        8 => {
            stable(text, parse_bool);
        }
        9 => {
            if let Some(network) = stable(text, values::network) {
                assert_eq!(network, network.trunc());
            }
        }
        10 => {
            if let Some(name) = stable(text, values::guarded_link) {
                assert_ne!(name, "lo");
            }
        }
        11 => {
            if let Ok(Listen(addresses)) = values::listen(text) {
                let again = values::listen(&listen(&addresses)).ok();
                assert_eq!(again.map(|Listen(again)| again), Some(addresses));
            }
        }
        _ => {
            if let Ok(values::ServiceAddress::Given(given)) = values::service_address(text) {
                assert_eq!(given.text, text);
            }
        }
    }
}

/// The meaning of a text; written, it means itself.
fn stable<T, E>(text: &str, read: impl Fn(&str) -> Result<T, E>) -> Option<T>
where
    T: PartialEq + Debug + Display,
    E: Display,
{
    let value = read(text)
        .inspect_err(|error| assert!(!error.to_string().is_empty()))
        .ok()?;
    let again = read(&value.to_string()).unwrap_or_else(|error| panic!("{value}: {error}"));
    assert_eq!(again, value);
    Some(value)
}
