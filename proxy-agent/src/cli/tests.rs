// SPDX-License-Identifier: Apache-2.0

//! The command line as a whole: what it accepts, what it refuses, and its errors.

mod refused;
mod services;
mod variables;

use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::{AcceptRules, TcAttach};
use crate::status::Output;
use proxy_serve::flags::CLASSIFIED;
use proxy_serve::log::{LogFormat, Severity};

/// Parses a line split at spaces, without the program's name.
fn read(line: &str) -> Result<Config, Error> {
    run(try_parse_from(
        ["proxy-agent"].into_iter().chain(line.split_whitespace()),
    ))
}

/// The settings of an invocation that runs the agent.
fn run(invocation: Result<Invocation, Error>) -> Result<Config, Error> {
    match invocation? {
        Invocation::Run(config) => Ok(*config),
        other => panic!("not a run of the agent: {other:?}"),
    }
}

fn accepted(line: &str) -> Config {
    read(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn clap_finds_no_contradiction() {
    command().debug_assert();
}

#[test]
fn the_guard_is_auto_off_or_links() {
    let guard = |flags: &str| accepted(&format!("--ip-address=10.96.0.2 {flags}")).guard;
    assert_eq!(guard(""), Guard::Auto);
    assert_eq!(guard("--guard=off"), Guard::Off);
    let links = ["eth0", "eth1"].map(str::to_owned).to_vec();
    assert_eq!(guard("--guard=eth0,eth1"), Guard::Links(links));
    for bad in ["auto,eth0", "eth0,off", "auto,off", "eth0,eth0"] {
        assert!(
            read(&format!("--ip-address=10.96.0.2 --guard={bad}")).is_err(),
            "{bad}"
        );
    }
    let allowed = "--allow-from=192.0.2.0/24,192.0.2.7 --allow-from=2001:db8::/32";
    let allowed = accepted(&format!("--ip-address=10.96.0.2 {allowed}")).allow_from;
    let networks: Vec<_> = allowed.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["192.0.2.0/24", "192.0.2.7/32", "2001:db8::/32"]);
}

#[test]
fn the_upstream_is_auto_off_or_endpoints() {
    let upstream =
        |flags: &str| accepted(&format!("--ip-address=10.96.0.2 {flags}")).proxy_upstream;
    assert_eq!(upstream(""), ProxyUpstream::Auto);
    assert_eq!(upstream("--proxy-upstream=auto"), ProxyUpstream::Auto);
    assert_eq!(upstream("--proxy-upstream=off"), ProxyUpstream::Off);
    let endpoints = ["192.0.2.1:443", "192.0.2.1:6443", "[2001:db8::1]:443"];
    let endpoints = endpoints.map(|text| text.parse().unwrap()).to_vec();
    assert_eq!(
        upstream("--proxy-upstream=192.0.2.1,192.0.2.1:6443 --proxy-upstream=2001:db8::1"),
        ProxyUpstream::Named(endpoints)
    );
}

#[test]
fn all_flags_are_known_with_their_values_and_none_is_a_secret() {
    let config = accepted("--ip-address=10.96.0.2,fd00::1 --guard=off --cleanup -v2");
    let flags: Vec<_> = config.serve.flags.iter().collect();
    for flag in [
        ("allow-from", ""),
        ("cleanup", "true"),
        ("guard", "off"),
        ("ip-address", "10.96.0.2,fd00::1"),
        ("sync-interval", "1m0s"),
        ("v", "2"),
    ] {
        assert!(flags.contains(&flag), "{flag:?} in {flags:?}");
    }
    assert!(flags.iter().all(|(_, value)| *value != CLASSIFIED));
    assert!(
        !flags
            .iter()
            .any(|(name, _)| ["help", "version"].contains(name))
    );
}

#[test]
fn completions_know_every_flag_and_need_no_address() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let invocation = try_parse_from(["proxy-agent", "completions", shell]);
        let Ok(Invocation::Completions(shell)) = invocation else {
            panic!("{shell}: {invocation:?}");
        };
        let script = String::from_utf8(completions(shell)).unwrap();
        for flag in ["ip-address", "max-connections", "log-format"] {
            assert!(script.contains(flag), "{flag} in\n{script}");
        }
    }
}

#[test]
fn status_needs_no_address_and_asks_the_agent_where_its_maps_are() {
    let request = |line: &str| match try_parse_from(line.split_whitespace()) {
        Ok(Invocation::Status(request)) => request,
        other => panic!("{line}: {other:?}"),
    };
    let plain = request("proxy-agent status");
    assert_eq!(plain.output, Output::Table);
    assert_eq!(plain.run_dir, Path::new("/run/proxy-agent"));
    assert_eq!(plain.bpffs, None);
    let full = request("proxy-agent status --output=json --all --run-dir=/a --bpffs /b");
    assert_eq!(full.output, Output::Json);
    assert!(full.all);
    assert_eq!(full.run_dir, Path::new("/a"));
    assert_eq!(full.bpffs.as_deref(), Some(Path::new("/b")));
    for line in [
        "status --ip-address=10.96.0.2",
        "status x",
        "status --output=xml",
    ] {
        let line = ["proxy-agent"].into_iter().chain(line.split_whitespace());
        assert_eq!(try_parse_from(line).unwrap_err().exit_code(), 2);
    }
}

#[test]
fn the_doctor_needs_nothing_and_takes_addresses() {
    let read = |line: &str| {
        let words = ["proxy-agent", "doctor"].into_iter();
        match try_parse_from(words.chain(line.split_whitespace())) {
            Ok(Invocation::Doctor(options)) => options,
            other => panic!("{line}: {other:?}"),
        }
    };
    let options = read("");
    assert_eq!(options.run_dir, Path::new("/run/proxy-agent"));
    assert!(options.vips.is_empty() && options.ports.is_empty() && options.bpffs.is_none());
    assert_eq!(options.format, Output::Table);
    let options = read("--output=json --ip-address=10.96.0.2,fd00::2 --port 443,8443 --bpffs /b");
    assert_eq!((options.vips.len(), options.ports), (2, vec![443, 8443]));
    assert_eq!(options.bpffs.as_deref(), Some(Path::new("/b")));
    assert!(try_parse_from(["proxy-agent", "doctor", "--ip-address=x"]).is_err());
}

#[test]
fn an_instance_has_directories_of_its_own() {
    let config = accepted("--ip-address=10.96.0.2 --instance=b");
    assert_eq!(config.instance.name(), "b");
    assert_eq!(config.bpffs, Path::new("/sys/fs/bpf/proxy-agent-b/v2"));
    assert_eq!(config.run_dir, Path::new("/run/proxy-agent-b"));
    let config = accepted("--ip-address=10.96.0.2 --instance=b --run-dir=/x --bpffs=/y");
    assert_eq!(config.bpffs, Path::new("/y"));
    assert_eq!(config.run_dir, Path::new("/x"));
    let config = accepted("--ip-address=10.96.0.2 --instance=");
    assert_eq!(config.run_dir, Path::new("/run/proxy-agent"));
    match try_parse_from(["proxy-agent", "status", "--instance=b"]) {
        Ok(Invocation::Status(request)) => {
            assert_eq!(request.run_dir, Path::new("/run/proxy-agent-b"));
        }
        other => panic!("{other:?}"),
    }
    for name in ["B", "b_", "-b", "abcdefghijk"] {
        let flag = format!("--instance={name}");
        let line = ["proxy-agent", "--ip-address=10.96.0.2", &flag];
        assert_eq!(try_parse_from(line).unwrap_err().exit_code(), 2);
    }
}

#[test]
fn an_address_to_listen_on_is_written_as_in_go() {
    let listen = |value: &str| {
        let config = accepted(&format!("--ip-address=10.96.0.2 --listen={value}"));
        let addresses = config.serve.addresses.iter();
        addresses.map(ToString::to_string).collect::<Vec<_>>()
    };
    let config = accepted("--ip-address=10.96.0.2");
    assert_eq!(config.serve.addresses, ["127.0.0.1:9465".parse().unwrap()]);
    assert!(!config.serve.ready_requires_listener);
    assert_eq!(listen(""), [""; 0]);
    assert_eq!(listen("[::1]:80"), ["[::1]:80"]);
    // As a manifest writes the address of a node of either family.
    assert_eq!(listen("[192.0.2.1]:80"), ["192.0.2.1:80"]);
    assert_eq!(listen(":80"), ["[::]:80", "0.0.0.0:80"]);
    // Another address than the VIP does not keep the proxy from its port.
    assert_eq!(listen("127.0.0.1:443"), ["127.0.0.1:443"]);
}

#[test]
fn one_address_is_enough() {
    let config = accepted("--ip-address=10.96.0.2");
    assert_eq!(config.vips, [IpAddr::from([10, 96, 0, 2])]);
    assert_eq!(config.ports, [443]);
    assert_eq!(config.interface, "lo");
    assert_eq!(config.sync_interval, Duration::from_mins(1));
    assert!(config.daemon);
    assert!(!config.cleanup);
    assert!(!config.dry_run);
    assert_eq!(config.backend, BackendChoice::Auto);
    assert_eq!(config.accept_rules, AcceptRules::Auto);
    assert_eq!(config.tc_attach, TcAttach::Auto);
    assert_eq!(config.bpffs, Path::new("/sys/fs/bpf/proxy-agent/v2"));
    assert_eq!(config.run_dir, Path::new("/run/proxy-agent"));
    assert_eq!(config.max_connections, 65536);
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.log.verbosity, 0);
    assert_eq!(config.log.stderr_threshold, Severity::Info);
    assert!(config.log.file.is_none() && config.log.modules.is_empty());
    assert!(config.log.headers && !config.log.source && config.log.remarks.is_empty());
}

#[test]
fn the_sidecars_whole_line() {
    let config = accepted(
        "--add_dir_header --alsologtostderr --cleanup --daemon=true --interface=apiserver-proxy \
         --ip-address=10.96.0.2 --log_backtrace_at=:0 --log_dir=/var/log --log_file=/var/log/a \
         --log_file_max_size=1800 --logtostderr=false --port=443 --setup-iptables --skip_headers \
         --skip_log_headers --stderrthreshold=2 --sync-interval=1m0s -v 4 --vmodule=link=6",
    );
    assert_eq!(config.interface, "apiserver-proxy");
    assert!(config.cleanup && config.daemon);
    assert_eq!(config.backend, BackendChoice::Iptables);
    let file = config.log.file.unwrap();
    assert_eq!(file.path, Path::new("/var/log/a"));
    assert_eq!(file.max_bytes, 1800 << 20);
    assert_eq!(config.log.stderr_threshold, Severity::Info);
    assert_eq!(config.log.verbosity, 4);
    assert_eq!(config.log.modules, ["link=6".parse().unwrap()]);
    assert!(config.log.source && !config.log.headers);
}

#[test]
fn the_sidecars_line_with_values_apart() {
    let config = accepted(
        "--ip-address 10.96.0.2 --port 8443 --interface lo --sync-interval 1h2m3.5s --daemon=f \
         --cleanup=0 --setup-iptables=FALSE --log_dir /var/log --log_file_max_size 0 --v=6 \
         --logtostderr=F --stderrthreshold warning --vmodule a=1,b*=2 --log_backtrace_at a.go:7",
    );
    assert_eq!(config.ports, [8443]);
    assert_eq!(config.sync_interval, Duration::from_millis(3_723_500));
    assert!(!config.daemon && !config.cleanup);
    assert_eq!(config.backend, BackendChoice::None);
    let file = config.log.file.unwrap();
    assert_eq!(file.path, Path::new("/var/log/proxy-agent.log"));
    assert_eq!(file.max_bytes, 0);
    assert_eq!(config.log.stderr_threshold, Severity::Warning);
    assert_eq!(config.log.modules.len(), 2);
}

#[test]
fn the_agents_own_flags() {
    let config = accepted(
        "--ip-address=10.96.0.2,fd00::2 --ip-address 10.96.0.3 --port=443,8443 --port 9443 \
         --backend=ebpf --accept-rules=never --tc-attach clsact --dry-run --log-format=json \
         --bpffs=/sys/fs/bpf/x --run-dir /run/x --max-connections=1024",
    );
    let vips: Vec<_> = config.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["10.96.0.2", "fd00::2", "10.96.0.3"]);
    assert_eq!(config.ports, [443, 8443, 9443]);
    assert_eq!(config.backend, BackendChoice::Ebpf);
    assert_eq!(config.accept_rules, AcceptRules::Never);
    assert_eq!(config.tc_attach, TcAttach::Clsact);
    assert!(config.dry_run);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.bpffs, Path::new("/sys/fs/bpf/x"));
    assert_eq!(config.run_dir, Path::new("/run/x"));
    assert_eq!(config.max_connections, 1024);
}

#[test]
fn an_explicit_backend_wins_over_the_sidecars_switch() {
    for (flags, want) in [
        ("", BackendChoice::Auto),
        ("--setup-iptables", BackendChoice::Iptables),
        ("--setup-iptables=true", BackendChoice::Iptables),
        ("--setup-iptables=false", BackendChoice::None),
        ("--setup-iptables --backend=auto", BackendChoice::Auto),
        ("--backend=ebpf --setup-iptables=false", BackendChoice::Ebpf),
    ] {
        let config = accepted(&format!("--ip-address=10.96.0.2 {flags}"));
        assert_eq!(config.backend, want, "{flags}");
    }
}

#[test]
fn the_last_of_a_repeated_flag_counts() {
    let config = accepted("--ip-address=10.96.0.2 --interface=a --daemon --daemon=false -v1 -v=2");
    assert!(!config.daemon);
    assert_eq!(config.log.verbosity, 2);
}

#[test]
fn klogs_flags_with_dashes() {
    let config = accepted(
        "--ip-address=10.96.0.2 --log-dir=/a --log-file=/b --log-file-max-size=1 --skip-headers \
         --add-dir-header --skip-log-headers --log-backtrace-at=:0 --logtostderr=false",
    );
    assert_eq!(config.log.file.unwrap().max_bytes, 1 << 20);
    assert!(config.log.source && !config.log.headers);
}

#[test]
fn log_files_that_klog_would_not_write_are_warned_about() {
    let config = accepted("--ip-address=10.96.0.2 --log_file=/a");
    assert!(config.log.file.is_none());
    assert_eq!(config.log.remarks.len(), 1);
    let config = accepted("--ip-address=10.96.0.2 --logtostderr=false");
    assert!(config.log.file.is_none());
    assert_eq!(config.log.remarks.len(), 1);
}

#[test]
fn help_and_version_are_no_errors() {
    for flag in ["--help", "-h", "--version", "-V"] {
        assert_eq!(read(flag).unwrap_err().exit_code(), 0, "{flag}");
    }
}

#[test]
fn every_flag_has_its_variable_and_its_place_in_the_help() {
    for arg in command().get_arguments() {
        let name = arg.get_long().unwrap();
        let variable = format!("PROXY_AGENT_{}", name.to_uppercase().replace('-', "_"));
        assert_eq!(arg.get_env(), Some(OsStr::new(&variable)));
        assert!(arg.get_help_heading().is_some(), "{name}");
        assert!(arg.get_help().is_some(), "{name}");
    }
}

#[test]
fn the_help_is_as_recorded() {
    let help = command().term_width(100).render_long_help().to_string();
    let help: String = help
        .lines()
        .flat_map(|line| [line.trim_end(), "\n"])
        .collect();
    is_as_recorded("src/cli/help.txt", &help);
}

/// Compares with a file below the crate's directory.
fn is_as_recorded(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let recorded = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == recorded,
        "this differs from {}; if it should, run with UPDATE_GOLDEN=1:\n{text}",
        path.display()
    );
}

/// A word of a command line: a flag with a value, or any text.
fn word() -> impl Strategy<Value = String> {
    let flags: Vec<String> = command()
        .get_arguments()
        .filter_map(|arg| arg.get_long().map(|name| format!("--{name}")))
        .chain(["-v", "-vv", "-", "--", "-V", "-h", "--nope"].map(str::to_owned))
        .collect();
    let flag = proptest::sample::select(flags);
    let value = prop_oneof![
        any::<String>(),
        "[-+0-9a-z.,:/=]{0,12}",
        Just("10.96.0.2".to_owned()),
        Just("1m0s".to_owned()),
        Just("auto,[fd00::1]:443".to_owned()),
    ];
    prop_oneof![
        flag.clone(),
        value.clone(),
        (flag, value).prop_map(|(flag, value)| format!("{flag}={value}")),
    ]
}

proptest! {
    #[test]
    fn no_line_panics(line in proptest::collection::vec(word(), 0..8)) {
        match run(try_parse_from(&line)) {
            Ok(config) => prop_assert!(!config.vips.is_empty() && !config.ports.contains(&0)),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn every_unicast_address_is_a_vip(first in 1_u8..=223, rest in any::<[u8; 3]>()) {
        let address = IpAddr::from([first, rest[0], rest[1], rest[2]]);
        let result = read(&format!("--ip-address={address}"));
        prop_assert_eq!(result.is_ok(), first != 127);
    }
}
