// SPDX-License-Identifier: Apache-2.0

//! The metadata of a stream: its keys, and the parsing of its values. Errors have upstream's texts, because upstream's
//! users and tests depend on them.

use std::fmt;

use thiserror::Error;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// The key for the agent's ID.
pub const AGENT_ID: &str = "agentid";
/// The key for the destinations that an agent can reach.
pub const AGENT_IDENTIFIERS: &str = "agentidentifiers";
/// The key for the server's ID.
pub const SERVER_ID: &str = "serverid";
/// The key for the number of servers that an agent should connect to.
pub const SERVER_COUNT: &str = "servercount";
/// The key for the agent's token.
pub const AUTHORIZATION: &str = "authorization";
/// The authentication scheme that precedes the token.
pub const BEARER: &str = "Bearer ";
/// The key for the extensions of this project that the sender supports. Upstream neither sends nor reads it.
pub const EXTENSIONS: &str = "konnectivity-extensions";

/// The extension for half-closed connections: [`super::Message::Finish`].
const HALF_CLOSE: &str = "half-close";
/// The extension for a window per connection: [`super::Message::Window`].
const WINDOW: &str = "window";

/// The extensions that both ends of a stream support.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extensions {
    /// The peer supports [`super::Message::Finish`].
    pub half_close: bool,
    /// The peer supports [`super::Message::Window`], and waits for it.
    pub window: bool,
}

impl Extensions {
    /// All extensions of this version.
    pub const ALL: Self = Self {
        half_close: true,
        window: true,
    };

    /// Returns the extensions that the peer has announced and this version supports.
    #[must_use]
    pub fn read(metadata: &MetadataMap) -> Self {
        let text = metadata
            .get(EXTENSIONS)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let has = |name| text.split(',').any(|word| word.trim() == name);
        Self {
            half_close: has(HALF_CLOSE),
            window: has(WINDOW),
        }
    }

    /// Adds these extensions to the metadata.
    ///
    /// # Panics
    /// Never panics: the names are ASCII.
    pub fn write(self, metadata: &mut MetadataMap) {
        let value = self.to_string();
        if !value.is_empty() {
            metadata.insert(EXTENSIONS, value.parse().expect("names are ASCII"));
        }
    }
}

impl fmt::Display for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: &[&str] = match (self.half_close, self.window) {
            (true, true) => &[HALF_CLOSE, WINDOW],
            (true, false) => &[HALF_CLOSE],
            (false, true) => &[WINDOW],
            (false, false) => &[],
        };
        f.write_str(&names.join(","))
    }
}

/// The error of metadata that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MetadataError {
    /// There is not exactly one agent ID.
    #[error("expected one agent ID in the context, got [{0}]")]
    AgentId(String),
    /// There is more than one set of identifiers.
    #[error("expected at most one set of agent identifiers in the context, got [{0}]")]
    Identifiers(String),
    /// The server's ID or its count is missing, or occurs more than once.
    #[error(
        "expected one `{key}` in the server's headers, got [{values}]; is something else than a konnectivity \
         server listening there?"
    )]
    Header {
        /// The key.
        key: &'static str,
        /// The values, separated by spaces.
        values: String,
    },
    /// The server's count is not a number.
    #[error("the server's `{SERVER_COUNT}` is `{0}`, not a number")]
    ServerCount(String),
}

/// Returns all values of a key as strings.
#[must_use]
pub fn values(metadata: &MetadataMap, key: &str) -> Vec<String> {
    metadata
        .get_all(key)
        .iter()
        .map(|value: &MetadataValue<Ascii>| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect()
}

/// Returns the agent's ID.
///
/// # Errors
/// Returns an error if there is not exactly one.
pub fn agent_id(metadata: &MetadataMap) -> Result<String, MetadataError> {
    let mut all = values(metadata, AGENT_ID);
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => Ok(one),
        (last, _) => {
            all.extend(last);
            Err(MetadataError::AgentId(all.join(" ")))
        }
    }
}

/// Returns the agent's identifiers as one string; it is empty if there are none.
///
/// # Errors
/// Returns an error if there is more than one string.
pub fn identifiers(metadata: &MetadataMap) -> Result<String, MetadataError> {
    let mut all = values(metadata, AGENT_IDENTIFIERS);
    if all.len() > 1 {
        return Err(MetadataError::Identifiers(all.join(" ")));
    }
    Ok(all.pop().unwrap_or_default())
}

/// Returns the server's ID and the number of servers.
///
/// # Errors
/// Returns an error if one of them is missing or occurs more than once, or if the count is not a number.
pub fn server(metadata: &MetadataMap) -> Result<(String, u32), MetadataError> {
    let one = |key| {
        let all = values(metadata, key);
        match <[String; 1]>::try_from(all) {
            Ok([one]) => Ok(one),
            Err(all) => Err(MetadataError::Header {
                key,
                values: all.join(" "),
            }),
        }
    };
    let id = one(SERVER_ID)?;
    let count = one(SERVER_COUNT)?;
    let count = count
        .parse()
        .map_err(|_| MetadataError::ServerCount(count))?;
    Ok((id, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&'static str, &str)]) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (key, value) in pairs {
            map.append(*key, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn exactly_one_agent_id() {
        assert_eq!(agent_id(&with(&[(AGENT_ID, "a")])).unwrap(), "a");
        for (pairs, want) in [
            (&[][..], "expected one agent ID in the context, got []"),
            (
                &[(AGENT_ID, "a"), (AGENT_ID, "b")],
                "expected one agent ID in the context, got [a b]",
            ),
        ] {
            assert_eq!(agent_id(&with(pairs)).unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn at_most_one_set_of_identifiers() {
        assert_eq!(identifiers(&with(&[])).unwrap(), "");
        let key = AGENT_IDENTIFIERS;
        assert_eq!(identifiers(&with(&[(key, "host=a")])).unwrap(), "host=a");
        assert_eq!(
            identifiers(&with(&[(key, "host=a"), (key, "host=b")]))
                .unwrap_err()
                .to_string(),
            "expected at most one set of agent identifiers in the context, got [host=a host=b]"
        );
    }

    #[test]
    fn a_server_names_itself_and_the_count() {
        let good = with(&[(SERVER_ID, "s"), (SERVER_COUNT, "3")]);
        assert_eq!(server(&good).unwrap(), ("s".to_owned(), 3));
        for bad in [
            &[(SERVER_ID, "s")][..],
            &[(SERVER_ID, "s"), (SERVER_ID, "t"), (SERVER_COUNT, "3")],
            &[(SERVER_ID, "s"), (SERVER_COUNT, "-3")],
        ] {
            assert!(server(&with(bad)).is_err());
        }
    }

    #[test]
    fn extensions_are_what_both_know() {
        let mut map = MetadataMap::new();
        assert_eq!(Extensions::read(&map), Extensions::default());
        Extensions::ALL.write(&mut map);
        assert_eq!(Extensions::read(&map), Extensions::ALL);
        let later = with(&[(EXTENSIONS, "half-close, streams")]);
        let half = Extensions {
            half_close: true,
            window: false,
        };
        assert_eq!(Extensions::read(&later), half);
    }
}
