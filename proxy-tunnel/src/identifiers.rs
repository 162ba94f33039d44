// SPDX-License-Identifier: Apache-2.0

//! The destinations that an agent announces, in the form of a URL query:
//! `ipv4=10.0.0.1&host=node-1&default-route=true`. The agent rejects unknown keys, the server ignores them.
//! `server::strategies` matches dials with the destinations.

use thiserror::Error;

/// The maximum length of a text that the server parses, in bytes.
pub const LONGEST: usize = 64 * 1024;

/// The destinations that an agent can reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identifiers {
    /// The values of the keys `ipv4`, `ipv6` and `host`, which are compared with a dial's host as strings.
    pub hosts: Vec<String>,
    /// The values of the key `cidr`. Upstream parses them but never uses them.
    pub cidrs: Vec<String>,
    /// True if the key `default-route` has the value `true`.
    pub default_route: bool,
    /// The keys that this version does not know.
    pub unknown: Vec<String>,
}

/// The reason why identifiers cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdentifiersError {
    /// A percent sign is not followed by two hexadecimal digits.
    #[error("fail to parse url encoded string: invalid URL escape \"{0}\"")]
    Escape(String),
    /// A semicolon separates pairs. Older URL queries permitted this; Go rejects it.
    #[error("fail to parse url encoded string: invalid semicolon separator in query")]
    Semicolon,
    /// The text is longer than any list of names of one node.
    #[error("agent identifiers of {0} bytes; at most {LONGEST} are read")]
    TooLong(usize),
}

impl Identifiers {
    /// Parses a text as Go's `url.ParseQuery` does.
    ///
    /// # Errors
    /// Returns an error if the text is not a valid query.
    pub fn parse(text: &str) -> Result<Self, IdentifiersError> {
        if text.len() > LONGEST {
            return Err(IdentifiersError::TooLong(text.len()));
        }
        let mut all = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            if pair.contains(';') {
                return Err(IdentifiersError::Semicolon);
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (unescape(key)?, unescape(value)?);
            match key.as_str() {
                "ipv4" | "ipv6" | "host" => all.hosts.push(value),
                "cidr" => all.cidrs.push(value),
                "default-route" => all.default_route |= value == "true",
                _ => all.unknown.push(key),
            }
        }
        Ok(all)
    }
}

/// Decodes the percent-encoding of URLs. If an escape is invalid, returns that escape as the error.
pub(crate) fn unescape_percent(text: &str) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'%' => {
                let digits = bytes.get(at + 1..at + 3);
                let value = digits
                    .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
                    .and_then(|digits| std::str::from_utf8(digits).ok())
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok());
                let Some(value) = value else {
                    let end = bytes.len().min(at + 3);
                    let escape = String::from_utf8_lossy(&bytes[at..end]).into_owned();
                    return Err(escape);
                };
                plain.push(value);
                at += 3;
            }
            other => {
                plain.push(*other);
                at += 1;
            }
        }
    }
    Ok(plain)
}

/// Decodes a component of a query, where a plus sign stands for a space.
fn unescape(text: &str) -> Result<String, IdentifiersError> {
    let plain = unescape_percent(&text.replace('+', " "))
        .map_err(|escape| IdentifiersError::Escape(escape.replace(' ', "+")))?;
    Ok(String::from_utf8_lossy(&plain).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys() {
        let text = "ipv4=10.0.0.1&ipv4=10.0.0.2&ipv6=fd00::1&host=node%2D1&cidr=10.0.0.0/8&default-route=true&x=1";
        assert_eq!(
            Identifiers::parse(text).unwrap(),
            Identifiers {
                hosts: ["10.0.0.1", "10.0.0.2", "fd00::1", "node-1"]
                    .map(String::from)
                    .into(),
                cidrs: vec!["10.0.0.0/8".into()],
                default_route: true,
                unknown: vec!["x".into()],
            }
        );
        assert_eq!(Identifiers::parse("").unwrap(), Identifiers::default());
        let no = Identifiers::parse("default-route=false&&host").unwrap();
        assert!(!no.default_route);
        assert_eq!(no.hosts, [""]);
        assert_eq!(Identifiers::parse("host=a+b").unwrap().hosts, ["a b"]);
    }

    #[test]
    fn refusals_are_in_upstreams_words() {
        for (text, want) in [
            ("host=%zz", "invalid URL escape \"%zz\""),
            ("host=%4", "invalid URL escape \"%4\""),
            ("host=%+1", "invalid URL escape \"%+1\""),
            ("host=\u{20ac}%\u{20ac}", "invalid URL escape"),
            ("a=1;b=2", "invalid semicolon separator in query"),
        ] {
            let error = Identifiers::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("fail to parse url encoded string: "));
            assert!(error.contains(want), "{error}");
        }
        let long = format!("host={}", "a".repeat(LONGEST));
        assert!(Identifiers::parse(&long).is_err());
    }
}
