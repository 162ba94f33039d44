// SPDX-License-Identifier: Apache-2.0

//! Runs programs, and names the command, its exit status and its complaint when one fails.

use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::slow_machine;

/// Runs `command` to its end with `input` on its standard input; returns its standard output.
///
/// # Errors
/// When it cannot be started or does not exit with 0; the error holds what it wrote to stderr.
pub fn run(command: &mut Command, input: &str) -> Result<String> {
    let output = output(command, input)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{stdout}{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            input.lines().take(40).collect::<Vec<_>>().join("\n"),
        );
    }
    Ok(stdout)
}

/// Runs `command` to its end with `input` on its standard input, whatever its exit status.
///
/// # Errors
/// When it cannot be started.
///
/// # Panics
/// Never: its standard input is a pipe.
pub fn output(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    // From a thread of its own, so that a program that answers before it has read everything does
    // not block on a full pipe. A program that does not read its input is no failure.
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        child.wait_with_output()
    })
    .with_context(|| format!("waiting for {command:?}"))
}

/// Makes the child start without the signals its parent blocks, out of reach of the terminal's
/// Ctrl-C (the parent decides whether it ends), and die with the thread that started it.
pub fn guard_child(command: &mut Command) -> &mut Command {
    command.process_group(0);
    // SAFETY: only async-signal-safe system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    }
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Takes over a child. Start it with [`guard_child`].
    #[must_use]
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    /// The child itself.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let pid = libc::pid_t::try_from(self.0.id())?;
        // SAFETY: kill has no memory effects; the child is not reaped before `self` lets go of it.
        if unsafe { libc::kill(pid, signal) } != 0 {
            bail!(
                "sending signal {signal} to {pid}: {}",
                std::io::Error::last_os_error()
            );
        }
        Ok(())
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// When it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        wait_until(timeout, "the process to end", || Ok(self.0.try_wait()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Polls `probe` until it returns a value, half of the time at most: the agent needs the other half, all the
/// more on a slow machine. The time-out is for a usual one.
///
/// # Errors
/// When there is none after `timeout`, or when `probe` fails.
pub fn wait_until<T>(
    timeout: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let timeout = slow_machine::of(timeout);
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if start.elapsed() > timeout {
            bail!("waited {timeout:?} in vain for {what}");
        }
        std::thread::sleep(asked.elapsed().max(Duration::from_millis(1)));
    }
}

/// The exit code as a shell shows it: 128 + signal when killed.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
