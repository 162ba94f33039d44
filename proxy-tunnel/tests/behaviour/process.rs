// SPDX-License-Identifier: Apache-2.0

//! The programs as processes on their own ports. They are killed at the end of the test.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use super::rig::{SOON, Scratch};

pub const SERVER: &str = env!("CARGO_BIN_EXE_konnectivity-server");
pub const AGENT: &str = env!("CARGO_BIN_EXE_konnectivity-agent");
pub const SIDECAR: &str = env!("CARGO_BIN_EXE_konnectivity-sidecar");
pub const CLIENT: &str = env!("CARGO_BIN_EXE_konnectivity-test-client");
pub const TARGET: &str = env!("CARGO_BIN_EXE_http-test-server");

/// A process with its log. It is killed when it is dropped.
pub struct Program {
    pub child: Child,
    log: PathBuf,
}

impl Program {
    pub fn start(program: &str, log: PathBuf, args: &[String]) -> Self {
        Self::start_in(&[], program, log, args)
    }

    /// Starts a program with these variables in its environment.
    pub fn start_in(
        variables: &[(&str, &str)],
        program: &str,
        log: PathBuf,
        args: &[String],
    ) -> Self {
        let file = fs::File::create(&log).unwrap();
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        // The tests must not use a proxy of this machine.
        for variable in ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"] {
            command.env_remove(variable);
        }
        command.envs(variables.iter().copied());
        let child = command.spawn().unwrap();
        Self { child, log }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn until_logged(&self, text: &str) {
        until(text, || self.log().contains(text), || self.log());
    }

    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the process is a child of this process that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Returns the number of open files of the process.
    pub fn files(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        open.count()
    }

    /// Limits the process to this number of files in addition to the open ones.
    pub fn limit_files(&self, more: u64) {
        let most = self.files() as u64 + more;
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the new limits are valid for the call, and the pointer for the old ones is null.
        let set =
            unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, ptr::null_mut()) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until the process exits. Returns the exit code, and the time that it took.
    pub fn end(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return (status.code(), start.elapsed());
            }
            assert!(start.elapsed() < SOON, "it does not end:\n{}", self.log());
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The process may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn until(what: &str, mut condition: impl FnMut() -> bool, detail: impl Fn() -> String) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < SOON, "never came: {what}\n{}", detail());
        sleep(Duration::from_millis(10));
    }
}

/// Returns a port of the range that the programs accept, outside of the kernel's range for outgoing connections. Each
/// test of this process receives other ports, even if its program does not listen on them yet.
pub fn port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = fastrand::u16(12_000..32_000);
        let is_new = GIVEN.lock().unwrap().insert(port);
        if is_new && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Returns status line, head and body of a response.
pub fn get(port: u16, path: &str) -> (String, String, String) {
    let mut stream = until_connected(port);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let (line, fields) = head.split_once("\r\n").unwrap();
    (
        line.to_owned(),
        fields.to_ascii_lowercase(),
        body.to_owned(),
    )
}

pub fn until_connected(port: u16) -> TcpStream {
    let start = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < SOON, "port {port}: {error}"),
        }
        sleep(Duration::from_millis(10));
    }
}

/// Starts a target that sends back the bytes that it receives. Returns its address and its number of connections.
pub fn echo() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let open = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&open);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, count) = (stream.unwrap(), Arc::clone(&count));
            count.fetch_add(1, Ordering::SeqCst);
            thread::spawn(move || {
                // A client may disconnect in the middle.
                let _ = io::copy(&mut &stream, &mut &stream);
                let _ = stream.shutdown(Shutdown::Write);
                drop(stream);
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, open)
}

/// All programs of a tunnel with their ports.
pub struct Setup {
    pub scratch: Scratch,
    pub agents: u16,
    pub health: u16,
    pub admin: u16,
    pub agent_health: u16,
    pub agent_admin: u16,
    pub target: u16,
}

impl Setup {
    pub fn new() -> Self {
        Self {
            scratch: Scratch::new(),
            agents: port(),
            health: port(),
            admin: port(),
            agent_health: port(),
            agent_admin: port(),
            target: port(),
        }
    }

    pub fn file(&self, name: &str) -> String {
        self.scratch.file(name).display().to_string()
    }

    pub fn server(&self, more: &[&str]) -> Program {
        self.server_as("server", more)
    }

    /// Starts a server whose log has this name.
    pub fn server_as(&self, name: &str, more: &[&str]) -> Program {
        let mut args = vec![
            "--server-port=0".to_owned(),
            format!("--uds-name={}", self.file("socket")),
            format!("--cluster-ca-cert={}", self.file("ca.crt")),
            format!("--cluster-cert={}", self.file("server.crt")),
            format!("--cluster-key={}", self.file("server.key")),
            format!("--agent-port={}", self.agents),
            "--agent-bind-address=127.0.0.1".to_owned(),
            format!("--health-port={}", self.health),
            "--health-bind-address=127.0.0.1".to_owned(),
            format!("--admin-port={}", self.admin),
            "--server-id=this-one".to_owned(),
        ];
        args.extend(more.iter().map(ToString::to_string));
        Program::start(SERVER, self.scratch.file(&format!("{name}.log")), &args)
    }

    pub fn agent(&self, more: &[&str]) -> Program {
        self.agent_as("agent", more)
    }

    /// Starts an agent whose log has this name.
    pub fn agent_as(&self, name: &str, more: &[&str]) -> Program {
        let mut args = vec![
            format!("--ca-cert={}", self.file("ca.crt")),
            format!("--agent-cert={}", self.file("client.crt")),
            format!("--agent-key={}", self.file("client.key")),
            format!("--proxy-server-port={}", self.agents),
            format!("--health-server-port={}", self.agent_health),
            "--health-server-host=127.0.0.1".to_owned(),
            format!("--admin-server-port={}", self.agent_admin),
            "--sync-interval=50ms".to_owned(),
            "--sync-interval-cap=200ms".to_owned(),
        ];
        // Several addresses are a list in one flag.
        if !more
            .iter()
            .any(|arg| arg.starts_with("--proxy-server-host="))
        {
            args.push("--proxy-server-host=127.0.0.1".to_owned());
        }
        args.extend(more.iter().map(ToString::to_string));
        Program::start(AGENT, self.scratch.file(&format!("{name}.log")), &args)
    }

    pub fn target(&self) -> Program {
        let args = [format!("--server-port={}", self.target)];
        let program = Program::start(TARGET, self.scratch.file("target.log"), &args);
        until_connected(self.target);
        program
    }

    pub fn client(&self, more: &[&str]) -> Program {
        let mut args = vec![
            "--proxy-host=".to_owned(),
            "--proxy-port=0".to_owned(),
            format!("--proxy-uds={}", self.file("socket")),
            "--request-host=127.0.0.1".to_owned(),
            format!("--request-port={}", self.target),
        ];
        args.extend(more.iter().map(ToString::to_string));
        Program::start(
            CLIENT,
            self.scratch.file(&format!("client-{}.log", port())),
            &args,
        )
    }

    /// Requests a connection to this address from a server in mode http-connect. The error is any other response.
    pub fn connect(&self, address: &str) -> Result<UnixStream, String> {
        self.try_connect(address)
            .unwrap_or_else(|error| Err(error.to_string()))
    }

    fn try_connect(&self, address: &str) -> io::Result<Result<UnixStream, String>> {
        let mut stream = UnixStream::connect(self.scratch.file("socket"))?;
        stream.set_read_timeout(Some(SOON))?;
        write!(stream, "CONNECT {address} HTTP/1.1\r\n\r\n")?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let mut answer = String::from_utf8_lossy(&head).into_owned();
        if answer.starts_with("HTTP/1.1 200 ") {
            return Ok(Ok(stream));
        }
        stream.read_to_string(&mut answer)?;
        Ok(Err(answer))
    }

    /// Waits for a line in the metrics of the agent.
    pub fn until_agent(&self, line: &str) {
        let line = format!("konnectivity_network_proxy_agent_{line}\n");
        until(
            &line,
            || get(self.agent_health, "/metrics").2.contains(&line),
            String::new,
        );
    }

    pub fn until_ready(&self) {
        until(
            "ready",
            || get(self.health, "/readyz").0.contains("200"),
            String::new,
        );
    }

    pub fn until_server(&self, line: &str) {
        let line = format!("konnectivity_network_proxy_server_{line}\n");
        until(
            &line,
            || get(self.health, "/metrics").2.contains(&line),
            String::new,
        );
    }
}
