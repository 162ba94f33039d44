// SPDX-License-Identifier: Apache-2.0

//! What server and agent ask the Kubernetes API for: reviews of tokens, and leases that say which servers
//! there are.

pub mod tokens;
