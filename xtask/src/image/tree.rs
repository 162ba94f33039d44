// SPDX-License-Identifier: Apache-2.0

//! A file system as a value: sorted paths, and the layer that is made from them, with the same
//! bytes each time.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use tar::{EntryType, Header};

/// The node at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory with its permissions.
    Directory(u32),
    /// A file with its permissions.
    File(u32, Vec<u8>),
    /// A symbolic link.
    Link(String),
}

/// The paths below the root, without a leading slash. Directories come before their contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// Adds a node and the directories above it.
    pub fn add(&mut self, path: &str, node: Node) {
        for (slash, _) in path.match_indices('/') {
            self.0
                .entry(path[..slash].to_owned())
                .or_insert(Node::Directory(0o755));
        }
        self.0.insert(path.to_owned(), node);
    }

    /// Adds a text file that every user may read.
    pub fn add_text(&mut self, path: &str, text: impl Into<Vec<u8>>) {
        self.add(path, Node::File(0o644, text.into()));
    }

    /// Adds a symbolic link.
    pub fn add_link(&mut self, path: &str, target: &str) {
        self.add(path, Node::Link(target.to_owned()));
    }

    /// Returns the node at this path; links are not followed.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.0.get(path)
    }

    /// Returns all paths in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(path, node)| (&**path, node))
    }

    /// Returns the total size of all files, in bytes.
    pub fn size(&self) -> u64 {
        let files = self.0.values().map(|node| match node {
            Node::File(_, bytes) => bytes.len() as u64,
            Node::Directory(_) | Node::Link(_) => 0,
        });
        files.sum()
    }

    /// Returns a tar archive. All entries belong to root and have the modification time `time`, in
    /// seconds since 1970.
    ///
    /// # Errors
    /// Returns an error if a path is too long for the format.
    pub fn archive(&self, time: u64) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, node) in self.iter() {
            let mut header = Header::new_gnu();
            header.set_mtime(time);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            let added = match node {
                Node::Directory(mode) => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(*mode);
                    archive.append_data(&mut header, format!("{path}/"), &[][..])
                }
                Node::File(mode, bytes) => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(bytes.len() as u64);
                    archive.append_data(&mut header, path, &bytes[..])
                }
                Node::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    archive.append_link(&mut header, path, target)
                }
            };
            added.with_context(|| format!("cannot put {path} into the archive"))?;
        }
        archive.into_inner().context("cannot end the archive")
    }
}

/// Compresses bytes; the header contains neither a name nor a time.
///
/// # Errors
/// Never returns an error: it writes to memory.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut writer = GzBuilder::new().write(Vec::new(), Compression::best());
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_adding_leaves_no_trace() {
        let mut one = Tree::default();
        one.add_text("a/b/c", "c");
        one.add_link("a/l", "b");
        let mut other = Tree::default();
        other.add_link("a/l", "b");
        other.add_text("a/b/c", "c");
        assert_eq!(one, other);
        assert_eq!(one.archive(7).unwrap(), other.archive(7).unwrap());
        assert_ne!(one.archive(7).unwrap(), other.archive(8).unwrap());
    }

    #[test]
    fn directories_come_first_and_keep_their_mode() {
        let mut tree = Tree::default();
        tree.add("tmp", Node::Directory(0o1777));
        tree.add_text("tmp/x", "x");
        let archive = tree.archive(7).unwrap();
        let mut reader = tar::Archive::new(&archive[..]);
        let entries: Vec<(String, u32, u64)> = reader
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                let header = entry.header();
                (path, header.mode().unwrap(), header.mtime().unwrap())
            })
            .collect();
        assert_eq!(
            entries,
            [
                ("tmp/".to_owned(), 0o1777, 7),
                ("tmp/x".to_owned(), 0o644, 7)
            ]
        );
    }
}
