// SPDX-License-Identifier: Apache-2.0

//! Tests with layouts as `oci` writes them, intact and damaged.

use std::path::PathBuf;

use super::*;
use crate::image::arch::Arch;
use crate::image::kind::Kind;
use crate::image::oci::{About, Image, Layout, layout};
use crate::image::tree::Tree;

fn about() -> About {
    About {
        kind: Kind::ProxyAgent,
        name: "registry.example/team/proxy-agent".to_owned(),
        version: "1.2.3".to_owned(),
        revision: "0123abcd".to_owned(),
        time: 1_000_000_000,
        created: "2001-09-09T01:46:40Z".to_owned(),
        source: None,
        licences: "Apache-2.0".to_owned(),
    }
}

fn made(archs: &[Arch]) -> Layout {
    let trees: Vec<Tree> = archs
        .iter()
        .map(|arch| {
            let mut tree = Tree::default();
            tree.add_text("etc/arch", arch.name());
            tree
        })
        .collect();
    let images: Vec<Image> = archs
        .iter()
        .zip(&trees)
        .map(|(&arch, tree)| Image { arch, tree })
        .collect();
    layout(&about(), &images).unwrap()
}

/// A directory for one test.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xtask-oci-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn both_forms_are_sound() {
    let place = Place::new("forms");
    let both = [Arch::Amd64, Arch::Arm64];
    for (archs, blobs) in [(&both[..1], 3), (&both[..], 7)] {
        let image = made(archs);
        for output in [place.0.join("directory"), place.0.join("a.tar")] {
            image.write(&output, 7).unwrap();
            let wanted = Contents {
                platforms: archs
                    .iter()
                    .map(|arch| format!("linux/{}", arch.name()))
                    .collect(),
                blobs,
            };
            assert_eq!(verify(&output).unwrap(), wanted, "{}", output.display());
        }
    }
}

#[test]
fn the_same_files_give_the_same_image() {
    let place = Place::new("same");
    let (one, other) = (place.0.join("1.tar"), place.0.join("2.tar"));
    made(&[Arch::Arm64]).write(&one, 7).unwrap();
    made(&[Arch::Arm64]).write(&other, 7).unwrap();
    assert_eq!(fs::read(one).unwrap(), fs::read(other).unwrap());
    assert_ne!(made(&[Arch::Arm64]).digest, made(&[Arch::Amd64]).digest);
}

#[test]
fn something_else_is_not_written_over() {
    let place = Place::new("foreign");
    fs::create_dir_all(&place.0).unwrap();
    fs::write(place.0.join("letter.txt"), "dear").unwrap();
    assert!(made(&[Arch::Amd64]).write(&place.0, 7).is_err());
    assert_eq!(fs::read(place.0.join("letter.txt")).unwrap(), b"dear");
}

/// Every blob is changed, truncated and removed in turn, and one is added.
#[test]
fn damage_is_found() {
    let place = Place::new("damage");
    made(&[Arch::Amd64, Arch::Arm64])
        .write(&place.0, 7)
        .unwrap();
    let whole = read_directory(&place.0).unwrap();
    check(&whole).unwrap();
    for path in whole.keys().filter(|path| path.starts_with("blobs/")) {
        let mut files = whole.clone();
        files.get_mut(path).unwrap()[0] ^= 1;
        assert!(check(&files).is_err(), "{path} changed");
        let mut files = whole.clone();
        files.get_mut(path).unwrap().pop();
        assert!(check(&files).is_err(), "{path} cut");
        let mut files = whole.clone();
        files.remove(path);
        assert!(check(&files).is_err(), "{path} gone");
    }
    for path in ["oci-layout", "index.json", "manifest.json"] {
        let mut files = whole.clone();
        files.remove(path);
        assert!(check(&files).is_err(), "{path} gone");
    }
    let mut files = whole.clone();
    files.insert("blobs/sha256/0123".to_owned(), Vec::new());
    assert!(check(&files).is_err(), "a blob too many");
}

/// The index has one architecture and the image has another.
#[test]
fn a_wrong_platform_is_found() {
    let place = Place::new("platform");
    made(&[Arch::Amd64]).write(&place.0, 7).unwrap();
    let mut files = read_directory(&place.0).unwrap();
    let index = String::from_utf8(files["index.json"].clone()).unwrap();
    files.insert(
        "index.json".to_owned(),
        index.replace("\"amd64\"", "\"arm64\"").into_bytes(),
    );
    let error = check(&files).unwrap_err().to_string();
    assert!(error.contains("linux/arm64 is listed"), "{error}");
}
