// SPDX-License-Identifier: Apache-2.0

//! Parameters of the guard's rules besides VIPs and ports.

use std::fmt::{self, Display};

use ipnet::IpNet;

/// A parameter of a rule besides VIP and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Nothing
    None,
    /// The link on which packets arrive
    Link(LinkName),
    /// The source network
    Network(IpNet),
}

/// The name of a link: at most 15 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkName([u8; 16]);

/// Settings of the guard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    /// The links that are guarded.
    pub links: Vec<LinkName>,
    /// There are links on which packets of the node itself arrive.
    pub inner: bool,
    /// Source networks that are not dropped.
    pub allow_from: Vec<IpNet>,
}

impl LinkName {
    /// None if no link can have this name.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let is_short = !name.is_empty() && name.len() < bytes.len();
        is_short.then(|| bytes[..name.len()].copy_from_slice(name.as_bytes()))?;
        Some(Self(bytes))
    }
}

impl Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(0);
        f.write_str(&String::from_utf8_lossy(&self.0[..end]))
    }
}
