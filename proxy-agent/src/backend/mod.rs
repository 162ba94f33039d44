// SPDX-License-Identifier: Apache-2.0

//! The data planes that keep the VIPs' connections out of conntrack. Each backend observes, plans and applies its own objects and
//! does not import another one; shared parts are modules of their own. `select` chooses the backend.

pub mod decisions;
pub mod discover;
pub mod ebpf;
pub mod iptables;
pub mod live;
pub mod nftables;
pub mod select;
pub mod tables;
pub mod upstream;
