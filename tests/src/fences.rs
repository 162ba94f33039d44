// SPDX-License-Identifier: Apache-2.0

//! Reads the fenced blocks of a Markdown page, for tests that run the commands of the documentation.

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The line number of its fence, starting at 1.
    pub line: usize,
    /// The first word after the fence: `sh`, `yaml`.
    pub language: String,
    /// The other words, see docs/README.md.
    pub marks: Vec<String>,
    /// The block's contents, without the indentation of a list.
    pub text: String,
}

/// Returns the blocks of a page, in order.
#[must_use]
pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(Block, usize)> = None;
    for (number, line) in (1..).zip(page.lines()) {
        let bare = line.trim_start();
        match (&mut open, bare.strip_prefix("```")) {
            (Some(_), Some("")) => blocks.extend(open.take().map(|(block, _)| block)),
            (Some((block, indent)), _) => {
                let spaces = line.len() - bare.len();
                block.text.push_str(&line[spaces.min(*indent)..]);
                block.text.push('\n');
            }
            (None, Some(info)) => {
                let mut words = info.split_whitespace().map(str::to_owned);
                let block = Block {
                    line: number,
                    language: words.next().unwrap_or_default(),
                    marks: words.collect(),
                    text: String::new(),
                };
                open = Some((block, line.len() - bare.len()));
            }
            (None, None) => {}
        }
    }
    blocks
}

/// Returns the contents of a page's blocks of commands, in order.
#[must_use]
pub fn commands(page: &str) -> Vec<String> {
    let blocks = blocks(page).into_iter();
    let commands = blocks.filter(|block| block.language == "sh");
    commands.map(|block| block.text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_their_language_and_no_indentation() {
        let page = "a\n```sh cluster\none\n  two\n```\n1. b\n\n   ```yaml\n   x:\n     y: 1\n\n   ```\n```text\n```sh\n```\n";
        let found = blocks(page);
        let of = |block: &Block| (block.line, block.language.clone(), block.text.clone());
        let found_of: Vec<_> = found.iter().map(of).collect();
        let wanted = [
            (2, "sh", "one\n  two\n"),
            (8, "yaml", "x:\n  y: 1\n\n"),
            (13, "text", "```sh\n"),
        ];
        assert_eq!(
            found_of,
            wanted.map(|(line, language, text)| (line, language.to_owned(), text.to_owned()))
        );
        assert_eq!(found[0].marks, ["cluster"]);
        assert_eq!(commands(page), ["one\n  two\n"]);
    }
}
