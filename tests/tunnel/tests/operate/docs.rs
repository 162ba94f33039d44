// SPDX-License-Identifier: Apache-2.0

//! The commands of docs/tunnel.md are run as the page has them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::fences;
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{AGENT_HEALTH, SERVER_HEALTH, SOCKET, Tunnel};

/// The socket path of the document. No other process of the machine may use it while tests run.
const SHARED_SOCKET: &str = "/tmp/uds-proxy";

/// Returns the blocks of commands that start a server.
fn examples() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tunnel.md");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(fences::commands(&text)
        .into_iter()
        .filter(|block| block.contains("\nkonnectivity-server "))
        .collect())
}

fn directory(program: &Path) -> PathBuf {
    program.parent().map(Path::to_owned).unwrap_or_default()
}

#[test]
fn its_examples_work() -> Result<()> {
    let examples = examples()?;
    ensure!(examples.len() == 3, "{examples:#?}");
    let programs = directory(&Part::Server.of(Make::Ours)?);
    for example in examples {
        let example = example.replace(SHARED_SOCKET, SOCKET);
        let shell = |line: &str| format!("PATH={}:$PATH; exec {line}", programs.display());
        let lines: Vec<&str> = example.lines().collect();
        let [target, server, agent, clients @ ..] = &lines[..] else {
            anyhow::bail!("fewer commands than programs: {example}");
        };
        let mut tunnel = Tunnel::new()?;
        let bash = Path::new("bash");
        tunnel.spawn("test server", bash, &["-c", &shell(target)])?;
        tunnel.spawn("server", bash, &["-c", &shell(server)])?;
        tunnel.wait_for(SERVER_HEALTH, "/healthz")?;
        tunnel.spawn("agent", bash, &["-c", &shell(agent)])?;
        tunnel.wait_for(AGENT_HEALTH, "/readyz")?;
        tunnel.wait_for(SERVER_HEALTH, "/readyz")?;
        ensure!(!clients.is_empty(), "no client in {example}");
        for client in clients {
            tunnel.request(bash, &["-c", &shell(client)])?;
        }
    }
    Ok(())
}
