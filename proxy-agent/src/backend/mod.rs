// SPDX-License-Identifier: Apache-2.0

//! The ways to keep conntrack out of the path. Each backend is a leaf: it observes, plans and
//! applies its own objects and knows of no other; what two of them share stands beside them. Which
//! one is used is decided in `select`.

pub mod decisions;
pub mod ebpf;
pub mod iptables;
pub mod live;
pub mod nftables;
pub mod select;
pub mod tables;
pub mod upstream;
