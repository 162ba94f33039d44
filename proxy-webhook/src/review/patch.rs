// SPDX-License-Identifier: Apache-2.0

//! Writes the JSON patch (RFC 6902). It adds one variable to each container that lacks it and changes nothing else:
//! unknown fields stay as they are.

use std::fmt::Write as _;

use serde_json::json;

use super::VARIABLE;
use super::request::{Env, Pod};

/// Estimated length of one operation in bytes, without the entry: it avoids reallocations.
const OPERATION_LENGTH: usize = 64;

/// The variable with its value, as JSON.
#[derive(Debug, Clone)]
pub struct EnvEntry(String);

impl EnvEntry {
    /// The entry that sets the variable to this name.
    #[must_use]
    pub fn new(fqdn: &str) -> Self {
        Self(json!({"name": VARIABLE, "value": fqdn}).to_string())
    }
}

/// The patch for a pod; none if every container has the variable.
pub fn patch(pod: &Pod, EnvEntry(entry): &EnvEntry) -> Option<Vec<u8>> {
    let lists = [
        ("initContainers", &pod.init_containers),
        ("containers", &pod.containers),
    ];
    let count = lists
        .iter()
        .flat_map(|(_, containers)| *containers)
        .filter(|env| **env != Env::Set)
        .count();
    if count == 0 {
        return None;
    }
    let mut patch = String::with_capacity(2 + count * (OPERATION_LENGTH + entry.len()));
    for (list, containers) in lists {
        for (index, env) in containers.iter().enumerate() {
            // `add` replaces a member that exists with value null.
            let (end, open, close) = match env {
                Env::Absent => ("", "[", "]"),
                Env::Lacking => ("/-", "", ""),
                Env::Set => continue,
            };
            patch.push(if patch.is_empty() { '[' } else { ',' });
            write!(
                patch,
                r#"{{"op":"add","path":"/spec/{list}/{index}/env{end}","value":{open}{entry}{close}}}"#
            )
            .expect("writing to a string does not fail");
        }
    }
    patch.push(']');
    Some(patch.into_bytes())
}
