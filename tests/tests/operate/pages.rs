// SPDX-License-Identifier: Apache-2.0

//! The agent's pages: `/statusz`, `/flagz`, and `/` as a browser shows it, with a repair that was necessary because of
//! a process with a hostile name.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::browser::Browser;
use tests::client::{self, Close};
use tests::cmd::{self, Process};
use tests::dir::Dir;
use tests::http::{self, ADDRESS, wait_for};
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, pages, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The name of a process, of which the kernel stores 15 bytes.
const HOSTILE: &str = "<img src=x>";

#[test]
fn statusz_flagz_and_the_page() {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&["--sync-interval=41s"])?;
        wait_for(&node.netns, "/readyz", 200)?;
        let curl = || node.netns.command("curl");
        pages::check(curl, ADDRESS, "proxy-agent", "sync-interval=41s")?;
        let flagz = http::get(&node.netns, "/flagz")?.body;
        for flag in [
            "\ncleanup=false\n",
            "\nlogtostderr=true\n",
            "\nallow-from=\n",
        ] {
            ensure!(flagz.contains(flag), "{flag:?}: {flagz}");
        }
        Ok(())
    });
}

/// The page makes no dry run, because no user has requested one.
#[test]
fn the_page_is_cheap() {
    Node::test(Topology::Veth, |node| {
        let agent = node.start_agent(&[])?;
        wait_for(&node.netns, "/readyz", 200)?;
        let _ = http::get(&node.netns, "/")?;
        let before = agent.resident_memory()? / 1024;
        for _ in 0..100 {
            let page = http::get(&node.netns, "/")?;
            ensure!(page.code == 200 && page.body.len() < 20_000, "{page:?}");
        }
        let after = agent.resident_memory()? / 1024;
        println!("resident: {before} KiB, after 100 pages {after} KiB");
        ensure!(after < before + 512, "{before} KiB, then {after} KiB");
        Ok(())
    });
}

#[test]
fn a_browser_shows_the_page() {
    Node::test(Topology::Veth, |node| {
        let test = "the agent's page in a browser";
        let Some(mut browser) = Browser::start(&node.netns, test)? else {
            return Ok(());
        };
        let args = [&["--backend=ebpf"], &TRANSLATE[..]].concat();
        let _agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        for to in [Family::V4.vip_socket(), Family::V4.cluster_ip_socket()] {
            let mut stream = client::connect(&node.pods[0].netns, to, TIMEOUT)?;
            transfer::exchange(&mut stream, 10_000, 1)?;
            transfer::hang_up(&mut stream)?;
            client::close(&stream, Close::Fin)?;
        }
        let _deleter = delete_vip(node)?;
        let address = format!("http://{ADDRESS}/");
        cmd::wait_until(TIMEOUT, "the repair on the page", || {
            let page = http::get(&node.netns, "/")?;
            Ok(page.body.contains("&lt;img src=x&gt;").then_some(()))
        })?;
        let seen = browser.open(&address)?;
        pages::judge(&seen, &address)?;
        ensure!(seen.title == "proxy-agent", "{}", seen.title);
        let vip = Family::V4.vip().to_string();
        for text in [
            "Version ",
            &vip,
            "ebpf",
            "VIPs",
            "Counters",
            "Repairs",
            "/metrics",
            HOSTILE,
            "data plane",
        ] {
            ensure!(seen.text.contains(text), "{text}: {}", seen.text);
        }
        pages::keep(&seen, "proxy-agent.png")
    });
}

/// Deletes the VIP with a process that has the hostile name and keeps running: otherwise its name may be gone before
/// the agent reads it.
fn delete_vip(node: &Node) -> Result<Process> {
    let dir = Dir::new()?;
    let program = dir.path().join(HOSTILE);
    let ip = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"];
    let ip = ip
        .into_iter()
        .find(|path| fs::exists(path).unwrap_or(false));
    symlink(ip.context("no ip")?, &program)?;
    let mut command = node.netns.command(&program);
    command.args(["-batch", "-"]).stdin(Stdio::piped());
    let mut process = Process::new(cmd::guard_child(&mut command).spawn()?);
    let stdin = process.child().stdin.as_mut().context("no pipe")?;
    writeln!(stdin, "address delete {}/32 dev lo", Family::V4.vip())?;
    Ok(process)
}
