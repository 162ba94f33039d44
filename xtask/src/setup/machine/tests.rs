// SPDX-License-Identifier: Apache-2.0

//! Compilers are found by their files: each test creates a small tree.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// The directory of a test, which is removed at its end.
struct Tree(PathBuf);

impl Tree {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root =
            std::env::temp_dir().join(format!("xtask-machine-{}-{number}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        Self(fs::canonicalize(root).unwrap())
    }

    fn file(&self, path: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Creates a compiler with `core` for BPF, in the layout of Debian's packages.
    fn prebuilt(&self, sysroot: &str) {
        self.file(&format!("{sysroot}/bin/rustc"));
        self.file(&format!(
            "{sysroot}/lib/rustlib/{BPF_TARGET}/lib/libcore-8056e5e5b270ef4d.rlib"
        ));
    }

    fn nightly(&self, name: &str) {
        self.file(&format!("toolchains/{name}/bin/rustc"));
        self.file(&format!(
            "toolchains/{name}/lib/rustlib/src/rust/library/core/Cargo.toml"
        ));
    }

    fn rustups(&self) -> Option<Compiler> {
        rustups_compiler(&self.0.join("toolchains"), &self.0.join("usr"))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

#[test]
fn nothing_there_is_no_compiler() {
    let tree = Tree::new();
    tree.file("usr/bin/rustc");
    tree.file("toolchains/stable-x86_64-unknown-linux-gnu/bin/rustc");
    assert_eq!(tree.rustups(), None);
    assert_eq!(plain_compiler(&tree.0.join("usr/bin/rustc")), None);
}

#[test]
fn a_linked_compiler_comes_first() {
    let tree = Tree::new();
    tree.prebuilt("usr");
    tree.nightly("nightly-x86_64-unknown-linux-gnu");
    std::os::unix::fs::symlink(tree.0.join("usr"), tree.0.join("toolchains").join(LINKED)).unwrap();
    let sysroot = tree.0.join("toolchains").join(LINKED);
    assert_eq!(
        tree.rustups(),
        Some(Compiler::Prebuilt {
            sysroot,
            unlinked: false
        })
    );
}

#[test]
fn the_systems_compiler_comes_before_a_nightly_and_wants_linking() {
    let tree = Tree::new();
    tree.prebuilt("usr");
    tree.nightly("nightly-x86_64-unknown-linux-gnu");
    let sysroot = tree.0.join("usr");
    assert_eq!(
        tree.rustups(),
        Some(Compiler::Prebuilt {
            sysroot,
            unlinked: true
        })
    );
}

#[test]
fn a_nightly_serves_with_sources_only() {
    let tree = Tree::new();
    tree.file("toolchains/nightly-x86_64-unknown-linux-gnu/bin/rustc");
    tree.nightly("nightly-2025-01-01-x86_64-unknown-linux-gnu");
    assert_eq!(
        tree.rustups(),
        None,
        "a dated nightly is not what `rustup run nightly` takes"
    );
    tree.nightly("nightly-x86_64-unknown-linux-gnu");
    let sysroot = tree.0.join("toolchains/nightly-x86_64-unknown-linux-gnu");
    assert_eq!(tree.rustups(), Some(Compiler::Nightly { sysroot }));
}

#[test]
fn without_rustup_the_compiler_of_the_path_is_taken_as_it_is() {
    let tree = Tree::new();
    tree.prebuilt("usr");
    let sysroot = tree.0.join("usr");
    let found = plain_compiler(&sysroot.join("bin/rustc"));
    assert_eq!(
        found,
        Some(Compiler::Prebuilt {
            sysroot,
            unlinked: false
        })
    );
}

#[test]
fn a_file_without_execute_permission_is_no_program() {
    let tree = Tree::new();
    tree.file("bin/nft");
    let directories = [tree.0.join("empty"), tree.0.join("bin")];
    assert_eq!(sh::find("nft", &directories), Some(tree.0.join("bin/nft")));
    fs::set_permissions(tree.0.join("bin/nft"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(sh::find("nft", &directories), None);
}
