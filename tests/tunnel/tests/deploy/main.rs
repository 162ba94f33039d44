// SPDX-License-Identifier: Apache-2.0

//! `deploy/tunnel`: the rendered objects, and the servers and agents that are started from them.

mod at_work;
mod certificates;
mod charts;
mod dashboard;
mod manifests;
mod readme;
mod rights;
mod site;
mod upstream;
