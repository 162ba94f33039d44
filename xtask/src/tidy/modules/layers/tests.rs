// SPDX-License-Identifier: Apache-2.0

//! Tests with invented layers, and with packages.

use std::path::Path;

use serde_json::json;

use super::super::source::Tree;
use super::*;

const MADE_UP: Layers = Layers {
    package: "made-up",
    module: &[],
    from_the_top: &[layer(&["top"]), apart(&["left", "right"]), layer(&["base"])],
};

/// Returns the findings in a crate of these modules.
fn findings(modules: &[(&str, &str)]) -> Vec<String> {
    let declared = modules.iter().map(|(name, _)| format!("mod {name};"));
    let root = declared.collect::<Vec<_>>().join(
        "
",
    );
    let read = |path: &Path| {
        let name = path.file_stem()?.to_str()?;
        let module = modules.iter().find(|(module, _)| *module == name);
        match name {
            "lib" => Some(root.clone()),
            _ if path.ends_with("mod.rs") => None,
            _ => module.map(|(_, text)| (*text).to_owned()),
        }
    };
    let tree = Tree::parse(Path::new("src/lib.rs"), &read).unwrap();
    let findings = MADE_UP.findings(&Graph::new(&tree));
    findings.iter().map(ToString::to_string).collect()
}

#[test]
fn imports_go_down() {
    let modules = [
        ("top", "use crate::left::L;\nuse crate::base;\n"),
        ("left", "use crate::base::B;\n"),
        ("right", ""),
        ("base", "pub struct B;\n"),
    ];
    assert_eq!(findings(&modules), [""; 0]);
}

#[test]
fn an_import_against_the_order_is_found() {
    let modules = [
        ("top", ""),
        ("left", ""),
        ("right", ""),
        ("base", "\nfn f() { crate::top::g() }\n"),
    ];
    assert_eq!(
        findings(&modules),
        ["src/base.rs:2: base imports top, which is in a layer above it"]
    );
}

#[test]
fn leaves_do_not_import_each_other() {
    let modules = [
        ("top", ""),
        ("left", "use crate::right::R;\n"),
        ("right", "pub struct R;\n"),
        ("base", ""),
    ];
    assert_eq!(
        findings(&modules),
        ["src/left.rs:1: left imports right: modules of their layer stand by themselves"]
    );
}

#[test]
fn every_module_has_a_layer() {
    let modules = [("top", ""), ("left", ""), ("right", ""), ("new", "")];
    let found = findings(&modules);
    assert!(
        found[0].contains("module new stands in no layer"),
        "{found:?}"
    );
    assert!(
        found[1].contains("a module base that is not there"),
        "{found:?}"
    );
    assert_eq!(found.len(), 2);
}

#[test]
fn packages_do_not_know_their_strangers() {
    let package = |name: &str, dependency: &str| {
        json!({
            "name": name,
            "manifest_path": format!("/checkout/{name}/Cargo.toml"),
            "dependencies": [{ "name": dependency }, { "name": "serde" }],
        })
    };
    let all = [
        package("proxy-agent", "proxy-serve"),
        package("proxy-tunnel", "proxy-agent"),
        package("tests", "proxy-agent"),
    ];
    let found = packages(&all, Path::new("/checkout"));
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        ["proxy-tunnel/Cargo.toml: proxy-tunnel must not depend on proxy-agent"]
    );
}
