// SPDX-License-Identifier: Apache-2.0

//! Programs are suspended and resumed, like a stopped process or virtual machine: no byte of a connection is lost,
//! dials meanwhile end within their time limit, and other agents receive the next ones.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::thread;

use super::process::{Setup, echo, until};

/// More bytes than the buffers between a client and a suspended program hold.
const MUCH: usize = 8 << 20;

/// The server's flags.
const FLAGS: [&str; 2] = ["--mode=http-connect", "--backend-dial-timeout=500ms"];

/// Sends while the other end is suspended. The thread returns whether all bytes were sent back.
fn send(stream: &UnixStream) -> thread::JoinHandle<bool> {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = stream.try_clone().unwrap();
    let sent: Vec<u8> = (0..251_u8).cycle().take(MUCH).collect();
    let want = sent.clone();
    let writing = thread::spawn(move || writer.write_all(&sent));
    thread::spawn(move || {
        let mut got = vec![0; MUCH];
        let read = reader.read_exact(&mut got);
        writing.join().unwrap().unwrap();
        read.is_ok() && got == want
    })
}

#[test]
fn an_agent_that_is_suspended_goes_on_where_it_was() {
    let setup = Setup::new();
    let _server = setup.server(&FLAGS);
    let agent = setup.agent(&[]);
    setup.until_ready();
    let (target, open) = echo();
    let stream = setup.connect(&target).unwrap();
    agent.signal(libc::SIGSTOP);
    let sending = send(&stream);
    let refused = setup.connect(&target).unwrap_err();
    assert!(refused.starts_with("HTTP/1.1 504 "), "{refused}");
    agent.signal(libc::SIGCONT);
    assert!(sending.join().unwrap(), "bytes are lost");
    drop(setup.connect(&target).unwrap());
    drop(stream);
    setup.until_server("established_connections 0");
    setup.until_server("pending_backend_dials 0");
    // This includes the dial that timed out meanwhile.
    setup.until_agent("open_endpoint_connections 0");
    until(
        "all targets are left",
        || open.load(Ordering::SeqCst) == 0,
        || agent.log(),
    );
}

#[test]
fn a_server_that_is_suspended_goes_on_where_it_was() {
    let setup = Setup::new();
    let server = setup.server(&FLAGS);
    let _agent = setup.agent(&[]);
    setup.until_ready();
    let (target, _) = echo();
    let stream = setup.connect(&target).unwrap();
    server.signal(libc::SIGSTOP);
    let sending = send(&stream);
    // The kernel accepts the connection; the program responds later.
    let mut dialing = UnixStream::connect(setup.scratch.file("socket")).unwrap();
    write!(dialing, "CONNECT {target} HTTP/1.1\r\n\r\n").unwrap();
    server.signal(libc::SIGCONT);
    let mut status = [0; 12];
    dialing.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    assert!(sending.join().unwrap(), "bytes are lost");
    setup.until_agent("open_server_connections 1");
}

/// One dial detects the suspension; the next ones are sent to the agent that responds.
#[test]
fn an_agent_that_is_suspended_gets_no_further_dials() {
    let setup = Setup::new();
    let _server = setup.server(&FLAGS);
    let suspended = setup.agent(&[]);
    let health = format!("--health-server-port={}", super::process::port());
    let admin = format!("--admin-server-port={}", super::process::port());
    let _other = setup.agent_as("other", &[&health, &admin]);
    setup.until_server("ready_backends{proxy_strategy=\"default\"} 2");
    let (target, _) = echo();
    suspended.signal(libc::SIGSTOP);
    let failed = (0..40).filter(|_| setup.connect(&target).is_err()).count();
    assert!(failed <= 1, "{failed} of 40 dials went to it");
    suspended.signal(libc::SIGCONT);
}
