// SPDX-License-Identifier: Apache-2.0

//! What the agent asks the kernel about itself and the node, apart from the objects it keeps.

pub mod author;
pub mod bpf;
pub mod bpffs;
pub mod capabilities;
pub mod cgroup;
pub mod conntrack;
pub mod features;
pub mod memory;
pub mod monitor;
pub mod netlink;
pub mod netns;
pub mod pins;
pub mod privileges;
pub mod sock_diag;
pub mod sockets;
