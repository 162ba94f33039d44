// SPDX-License-Identifier: Apache-2.0

//! Writes the image as an OCI layout, in a directory or a tar archive. The archive also contains Docker's
//! `manifest.json`, because `docker load` without the containerd image store reads only this file.
//!
//! Formats: <https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md> and the files beside it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::arch::Arch;
use super::debian;
use super::kind::Kind;
use super::tree::{self, Tree};

/// The media type of a layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The media type of a configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The properties that all architectures of an image share.
#[derive(Clone, Debug)]
pub struct About {
    /// The kind of image.
    pub kind: Kind,
    /// The name without a tag: `proxy-agent`, `registry.example/team/proxy-agent`.
    pub name: String,
    /// The version, which is the tag.
    pub version: String,
    /// The commit.
    pub revision: String,
    /// The time of the commit, in seconds since 1970: the time of everything in the image.
    pub time: u64,
    /// The same time in the format of RFC 3339.
    pub created: String,
    /// The address of the source, if it is known.
    pub source: Option<String>,
    /// The SPDX expression for everything in the image.
    pub licences: String,
}

/// The image for one architecture.
pub struct Image<'a> {
    /// The architecture.
    pub arch: Arch,
    /// The file system.
    pub tree: &'a Tree,
}

/// A finished image.
pub struct Layout {
    files: Tree,
    /// The digest by which a registry identifies the image: of the manifest, or of the index of several manifests.
    pub digest: String,
    /// The size of the compressed layers by architecture, in bytes.
    pub compressed: Vec<(Arch, u64)>,
}

/// Creates the layout.
///
/// # Errors
/// Returns an error if a file system cannot be archived.
pub fn layout(about: &About, images: &[Image]) -> Result<Layout> {
    let mut files = Tree::default();
    let mut manifests = Vec::new();
    let mut docker = Vec::new();
    let mut compressed = Vec::new();
    for image in images {
        let archive = image.tree.archive(about.time)?;
        let layer = add_blob(&mut files, LAYER, tree::gzip(&archive)?);
        compressed.push((image.arch, layer["size"].as_u64().unwrap_or_default()));
        let config = config(about, image.arch, &digest(&archive));
        let config = add_blob(&mut files, CONFIG, encoded(&config)?);
        let mut tag = format!("{}:{}", about.name, about.version);
        if images.len() > 1 {
            tag = format!("{tag}-{}", image.arch.name());
        }
        docker.push(json!({
            "Config": blob_path(&config),
            "RepoTags": [tag],
            "Layers": [blob_path(&layer)],
        }));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer],
            "annotations": labels(about),
        });
        let mut descriptor = add_blob(&mut files, MANIFEST, encoded(&manifest)?);
        descriptor["platform"] = json!({"architecture": image.arch.name(), "os": "linux"});
        manifests.push(descriptor);
    }
    // There is one entry at the top, so that no reader has to choose.
    let mut top = if manifests.len() == 1 {
        manifests.remove(0)
    } else {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": manifests,
            "annotations": labels(about),
        });
        add_blob(&mut files, INDEX, encoded(&index)?)
    };
    let digest = top["digest"].as_str().unwrap_or_default().to_owned();
    top["annotations"] = json!({
        "io.containerd.image.name": full_name(about),
        "org.opencontainers.image.ref.name": about.version,
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]});
    files.add_text("index.json", encoded(&index)?);
    files.add_text(
        "oci-layout",
        encoded(&json!({"imageLayoutVersion": "1.0.0"}))?,
    );
    files.add_text("manifest.json", encoded(&Value::Array(docker))?);
    Ok(Layout {
        files,
        digest,
        compressed,
    })
}

impl Layout {
    /// Writes an archive, or a directory that must be empty or contain an earlier layout.
    ///
    /// # Errors
    /// Returns an error if the directory contains other files, or if the layout cannot be written.
    pub fn write(&self, output: &Path, time: u64) -> Result<()> {
        let named = || format!("cannot write {}", output.display());
        if let Some(parent) = output.parent() {
            fs::create_dir_all(parent).with_context(named)?;
        }
        if is_archive(output) {
            let partial = output.with_extension("tar.partial");
            fs::write(&partial, self.files.archive(time)?).with_context(named)?;
            return fs::rename(&partial, output).with_context(named);
        }
        if output.join("oci-layout").exists() {
            debian::remove(output)?;
        } else if fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some()) {
            anyhow::bail!(
                "{} holds something else than an OCI layout: name an empty directory",
                output.display()
            );
        }
        for (path, node) in self.files.iter() {
            let path = output.join(path);
            match node {
                tree::Node::File(_, bytes) => fs::write(&path, bytes),
                _ => fs::create_dir_all(output).and_then(|()| fs::create_dir_all(&path)),
            }
            .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Returns whether an output with this name is an archive, and not a directory.
pub fn is_archive(output: &Path) -> bool {
    output
        .extension()
        .is_some_and(|extension| extension == "tar")
}

/// Returns the digest as `sha256:…`.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_owned(), |text, byte| {
        format!("{text}{byte:02x}")
    })
}

fn config(about: &About, arch: Arch, diff_id: &str) -> Value {
    let mut process = json!({
        "User": about.kind.user(),
        "Env": ["PATH=/usr/sbin:/usr/bin"],
        "WorkingDir": "/",
        "Labels": labels(about),
    });
    if let Some(program) = about.kind.entrypoint() {
        process["Entrypoint"] = json!([program]);
    }
    json!({
        "created": about.created,
        "architecture": arch.name(),
        "os": "linux",
        "config": process,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{
            "created": about.created,
            "created_by": "cargo xtask image",
        }],
    })
}

/// Returns the labels, with the keys of <https://github.com/opencontainers/image-spec/blob/v1.1.0/annotations.md>.
fn labels(about: &About) -> Value {
    let mut labels = json!({
        "org.opencontainers.image.created": about.created,
        "org.opencontainers.image.description": about.kind.description(),
        "org.opencontainers.image.licenses": about.licences,
        "org.opencontainers.image.revision": about.revision,
        "org.opencontainers.image.title": about.kind.name(),
        "org.opencontainers.image.version": about.version,
    });
    if let Some(source) = &about.source {
        labels["org.opencontainers.image.source"] = json!(source);
    }
    labels
}

/// Returns the name in the full form of containerd and the kubelet.
fn full_name(about: &About) -> String {
    let first = about.name.split('/').next().unwrap_or_default();
    let has_registry = about.name.contains('/') && first.contains(['.', ':'])
        || first == "localhost" && about.name.contains('/');
    let prefix = match (has_registry, about.name.contains('/')) {
        (true, _) => "",
        (false, true) => "docker.io/",
        (false, false) => "docker.io/library/",
    };
    format!("{prefix}{}:{}", about.name, about.version)
}

fn add_blob(files: &mut Tree, media_type: &str, bytes: Vec<u8>) -> Value {
    let descriptor = json!({
        "mediaType": media_type,
        "digest": digest(&bytes),
        "size": bytes.len(),
    });
    files.add_text(&blob_path(&descriptor), bytes);
    descriptor
}

fn blob_path(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// Encodes a value as JSON. `serde_json` sorts the keys alphabetically.
fn encoded(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("cannot write JSON")
}
