// SPDX-License-Identifier: Apache-2.0

//! Makes texts from peers safe to read: on one line, with every character visible and in its actual order. Line ends,
//! control characters, marks that change the writing direction and characters without a glyph are displayed as Rust's
//! escapes, such as `\u{202e}`.

use std::fmt::{self, Display, Write};

/// Returns the text as which `value` is displayed. After `most` characters it is cut and ends with an ellipsis.
pub fn visible(value: impl Display, most: usize) -> String {
    let mut short = Short {
        text: String::new(),
        left: most,
        is_cut: false,
    };
    // An error means that the limit is reached: it stops the formatting of the rest.
    let _ = write!(short, "{value}");
    if short.is_cut {
        short.text.push('…');
    }
    short.text
}

struct Short {
    text: String,
    left: usize,
    is_cut: bool,
}

impl Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            self.is_cut = self.left == 0;
            if self.is_cut {
                return Err(fmt::Error);
            }
            self.left -= 1;
            match character {
                // These characters are visible. Where they have a meaning, as in HTML, they are escaped there.
                '"' | '\'' | '\\' => self.text.push(character),
                other => self.text.extend(other.escape_debug()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_character_is_seen_where_it_stands() {
        for (text, want) in [
            ("node-1.example", "node-1.example"),
            ("a \"b\" 'c' \\d", "a \"b\" 'c' \\d"),
            ("größer, 节点", "größer, 节点"),
            ("one\ntwo\r\n", "one\\ntwo\\r\\n"),
            ("abc\u{202e}def\u{2066}", "abc\\u{202e}def\\u{2066}"),
            ("a\u{200b}b\u{feff}", "a\\u{200b}b\\u{feff}"),
            ("\0\x1b[31m", "\\0\\u{1b}[31m"),
            ("a\u{2028}b", "a\\u{2028}b"),
        ] {
            assert_eq!(visible(text, usize::MAX), want);
        }
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(visible("abc", 3), "abc");
        assert_eq!(visible("abcd", 3), "abc…");
        assert_eq!(visible("", 0), "");
        assert_eq!(visible(format_args!("{}{}", "ab", "cd"), 2), "ab…");
    }

    proptest! {
        #[test]
        fn any_text_is_one_line_of_bounded_length(text: String, most in 0_usize..100) {
            let seen = visible(&text, most);
            prop_assert!(!seen.contains(char::is_control));
            // The longest escape is `\u{10ffff}`.
            prop_assert!(seen.chars().count() <= 10 * most + 1);
        }
    }
}
