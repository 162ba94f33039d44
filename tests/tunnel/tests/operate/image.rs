// SPDX-License-Identifier: Apache-2.0

//! The tunnel's container image: server, agent and sidecar run as the image's user with only the files of the image.
//! The name of a target is resolved by /etc/hosts and by DNS, and other programs can read the image.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use tests::cmd;
use tests::image::{Image, Root};
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{AGENT, CURL, Example, SERVER_HEALTH, TARGET, Tunnel};

/// The variable with the image's path; `cargo xtask test` sets it.
const VARIABLE: &str = "PROXY_TUNNEL_IMAGE";

/// The names that upstream's images have for server and agent.
const UPSTREAM: [&str; 2] = ["/proxy-server", "/proxy-agent"];

/// The paths of our server and agent.
const OURS: [&str; 2] = [
    "/usr/bin/konnectivity-server",
    "/usr/bin/konnectivity-agent",
];

/// The name of the target, which DNS resolves.
const NAME: &str = "target.example";

/// The flags with the sidecar's certificate for the server.
const SIDECAR: [&str; 4] = [
    "--mode=http-connect",
    "--ca-cert=certs/frontend/issued/ca.crt",
    "--client-cert=certs/frontend/issued/proxy-client.crt",
    "--client-key=certs/frontend/private/proxy-client.key",
];

/// Returns the flags with absolute paths.
fn absolute(tunnel: &Tunnel, flags: &[&str]) -> Vec<String> {
    let certs = format!("={}/certs/", tunnel.dir().display());
    let flags = flags.iter();
    flags.map(|flag| flag.replace("=certs/", &certs)).collect()
}

/// Starts a program of the image.
fn start(
    tunnel: &mut Tunnel,
    root: &Root,
    name: &'static str,
    program: &str,
    flags: &[&str],
) -> Result<()> {
    let mut command = tunnel.netns().command(program);
    root.enter(&mut command)?;
    let flags = absolute(tunnel, flags);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    tunnel.spawn_as(name, command, &flags)
}

/// Replies to each query for an IPv4 address with 127.0.0.1, and to other queries with no record.
fn answer(socket: &UdpSocket) {
    let mut query = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut query) {
        let name = query[12..length].iter().position(|byte| *byte == 0);
        let Some(question) = name.and_then(|end| query.get(12..12 + end + 5)) else {
            continue;
        };
        let is_ipv4 = question.ends_with(&[0, 1, 0, 1]);
        let mut reply = query[..2].to_vec();
        reply.extend([0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
        reply.extend(question);
        if is_ipv4 {
            // The record: the name of the question, and an address with a TTL of one minute.
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        }
        let _ = socket.send_to(&reply, client);
    }
}

/// Creates the namespace with the image, and the files that a container runtime provides: hosts and a name server.
fn site(image: &Image) -> Result<(Tunnel, Root)> {
    let tunnel = Tunnel::new()?;
    let root = image.unpack(tunnel.dir())?;
    let etc = root.directory().join("etc");
    fs::write(etc.join("hosts"), "127.0.0.1 localhost\n")?;
    fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
    // The image's user must be able to read the files that root has written.
    let mut readable = Command::new("chmod");
    cmd::run(readable.args(["-R", "a+rX"]).arg(tunnel.dir()), "")?;
    let socket = tunnel.netns().run(|| UdpSocket::bind("127.0.0.1:53"))?;
    thread::spawn(move || answer(&socket));
    Ok((tunnel, root))
}

fn works(test: &str, [server, agent]: [&str; 2]) -> Result<()> {
    let Some(image) = Image::given(VARIABLE, test)? else {
        return Ok(());
    };
    let (mut tunnel, root) = site(&image)?;
    tunnel.spawn("test server", &Part::TestServer.of(Make::Ours)?, &[])?;
    start(
        &mut tunnel,
        &root,
        "server",
        server,
        &Example::HttpConnect.server(),
    )?;
    tunnel.wait_for(SERVER_HEALTH, "/healthz")?;
    start(&mut tunnel, &root, "agent", agent, &AGENT)?;
    tunnel.wait_for_agent().with_context(|| tunnel.logs())?;
    let sidecar = "/usr/bin/konnectivity-sidecar";
    start(&mut tunnel, &root, "sidecar", sidecar, &SIDECAR)?;
    tunnel.wait_for("127.0.0.1:8096", "/readyz")?;
    let by_sidecar = [
        "--silent",
        "--show-error",
        "--proxy",
        "http://127.0.0.1:8097",
    ];
    let curl = Path::new("curl");
    for target in [TARGET, &TARGET.replace("localhost", NAME)] {
        tunnel.request(curl, &[&CURL[..], &[target]].concat())?;
        tunnel.request(curl, &[&by_sidecar[..], &[target]].concat())?;
    }
    for process in ["server", "agent", "sidecar"] {
        let pid = tunnel.pid(process).context("it has ended")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        for line in [
            "Uid:\t65532",
            "Gid:\t65532",
            "Groups:\t \n",
            "CapEff:\t0000000000000000",
        ] {
            ensure!(status.contains(line), "{process}: no {line:?} in {status}");
        }
    }
    Ok(())
}

#[test]
fn programs_by_our_names() -> Result<()> {
    works("tunnel_image_ours", OURS)
}

#[test]
fn programs_by_upstreams_names() -> Result<()> {
    works("tunnel_image_upstream", UPSTREAM)
}

/// The doctor of each program finds only that program, although all are one executable.
#[test]
fn doctors_know_their_programs() -> Result<()> {
    let Some(image) = Image::given(VARIABLE, "tunnel_image_doctor")? else {
        return Ok(());
    };
    let (mut tunnel, root) = site(&image)?;
    start(
        &mut tunnel,
        &root,
        "server",
        OURS[0],
        &Example::HttpConnect.server(),
    )?;
    tunnel.wait_for(SERVER_HEALTH, "/healthz")?;
    start(&mut tunnel, &root, "agent", UPSTREAM[1], &AGENT)?;
    tunnel.wait_for_agent().with_context(|| tunnel.logs())?;
    for (program, process) in OURS.iter().zip(["server", "agent"]) {
        let mut doctor = tunnel.netns().command(program);
        root.enter(&mut doctor)?;
        let output = cmd::output(doctor.arg("doctor"), "")?;
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        let pid = tunnel.pid(process).context("it has ended")?;
        let wanted = format!("process {pid} runs here");
        ensure!(found.contains(&wanted), "{program}: no {wanted} in {found}");
    }
    Ok(())
}

/// The image contains three programs and the files that belong to them, and no file of another user.
#[test]
fn what_is_in_it() -> Result<()> {
    let Some(image) = Image::given(VARIABLE, "tunnel_image_files")? else {
        return Ok(());
    };
    let layout = format!("oci:{}", image.layout().display());
    let inspected = cmd::run(Command::new("skopeo").args(["inspect", &layout]), "")?;
    ensure!(
        inspected.contains("org.opencontainers.image.version"),
        "{inspected}"
    );
    let tunnel = Tunnel::new()?;
    let root = image.unpack(tunnel.dir())?;
    let mut find = Command::new("find");
    find.arg(root.directory())
        .args(["-type", "f", "-printf", "%P %U:%G %m\n"]);
    let mut files: Vec<String> = cmd::run(&mut find, "")?
        .lines()
        .map(str::to_owned)
        .collect();
    files.sort();
    let wanted = [
        "etc/nsswitch.conf 0:0 644",
        "usr/bin/konnectivity 0:0 755",
        "usr/share/doc/proxy-tunnel/copyright 0:0 644",
        "usr/share/doc/proxy-tunnel/crates.txt 0:0 644",
        "usr/share/doc/proxy-tunnel/sbom.spdx.json 0:0 644",
    ];
    ensure!(files == wanted, "{files:#?}");
    println!("the image has {} compressed bytes", image.size());
    Ok(())
}
