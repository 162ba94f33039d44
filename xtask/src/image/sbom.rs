// SPDX-License-Identifier: Apache-2.0

//! Describes the contents of an image as an SPDX 2.3 document, and collects the licence texts of the crates in our
//! programs.
//!
//! The format: <https://spdx.github.io/spdx-spec/v2.3/>.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::arch::Arch;
use super::debian::Package;
use super::kind::Kind;
use super::oci::{About, digest};
use crate::sh;
use crate::workspace::Workspace;

/// The prefixes of the names of files with terms, which are beside a crate's manifest.
const TERMS: [&str; 5] = ["COPYING", "COPYRIGHT", "LICENCE", "LICENSE", "NOTICE"];

/// A crate in one of our programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    /// The name.
    pub name: String,
    /// The version.
    pub version: String,
    /// The licence as an SPDX expression.
    pub licence: String,
    /// Whether the crate is from crates.io; otherwise it is from this checkout.
    pub published: bool,
    /// The directory of its manifest.
    directory: String,
    /// The crates that it depends on, as indices.
    dependencies: Vec<usize>,
}

/// The libraries that are linked into each program in addition to the crates.
pub struct Linked {
    /// The version of the Rust standard library.
    pub rust: String,
    /// The C library's package and version.
    pub c_library: (String, String),
}

/// Returns the crates that are compiled into the programs of an image for an architecture.
///
/// # Errors
/// Returns an error if cargo cannot list them.
pub fn crates(workspace: &Workspace, kind: Kind, arch: Arch) -> Result<Vec<Crate>> {
    let json = sh::read(
        workspace
            .cargo("metadata")
            .args(["--locked", "--format-version", "1"])
            .args(["--filter-platform", arch.target()]),
    )?;
    let metadata: Value =
        serde_json::from_str(&json).context("cargo metadata printed something else than JSON")?;
    reachable(&metadata, kind.crates())
}

fn reachable(metadata: &Value, roots: &[&str]) -> Result<Vec<Crate>> {
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes: BTreeMap<String, Vec<String>> = array(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| (word(&node["id"]), normal_dependencies(node)))
        .collect();
    let packages: BTreeMap<String, Value> = array(&metadata["packages"])
        .into_iter()
        .map(|package| (word(&package["id"]), package))
        .collect();
    let mut todo: Vec<String> = packages
        .iter()
        .filter(|(_, package)| {
            package["source"].is_null() && roots.contains(&&*word(&package["name"]))
        })
        .map(|(id, _)| id.clone())
        .collect();
    let mut found = BTreeSet::new();
    while let Some(id) = todo.pop() {
        let dependencies = nodes
            .get(&id)
            .with_context(|| format!("cargo metadata does not resolve {id}"))?;
        if found.insert(id) {
            todo.extend(dependencies.iter().cloned());
        }
    }
    let mut ids: Vec<&String> = found.iter().collect();
    ids.sort_by_key(|id| {
        let package = &packages[*id];
        (word(&package["name"]), word(&package["version"]))
    });
    let place = |id: &String| ids.iter().position(|other| *other == id);
    ids.iter()
        .map(|&id| {
            let package = &packages[id];
            let manifest = word(&package["manifest_path"]);
            let licence = package["license"].as_str();
            Ok(Crate {
                name: word(&package["name"]),
                version: word(&package["version"]),
                licence: licence
                    .with_context(|| format!("{id} names no licence"))?
                    .replace('/', " OR "),
                published: !package["source"].is_null(),
                directory: manifest.trim_end_matches("/Cargo.toml").to_owned(),
                dependencies: nodes[id].iter().filter_map(place).collect(),
            })
        })
        .collect()
}

/// Returns the dependencies that are neither for build scripts nor for tests.
fn normal_dependencies(node: &Value) -> Vec<String> {
    let dependencies = node["deps"].as_array().into_iter().flatten();
    dependencies
        .filter(|dependency| {
            let kinds = dependency["dep_kinds"].as_array();
            kinds.is_none_or(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
        })
        .filter_map(|dependency| dependency["pkg"].as_str().map(str::to_owned))
        .collect()
}

/// Returns the terms of the crates: each text once, after the names of its crates.
///
/// # Errors
/// Returns an error if a file cannot be read.
pub fn terms(crates: &[Crate]) -> Result<String> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in crates.iter().filter(|package| package.published) {
        let directory = Path::new(&package.directory);
        let entries = fs::read_dir(directory)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_terms = TERMS
                .iter()
                .any(|begin| name.to_uppercase().starts_with(begin));
            if is_terms && path.is_file() {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                texts
                    .entry(text.replace("\r\n", "\n").trim().to_owned())
                    .or_default()
                    .push(format!("{} {} ({name})", package.name, package.version));
            }
        }
    }
    let mut parts: Vec<(Vec<String>, String)> = texts
        .into_iter()
        .map(|(text, mut of)| {
            of.sort();
            (of, text)
        })
        .collect();
    parts.sort();
    let line = "=".repeat(78);
    Ok(parts
        .iter()
        .map(|(of, text)| format!("{line}\n{}\n{line}\n\n{text}\n", of.join("\n")))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// Returns the document.
///
/// # Errors
/// Returns an error if a package's file cannot be read.
pub fn document(
    about: &About,
    arch: Arch,
    crates: &[Crate],
    linked: &Linked,
    debian: &[Package],
) -> Result<Value> {
    let image = about.kind.name();
    let name = format!("{image}-{}-{}", about.version, arch.name());
    let mut packages = vec![package(
        "image",
        &format!("{image}-image"),
        &about.version,
        &about.licences,
    )];
    let mut relations = vec![("DOCUMENT".to_owned(), "DESCRIBES", "image".to_owned())];
    for (number, krate) in crates.iter().enumerate() {
        let id = format!("crate-{number}");
        let mut entry = package(&id, &krate.name, &krate.version, &krate.licence);
        if krate.published {
            refer(
                &mut entry,
                &format!("pkg:cargo/{}@{}", krate.name, krate.version),
            );
        }
        packages.push(entry);
        if about.kind.crates().contains(&&*krate.name) {
            relations.push(("image".to_owned(), "CONTAINS", id.clone()));
        }
        for dependency in &krate.dependencies {
            relations.push((id.clone(), "DEPENDS_ON", format!("crate-{dependency}")));
        }
    }
    let (c_library, c_version) = &linked.c_library;
    for (id, name, version, licence) in [
        ("rust-std", "rust-std", &linked.rust, "MIT OR Apache-2.0"),
        ("c-library", c_library, c_version, "LGPL-2.1-or-later"),
    ] {
        let mut entry = package(id, name, version, licence);
        entry["comment"] = json!("linked statically into each program");
        packages.push(entry);
        relations.push(("image".to_owned(), "CONTAINS", id.to_owned()));
    }
    for of in debian {
        let id = format!("debian-{}", of.name);
        let mut entry = package(&id, &of.name, &of.version, &of.licence);
        let bytes =
            fs::read(&of.file).with_context(|| format!("cannot read {}", of.file.display()))?;
        let sha256 = digest(&bytes).trim_start_matches("sha256:").to_owned();
        entry["checksums"] = json!([{"algorithm": "SHA256", "checksumValue": sha256}]);
        entry["supplier"] = json!("Organization: Debian");
        entry["sourceInfo"] = json!(format!(
            "some of the files of Debian's package; its source package is {}",
            of.source
        ));
        refer(
            &mut entry,
            &format!(
                "pkg:deb/debian/{}@{}?arch={}&distro=debian-12",
                of.name,
                of.version.replace('+', "%2B").replace(':', "%3A"),
                of.architecture
            ),
        );
        packages.push(entry);
        relations.push(("image".to_owned(), "CONTAINS", id));
    }
    let relations: Vec<Value> = relations
        .iter()
        .map(|(one, kind, other)| {
            json!({
                "spdxElementId": format!("SPDXRef-{one}"),
                "relationshipType": kind,
                "relatedSpdxElement": format!("SPDXRef-{other}"),
            })
        })
        .collect();
    // The name identifies exactly this document, and needs no server of ours.
    let hash = digest(&serde_json::to_vec(&packages)?);
    let unique = format!("{name}-{}", &hash["sha256:".len()..][..32]);
    Ok(json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": format!("https://spdx.org/spdxdocs/{unique}"),
        "creationInfo": {"created": about.created, "creators": ["Tool: cargo-xtask-image"]},
        "packages": packages,
        "relationships": relations,
    }))
}

fn package(id: &str, name: &str, version: &str, licence: &str) -> Value {
    json!({
        "SPDXID": format!("SPDXRef-{id}"),
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": licence,
        "copyrightText": "NOASSERTION",
    })
}

fn refer(package: &mut Value, purl: &str) {
    package["externalRefs"] = json!([{
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": purl,
    }]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_of_tests_and_build_scripts_are_not_in_the_agent() {
        let dependency =
            |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let entry = |name: &str, source: Value| {
            json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0",
                "source": source, "manifest_path": format!("/x/{name}/Cargo.toml")})
        };
        let crates_io = json!("registry");
        let metadata = json!({
            "packages": [
                entry("proxy-agent", Value::Null), entry("used", crates_io.clone()),
                entry("deep", crates_io.clone()), entry("tested", crates_io.clone()),
                entry("built", crates_io), entry("xtask", Value::Null),
            ],
            "resolve": {"nodes": [
                {"id": "proxy-agent", "deps": [dependency("used", Value::Null),
                    dependency("tested", json!("dev")), dependency("built", json!("build"))]},
                {"id": "used", "deps": [dependency("deep", Value::Null)]},
                {"id": "deep", "deps": []}, {"id": "tested", "deps": []},
                {"id": "built", "deps": []}, {"id": "xtask", "deps": []},
            ]},
        });
        let crates = reachable(&metadata, &["proxy-agent"]).unwrap();
        let names: Vec<&str> = crates.iter().map(|krate| &*krate.name).collect();
        assert_eq!(names, ["deep", "proxy-agent", "used"]);
        assert_eq!(crates[1].dependencies, [2]);
        assert_eq!(crates[0].licence, "MIT OR Apache-2.0");
        assert!(!crates[1].published && crates[2].published);
    }
}
