// SPDX-License-Identifier: Apache-2.0

//! The node agent's access to the kernel through bpf(2), files and system calls. The crate `proxy-netlink` contains the
//! access through netlink. This crate does not know which objects belong to the agent.
//!
//! | module | content |
//! |---|---|
//! | [`bpf`] | bpf(2) commands that aya does not offer |
//! | [`bpffs`], [`pins`] | directories of pins: changes and notifications |
//! | [`cgroup`] | the cgroup2 hierarchy of the host |
//! | [`conntrack`] | settings and statistics of connection tracking, from /proc |
//! | [`capabilities`], [`privileges`] | the permissions of this process, and how it drops them |
//! | [`memory`] | the limit of locked memory |
//! | [`netns`] | the network namespace of this process |
//! | [`processes`] | the processes of this network namespace, and their sockets |
//! | [`sockets`] | TCP connections and listeners, from /proc |

pub mod bpf;
pub mod bpffs;
pub mod capabilities;
pub mod cgroup;
pub mod conntrack;
pub mod memory;
pub mod netns;
pub mod pins;
pub mod privileges;
pub mod processes;
pub mod sockets;
