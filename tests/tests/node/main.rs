// SPDX-License-Identifier: Apache-2.0

//! The agent on its node: what it sets up and repairs, beside others, where something is lacking, and how it is run.

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
