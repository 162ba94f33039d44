// SPDX-License-Identifier: Apache-2.0

//! What the agent tells about itself: its log, and that of its eBPF programs. What is worth
//! telling is decided where it happens.

pub mod ebpf;
pub mod log;
pub mod systemd;
