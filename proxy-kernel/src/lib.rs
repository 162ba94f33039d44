// SPDX-License-Identifier: Apache-2.0

//! What the node agent asks the kernel for by bpf(2), files and system calls. What is asked over netlink is
//! the crate `proxy-netlink`. Which objects are the agent's is not known here.
//!
//! | module | holds |
//! |---|---|
//! | [`bpf`] | bpf(2) where aya does not offer a command |
//! | [`bpffs`], [`pins`] | directories of pins: changed, and watched |
//! | [`cgroup`] | the cgroup2 hierarchy of the host |
//! | [`conntrack`] | settings and statistics of connection tracking, from /proc |
//! | [`capabilities`], [`privileges`] | what this process may do, and how it gives that up |
//! | [`memory`] | the limit of locked memory |
//! | [`netns`] | the network namespace of this process |
//! | [`processes`] | the processes of this network namespace, and the sockets they hold |
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
