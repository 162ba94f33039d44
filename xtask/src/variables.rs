// SPDX-License-Identifier: Apache-2.0

//! Variables of the environment by which the tests are told where they run, on this machine and in guests.

/// Tells tests and demo which agent to run.
pub const AGENT_VARIABLE: &str = "PROXY_AGENT_BIN";

/// Tells the tests of upgrades where the agent of the previous release is.
pub const PREVIOUS_VARIABLE: &str = "PROXY_AGENT_PREVIOUS_BIN";

/// Tells the tests what their kernel must support, as JSON.
pub const KERNEL_VARIABLE: &str = "PROXY_AGENT_KERNEL";

/// Tells the tests by how much slower their machine is.
pub const PATIENCE_VARIABLE: &str = "PROXY_AGENT_TEST_PATIENCE";
