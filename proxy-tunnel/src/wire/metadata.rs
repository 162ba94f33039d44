// SPDX-License-Identifier: Apache-2.0

//! Metadata that travels beside the packets: names, and how values are read. Refusals carry upstream's
//! texts, because its users and tests read them.

use std::fmt;

use thiserror::Error;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// The agent's name.
pub const AGENT_ID: &str = "agentid";
/// The destinations that an agent can reach.
pub const AGENT_IDENTIFIERS: &str = "agentidentifiers";
/// The server's name.
pub const SERVER_ID: &str = "serverid";
/// How many servers an agent should connect to.
pub const SERVER_COUNT: &str = "servercount";
/// Where the agent's token is.
pub const AUTHORIZATION: &str = "authorization";
/// The scheme before the token.
pub const BEARER: &str = "Bearer ";
/// Our extensions that the sender understands. Upstream neither sends nor reads it.
pub const EXTENSIONS: &str = "konnectivity-extensions";

/// Half-closed connections are carried: [`super::Message::Finish`].
const HALF_CLOSE: &str = "half-close";
/// Each connection has a window: [`super::Message::Window`].
const WINDOW: &str = "window";

/// Extensions that both ends of a stream understand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extensions {
    /// [`super::Message::Finish`] is understood.
    pub half_close: bool,
    /// [`super::Message::Window`] is understood, and waited for.
    pub window: bool,
}

impl Extensions {
    /// All of this version.
    pub const ALL: Self = Self {
        half_close: true,
        window: true,
    };

    /// The extensions that a peer has announced and this version knows.
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

    /// Announces them.
    ///
    /// # Panics
    /// Never: the names are ASCII.
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

/// Metadata that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MetadataError {
    /// Not exactly one agent ID.
    #[error("expected one agent ID in the context, got [{0}]")]
    AgentId(String),
    /// More than one set of identifiers.
    #[error("expected at most one set of agent identifiers in the context, got [{0}]")]
    Identifiers(String),
    /// The server's name or its count is missing or stands there twice.
    #[error(
        "expected one `{key}` in the server's headers, got [{values}]; is something else than a konnectivity \
         server listening there?"
    )]
    Header {
        /// The key.
        key: &'static str,
        /// The values, separated by blanks.
        values: String,
    },
    /// The server's count is no number.
    #[error("the server's `{SERVER_COUNT}` is `{0}`, not a number")]
    ServerCount(String),
}

/// All values of a key, as texts.
#[must_use]
pub fn values(metadata: &MetadataMap, key: &str) -> Vec<String> {
    metadata
        .get_all(key)
        .iter()
        .map(|value: &MetadataValue<Ascii>| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect()
}

/// The agent's name: exactly one.
///
/// # Errors
/// None, or several.
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

/// The agent's identifiers: at most one text, empty if there is none.
///
/// # Errors
/// Several.
pub fn identifiers(metadata: &MetadataMap) -> Result<String, MetadataError> {
    let mut all = values(metadata, AGENT_IDENTIFIERS);
    if all.len() > 1 {
        return Err(MetadataError::Identifiers(all.join(" ")));
    }
    Ok(all.pop().unwrap_or_default())
}

/// The server's name and the number of servers, each exactly once.
///
/// # Errors
/// One is missing, stands there twice, or is no number.
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
