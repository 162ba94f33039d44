// SPDX-License-Identifier: Apache-2.0

//! Live connections during every event that affects the agent, its state in the kernel and its settings.

mod backend_change;
mod cleanup;
mod faults;
mod ipset_live;
mod kill_cycles;
mod lifecycle;
mod live;
mod move_vip;
mod pin_layout;
mod storm;
mod upgrade;
