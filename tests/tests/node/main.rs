// SPDX-License-Identifier: Apache-2.0

//! The agent on its node: set-up and repair, operation beside other programs and on hosts that lack a feature, and its
//! life as a process.

mod bad_input;
mod foreign;
mod instances;
mod ipset;
mod kernel;
mod links;
mod log;
mod privileges;
mod repair;
mod restricted;
mod signals;
