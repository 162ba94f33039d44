// SPDX-License-Identifier: Apache-2.0

//! Environment variables that describe the machine to the tests, on this machine and in guests.

/// The variable with the path of the agent that tests and demo run.
pub const AGENT_VARIABLE: &str = "PROXY_AGENT_BIN";

/// The variable with the path of the previous release's agent, for the tests of upgrades.
pub const PREVIOUS_VARIABLE: &str = "PROXY_AGENT_PREVIOUS_BIN";

/// The variable with the features that the kernel must support, as JSON.
pub const KERNEL_VARIABLE: &str = "PROXY_AGENT_KERNEL";

/// The variable with the factor by which the machine is slower.
pub const PATIENCE_VARIABLE: &str = "PROXY_AGENT_TEST_PATIENCE";
