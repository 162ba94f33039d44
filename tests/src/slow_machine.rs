// SPDX-License-Identifier: Apache-2.0

//! Longer time-outs for machines that are slower than usual.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Result;

use crate::skip;

/// How long an agent takes to notice a listener: it looks every 0.9 seconds.
const NOTICED: Duration = Duration::from_millis(1500);

/// Says by how many times time-outs are longer, a whole number: for guests whose instructions are
/// carried out by qemu.
const VARIABLE: &str = "PROXY_AGENT_TEST_PATIENCE";

/// The factor for time-outs; 1 on a usual machine.
#[must_use]
pub fn factor() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let value = std::env::var(VARIABLE).ok();
        value.and_then(|value| value.parse().ok()).unwrap_or(1)
    })
}

/// A time-out for this machine. Waiting in `cmd` and connecting in `client` use it by themselves.
#[must_use]
pub fn of(usual: Duration) -> Duration {
    usual * factor()
}

/// How many times a test does something over and over on this machine: fewer where each takes longer.
#[must_use]
pub fn times(usual: usize) -> usize {
    let factor = usize::try_from(factor()).unwrap_or(1);
    (usual / factor).max(1)
}

/// Whether tests put on a load, and do things over and over, as often as is promised for a release, and not only as
/// often as each run has time for: `PROXY_AGENT_TEST_LOAD=full`.
#[must_use]
pub fn is_load_full() -> bool {
    std::env::var_os("PROXY_AGENT_TEST_LOAD").is_some_and(|value| value == "full")
}

/// Waits until an agent may be expected to have noticed a new listener on a VIP, where that is needed.
///
/// # Errors
/// When the kernel's version cannot be read.
pub fn be_noticed() -> Result<()> {
    if !skip::programs_keep_listeners()? {
        std::thread::sleep(of(NOTICED));
    }
    Ok(())
}
