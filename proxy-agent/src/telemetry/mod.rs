// SPDX-License-Identifier: Apache-2.0

//! Metrics, health, the page for browsers, and notifications to systemd.

pub mod health;
pub mod http;
pub mod metrics;
mod page;
pub mod shared;
pub mod systemd;
