// SPDX-License-Identifier: Apache-2.0

//! What the agent reports about itself: metrics, health, the log lines of its eBPF programs. What is worth
//! reporting is decided where it happens.

pub mod board;
pub mod ebpf;
pub mod health;
pub mod http;
pub mod metrics;
pub mod systemd;
