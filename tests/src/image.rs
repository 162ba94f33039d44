// SPDX-License-Identifier: Apache-2.0

//! A container image, unpacked into the directory of a node or a test, and entered with chroot(2) as a container
//! runtime does. Inside, only /dev, /proc, /sys and that directory of this machine are visible.

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
use crate::degraded_host::private_mounts;
use crate::node::Node;
use crate::skip;

/// The directories of the host that are mounted in a container.
const MOUNTED: [&str; 3] = ["/dev", "/proc", "/sys"];

/// An image in the form of an OCI layout.
#[derive(Debug)]
pub struct Image {
    layout: PathBuf,
    manifest: Value,
    config: Value,
}

impl Image {
    /// Returns the image that this variable names. If the variable is not set, that is recorded as the reason why
    /// `test` is skipped.
    ///
    /// # Errors
    /// Returns an error if there is no such image, or if it cannot be read.
    pub fn given(variable: &str, test: &str) -> Result<Option<Self>> {
        skip::clear(test)?;
        let Some(layout) = std::env::var_os(variable) else {
            let reason = format!(
                "{variable} is not set: `cargo xtask test` builds the images where apt-get is"
            );
            skip::record(test, &reason)?;
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

    /// Returns the directory of the layout.
    #[must_use]
    pub fn layout(&self) -> &Path {
        &self.layout
    }

    /// Returns the compressed size of all layers, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.layers()
            .filter_map(|layer| layer["size"].as_u64())
            .sum()
    }

    /// Unpacks the image below a directory, which its programs see at the same path.
    ///
    /// # Errors
    /// Returns an error if tar(1) fails.
    pub fn unpack(&self, shared: &Path) -> Result<Root> {
        let directory = shared.join("image");
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
        fs::create_dir_all(below(&directory, shared))?;
        let process = &self.config["config"];
        let entrypoint = process["Entrypoint"][0].as_str().unwrap_or_default();
        Ok(Root {
            entrypoint: entrypoint.to_owned(),
            environment: strings(&process["Env"]),
            user: user(process["User"].as_str().unwrap_or_default())?,
            directory,
            shared: shared.to_owned(),
        })
    }

    fn layers(&self) -> impl Iterator<Item = &Value> {
        self.manifest["layers"].as_array().into_iter().flatten()
    }
}

/// An unpacked image.
#[derive(Debug)]
pub struct Root {
    /// The program that the image starts; empty if a manifest has to name one.
    pub entrypoint: String,
    environment: Vec<String>,
    /// The user and group IDs of the image's programs.
    user: (u32, u32),
    directory: PathBuf,
    /// The directory that is visible inside as well.
    shared: PathBuf,
}

impl Root {
    /// Returns the image's directory, as seen from outside.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns a command that runs the agent of the image, as [`Node::agent_command`] does for the other one.
    ///
    /// # Errors
    /// Returns an error if a path contains a zero byte.
    pub fn agent_command(&self, node: &Node, program: &str, args: &[&str]) -> Result<Command> {
        let mut command = node.agent_command_of(Path::new(program), args);
        self.enter(&mut command)?;
        Ok(command)
    }

    /// Makes a command run in the image, as its user.
    ///
    /// # Errors
    /// Returns an error if a path contains a zero byte.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        let mounts = MOUNTED
            .iter()
            .map(Path::new)
            .chain([self.shared.as_path()])
            .map(|path| Ok((c_string(path)?, c_string(&below(&self.directory, path))?)))
            .collect::<Result<Vec<_>>>()?;
        let root = c_string(&self.directory)?;
        let (user, group) = self.user;
        command.env_clear();
        for variable in &self.environment {
            if let Some((name, value)) = variable.split_once('=') {
                command.env(name, value);
            }
        }
        // SAFETY: the closure only makes system calls between fork and exec, and owns the memory that they read.
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
                succeed(libc::chdir(c"/".as_ptr()))?;
                if user == 0 {
                    return Ok(());
                }
                succeed(libc::setgroups(0, std::ptr::null()))?;
                succeed(libc::setgid(group))?;
                succeed(libc::setuid(user))
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

/// Parses `USER:GROUP`, both numeric.
fn user(text: &str) -> Result<(u32, u32)> {
    let numbers = text.split_once(':');
    let numbers = numbers.and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
    numbers.with_context(|| format!("the image's user is {text:?}, not two numbers"))
}

/// Returns `path` as seen from outside of `root`.
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
