// SPDX-License-Identifier: Apache-2.0

//! The container image: unpacked into a node's directory, and entered with chroot(2) as a container
//! runtime does. Nothing of this machine is there but /dev, /proc, /sys and the node's own directory.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::cmd;
use crate::lacking::private_mounts;
use crate::node::Node;

/// What a container has besides its image.
const MOUNTED: [&str; 3] = ["/dev", "/proc", "/sys"];

/// An image in the form of an OCI layout.
#[derive(Debug)]
pub struct Image {
    layout: PathBuf,
    manifest: Value,
    config: Value,
}

impl Image {
    /// The image that `PROXY_AGENT_IMAGE` names; none if it is not set.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn given() -> Result<Option<Self>> {
        let Some(layout) = std::env::var_os("PROXY_AGENT_IMAGE") else {
            return Ok(None);
        };
        let layout = PathBuf::from(layout);
        let index = json(&layout.join("index.json"))?;
        let manifest = json(&blob(&layout, &index["manifests"][0])?)?;
        let config = json(&blob(&layout, &manifest["config"])?)?;
        Ok(Some(Self {
            layout,
            manifest,
            config,
        }))
    }

    /// The directory of the layout.
    #[must_use]
    pub fn layout(&self) -> &Path {
        &self.layout
    }

    /// The compressed size of all layers, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.layers()
            .filter_map(|layer| layer["size"].as_u64())
            .sum()
    }

    /// Unpacks it below the directory of a node.
    ///
    /// # Errors
    /// When tar(1) fails.
    pub fn unpack(&self, node: &Node) -> Result<Root> {
        let directory = node.dir().join("image");
        fs::create_dir(&directory)?;
        for layer in self.layers() {
            cmd::run(
                Command::new("tar")
                    .args(["--extract", "--gzip", "--file"])
                    .arg(blob(&self.layout, layer)?)
                    .arg("--directory")
                    .arg(&directory),
                "",
            )?;
        }
        // Where the node's directory will be seen, with the BPF file system in it.
        fs::create_dir_all(below(&directory, node.dir()))?;
        let entrypoint = self.config["config"]["Entrypoint"][0].as_str();
        Ok(Root {
            entrypoint: entrypoint
                .context("the image has no entry point")?
                .to_owned(),
            environment: strings(&self.config["config"]["Env"]),
            directory,
        })
    }

    fn layers(&self) -> impl Iterator<Item = &Value> {
        self.manifest["layers"].as_array().into_iter().flatten()
    }
}

/// An unpacked image.
#[derive(Debug)]
pub struct Root {
    /// The program it starts.
    pub entrypoint: String,
    environment: Vec<String>,
    directory: PathBuf,
}

impl Root {
    /// Where it is, seen from outside.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The agent in it as [`Node::agent_command`] has the other one.
    ///
    /// # Errors
    /// When a path cannot be told to the kernel.
    pub fn agent_command(&self, node: &Node, program: &str, args: &[&str]) -> Result<Command> {
        let mut command = node.agent_command_of(Path::new(program), args);
        self.enter(node, &mut command)?;
        Ok(command)
    }

    /// Makes a command of the node's run in the image.
    ///
    /// # Errors
    /// When a path cannot be told to the kernel.
    pub fn enter(&self, node: &Node, command: &mut Command) -> Result<()> {
        let mounts = MOUNTED
            .iter()
            .map(Path::new)
            .chain([node.dir().as_path()])
            .map(|path| Ok((c_string(path)?, c_string(&below(&self.directory, path))?)))
            .collect::<Result<Vec<_>>>()?;
        let root = c_string(&self.directory)?;
        command.env_clear();
        for variable in &self.environment {
            if let Some((name, value)) = variable.split_once('=') {
                command.env(name, value);
            }
        }
        // SAFETY: only system calls between fork and exec; what they read is in the closure.
        unsafe {
            command.pre_exec(move || {
                private_mounts()?;
                for (from, to) in &mounts {
                    let flags = libc::MS_BIND | libc::MS_REC;
                    let nothing = std::ptr::null();
                    succeed(libc::mount(
                        from.as_ptr(),
                        to.as_ptr(),
                        nothing,
                        flags,
                        nothing.cast(),
                    ))?;
                }
                succeed(libc::chroot(root.as_ptr()))?;
                succeed(libc::chdir(c"/".as_ptr()))
            });
        }
        Ok(())
    }
}

fn succeed(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `path` as it is seen from outside of `root`.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn c_string(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .with_context(|| format!("{} holds a NUL", path.display()))
}

fn json(path: &Path) -> Result<Value> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

fn blob(layout: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str();
    let digest = digest.with_context(|| format!("no digest in {descriptor}"))?;
    Ok(layout.join("blobs").join(digest.replacen(':', "/", 1)))
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|value| value.as_str().map(str::to_owned))
        .collect()
}
