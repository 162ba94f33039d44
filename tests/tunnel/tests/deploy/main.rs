// SPDX-License-Identifier: Apache-2.0

//! `deploy/tunnel`: the rendered objects, and its servers and agents at work.

mod at_work;
mod certificates;
mod charts;
mod dashboard;
mod manifests;
mod readme;
mod rights;
mod site;
mod upstream;
