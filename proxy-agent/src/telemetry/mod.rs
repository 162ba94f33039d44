// SPDX-License-Identifier: Apache-2.0

//! What the agent tells about itself: its log, that of its eBPF programs, metrics, health. What is worth
//! telling is decided where it happens.

pub mod board;
pub mod ebpf;
pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod systemd;
