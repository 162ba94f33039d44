// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-server doctor` and `konnectivity-agent doctor` beside running programs: they report no problem when
//! they are run without flags, and find each fault and suggest a remedy that contains the flag or file in question.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::cmd::wait_until;
use tests::http;
use tunnel_tests::api_server::ApiServer;
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{AGENT, AGENT_HEALTH, Example, PATIENCE, SERVER_HEALTH, Tunnel};

/// The exit codes of the worst verdict.
const GOOD: i32 = 0;
const WARNINGS: i32 = 3;
const BROKEN: i32 = 4;

/// The page with a paragraph for each check.
const PAGE: &str = include_str!("../../../../docs/tunnel-doctor.md");

const LEASES: [&str; 2] = ["--kubeconfig=kubeconfig", "--lease-namespace=leases"];

/// A server and an agent that count leases, with an API server.
struct Site {
    tunnel: Tunnel,
    api: ApiServer,
}

impl Site {
    fn new() -> Result<Self> {
        let tunnel = Tunnel::new()?;
        let api = ApiServer::start(tunnel.netns())?;
        api.kubeconfig(&tunnel.dir().join("kubeconfig"), "a-user", "127.0.0.1")?;
        Ok(Self { tunnel, api })
    }

    fn server() -> Vec<&'static str> {
        let own = ["--enable-lease-controller", "--server-id=a"];
        [&Example::HttpConnect.server()[..], &own, &LEASES].concat()
    }

    fn agent() -> Vec<&'static str> {
        [&AGENT[..], &["--count-server-leases"], &LEASES].concat()
    }

    fn start_server(&mut self) -> Result<()> {
        let program = Part::Server.of(Make::Ours)?;
        self.tunnel.spawn("server", &program, &Self::server())?;
        self.tunnel.wait_for(SERVER_HEALTH, "/healthz")
    }

    fn start(&mut self) -> Result<()> {
        self.start_server()?;
        let program = Part::Agent.of(Make::Ours)?;
        self.tunnel.spawn("agent", &program, &Self::agent())?;
        self.tunnel.wait_for_agent()?;
        let name = "konnectivity_network_proxy_agent_wanted_server_connections 1\n";
        wait_until(PATIENCE, "the number of servers", || {
            let metrics = http::ask(self.tunnel.netns(), AGENT_HEALTH, "/metrics", &[])?;
            Ok(metrics.body.contains(name).then_some(()))
        })
    }

    /// Runs the doctor of a program, and returns its findings and its exit code.
    fn examine(&self, part: Part, words: &[&str]) -> Result<(Vec<Value>, i32)> {
        let words = [&["doctor", "--output=json"], words].concat();
        let output = self.tunnel.run(&part.of(Make::Ours)?, &words)?;
        let found: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{output:?}\n{}", self.tunnel.logs()))?;
        let checks = found["checks"].as_array().context("no checks")?.clone();
        for check in &checks {
            let paragraph = format!("\n**{}**: ", check["id"].as_str().unwrap_or_default());
            ensure!(PAGE.contains(&paragraph), "no paragraph for {check}");
        }
        let code = output.status.code().context("a signal")?;
        let verdict = match code {
            GOOD => "ok",
            BROKEN => "broken",
            _ => "warning",
        };
        let is_same =
            found["verdict"] == verdict || (code == WARNINGS && found["verdict"] == "unknown");
        ensure!(is_same, "{code} and {found:#}");
        Ok((checks, code))
    }

    /// Runs the doctor with these words in place of flags of the same name, and expects a finding with a remedy.
    fn finds(&self, part: Part, words: &[&str], wanted: &Fault) -> Result<()> {
        let own = match part {
            Part::Server => Self::server(),
            _ => Self::agent(),
        };
        let line = [&own[..], words].concat();
        let (checks, code) = self.examine(part, &line)?;
        let found = checks.iter().find(|check| {
            let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
            check["id"] == wanted.id
                && check["verdict"] == wanted.verdict
                && text("finding").contains(wanted.finding)
                && text("remedy").contains(wanted.remedy)
        });
        ensure!(found.is_some(), "{words:?}: no {wanted:?} in {checks:#?}");
        let wanted_code = if wanted.verdict == "broken" {
            BROKEN
        } else {
            WARNINGS
        };
        let others = checks.iter().any(|check| check["verdict"] == "broken");
        ensure!(
            code == wanted_code || others,
            "{words:?}: {code} {checks:#?}"
        );
        Ok(())
    }
}

/// The expected finding.
#[derive(Debug)]
struct Fault {
    id: &'static str,
    verdict: &'static str,
    finding: &'static str,
    remedy: &'static str,
}

const fn broken(id: &'static str, finding: &'static str, remedy: &'static str) -> Fault {
    Fault {
        id,
        verdict: "broken",
        finding,
        remedy,
    }
}

const fn warning(id: &'static str, finding: &'static str, remedy: &'static str) -> Fault {
    Fault {
        id,
        verdict: "warning",
        finding,
        remedy,
    }
}

/// Without flags, the doctor checks the flags of the running processes. It prints lines for people, and upstream's
/// program names work as well.
#[test]
fn all_is_well() -> Result<()> {
    let mut site = Site::new()?;
    site.start()?;
    for (part, ids) in [
        (
            Part::Server,
            &[
                "process",
                "certificate",
                "agents",
                "listener",
                "api-server",
                "clock",
                "rights",
                "servers",
            ][..],
        ),
        (
            Part::Agent,
            &[
                "process",
                "certificate",
                "agent",
                "server",
                "api-server",
                "clock",
                "rights",
                "leases",
            ],
        ),
    ] {
        let (checks, code) = site.examine(part, &[])?;
        ensure!(
            code == GOOD,
            "{part:?}: {code} {checks:#?}\n{}",
            site.tunnel.logs()
        );
        for id in ids {
            let has = checks
                .iter()
                .any(|check| check["id"] == *id && check["verdict"] == "ok");
            ensure!(has, "{part:?}: no {id} in {checks:#?}");
        }
        let output = site.tunnel.run(&part.of(Make::Ours)?, &["doctor"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.contains("0 broken, 0 warnings, 0 unknown, "), "{text}");
    }
    // The server has seen no stream other than the agent's.
    let connected = site.tunnel.lines("server", "Agent connected").len();
    ensure!(connected == 1, "{connected} streams of agents");
    Ok(())
}

#[test]
fn faults_of_an_agent() -> Result<()> {
    let mut site = Site::new()?;
    site.start()?;
    // {"alg":"none"}, {"sub":"system:serviceaccount:a:b","aud":["x"],"exp":1}
    let expired = "eyJhbGciOiJub25lIn0.\
                   eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6YTpiIiwiYXVkIjpbIngiXSwiZXhwIjoxfQ.";
    fs::write(site.tunnel.dir().join("token"), expired)?;
    let part = Part::Agent;
    let stranger = [
        "--agent-cert=certs/frontend/issued/proxy-client.crt",
        "--agent-key=certs/frontend/private/proxy-client.key",
    ];
    let mixed = ["--agent-key=certs/frontend/private/proxy-client.key"];
    let for_servers = [
        "--agent-cert=certs/agent/issued/proxy-frontend.crt",
        "--agent-key=certs/agent/private/proxy-frontend.key",
    ];
    for (words, fault) in [
        (
            &["--ca-cert=certs/frontend/issued/ca.crt"][..],
            broken("server", "UnknownIssuer", "--ca-cert"),
        ),
        (
            &["--proxy-server-name=other.example"],
            broken("server", "other.example", "--proxy-server-name"),
        ),
        (
            &["--agent-cert=", "--agent-key="],
            broken("server", "CertificateRequired", "--agent-cert"),
        ),
        (
            &stranger,
            broken("server", "127.0.0.1", "--cluster-ca-cert"),
        ),
        (
            &mixed,
            broken("certificate", "cannot be used together", "its own key"),
        ),
        (
            &for_servers,
            broken("certificate", "not for clients", "clientAuth"),
        ),
        (
            &["--ca-cert=nowhere"],
            broken("certificate", "nowhere", "mount"),
        ),
        (
            &["--proxy-server-port=9"],
            broken("server", "refused", "--proxy-server-port"),
        ),
        // The port for clients, which speaks HTTP/1.1.
        (
            &[
                "--proxy-server-port=8090",
                "--ca-cert=certs/frontend/issued/ca.crt",
            ],
            broken("server", "127.0.0.1", "listen"),
        ),
        (
            &["--sync-interval=1m"],
            broken("flags", "--sync-interval-cap", "command line"),
        ),
        (
            &["--service-account-token-path=token"],
            broken("token", "system:serviceaccount:a:b", "kubelet"),
        ),
        (
            &["--service-account-token-path=nowhere"],
            broken("token", "nowhere", "projected"),
        ),
        (
            &["--lease-namespace=another"],
            warning("leases", "another", "--lease-namespace"),
        ),
        (
            &["--kubeconfig=nowhere"],
            broken("api-server", "nowhere", "kubeconfig"),
        ),
        (
            &["--health-server-port=8193"],
            warning("agent", "8193", "start it"),
        ),
    ] {
        site.finds(part, words, &fault)?;
    }
    site.api.deny("watch");
    let fault = broken("rights", "watch leases", "deploy/tunnel/kustomize/rights");
    site.finds(part, &[], &fault)?;
    site.api.set_clock_ahead(60);
    site.finds(part, &[], &warning("clock", "behind", "synchronised"))
}

#[test]
fn faults_of_a_server() -> Result<()> {
    let mut site = Site::new()?;
    site.start_server()?;
    let part = Part::Server;
    site.finds(
        part,
        &[],
        &broken("agents", "no agent", "konnectivity-agent doctor"),
    )?;
    fs::write(
        site.tunnel.dir().join("tenants.yaml"),
        "tenants: [{name: A}]\n",
    )?;
    fs::write(site.tunnel.dir().join("file"), "")?;
    let for_clients = [
        "--cluster-cert=certs/agent/issued/proxy-agent.crt",
        "--cluster-key=certs/agent/private/proxy-agent.key",
    ];
    let on_socket = |socket| {
        [
            "--mode=grpc",
            "--server-port=0",
            "--server-cert=",
            "--server-key=",
            "--server-ca-cert=",
            socket,
        ]
    };
    let (missing, no_socket) = (
        on_socket("--uds-name=missing"),
        on_socket("--uds-name=file"),
    );
    for (words, fault) in [
        (
            &["--cluster-cert=nowhere"][..],
            broken("certificate", "nowhere", "mount"),
        ),
        (
            &for_clients,
            broken("certificate", "not for servers", "serverAuth"),
        ),
        (
            &["--tenants-config=tenants.yaml"],
            broken("tenants", "tenants.yaml", "docs/tenants.md"),
        ),
        (
            &missing,
            broken("listener", "missing", "mount the same directory"),
        ),
        (
            &no_socket,
            broken("listener", "no socket", "mount the same directory"),
        ),
        (
            &["--agent-port=8191"],
            broken("listener", "8191", "another process"),
        ),
        (
            &["--server-count=3"],
            warning("servers", "announce 3", "--count-server-leases"),
        ),
        (
            &["--server-cert="],
            broken("flags", "--server-cert", "command line"),
        ),
    ] {
        site.finds(part, words, &fault)?;
    }
    site.api.deny("update");
    site.finds(
        part,
        &[],
        &broken("rights", "update leases", "deploy/tunnel/kustomize/rights"),
    )
}

#[test]
fn bad_usage_and_help() -> Result<()> {
    for part in [Part::Server, Part::Agent] {
        let program = part.of(Make::Ours)?;
        let run = |words: &[&str]| {
            let mut command = std::process::Command::new(&program);
            tests::cmd::output(command.args(words), "")
        };
        let output = run(&["doctor", "--output=xml"])?;
        ensure!(output.status.code() == Some(2), "{output:?}");
        let output = run(&["doctor", "--help"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && text.contains("--output"),
            "{output:?}"
        );
        ensure!(text.contains("changes nothing"), "{text}");
    }
    Ok(())
}
