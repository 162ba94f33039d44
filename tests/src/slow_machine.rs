// SPDX-License-Identifier: Apache-2.0

//! Extends time-outs on machines that are slower than usual.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Result;

use crate::skip;

/// The time until an agent notices a listener: it checks every 0.9 seconds.
const NOTICED: Duration = Duration::from_millis(1500);

/// The variable with the factor for time-outs, a whole number: for guests that qemu emulates without hardware support.
const VARIABLE: &str = "PROXY_AGENT_TEST_PATIENCE";

/// Returns the factor for time-outs; 1 on a usual machine.
#[must_use]
pub fn factor() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let value = std::env::var(VARIABLE).ok();
        value.and_then(|value| value.parse().ok()).unwrap_or(1)
    })
}

/// Returns a time-out for this machine. `cmd` (waiting) and `client` (connecting) already apply it.
#[must_use]
pub fn of(usual: Duration) -> Duration {
    usual * factor()
}

/// Returns the number of repetitions for a test on this machine: fewer where each repetition takes longer.
#[must_use]
pub fn times(usual: usize) -> usize {
    let factor = usize::try_from(factor()).unwrap_or(1);
    (usual / factor).max(1)
}

/// Returns true if tests create the load and make the repetitions that are promised for a release, and not only those
/// for which each run has time: `PROXY_AGENT_TEST_LOAD=full`.
#[must_use]
pub fn is_load_full() -> bool {
    std::env::var_os("PROXY_AGENT_TEST_LOAD").is_some_and(|value| value == "full")
}

/// Returns how many times longer or more often a test does something under full load ([`is_load_full`]): `full`, else 1.
#[must_use]
pub fn load(full: u32) -> u32 {
    if is_load_full() { full } else { 1 }
}

/// Waits until an agent should have noticed a new listener on a VIP, on kernels on which the agent has to notice it.
///
/// # Errors
/// Returns an error if the kernel's version cannot be read.
pub fn be_noticed() -> Result<()> {
    if !skip::programs_keep_listeners()? {
        std::thread::sleep(of(NOTICED));
    }
    Ok(())
}
