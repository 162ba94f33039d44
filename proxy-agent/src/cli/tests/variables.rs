// SPDX-License-Identifier: Apache-2.0

//! Flags set by environment variables.

use std::process;

use super::*;

/// The command of this test program, with the runner that cargo uses for another processor.
fn this_program() -> process::Command {
    let program = env::current_exe().unwrap();
    let target = env::consts::ARCH.to_uppercase();
    let runner = env::var(format!("CARGO_TARGET_{target}_UNKNOWN_LINUX_GNU_RUNNER"));
    let runner = runner.unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(emulator) = words.next() else {
        return process::Command::new(program);
    };
    let mut command = process::Command::new(emulator);
    command.args(words).arg(program);
    command
}

/// Runs this test program's `child` in a process of its own with these variables; returns its output. (All tests of a process
/// share its environment.)
fn with_variables(variables: &[(&str, &str)], line: &str) -> String {
    // libtest omits the crate's name.
    let (_, module) = module_path!().split_once("::").unwrap();
    let child = format!("{module}::child");
    let output = this_program()
        .args(["--exact", "--nocapture", &child])
        // The tests may themselves run in a cluster.
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env_remove("KUBERNETES_SERVICE_PORT")
        .env_remove("KUBERNETES_SERVICE_PORT_HTTPS")
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
        Err(error) => println!("{error}(exit code {})", error.exit_code()),
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
        ("PROXY_AGENT_SERVICE_ADDRESS", "10.96.0.1,[fd00::1]:443"),
        ("PROXY_AGENT_REPAIR_CONNTRACK", "10.96.0.10:53"),
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
        "Service { cluster_ip: 10.96.0.1:443, vip: 10.96.0.2:443 }",
        "Service { cluster_ip: [fd00::1]:443, vip: [fd00::2]:443 }",
        "repair: [10.96.0.10:53]",
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

const AUTO: &str = "--ip-address=10.96.0.2,fd00::2 --service-address=auto";
const HOST: &str = "KUBERNETES_SERVICE_HOST";
const PORT: &str = "KUBERNETES_SERVICE_PORT";
const PORT_HTTPS: &str = "KUBERNETES_SERVICE_PORT_HTTPS";

#[test]
fn auto_is_the_address_that_kubernetes_sets_in_containers() {
    for (variables, want) in [
        (
            &[(HOST, "10.96.0.1")][..],
            "10.96.0.1:443, vip: 10.96.0.2:443",
        ),
        (
            &[(HOST, "fd00::1"), (PORT, "6443")],
            "[fd00::1]:6443, vip: [fd00::2]:443",
        ),
        (
            &[(HOST, "10.96.0.1"), (PORT, "80"), (PORT_HTTPS, "8443")],
            "10.96.0.1:8443, vip: 10.96.0.2:443",
        ),
        (
            &[(HOST, "10.96.0.1"), (PORT, "8443"), (PORT_HTTPS, "")],
            "10.96.0.1:8443, vip: 10.96.0.2:443",
        ),
    ] {
        let config = with_variables(variables, AUTO);
        let want = format!("services: [Service {{ cluster_ip: {want} }}]");
        assert!(config.contains(&want), "{want}: {config}");
        assert!(config.contains("remarks: []"), "{config}");
    }
    // The other family is not among the variables.
    let config = with_variables(&[(HOST, "10.96.0.1")], &format!("{AUTO},fd00::1"));
    assert!(
        config.contains("[fd00::1]:443, vip: [fd00::2]:443"),
        "{config}"
    );
}

#[test]
fn auto_with_a_host_name_translates_nothing_and_says_so() {
    for flags in ["", "--backend=none"] {
        let name = [(HOST, "api.cluster.example"), (PORT, "443")];
        let config = with_variables(&name, &format!("{AUTO} {flags}"));
        assert!(config.contains("services: []"), "{config}");
        assert!(
            config.contains("remarks: [Info(\"--service-address=auto:"),
            "{config}"
        );
        assert!(config.contains("'api.cluster.example'"), "{config}");
        assert!(!config.contains("Warning(\""), "{config}");
    }
}

#[test]
fn auto_that_cannot_stand_is_refused_with_what_it_comes_from() {
    for (variables, more, want) in [
        (&[][..], "", "KUBERNETES_SERVICE_HOST is not set"),
        (&[(HOST, "")], "", "KUBERNETES_SERVICE_HOST is not set"),
        (
            &[(HOST, "127.0.0.1")],
            "",
            "KUBERNETES_SERVICE_HOST has the value '127.0.0.1': a loopback address",
        ),
        (
            &[(HOST, "10.96.0.1"), (PORT, "https")],
            "",
            "KUBERNETES_SERVICE_PORT has the value 'https': not a TCP port",
        ),
        (
            &[(HOST, "10.96.0.1"), (PORT, "443"), (PORT_HTTPS, "0")],
            "",
            "KUBERNETES_SERVICE_PORT_HTTPS has the value '0': not a TCP port",
        ),
        (
            &[(HOST, "10.96.0.2")],
            "",
            "10.96.0.2 is one of --ip-address",
        ),
        (
            &[(HOST, "10.96.0.1"), (PORT, "444")],
            " --port=443,8443",
            "444 is not among the values of --port",
        ),
        (&[(HOST, "10.96.0.1")], ",auto", "more than once"),
        (&[(HOST, "a.name")], ",auto", "more than once"),
        (
            &[(HOST, "10.96.0.1")],
            " --service-address=auto",
            "more than once",
        ),
    ] {
        let message = with_variables(variables, &format!("{AUTO}{more}"));
        assert!(
            message.contains("invalid value 'auto' for '--service-address'"),
            "{variables:?}: {message}"
        );
        assert!(message.contains(want), "{want}: {message}");
        assert!(message.contains("exit code 2"), "{message}");
    }
}
