// SPDX-License-Identifier: Apache-2.0

//! Proxies that are configured with the name of their API server: with the settings that `deploy/README.md` recommends
//! they keep the last resolved addresses while the table is full and the name server cannot be reached.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::cgroup::Cgroup;
use tests::cmd::Process;
use tests::manifests::Tool;
use tests::netns::Netns;
use tests::node::{API_PORT, Node, api_server, gateway_address};
use tests::proxy::listening;
use tests::{Family, PORT, cmd, conntrack, status};

use super::upstream::{connect, host_to_vip, none_is_tracked, sources, with_api_servers};
use super::{TIMEOUT, fill};

const NAME: &str = "apiserver.example";
/// Several times as long as a proxy here uses a reply of the name server.
const LATER: Duration = Duration::from_secs(8);

/// A name server beyond the uplink that replies to each query with the API server's address.
struct NameServer {
    asked: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    fn start(netns: &Netns) -> Result<Self> {
        let address = SocketAddr::new(gateway_address(Family::V4), 53);
        let socket = netns.run(|| UdpSocket::bind(address))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (asked, is_over) = (Arc::default(), Arc::default());
        let (counter, end) = (Arc::clone(&asked), Arc::clone(&is_over));
        let thread = thread::spawn(move || serve(&socket, &counter, &end));
        Ok(Self {
            asked,
            is_over,
            thread: Some(thread),
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, asked: &AtomicUsize, is_over: &AtomicBool) {
    let mut buffer = [0; 1500];
    while !is_over.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                asked.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = answer(&buffer[..length]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
            Err(_) => return,
        }
    }
}

/// Returns a reply of RFC 1035: the query again, and for type A one address with a TTL of one second; for any other
/// type no answer.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let question = query.get(12..)?;
    let name = question.iter().position(|byte| *byte == 0)? + 1;
    let question = question.get(..name + 4)?;
    let is_address = question[name..name + 2] == [0, 1];
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
    answer.extend(question);
    let IpAddr::V4(address) = gateway_address(Family::V4) else {
        return None;
    };
    if is_address {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// Starts HAProxy with the settings of `deploy/README.md`, except that it resolves the name again each second.
fn haproxy(node: &Node, cgroup: &Cgroup) -> Result<Process> {
    let mut config = format!(
        "global\n    maxconn 4000\n    nbthread 1\n\
         defaults\n    timeout connect 10s\n    timeout client 180s\n    timeout server 180s\n\
         resolvers node\n    nameserver one {}:53\n    resolve_retries 3\n    timeout resolve 1s\n    timeout retry 1s\n",
        gateway_address(Family::V4)
    );
    config += "    hold valid 1s\n";
    for outcome in ["other", "refused", "nx", "timeout", "obsolete"] {
        writeln!(config, "    hold {outcome} 24h")?;
    }
    writeln!(
        config,
        "listen vip\n    mode tcp\n    bind {}\n    \
         server one {NAME}:{API_PORT} resolvers node resolve-prefer ipv4 init-addr last,libc,none",
        Family::V4.vip_socket()
    )?;
    let path = node.dir().join("haproxy.cfg");
    fs::write(&path, config)?;
    let mut command = node.netns.command("haproxy");
    command.arg("-db").arg("-f").arg(&path);
    cgroup.enter(&mut command)?;
    listening(node, "haproxy", command, PORT, 1)
}

fn envoy(node: &Node, cgroup: &Cgroup, mut command: Command) -> Result<Process> {
    let vip = Family::V4.vip();
    let resolver = gateway_address(Family::V4);
    let config = format!(
        "static_resources:
  listeners:
    - name: vip
      address: {{socket_address: {{address: {vip}, port_value: {PORT}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.tcp_proxy
              typed_config:
                \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
                stat_prefix: apiserver
                cluster: apiserver
  clusters:
    - name: apiserver
      type: STRICT_DNS
      dns_lookup_family: V4_ONLY
      dns_refresh_rate: 1s
      connect_timeout: 5s
      typed_dns_resolver_config:
        name: envoy.network.dns_resolver.cares
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig
          resolvers:
            - socket_address: {{address: {resolver}, port_value: 53}}
      load_assignment:
        cluster_name: apiserver
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: {NAME}, port_value: {API_PORT}}}}}}}
"
    );
    let path = node.dir().join("envoy.yaml");
    fs::write(&path, config)?;
    command.args([
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "warning",
    ]);
    command.arg("--config-path").arg(path);
    cgroup.enter(&mut command)?;
    listening(node, "envoy", command, PORT, 1)
}

/// The proxy continues with the addresses that it resolved before the table was full, whether DNS works or not.
fn goes_on_with_the_last_answer(start: impl Fn(&Node, &Cgroup) -> Result<Process>) {
    with_api_servers(|node| {
        let name_server = NameServer::start(&node.uplink)?;
        let cgroup = node.cgroup("one")?;
        let _agent = node.start_agent(&["--backend=nftables"])?;
        let _proxy = start(node, &cgroup)?;
        let path = host_to_vip(node);
        status::wait_until_learning(node)?;
        cmd::wait_until(TIMEOUT, "the proxy to know its API server", || {
            Ok(connect(&path).is_ok().then_some(()))
        })?;
        status::wait_until_known(node, api_server(Family::V4), "")?;
        let known = sources(node, &[Family::V4])?;
        fill(node)?;
        let before = name_server.asked();
        thread::sleep(LATER);
        connect(&path).context("with the entry of its questions")?;
        println!(
            "asked {} times in {} s with a full table",
            name_server.asked() - before,
            LATER.as_secs()
        );
        // There is no room for the entry of a query, unless one is sent before the table is full again.
        conntrack::flush(&node.netns)?;
        fill(node)?;
        let before = name_server.asked();
        thread::sleep(LATER);
        connect(&path).context("after a flush")?;
        println!(
            "asked {} times in {} s after a flush",
            name_server.asked() - before,
            LATER.as_secs()
        );
        ensure!(name_server.asked() > 0, "it was asked");
        none_is_tracked(node, &known)
    });
}

#[test]
fn haproxy_goes_on_with_the_last_answer() {
    goes_on_with_the_last_answer(haproxy);
}

#[test]
fn envoy_goes_on_with_the_last_answer() -> Result<()> {
    let Some(tool) = Tool::find("envoy_goes_on_with_the_last_answer")? else {
        return Ok(());
    };
    let program = tool.envoy();
    goes_on_with_the_last_answer(move |node, cgroup| {
        envoy(node, cgroup, node.netns.command(&program))
    });
    Ok(())
}
