// SPDX-License-Identifier: Apache-2.0

//! Large numbers: of connections, SYNs and links, and long runs.

mod churn;
mod many_links;
mod soak;
