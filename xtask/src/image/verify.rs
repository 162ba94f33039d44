// SPDX-License-Identifier: Apache-2.0

//! Reads a layout as another program would, and reports errors in it: every digest, size, media type and platform,
//! blobs without a reference, and Docker's list beside the index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde_json::Value;

use super::oci::{CONFIG, INDEX, LAYER, MANIFEST, digest, is_archive};

/// The contents of a layout.
#[derive(Debug, PartialEq, Eq)]
pub struct Contents {
    /// The platforms, such as `linux/amd64`, in the order of the index.
    pub platforms: Vec<String>,
    /// The number of blobs.
    pub blobs: usize,
}

/// Reads an archive or a directory and checks it.
///
/// # Errors
/// Returns the first error that it finds.
pub fn verify(path: &Path) -> Result<Contents> {
    let files = if is_archive(path) {
        read_archive(path)?
    } else {
        read_directory(path)?
    };
    check(&files).with_context(|| format!("{} is no sound image", path.display()))
}

type Files = BTreeMap<String, Vec<u8>>;

struct Reader<'a> {
    files: &'a Files,
    seen: BTreeSet<String>,
    platforms: Vec<String>,
    layers: BTreeSet<String>,
}

fn check(files: &Files) -> Result<Contents> {
    let layout = json(files, "oci-layout")?;
    ensure!(
        layout["imageLayoutVersion"] == "1.0.0",
        "oci-layout: another version than 1.0.0"
    );
    let mut reader = Reader {
        files,
        seen: BTreeSet::new(),
        platforms: Vec::new(),
        layers: BTreeSet::new(),
    };
    reader.index(&json(files, "index.json")?)?;
    for entry in list(&json(files, "manifest.json")?)? {
        let config = text(entry, "Config")?;
        ensure!(reader.seen.contains(config), "manifest.json: no {config}");
        for layer in list(&entry["Layers"])? {
            let layer = layer.as_str().unwrap_or_default();
            ensure!(
                reader.layers.contains(layer),
                "manifest.json: {layer} is no layer"
            );
        }
    }
    let blobs: BTreeSet<String> = files
        .keys()
        .filter(|path| path.starts_with("blobs/"))
        .cloned()
        .collect();
    if let Some(unused) = blobs.difference(&reader.seen).next() {
        bail!("nothing refers to {unused}");
    }
    Ok(Contents {
        platforms: reader.platforms,
        blobs: blobs.len(),
    })
}

impl Reader<'_> {
    fn index(&mut self, index: &Value) -> Result<()> {
        ensure!(index["schemaVersion"] == 2, "an index of another schema");
        ensure!(text(index, "mediaType")? == INDEX, "no index");
        for descriptor in list(&index["manifests"])? {
            match text(descriptor, "mediaType")? {
                INDEX => {
                    let nested: Value = serde_json::from_slice(self.blob(descriptor)?)?;
                    self.index(&nested)?;
                }
                MANIFEST => self.manifest(descriptor)?,
                other => bail!("an index that lists {other}"),
            }
        }
        Ok(())
    }

    fn manifest(&mut self, descriptor: &Value) -> Result<()> {
        let manifest: Value = serde_json::from_slice(self.blob(descriptor)?)?;
        ensure!(
            manifest["schemaVersion"] == 2,
            "a manifest of another schema"
        );
        ensure!(text(&manifest, "mediaType")? == MANIFEST, "no manifest");
        ensure!(
            text(&manifest["config"], "mediaType")? == CONFIG,
            "a configuration of another media type"
        );
        let config: Value = serde_json::from_slice(self.blob(&manifest["config"])?)?;
        let platform = |value: &Value| -> Result<String> {
            Ok(format!(
                "{}/{}",
                text(value, "os")?,
                text(value, "architecture")?
            ))
        };
        let own = platform(&config)?;
        let listed = platform(&descriptor["platform"])?;
        ensure!(own == listed, "{listed} is listed and {own} is there");
        ensure!(!self.platforms.contains(&own), "{own} is listed twice");
        self.platforms.push(own);

        let ids = list(&config["rootfs"]["diff_ids"])?;
        let layers = list(&manifest["layers"])?;
        ensure!(
            ids.len() == layers.len(),
            "{} layers and {} diff_ids",
            layers.len(),
            ids.len()
        );
        for (layer, id) in layers.iter().zip(ids) {
            ensure!(
                text(layer, "mediaType")? == LAYER,
                "a layer of another media type"
            );
            let mut archive = Vec::new();
            GzDecoder::new(self.blob(layer)?)
                .read_to_end(&mut archive)
                .context("a layer is not compressed by gzip")?;
            let found = digest(&archive);
            ensure!(*id == found, "diff_id {id}, but the layer has {found}");
            self.layers.insert(blob_path(layer)?);
        }
        Ok(())
    }

    fn blob(&mut self, descriptor: &Value) -> Result<&[u8]> {
        let path = blob_path(descriptor)?;
        let files = self.files;
        let bytes = files.get(&path).with_context(|| format!("no {path}"))?;
        let size = descriptor["size"].as_u64();
        ensure!(
            size == Some(bytes.len() as u64),
            "{path}: {size:?} bytes by its descriptor, {} in fact",
            bytes.len()
        );
        let found = digest(bytes);
        ensure!(
            descriptor["digest"] == *found,
            "{path}: its digest is {found}"
        );
        self.seen.insert(path);
        Ok(bytes)
    }
}

fn blob_path(descriptor: &Value) -> Result<String> {
    let digest = text(descriptor, "digest")?;
    let hash = digest
        .strip_prefix("sha256:")
        .with_context(|| format!("{digest} is no SHA-256"))?;
    Ok(format!("blobs/sha256/{hash}"))
}

fn json(files: &Files, path: &str) -> Result<Value> {
    let bytes = files.get(path).with_context(|| format!("no {path}"))?;
    serde_json::from_slice(bytes).with_context(|| format!("{path} is not JSON"))
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key]
        .as_str()
        .with_context(|| format!("no {key} in {value}"))
}

fn list(value: &Value) -> Result<&[Value]> {
    let list = value.as_array().context("something is no list")?;
    ensure!(!list.is_empty(), "a list is empty");
    Ok(list)
}

fn read_archive(path: &Path) -> Result<Files> {
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut files = Files::new();
    for entry in tar::Archive::new(file).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(entry.path()?.display().to_string(), bytes);
        }
    }
    Ok(files)
}

fn read_directory(path: &Path) -> Result<Files> {
    let mut files = Files::new();
    for below in ["", "blobs/sha256"] {
        let directory = path.join(below);
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_file() {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let key = Path::new(below).join(&*name).display().to_string();
                let bytes =
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                files.insert(key, bytes);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
