// SPDX-License-Identifier: Apache-2.0

//! Flags set by environment variables.

use std::process;

use super::*;

/// Runs this test program's `child` in a process of its own with these variables; gives what it
/// printed. (The environment of this process is shared by all its tests.)
fn with_variables(variables: &[(&str, &str)], line: &str) -> String {
    // libtest leaves the crate's name away.
    let (_, module) = module_path!().split_once("::").unwrap();
    let child = format!("{module}::child");
    let output = process::Command::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &child])
        .env(CHILD_LINE, line)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    stdout
}

const CHILD_LINE: &str = "CLI_TEST_CHILD_LINE";

/// The process that [`with_variables`] starts; by itself, a line without variables.
#[test]
fn child() {
    match read(&env::var(CHILD_LINE).unwrap_or_else(|_| "--ip-address=10.96.0.2".to_owned())) {
        Ok(config) => println!("{config:?}"),
        Err(error) => println!("{error}"),
    }
}

#[test]
fn variables_stand_in_for_flags() {
    let all = [
        ("PROXY_AGENT_IP_ADDRESS", "10.96.0.2,fd00::2"),
        ("PROXY_AGENT_DAEMON", "false"),
        ("PROXY_AGENT_SYNC_INTERVAL", "30s"),
        ("PROXY_AGENT_V", "5"),
        ("PROXY_AGENT_LOG_FILE", "/var/log/x"),
        ("PROXY_AGENT_LOGTOSTDERR", "f"),
        ("PROXY_AGENT_BACKEND", "auto"),
        ("PROXY_AGENT_SETUP_IPTABLES", "true"),
        ("PROXY_AGENT_INTERFACE", "from-variable"),
    ];
    let config = with_variables(&all, "--interface=from-flag");
    for want in [
        "vips: [10.96.0.2, fd00::2]",
        "daemon: false",
        "sync_interval: 30s",
        "verbosity: 5",
        "path: \"/var/log/x\"",
        "backend: Auto",
        "interface: \"from-flag\"",
    ] {
        assert!(config.contains(want), "{want}: {config}");
    }
}

#[test]
fn an_error_names_the_variable_it_comes_from() {
    let bad = [("PROXY_AGENT_IP_ADDRESS", "127.0.0.1")];
    let message = with_variables(&bad, "");
    assert!(
        message.contains("'127.0.0.1' for '--ip-address"),
        "{message}"
    );
    assert!(
        message.contains("comes from PROXY_AGENT_IP_ADDRESS"),
        "{message}"
    );
    let message = with_variables(&bad, "--ip-address=::1");
    assert!(message.contains("'::1' for '--ip-address"), "{message}");
    assert!(!message.contains("PROXY_AGENT"), "{message}");
    let bad = [
        ("PROXY_AGENT_LOG_FILE_MAX_SIZE", "x"),
        ("PROXY_AGENT_V", "x"),
    ];
    let message = with_variables(&bad, "--ip-address=10.96.0.2 --log-file-max-size=y -v1");
    assert!(!message.contains("PROXY_AGENT"), "{message}");
    let message = with_variables(&bad, "--ip-address=10.96.0.2 --log-file-max-size=1 -vz");
    assert!(!message.contains("PROXY_AGENT"), "{message}");
    let message = with_variables(&[("PROXY_AGENT_BACKEND", "")], "--ip-address=10.96.0.2");
    assert!(
        message.contains("comes from PROXY_AGENT_BACKEND"),
        "{message}"
    );
}

#[test]
fn the_service_link_of_kubernetes_is_no_port() {
    let link = [("PROXY_AGENT_PORT", "tcp://10.96.7.7:9465")];
    let config = with_variables(&link, "--ip-address=10.96.0.2");
    assert!(config.contains("ports: [443]"), "{config}");
}
