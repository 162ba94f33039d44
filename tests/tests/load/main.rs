// SPDX-License-Identifier: Apache-2.0

//! Much of everything: connections, SYNs, links, time.

mod churn;
mod many_links;
mod soak;
