// SPDX-License-Identifier: Apache-2.0

//! Parses the simple commands of a block of shell: the text between newlines, `;`, `&` and `|`, without comments and
//! redirections. This is enough for the documentation, which has no functions; tests of their own run its loops.

use anyhow::{Result, bail};

/// A simple command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The number of its line in the block, from 0.
    pub line: usize,
    /// The words of the command, without variables that are set for it.
    pub words: Vec<String>,
}

/// Parses a block.
///
/// # Errors
/// Returns an error if a quote is not closed.
pub fn commands(text: &str) -> Result<Vec<Command>> {
    let mut found = Vec::new();
    let mut raw = String::new();
    let (mut line, mut first) = (0, 0);
    let mut quote = None;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        if raw.trim().is_empty() {
            first = line;
        }
        line += usize::from(c == '\n');
        match (quote, c) {
            (Some(open), _) => {
                quote = (c != open).then_some(open);
                raw.push(c);
            }
            (None, '\'' | '"') => {
                quote = Some(c);
                raw.push(c);
            }
            (None, '\\') => match characters.next() {
                // The command continues on the next line.
                Some('\n') => {
                    line += 1;
                    raw.push(' ');
                }
                Some(escaped) => raw.extend(['\\', escaped]),
                None => {}
            },
            (None, '#') if raw.is_empty() || raw.ends_with(char::is_whitespace) => {
                while characters.next_if(|c| *c != '\n').is_some() {}
            }
            (None, '<' | '>') => {
                // A redirection has the number of a file before it, and a file name behind it.
                let number = raw.rfind(|c: char| !c.is_ascii_digit());
                let number = number.map_or(0, |at| at + 1);
                if raw[..number].ends_with(char::is_whitespace) {
                    raw.truncate(number);
                }
                while characters.next_if(|c| "<>& ".contains(*c)).is_some() {}
                while characters.next_if(|c| !c.is_whitespace()).is_some() {}
            }
            (None, '\n' | ';' | '|' | '&') => {
                found.extend(command(first, &std::mem::take(&mut raw))?);
            }
            (None, _) => raw.push(c),
        }
    }
    if quote.is_some() {
        bail!("a quote is not closed: {raw}");
    }
    found.extend(command(first, &raw)?);
    Ok(found)
}

fn command(line: usize, raw: &str) -> Result<Option<Command>> {
    let Some(words) = shlex::split(raw) else {
        bail!("cannot be split into words: {raw}");
    };
    let is_assignment = |word: &String| {
        let name = word.split_once('=').map(|(name, _)| name);
        let is_name = |name: &str| {
            name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && name.starts_with(|c: char| c.is_ascii_alphabetic())
        };
        name.is_some_and(is_name)
    };
    let words: Vec<String> = words.into_iter().skip_while(is_assignment).collect();
    Ok((!words.is_empty()).then_some(Command { line, words }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<(usize, String)> {
        let commands = commands(text).unwrap().into_iter();
        commands
            .map(|one| (one.line, one.words.join("|")))
            .collect()
    }

    #[test]
    fn commands_are_taken_apart() {
        for (text, wanted) in [
            ("a b   # c\n", &[(0, "a|b")][..]),
            ("a --b='c d' \"#e\"\nf", &[(0, "a|--b=c d|#e"), (1, "f")]),
            ("a \\\n    b\nc", &[(0, "a|b"), (2, "c")]),
            ("# a\n\nb", &[(2, "b")]),
            (
                "a | b && c || d; e &\nf",
                &[(0, "a"), (0, "b"), (0, "c"), (0, "d"), (0, "e"), (1, "f")],
            ),
            ("a >b 2>&1\nc 2> d < e f", &[(0, "a"), (1, "c|f")]),
            ("A=1 B=$PWD/c:d e\nX=y\n", &[(0, "e")]),
            ("echo 'a\nb' c\nd", &[(0, "echo|a\nb|c"), (2, "d")]),
            ("a x#y 1=2", &[(0, "a|x#y|1=2")]),
        ] {
            let wanted: Vec<_> = wanted
                .iter()
                .map(|(line, words)| (*line, (*words).to_owned()))
                .collect();
            assert_eq!(words(text), wanted, "{text}");
        }
        assert!(commands("a 'b").is_err());
    }
}
