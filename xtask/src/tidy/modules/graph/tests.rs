// SPDX-License-Identifier: Apache-2.0

//! Tests with invented crates.

use std::path::Path;

use super::*;

/// Returns the circles of a crate of these files, as they are printed.
fn circles(files: &[(&str, &str)]) -> Vec<String> {
    let tree = tree(files);
    let findings = Graph::new(&tree).circles();
    findings.iter().map(ToString::to_string).collect()
}

fn tree(files: &[(&str, &str)]) -> Tree {
    let read = |path: &Path| {
        let file = files.iter().find(|(name, _)| Path::new(name) == path);
        file.map(|(_, text)| (*text).to_owned())
    };
    Tree::parse(Path::new("src/lib.rs"), &read).unwrap()
}

/// Returns the arrows between the top modules, as `from to line`.
fn arrows(files: &[(&str, &str)]) -> Vec<String> {
    let tree = tree(files);
    let graph = Graph::new(&tree);
    let arrows = graph.arrows(&[]).into_iter();
    arrows
        .map(|(from, to, import)| format!("{from} {to} {}", import.line))
        .collect()
}

const ROOT: (&str, &str) = ("src/lib.rs", "mod a;\nmod b;\nmod c;\n");

#[test]
fn a_circle_is_found_with_each_import() {
    let files = [
        ROOT,
        ("src/a.rs", "\nuse crate::b::B;\n"),
        ("src/b/mod.rs", "mod deep;\npub struct B;\n"),
        ("src/b/deep.rs", "use crate::{c::{C, D}};\n"),
        ("src/c.rs", "pub struct C;\nfn f() { super::a::g() }\n"),
    ];
    assert_eq!(
        circles(&files),
        ["src/a.rs:2: modules import each other in a circle: \
             a (a.rs:2) → b (deep.rs:1) → c (c.rs:2) → a"]
    );
}

#[test]
fn a_line_of_imports_is_no_circle() {
    let files = [
        ROOT,
        (
            "src/a.rs",
            "use crate::{b, c};\nfn f() { b::g(); c::h() }\n",
        ),
        ("src/b.rs", "use crate::c::C;\n"),
        ("src/c.rs", "pub struct C;\n"),
    ];
    assert_eq!(circles(&files), [""; 0]);
    assert_eq!(arrows(&files), ["a b 1", "a c 1", "b c 1"]);
}

#[test]
fn children_of_a_module_are_a_level_of_their_own() {
    let files = [
        ("src/lib.rs", "mod a;\n"),
        (
            "src/a.rs",
            "mod x;\nmod y;\npub struct A;\nfn f() { x::f() }\n",
        ),
        // An item that the parent defines causes no arrow.
        ("src/a/x.rs", "use super::A;\nuse super::y::Y;\n"),
        ("src/a/y.rs", "pub struct Y;\nfn f() { crate::a::x::g() }\n"),
    ];
    assert_eq!(
        circles(&files),
        [
            "src/a/x.rs:2: modules import each other in a circle: a::x (x.rs:2) → a::y (y.rs:2) → a::x"
        ]
    );
}

#[test]
fn a_re_export_counts_for_where_its_item_is() {
    let files = [
        ("src/lib.rs", "mod a;\n"),
        ("src/a.rs", "mod x;\nmod y;\npub use x::X as Renamed;\n"),
        (
            "src/a/x.rs",
            "use super::y;\npub struct X;\nfn f() { y::g() }\n",
        ),
        ("src/a/y.rs", "use super::Renamed;\n"),
    ];
    assert_eq!(circles(&files).len(), 1);
}

#[test]
fn imports_are_seen_wherever_they_stand() {
    for text in [
        "fn f() { use crate::b::B; }",
        "fn f(b: crate::b::B) {}",
        "fn f() { println!(\"{}\", crate::b::B) }",
        "fn f() { println!(\"{}\", { call(1, super::b::f(2)) }) }",
        "#[arg(value_parser = crate::b::parse)]\nstruct A;",
        "impl crate::b::Trait for A {}",
        "mod inner { use super::super::b::B; }",
        "use crate::b::*;",
        "use crate::{self as root};\nfn f() { root::b::g() }",
    ] {
        let files = [ROOT, ("src/a.rs", text), ("src/b.rs", ""), ("src/c.rs", "")];
        let found = arrows(&files);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].starts_with("a b "), "{text}: {found:?}");
    }
}

#[test]
fn tests_and_other_crates_are_left_out() {
    for text in [
        "#[cfg(test)]\nmod tests { use crate::b::B; }",
        "#[cfg(test)]\nuse crate::b::B;",
        "#[cfg(any(test, feature = \"fuzzing\"))]\nfn f() { crate::b::g() }",
        "#[cfg(all(unix, feature = \"fuzzing\"))]\nfn f() { crate::b::g() }",
        "impl A { #[cfg(test)]\nfn f() { crate::b::g() } }",
        "// crate::b::g\nconst TEXT: &str = \"crate::b::g\";",
        "use b_crate::b::B;\nuse serde::Serialize;\nfn f() { B::g(); Serialize::b(); x.b::<A>() }",
    ] {
        let files = [ROOT, ("src/a.rs", text), ("src/b.rs", ""), ("src/c.rs", "")];
        assert_eq!(arrows(&files), [""; 0], "{text}");
    }
    for text in [
        "#[cfg(not(test))]\nuse crate::b::B;",
        "#[cfg(any(unix, test))]\nuse crate::b::B;",
        "#[cfg(feature = \"other\")]\nuse crate::b::B;",
    ] {
        let files = [ROOT, ("src/a.rs", text), ("src/b.rs", ""), ("src/c.rs", "")];
        assert_eq!(arrows(&files).len(), 1, "{text}");
    }
}
