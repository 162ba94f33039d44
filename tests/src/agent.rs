// SPDX-License-Identifier: Apache-2.0

//! The agent under test, as a process in a node's namespace.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::Family;
use crate::cmd::{self, Process};
use crate::degraded_host::Missing;
use crate::node::{Node, SharedLog};
use crate::{refusing, skip, slow_machine, usage};

/// How long the agent may take to its first clean pass: a bound for a loaded machine.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// How long it may take to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(EXIT_TIMEOUT_SECONDS as u64);
const EXIT_TIMEOUT_SECONDS: u32 = 20;
/// Upper bound of the processor time of one check whether the proxy still listens, also on a slow machine. The agent
/// checks about once a second; a reconcile pass takes more.
const A_LOOK: Duration = Duration::from_millis(2);

/// The flags that have the ClusterIP of each family translated.
pub const TRANSLATE: [&str; 2] = [
    "--service-address=10.96.0.1:443",
    "--service-address=[fd00:96::1]:443",
];

/// Flags every run gets unless the test names them itself.
fn defaults(node: &Node) -> [(&'static str, String); 4] {
    [
        (
            "--ip-address",
            Family::ALL.map(|f| f.vip().to_string()).join(","),
        ),
        ("--bpffs", node.agent_bpffs().display().to_string()),
        ("--run-dir", node.run_dir().display().to_string()),
        // An hour: every repair before is caused by a notification.
        ("--sync-interval", "1h0m0s".to_owned()),
    ]
}

/// The agent's executable: `PROXY_AGENT_BIN`, or the one built beside the tests.
///
/// # Errors
/// When there is none; says how to build it.
pub fn binary() -> Result<PathBuf> {
    program("PROXY_AGENT_BIN", "proxy-agent")
}

/// A program under test: what the environment variable says, or the one built beside the tests.
///
/// # Errors
/// When there is none; says how to build it.
pub fn program(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{variable}={}: no such file", path.display());
        }
        return Ok(path);
    }
    let own = std::env::current_exe().context("finding this executable")?;
    // target/quick/deps/paths-… or target/quick/demo
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no {name} beside {}: `cargo xtask test` builds it, or {variable} names one",
                own.display()
            )
        })
}

/// The build of the previous release, `PROXY_AGENT_PREVIOUS_BIN`; none if it is not set.
///
/// # Errors
/// When there is no such file.
pub fn previous_binary() -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os("PROXY_AGENT_PREVIOUS_BIN") else {
        return Ok(None);
    };
    let path = PathBuf::from(path);
    if !path.is_file() {
        bail!("PROXY_AGENT_PREVIOUS_BIN={}: no such file", path.display());
    }
    Ok(Some(path))
}

impl Node {
    /// Where agents of this node pin: on the node's own bpffs.
    #[must_use]
    pub fn agent_bpffs(&self) -> PathBuf {
        self.bpffs().join("proxy-agent/v2")
    }

    /// The run directory of the node's agents.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// The directory of pinned TC links: one file per link, named by its ifindex.
    #[must_use]
    pub fn link_pins(&self) -> PathBuf {
        self.agent_bpffs().join("links")
    }

    /// Where the TC program of a link is pinned.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn link_pin(&self, link: &str) -> Result<PathBuf> {
        Ok(self.link_pins().join(self.netns.ifindex(link)?.to_string()))
    }

    /// Whether the agent's program is attached to a link's ingress, by tcx or, where there is none, by clsact.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn is_attached(&self, link: &str) -> Result<bool> {
        if skip::has_tcx()? {
            return Ok(self.link_pin(link)?.exists());
        }
        let filters = self
            .netns
            .exec(&format!("tc filter show dev {link} ingress"))?;
        Ok(filters.contains("vip_ingress"))
    }

    /// Takes that program away.
    ///
    /// # Errors
    /// When it is not there.
    pub fn detach(&self, link: &str) -> Result<()> {
        if skip::has_tcx()? {
            return fs::remove_file(self.link_pin(link)?).context(link.to_owned());
        }
        self.netns
            .exec(&format!("tc qdisc del dev {link} clsact"))
            .map(drop)
    }

    /// A command line of the agent in the node's namespace, with the default flags of the tests.
    ///
    /// # Errors
    /// When there is no agent.
    pub fn agent_command(&self, args: &[&str]) -> Result<Command> {
        Ok(self.agent_command_of(&binary()?, args))
    }

    /// As [`Node::agent_command`], for another build of the agent.
    #[must_use]
    pub fn agent_command_of(&self, binary: &Path, args: &[&str]) -> Command {
        let mut command = self.netns.command(binary);
        for (flag, value) in defaults(self) {
            let is_given = |arg: &&str| arg.split('=').next() == Some(flag);
            if !args.iter().any(is_given) {
                command.arg(format!("{flag}={value}"));
            }
        }
        command.args(args);
        command
    }

    /// Runs the agent to its end; `--daemon=false` or a mistake should be among the arguments.
    ///
    /// # Errors
    /// When there is no agent.
    pub fn run_agent(&self, args: &[&str]) -> Result<Output> {
        self.run(self.agent_command(args)?)
    }

    /// Runs a command made by [`Node::agent_command`] to its end; one that does not end is killed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, mut command: Command) -> Result<Output> {
        let seconds = EXIT_TIMEOUT_SECONDS * slow_machine::factor();
        // SAFETY: alarm(2) is async-signal-safe, and its signal survives exec.
        unsafe {
            command.pre_exec(move || {
                libc::alarm(seconds);
                Ok(())
            });
        }
        cmd::output(&mut command, "")
    }

    /// Starts the agent and waits until it is ready.
    ///
    /// # Errors
    /// When it ends instead, or takes too long.
    pub fn start_agent(&self, args: &[&str]) -> Result<Agent> {
        let agent = self.spawn_agent(args)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts the agent as on a machine that lacks something, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Node::start_agent`].
    pub fn start_agent_missing(&self, missing: Missing, args: &[&str]) -> Result<Agent> {
        let mut command = self.agent_command(args)?;
        missing.apply(&mut command);
        let agent = self.spawn(command)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts the agent where the kernel refuses this program as long as the agent has not loaded its
    /// programs in another way, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Node::start_agent`].
    pub fn start_agent_refusing(&self, program: &'static str, args: &[&str]) -> Result<Agent> {
        let mut command = self.agent_command(args)?;
        refusing::prepare(&mut command);
        let agent = self.spawn(command)?;
        refusing::answer(agent.id(), program).context("answering for the kernel")?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts the agent and does not wait.
    ///
    /// # Errors
    /// When there is none.
    pub fn spawn_agent(&self, args: &[&str]) -> Result<Agent> {
        self.spawn(self.agent_command(args)?)
    }

    /// Starts a command made by [`Node::agent_command`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, mut command: Command) -> Result<Agent> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        cmd::guard_child(&mut command);
        let mut process = Process::new(command.spawn().context("starting the agent")?);
        let stderr = process.child().stderr.take().context("stderr is a pipe")?;
        let log = SharedLog::default();
        self.add_log(&format!("{command:?}"), log.clone());
        let written = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Ok(mut log) = written.lock() {
                    log.push_str(&line);
                    log.push('\n');
                }
            }
        });
        Ok(Agent { process, log })
    }
}

/// A running agent, killed when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    log: SharedLog,
}

impl Agent {
    /// Everything that the agent has logged so far.
    ///
    /// # Panics
    /// When the thread that reads its log has panicked.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic while held").clone()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it has logged that it is ready.
    ///
    /// # Errors
    /// When it ends instead, or takes too long.
    pub fn wait_until_ready(&self) -> Result<()> {
        self.wait_until_ready_within(READY_TIMEOUT)
    }

    /// As [`Agent::wait_until_ready`], where there is so much to do that a minute is not enough.
    ///
    /// # Errors
    /// As there.
    pub fn wait_until_ready_within(&self, limit: Duration) -> Result<()> {
        cmd::wait_until(limit, "the agent to be ready", || {
            let is_ready = |line: &str| line.ends_with("ready") && !line.ends_with("not ready");
            if self.log().lines().any(is_ready) {
                return Ok(Some(()));
            }
            if !self.is_alive() {
                bail!("the agent ended before it was ready");
            }
            Ok(None)
        })
    }

    /// Sends a signal and does not wait.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.process.signal(signal)
    }

    /// Sends a signal and waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self, signal: i32) -> Result<ExitStatus> {
        self.process.signal(signal)?;
        self.process.wait(EXIT_TIMEOUT)
    }

    /// The processor time it has used so far.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        usage::cpu_time(self.id())
    }

    /// Waits until it has done nothing for `window` but look whether the proxy still listens, and `same` says that
    /// nothing else has changed either.
    ///
    /// # Errors
    /// When it is gone or not at rest in time, and those of `same`.
    pub fn wait_until_at_rest<T: PartialEq>(
        &self,
        (window, timeout): (Duration, Duration),
        mut same: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut before = same()?;
        cmd::wait_until(timeout, "the agent to be at rest", || {
            // Not while `same` looks: that may take longer than the time between two looks for the proxy.
            let used = self.cpu_time()?;
            std::thread::sleep(window);
            let used = self.cpu_time()?.saturating_sub(used);
            let now = same()?;
            let rests = used <= A_LOOK && now == before;
            let then = std::mem::replace(&mut before, now);
            Ok(rests.then_some(then))
        })
    }

    /// Its resident memory in bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident_memory(&self) -> Result<u64> {
        usage::resident_memory(self.id())
    }

    /// The most memory in bytes that it has had resident.
    ///
    /// # Errors
    /// When it is gone.
    pub fn peak_memory(&self) -> Result<u64> {
        usage::peak_memory(self.id())
    }

    /// True while it has not ended; a zombie has.
    fn is_alive(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.id()))
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|s| s.starts_with(" Z")))
    }
}
