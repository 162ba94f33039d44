// SPDX-License-Identifier: Apache-2.0

//! Runs programs; an error names the command, its exit status and its error output.

use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::slow_machine;

/// Runs `command` until it exits, with `input` on its standard input, and returns its standard output.
///
/// # Errors
/// Returns an error if the command cannot be started or does not exit with 0; the error contains what it wrote to
/// stderr.
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

/// Runs `command` until it exits, with `input` on its standard input, whatever its exit status.
///
/// # Errors
/// Returns an error if the command cannot be started.
///
/// # Panics
/// Never panics: the command's standard input is a pipe.
pub fn output(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    // A thread of its own writes the input, so that a program that writes output before it has read everything does not
    // block on a full pipe. It is no error if a program does not read its input.
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        child.wait_with_output()
    })
    .with_context(|| format!("waiting for {command:?}"))
}

/// Makes the child start without the signals that its parent blocks and without receiving the terminal's Ctrl-C (the
/// parent decides whether it exits), and makes the kernel kill it when the thread that started it exits.
pub fn guard_child(command: &mut Command) -> &mut Command {
    command.process_group(0);
    // SAFETY: the closure only makes async-signal-safe system calls between fork and exec.
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

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Takes ownership of a child, which should be started with [`guard_child`].
    #[must_use]
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    /// Returns the child.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Returns the process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let pid = libc::pid_t::try_from(self.0.id())?;
        // SAFETY: kill has no memory effects; the child is not reaped while `self` exists.
        if unsafe { libc::kill(pid, signal) } != 0 {
            bail!(
                "sending signal {signal} to {pid}: {}",
                std::io::Error::last_os_error()
            );
        }
        Ok(())
    }

    /// Waits for the process to exit.
    ///
    /// # Errors
    /// Returns an error if the process still runs after `timeout`.
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

/// Polls `probe` until it returns a value. Polling uses at most half of the time: the agent needs the other half, all
/// the more on a slow machine. `timeout` is for a machine of usual speed.
///
/// # Errors
/// Returns an error if there is no value after `timeout`, or if `probe` fails.
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

/// Returns the exit code as a shell shows it: 128 + signal for a killed process.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
