// SPDX-License-Identifier: Apache-2.0

//! The surroundings of the pods of `deploy/tunnel`: the server's namespace with an API server, the agent's namespace
//! with a target, the certificates of `make-certificates.sh`, and everything that the manifests mount.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::cmd::wait_until;
use tests::manifests::{Tool, repository};
use tests::netns::Netns;
use tunnel_tests::api_server::ApiServer;
use tunnel_tests::cluster::Cluster;
use tunnel_tests::pod::{Pod, Surroundings};
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{PATIENCE, TARGET, Tunnel};

/// The names in the server's certificates: those of the manifests, and the one that agents dial in the test.
const NAMES: &str = "tunnel.example,konnectivity-server.konnectivity.svc,konnectivity-server.kube-system.svc.cluster.local,\
                     localhost";

/// The host of the agents' servers in the manifests.
const HOST: &str = "tunnel.example";

/// The user of the server's kubeconfig.
pub const SERVER_USER: &str = "system:konnectivity-server";
/// The user of the agent's kubeconfig.
pub const AGENT_USER: &str = "system:serviceaccount:kube-system:konnectivity-agent";

/// The name of the server's process, which is also that of its pod.
pub const SERVER: &str = "konnectivity-server";
/// The name of the agent's process, which is also that of its pod.
pub const AGENT: &str = "konnectivity-agent";

/// Renders a directory of `deploy/tunnel/kustomize`.
pub fn kustomize(tool: &Tool, directory: &str) -> Result<Vec<Value>> {
    let top = repository().join("deploy/tunnel/kustomize");
    tool.kustomize(&top.join(directory))
        .with_context(|| directory.to_owned())
}

/// Renders the chart with the names that kustomize uses.
pub fn chart(tool: &Tool, values: &Value) -> Result<Vec<Value>> {
    let release = ["konnectivity", "kube-system"];
    tool.chart("deploy/tunnel/helm/konnectivity", release, values)
        .with_context(|| format!("chart with {values}"))
}

/// The namespaces, the certificates and the API server.
pub struct Site {
    pub tunnel: Tunnel,
    pub cluster: Cluster,
    pub api: ApiServer,
    pub around: Surroundings,
}

impl Site {
    pub fn new() -> Result<Self> {
        let tunnel = Tunnel::new()?;
        let cluster = Cluster::new(&tunnel, 1)?;
        let script = repository().join("deploy/tunnel/certificates/make-certificates.sh");
        let output = tunnel.run(&script, &["made", NAMES, "shoot-a", "shoot-b"])?;
        ensure!(output.status.success(), "{output:?}");
        let api = ApiServer::start(tunnel.netns())?;
        api.accept("the-token", AGENT_USER);
        let around = surroundings(&tunnel, &cluster, &api)?;
        let mut site = Self {
            tunnel,
            cluster,
            api,
            around,
        };
        let program = Part::TestServer.of(Make::Ours)?;
        let netns = site.cluster.netns();
        site.tunnel.spawn_in(netns, "test server", &program, &[])?;
        Ok(site)
    }

    /// Starts a server and an agent, and waits until their probes succeed.
    pub fn start(&mut self, server: &Pod<'_>, agent: &Pod<'_>) -> Result<()> {
        let outcome = self.try_start(server, agent);
        outcome.with_context(|| self.tunnel.logs())
    }

    fn try_start(&mut self, server: &Pod<'_>, agent: &Pod<'_>) -> Result<()> {
        let Self {
            tunnel,
            cluster,
            around,
            ..
        } = self;
        server.start(tunnel, None, SERVER, around)?;
        until_good(server, tunnel.netns(), "livenessProbe").context("the server")?;
        // The server is alive but not ready; its agent must be able to connect in this state.
        if server.has("readinessProbe") {
            let answer = server.probe(tunnel.netns(), "readinessProbe")?;
            ensure!(answer.code == 500, "without an agent: {answer:?}");
        }
        agent.start(tunnel, Some(cluster.netns()), AGENT, around)?;
        for wanted in ["livenessProbe", "readinessProbe"] {
            until_good(agent, cluster.netns(), wanted).context("the agent")?;
            if server.has(wanted) {
                until_good(server, tunnel.netns(), wanted).context("the server")?;
            }
        }
        Ok(())
    }

    /// Returns the arguments of curl for a request through the server's HTTP CONNECT frontend, as kube-apiserver's
    /// user.
    pub const fn curl() -> [&'static str; 11] {
        [
            "--silent",
            "--show-error",
            "--proxytunnel",
            "--proxy",
            "https://localhost:8090",
            "--proxy-cacert",
            "made/clients-ca.crt",
            "--proxy-cert",
            "made/shoot-a-kube-apiserver.crt",
            "--proxy-key",
            "made/shoot-a-kube-apiserver.key",
        ]
    }

    /// Makes a request to the target behind the agent by HTTP CONNECT.
    pub fn request(&self) -> Result<()> {
        let words: Vec<&str> = Self::curl().into_iter().chain([TARGET]).collect();
        self.tunnel.request(Path::new("curl"), &words).map(drop)
    }

    /// Makes a request to the target by gRPC on the Unix socket of this name in a volume of the server.
    pub fn request_on_socket(&self, volume: &str, name: &str) -> Result<()> {
        let socket = format!("--proxy-uds=pods/{SERVER}/{volume}/{name}");
        let client = Part::TestClient.of(Make::Ours)?;
        let words = [&socket, "--proxy-port=0", "--proxy-host="];
        self.tunnel.request(&client, &words).map(drop)
    }
}

/// Waits until a probe succeeds.
fn until_good(pod: &Pod<'_>, netns: &Netns, probe: &str) -> Result<()> {
    wait_until(PATIENCE, probe, || {
        Ok((pod.probe(netns, probe)?.code == 200).then_some(()))
    })
}

fn surroundings(tunnel: &Tunnel, cluster: &Cluster, api: &ApiServer) -> Result<Surroundings> {
    let made = tunnel.dir().join("made");
    let file = |name: &str| made.join(name);
    let pair = |name: &str, authority: &str| {
        [
            ("tls.crt", file(&format!("{name}.crt"))),
            ("tls.key", file(&format!("{name}.key"))),
            ("ca.crt", file(authority)),
        ]
    };
    let (token, kubeconfig) = (file("token"), file("kubeconfig"));
    // Editors leave a newline at the end.
    fs::write(&token, "the-token\n")?;
    api.kubeconfig(&kubeconfig, SERVER_USER, "127.0.0.1")?;
    let of_agent = file("agent.kubeconfig");
    api.kubeconfig(&of_agent, AGENT_USER, &cluster.server())?;
    let mut around = Surroundings::default();
    around.add("konnectivity-server", &pair("server", "clients-ca.crt"));
    let for_agents = pair("server-for-agents", "agents-ca.crt");
    around.add("konnectivity-server-for-agents", &for_agents);
    let agent = pair("shoot-a-konnectivity-agent", "agents-ca.crt");
    around.add("konnectivity-agent", &agent);
    let kubeconfig: [(&str, PathBuf); 1] = [("kubeconfig", kubeconfig)];
    around.add("konnectivity-server-kubeconfig", &kubeconfig);
    let [certificate, key, _] = for_agents;
    let [kubeconfig] = kubeconfig;
    let of_node = [certificate, key, kubeconfig];
    around.add("/etc/kubernetes/konnectivity", &of_node);
    around.add("/var/lib/konnectivity", &[]);
    around.add("token", &[("token", token)]);
    around.add("kube-root-ca.crt", &[("ca.crt", file("agents-ca.crt"))]);
    around.instead = vec![
        // No DNS server resolves this name here.
        (
            format!("--proxy-server-host={HOST}"),
            vec![
                format!("--proxy-server-host={}", cluster.server()),
                format!("--proxy-server-name={HOST}"),
            ],
        ),
        // A pod reads the address and the CA of its API server from files with fixed paths.
        (
            "--count-server-leases".to_owned(),
            vec![
                "--count-server-leases".to_owned(),
                format!("--kubeconfig={}", of_agent.display()),
            ],
        ),
    ];
    Ok(around)
}
