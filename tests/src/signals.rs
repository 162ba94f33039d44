// SPDX-License-Identifier: Apache-2.0

//! Cleans up when a run is interrupted.

use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::leftovers;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The body of a program's `main`: runs `work`, and cleans up also after an error, a panic or a signal. `failed` is the
/// prefix of the error message.
///
/// It must be called before any other thread exists: threads inherit the signals that it blocks, and one thread waits
/// for them and cleans up.
pub fn run(failed: &str, work: impl FnOnce() -> Result<()>) -> ExitCode {
    run_to_verdict(failed, || work().map(|()| true))
}

/// Works like [`run`], for work that may end with a negative verdict.
pub fn run_to_verdict(failed: &str, work: impl FnOnce() -> Result<bool>) -> ExitCode {
    clean_up_when_interrupted();
    let result = work();
    if let Err(error) = &result {
        wait_if_interrupted();
        eprintln!("{failed}: {error:#}");
    }
    leftovers::remove_own();
    ExitCode::from(u8::from(!matches!(result, Ok(true))))
}

/// Returns at once unless the process was interrupted. In that case the errors are only consequences of the clean-up,
/// and this function waits for the exit that follows it.
fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// On SIGINT, SIGTERM or SIGHUP, removes everything of this process and exits with 128 + signal.
///
/// It must be called before any other thread exists: threads inherit the blocked signals.
///
/// # Panics
/// Panics if the thread that waits for signals cannot be started.
fn clean_up_when_interrupted() {
    // SAFETY: the set is initialised by sigemptyset before it is used.
    let signals = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut signal = 0;
            // SAFETY: both pointers are valid for the call.
            unsafe { libc::sigwait(&raw const signals, &raw mut signal) };
            INTERRUPTED.store(true, Ordering::SeqCst);
            eprintln!("\ninterrupted: removing the namespaces");
            leftovers::remove_own();
            reap();
            process::exit(128 + signal);
        })
        .expect("starting a thread");
}

/// Reaps the children that were killed, so that they do not remain as zombies if init does not reap them.
fn reap() {
    for _ in 0..200 {
        // SAFETY: without a status pointer waitpid has no memory effects.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            0 => std::thread::sleep(Duration::from_millis(1)),
            pid if pid < 0 => return,
            _ => {}
        }
    }
}
