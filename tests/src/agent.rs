// SPDX-License-Identifier: Apache-2.0

//! Runs the agent under test as a process in a node's namespace.

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

/// The maximum time until the agent's first clean pass, with a margin for a loaded machine.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// The maximum time until the agent has exited.
const EXIT_TIMEOUT: Duration = Duration::from_secs(EXIT_TIMEOUT_SECONDS as u64);
const EXIT_TIMEOUT_SECONDS: u32 = 20;
/// The maximum processor time of one check whether the proxy still listens, also on a slow machine. The agent checks
/// about once a second; a reconcile pass uses more.
const A_LOOK: Duration = Duration::from_millis(2);

/// The flags that enable translation of the ClusterIP of each family.
pub const TRANSLATE: [&str; 2] = [
    "--service-address=10.96.0.1:443",
    "--service-address=[fd00:96::1]:443",
];

/// Returns the flags that every run gets unless the test sets them itself.
fn defaults(node: &Node) -> [(&'static str, String); 4] {
    [
        (
            "--ip-address",
            Family::ALL.map(|f| f.vip().to_string()).join(","),
        ),
        ("--bpffs", node.agent_bpffs().display().to_string()),
        ("--run-dir", node.run_dir().display().to_string()),
        // An hour, so that every repair before that is caused by a notification.
        ("--sync-interval", "1h0m0s".to_owned()),
    ]
}

/// Returns the path of the agent's executable: `PROXY_AGENT_BIN`, or the one built beside the tests.
///
/// # Errors
/// Returns an error if there is none; the error says how to build it.
pub fn binary() -> Result<PathBuf> {
    program("PROXY_AGENT_BIN", "proxy-agent")
}

/// Returns the path of a program under test: the value of the environment variable, or the one built beside the tests.
///
/// # Errors
/// Returns an error if there is none; the error says how to build it.
pub fn program(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{variable}={}: no such file", path.display());
        }
        return Ok(path);
    }
    let own = std::env::current_exe().context("finding this executable")?;
    // The test's own path is target/quick/deps/paths-… or target/quick/demo.
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

/// Returns the build of the previous release, `PROXY_AGENT_PREVIOUS_BIN`, or `None` if the variable is not set.
///
/// # Errors
/// Returns an error if there is no such file.
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
    /// Returns the directory in which agents of this node pin their objects, on the node's own bpffs.
    #[must_use]
    pub fn agent_bpffs(&self) -> PathBuf {
        self.bpffs().join("proxy-agent/v2")
    }

    /// Returns the run directory of the node's agents.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// Returns the directory of pinned TC links, with one file per link, named by its ifindex.
    #[must_use]
    pub fn link_pins(&self) -> PathBuf {
        self.agent_bpffs().join("links")
    }

    /// Returns the path at which the TC program of a link is pinned.
    ///
    /// # Errors
    /// Returns an error if there is no such link.
    pub fn link_pin(&self, link: &str) -> Result<PathBuf> {
        Ok(self.link_pins().join(self.netns.ifindex(link)?.to_string()))
    }

    /// Returns true if the agent's program is attached to a link's ingress, by tcx or, on kernels without tcx, by
    /// clsact.
    ///
    /// # Errors
    /// Returns an error if there is no such link.
    pub fn is_attached(&self, link: &str) -> Result<bool> {
        if skip::has_tcx()? {
            return Ok(self.link_pin(link)?.exists());
        }
        let filters = self
            .netns
            .exec(&format!("tc filter show dev {link} ingress"))?;
        Ok(filters.contains("vip_ingress"))
    }

    /// Detaches that program.
    ///
    /// # Errors
    /// Returns an error if the program is not attached.
    pub fn detach(&self, link: &str) -> Result<()> {
        if skip::has_tcx()? {
            return fs::remove_file(self.link_pin(link)?).context(link.to_owned());
        }
        self.netns
            .exec(&format!("tc qdisc del dev {link} clsact"))
            .map(drop)
    }

    /// Returns a command that runs the agent in the node's namespace, with the default flags of the tests.
    ///
    /// # Errors
    /// Returns an error if there is no executable of the agent.
    pub fn agent_command(&self, args: &[&str]) -> Result<Command> {
        Ok(self.agent_command_of(&binary()?, args))
    }

    /// Works like [`Node::agent_command`], for another build of the agent.
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

    /// Runs the agent until it exits; the arguments should contain `--daemon=false` or an invalid flag.
    ///
    /// # Errors
    /// Returns an error if there is no executable of the agent.
    pub fn run_agent(&self, args: &[&str]) -> Result<Output> {
        self.run(self.agent_command(args)?)
    }

    /// Runs a command that [`Node::agent_command`] returned until it exits, and kills it if it does not exit in time.
    ///
    /// # Errors
    /// Returns an error if the command cannot be started.
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
    /// Returns an error if the agent exits instead or is not ready in time.
    pub fn start_agent(&self, args: &[&str]) -> Result<Agent> {
        let agent = self.spawn_agent(args)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts the agent as on a machine without some feature or tool, and waits until it is ready.
    ///
    /// # Errors
    /// Returns the same errors as [`Node::start_agent`].
    pub fn start_agent_missing(&self, missing: Missing, args: &[&str]) -> Result<Agent> {
        let mut command = self.agent_command(args)?;
        missing.apply(&mut command);
        let agent = self.spawn(command)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts the agent on a kernel that refuses this program until the agent has loaded its programs in another way,
    /// and waits until the agent is ready.
    ///
    /// # Errors
    /// Returns the same errors as [`Node::start_agent`].
    pub fn start_agent_refusing(&self, program: &'static str, args: &[&str]) -> Result<Agent> {
        let mut command = self.agent_command(args)?;
        refusing::prepare(&mut command);
        let agent = self.spawn(command)?;
        refusing::answer(agent.id(), program).context("answering for the kernel")?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts the agent and does not wait until it is ready.
    ///
    /// # Errors
    /// Returns an error if there is no executable of the agent.
    pub fn spawn_agent(&self, args: &[&str]) -> Result<Agent> {
        self.spawn(self.agent_command(args)?)
    }

    /// Starts a command that [`Node::agent_command`] returned.
    ///
    /// # Errors
    /// Returns an error if the command cannot be started.
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

/// A running agent, which is killed when this is dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    log: SharedLog,
}

impl Agent {
    /// Returns everything that the agent has logged so far.
    ///
    /// # Panics
    /// Panics if the thread that reads the agent's log has panicked.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic while held").clone()
    }

    /// Returns the agent's process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until the agent has logged that it is ready.
    ///
    /// # Errors
    /// Returns an error if the agent exits instead or is not ready in time.
    pub fn wait_until_ready(&self) -> Result<()> {
        self.wait_until_ready_within(READY_TIMEOUT)
    }

    /// Works like [`Agent::wait_until_ready`], for set-ups for which a minute is not enough.
    ///
    /// # Errors
    /// Returns the same errors as [`Agent::wait_until_ready`].
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

    /// Sends a signal to the agent and does not wait.
    ///
    /// # Errors
    /// Returns an error if the agent has exited.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.process.signal(signal)
    }

    /// Sends a signal to the agent and waits until it exits.
    ///
    /// # Errors
    /// Returns an error if the agent does not exit in time.
    pub fn stop(&mut self, signal: i32) -> Result<ExitStatus> {
        self.process.signal(signal)?;
        self.process.wait(EXIT_TIMEOUT)
    }

    /// Returns the processor time that the agent has used so far.
    ///
    /// # Errors
    /// Returns an error if the agent has exited.
    pub fn cpu_time(&self) -> Result<Duration> {
        usage::cpu_time(self.id())
    }

    /// Waits until, for `window`, the agent has only checked whether the proxy still listens, and the value of `same`
    /// has not changed either.
    ///
    /// # Errors
    /// Returns an error if the agent has exited or is not idle in time, and passes on the errors of `same`.
    pub fn wait_until_at_rest<T: PartialEq>(
        &self,
        (window, timeout): (Duration, Duration),
        mut same: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut before = same()?;
        cmd::wait_until(timeout, "the agent to be at rest", || {
            // The time in which `same` runs does not count: it may take longer than the interval between two checks of
            // the proxy.
            let used = self.cpu_time()?;
            std::thread::sleep(window);
            let used = self.cpu_time()?.saturating_sub(used);
            let now = same()?;
            let rests = used <= A_LOOK && now == before;
            let then = std::mem::replace(&mut before, now);
            Ok(rests.then_some(then))
        })
    }

    /// Returns the agent's resident memory, in bytes.
    ///
    /// # Errors
    /// Returns an error if the agent has exited.
    pub fn resident_memory(&self) -> Result<u64> {
        usage::resident_memory(self.id())
    }

    /// Returns the agent's peak resident memory, in bytes.
    ///
    /// # Errors
    /// Returns an error if the agent has exited.
    pub fn peak_memory(&self) -> Result<u64> {
        usage::peak_memory(self.id())
    }

    /// Returns true if the agent has not exited. A zombie has exited.
    fn is_alive(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.id()))
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|s| s.starts_with(" Z")))
    }
}
