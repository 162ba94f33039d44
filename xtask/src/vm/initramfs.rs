// SPDX-License-Identifier: Apache-2.0

//! Writes an initramfs: directories, links, files, and programs with the libraries they need.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cpio::newc::{self, Builder, ModeFileType};

use crate::debian::make_dir;
use crate::sh;

/// Directories that systems keep below `/usr` nowadays, with a link in their old place.
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib64", "lib32", "libx32"];

/// The entry at a path.
enum Entry {
    Directory,
    /// A link to this.
    Link(String),
    /// A copy of this file.
    Copy(PathBuf),
    /// A file with this text, executable or not.
    Text(String, bool),
}

/// The files of a guest, by their paths without the first slash.
pub struct Initramfs {
    entries: BTreeMap<String, Entry>,
}

impl Initramfs {
    /// One with nothing but the links of a merged `/usr`.
    pub fn new() -> Self {
        let mut image = Self {
            entries: BTreeMap::new(),
        };
        for name in MERGED {
            image.directory(&format!("usr/{name}"));
            image.link(name, &format!("usr/{name}"));
        }
        image
    }

    /// A directory with those above it.
    pub fn directory(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.add(&path[..at], Entry::Directory);
        }
        self.add(path, Entry::Directory);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.place(path, Entry::Link(to.to_owned()));
    }

    /// A file with a text.
    pub fn text(&mut self, path: &str, text: &str, executable: bool) {
        self.place(path, Entry::Text(text.to_owned(), executable));
    }

    /// A copy of a file of this machine.
    pub fn copy(&mut self, from: &Path, path: &str) {
        self.place(path, Entry::Copy(from.to_owned()));
    }

    /// Whether there is something at a path.
    pub fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// A directory of this machine with all that is in it, at a path.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn tree(&mut self, from: &Path, path: &str) -> Result<()> {
        let entries =
            fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))?;
        self.directory(path);
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", from.display()))?;
            let name = entry.file_name();
            let path = format!("{path}/{}", name.to_string_lossy());
            let kind = entry.file_type();
            if kind.is_ok_and(|kind| kind.is_dir()) {
                self.tree(&entry.path(), &path)?;
            } else if entry.path().is_file() {
                self.copy(&entry.path(), &path);
            }
        }
        Ok(())
    }

    /// A program of this machine in the same place, with its libraries.
    ///
    /// # Errors
    /// When it is not here, or one of its libraries is not.
    pub fn program(&mut self, name: &str) -> Result<()> {
        let path = sh::find(name, &sh::search_path())
            .with_context(|| format!("{name} is not installed here"))?;
        let real =
            fs::canonicalize(&path).with_context(|| format!("cannot follow {}", path.display()))?;
        self.copy(&real, &inside(&real));
        if inside(&real) != inside(&path) {
            self.link(&inside(&path), &format!("/{}", inside(&real)));
        }
        self.libraries(&real)
    }

    /// The libraries a program or library needs.
    ///
    /// # Errors
    /// When one is not here.
    pub fn libraries(&mut self, program: &Path) -> Result<()> {
        // ldd fails for statically linked programs, and for scripts.
        let Ok(list) = sh::read(sh::command("ldd").arg(program)) else {
            return Ok(());
        };
        for line in list.lines() {
            if line.contains("=> not found") {
                bail!("{} needs {}", program.display(), line.trim());
            }
            // `libc.so.6 => /lib/… (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`
            let library = line.split_whitespace().find(|word| word.starts_with('/'));
            if let Some(library) = library.map(Path::new) {
                let real = fs::canonicalize(library)
                    .with_context(|| format!("cannot follow {}", library.display()))?;
                self.copy(&real, &inside(library));
            }
        }
        Ok(())
    }

    /// Writes it.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(above) = path.parent() {
            make_dir(above)?;
        }
        let write = || -> Result<()> {
            let mut out = BufWriter::new(File::create(path)?);
            for (inode, (name, entry)) in (1..).zip(&self.entries) {
                out = entry
                    .write(name, inode, out)
                    .with_context(|| name.clone())?;
            }
            newc::trailer(out)?.flush()?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// An entry, with the directories above it.
    fn place(&mut self, path: &str, entry: Entry) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.add(path, entry);
    }

    /// The first at a path stays: a directory may be named many times.
    fn add(&mut self, path: &str, entry: Entry) {
        self.entries.entry(path.to_owned()).or_insert(entry);
    }
}

impl Entry {
    fn write<W: std::io::Write>(&self, name: &str, inode: u32, out: W) -> Result<W> {
        let entry = Builder::new(name).ino(inode);
        let (kind, permissions, content) = match self {
            Self::Directory => (ModeFileType::Directory, 0o755, Vec::new()),
            Self::Link(to) => (ModeFileType::Symlink, 0o777, to.clone().into_bytes()),
            Self::Text(text, executable) => {
                let permissions = if *executable { 0o755 } else { 0o644 };
                (
                    ModeFileType::Regular,
                    permissions,
                    text.clone().into_bytes(),
                )
            }
            Self::Copy(from) => {
                let failed = || format!("cannot read {}", from.display());
                let permissions = fs::metadata(from).with_context(failed)?.permissions();
                let content = fs::read(from).with_context(failed)?;
                (ModeFileType::Regular, permissions.mode() & 0o7777, content)
            }
        };
        let size = u32::try_from(content.len()).context("larger than an archive can hold")?;
        let mut writer = entry
            .mode(permissions)
            .set_mode_file_type(kind)
            .write(out, size);
        writer.write_all(&content)?;
        Ok(writer.finish()?)
    }
}

/// Where a file of this machine lies in the guest: in `/usr` also if this machine has a link there.
fn inside(path: &Path) -> String {
    let path = path.to_string_lossy();
    let path = path.trim_start_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_behind_the_directories_above_it() {
        let mut image = Initramfs::new();
        image.text("etc/a/b", "text", false);
        image.link("lib64", "elsewhere");
        let paths: Vec<&str> = image.entries.keys().map(String::as_str).collect();
        let place = |path: &str| paths.iter().position(|entry| *entry == path).unwrap();
        assert!(place("etc") < place("etc/a") && place("etc/a") < place("etc/a/b"));
        assert!(matches!(&image.entries["lib64"], Entry::Link(to) if to == "usr/lib64"));
    }

    #[test]
    fn files_of_old_places_lie_in_usr() {
        assert_eq!(inside(Path::new("/lib/x/libc.so.6")), "usr/lib/x/libc.so.6");
        assert_eq!(inside(Path::new("/usr/sbin/nft")), "usr/sbin/nft");
        assert_eq!(inside(Path::new("/opt/lib/x")), "opt/lib/x");
    }
}
