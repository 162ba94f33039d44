// SPDX-License-Identifier: Apache-2.0

//! Patterns for names in certificates and for host names.

use std::fmt;

/// A pattern in which `*` matches any sequence of characters other than `/`, and every other character matches itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// Creates a pattern. Returns `None` if the text is empty.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// Returns true if the pattern matches the whole of `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        // A star does not match a slash, so the parts between slashes can be matched one by one.
        let mut parts = text.split('/');
        let all = self
            .0
            .split('/')
            .all(|pattern| parts.next().is_some_and(|text| matches_part(pattern, text)));
        all && parts.next().is_none()
    }
}

fn matches_part(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(first) else {
        return false;
    };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for literal in middle.split('*') {
        // The first match leaves the most text for the rest of the pattern.
        let Some(at) = text.find(literal) else {
            return false;
        };
        text = &text[at + literal.len()..];
    }
    text.ends_with(last)
}

/// A host name, or `*.` followed by the end of a name, which matches any single label before that end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPattern(String);

impl HostPattern {
    /// Creates a pattern. Returns `None` if the text is not a valid DNS name.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let is_label = |label: &str| {
            let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            !label.is_empty() && label.len() <= 63 && label.bytes().all(is_inner)
        };
        let is_name = name.len() <= 253 && name.split('.').all(is_label);
        is_name.then(|| Self(text.to_ascii_lowercase()))
    }

    /// Returns true if a name matches, ignoring case.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        match self.0.strip_prefix("*.") {
            Some(end) => name
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == end),
            None => name == self.0,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same matcher, character by character.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) if slow(rest, text) => true,
            (Some((b'*', _)), Some((byte, text))) => *byte != b'/' && slow(pattern, text),
            (Some((one, pattern)), Some((other, text))) => one == other && slow(pattern, text),
            _ => false,
        }
    }

    #[test]
    fn patterns_match_as_a_slower_matcher_does() {
        let mut random = fastrand::Rng::with_seed(24);
        let mut hits = 0;
        for _ in 0..200_000 {
            let mut word = |letters: &[u8], most| -> String {
                let length = random.usize(..most);
                let letter = || char::from(letters[random.usize(..letters.len())]);
                std::iter::repeat_with(letter).take(length).collect()
            };
            let (text, pattern) = (word(b"ab/", 8), word(b"ab/**", 7));
            let want = slow(pattern.as_bytes(), text.as_bytes());
            let got = Pattern::new(&pattern).is_some_and(|pattern| pattern.matches(&text));
            assert_eq!(got, want && !pattern.is_empty(), "{pattern:?} {text:?}");
            hits += u32::from(got);
        }
        assert!(hits > 10_000, "{hits}");
    }

    #[test]
    fn names_of_hosts() {
        let matches = |pattern, name| HostPattern::new(pattern).unwrap().matches(name);
        assert!(matches("A.example", "a.EXAMPLE."));
        assert!(matches("*.example", "a.example"));
        for name in ["a.b.example", ".example", "example", "a.example.com"] {
            assert!(!matches("*.example", name), "{name}");
        }
        for bad in ["", "*", "a*", "*.", "a..b", "a b", "*.*.a", "a/b"] {
            assert_eq!(HostPattern::new(bad), None, "{bad}");
        }
    }
}
