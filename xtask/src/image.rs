// SPDX-License-Identifier: Apache-2.0

//! `image`: builds the container images without a daemon and without root.
//!
//! [`kind`] defines the images, [`compile`] builds the programs, [`debian`] fetches packages, [`rootfs`] selects the
//! files that are needed from them, [`sbom`] lists these, [`oci`] packs them, and [`verify`] reads the result as other
//! programs do. This file runs these steps in order.

mod arch;
mod check;
mod compile;
mod debian;
mod elf;
mod kind;
mod oci;
mod rootfs;
mod sbom;
mod tree;
mod verify;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use self::arch::Arch;
pub use self::arch::Wanted;
use self::compile::Cross;
use self::debian::{Apt, Package};
use self::kind::Kind;
use self::oci::{About, Image, Layout};
use self::rootfs::Rootfs;
use self::sbom::Linked;
use crate::setup::{self, Scope};
use crate::sh;
use crate::workspace::Workspace;

/// What the command line says.
#[derive(clap::Args)]
pub struct Options {
    /// For which processors [default: this machine's]
    #[arg(long)]
    arch: Option<Wanted>,
    /// Which image [default: all]
    #[arg(long, value_name = "NAME")]
    image: Option<Kind>,
    /// The archive (`….tar`) or directory to write, of one image [default: target/image/NAME-VERSION-ARCH.tar]
    #[arg(long, value_name = "DIR|TAR", requires = "image")]
    output: Option<PathBuf>,
    /// Goes before the name in an image's tag, such as `ghcr.io/example`
    #[arg(long, value_name = "REGISTRY")]
    registry: Option<String>,
    /// Where the source is, for the label of that name
    #[arg(long, value_name = "URL")]
    source: Option<String>,
    /// Start the programs of each image, for another processor under qemu with the unit tests
    #[arg(long)]
    check: bool,
}

/// Builds the images.
///
/// # Errors
/// Returns an error if a requirement is missing, if an image cannot be built, or if a check of it fails.
pub fn image(workspace: &Workspace, options: &Options) -> Result<()> {
    if let Some(reason) = Apt::is_impossible() {
        bail!("{reason}");
    }
    let wanted = options.arch.unwrap_or_else(Wanted::host);
    setup::ensure(Scope::Build)?;
    let foreign: Vec<Arch> = wanted
        .archs()
        .iter()
        .copied()
        .filter(|arch| !arch.is_host())
        .collect();
    for arch in &foreign {
        setup::ensure(Scope::Cross(arch.target()))?;
    }
    let kinds = options.image.map_or(Kind::ALL.to_vec(), |kind| vec![kind]);
    for kind in kinds {
        one(workspace, options, kind, wanted)?;
    }
    Ok(())
}

fn one(workspace: &Workspace, options: &Options, kind: Kind, wanted: Wanted) -> Result<()> {
    let start = Instant::now();
    let mut about = about(workspace, options, kind)?;
    let directory = workspace.target.join("image");
    let mut parts = Vec::new();
    for &arch in wanted.archs() {
        let apt = Apt::new(&directory, arch);
        let packages = packages(kind, &apt)?;
        let cross = Cross::find(workspace, arch, &apt)?;
        let programs = cross.programs(workspace, kind)?;
        let rust = cross.version()?;
        let part = Part::new(workspace, &about, arch, &programs, &packages, rust)?;
        parts.push((part, cross));
    }
    about.licences = licences(parts.iter().flat_map(|(part, _)| &part.rootfs.packages));
    let name = kind.name();
    let output = options.output.clone().unwrap_or_else(|| {
        directory.join(format!("{name}-{}-{}.tar", about.version, wanted.name()))
    });
    let made: Vec<&Part> = parts.iter().map(|(part, _)| part).collect();
    let layout = pack(&about, &made, &output)?;
    for part in &made {
        let name = format!("{name}-{}-{}.spdx.json", about.version, part.arch.name());
        let path = output.with_file_name(name);
        fs::write(&path, &part.sbom).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}: SBOM", workspace.relative(&path).display());
    }
    println!(
        "{}: {}:{}, {}, built in {}",
        workspace.relative(&output).display(),
        about.name,
        about.version,
        layout.digest,
        sh::duration(start.elapsed())
    );
    if options.check {
        for (part, cross) in &parts {
            check::check(workspace, cross, kind, part.arch, &part.rootfs.tree)?;
        }
    }
    Ok(())
}

/// Returns the Debian packages for an image.
fn packages(kind: Kind, apt: &Apt) -> Result<Vec<Package>> {
    if kind.has_packages() {
        apt.packages()
    } else {
        Ok(Vec::new())
    }
}

/// Builds images with the tests' own programs for this machine. Returns each directory with the variable that passes it
/// to the tests, or the reason if this machine cannot build images.
///
/// # Errors
/// Returns an error if the build fails.
pub fn for_tests(workspace: &Workspace) -> Result<Result<Vec<(&'static str, PathBuf)>, String>> {
    if let Some(reason) = Apt::is_impossible() {
        return Ok(Err(reason));
    }
    let directory = workspace.target.join("image");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let options = Options {
        arch: None,
        image: None,
        output: None,
        registry: None,
        source: None,
        check: false,
    };
    let mut images = Vec::new();
    for (kind, variable, name) in FOR_TESTS {
        let packages = packages(kind, &Apt::new(&directory, Arch::host()))?;
        let programs = compile::relinked(workspace, kind)?;
        let mut about = about(workspace, &options, kind)?;
        about.licences = licences(&packages);
        let rust = compile::version(None)?;
        let part = Part::new(workspace, &about, Arch::host(), &programs, &packages, rust)?;
        let output = directory.join(name);
        pack(&about, &[&part], &output)?;
        images.push((variable, output));
    }
    Ok(Ok(images))
}

/// The images for the tests: the variable with each directory, and the directory below `target/image`.
const FOR_TESTS: [(Kind, &str, &str); 2] = [
    (Kind::ProxyAgent, "PROXY_AGENT_IMAGE", "tests"),
    (Kind::ProxyTunnel, "PROXY_TUNNEL_IMAGE", "tests-tunnel"),
];

/// The image for one architecture, before it is packed.
struct Part {
    arch: Arch,
    rootfs: Rootfs,
    sbom: Vec<u8>,
}

impl Part {
    fn new(
        workspace: &Workspace,
        about: &About,
        arch: Arch,
        programs: &[PathBuf],
        packages: &[Package],
        rust: String,
    ) -> Result<Self> {
        let kind = about.kind;
        let mut rootfs = rootfs::assemble(kind, arch, packages)?;
        for program in programs {
            let bytes =
                fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
            if elf::needs(&bytes)?.is_none_or(|needs| needs != elf::Needs::default()) {
                bail!("{} is not linked statically", program.display());
            }
            rootfs.add_program(program, bytes)?;
        }
        let crates = sbom::crates(workspace, kind, arch)?;
        let linked = Linked {
            rust,
            c_library: compile::c_library(arch)?,
        };
        let about = About {
            licences: licences(&rootfs.packages),
            ..about.clone()
        };
        let document = sbom::document(&about, arch, &crates, &linked, &rootfs.packages)?;
        let sbom = serde_json::to_vec_pretty(&document)?;
        let licence = fs::read(workspace.root.join("LICENSE")).context("cannot read LICENSE")?;
        let (tree, documents) = (&mut rootfs.tree, kind.documents());
        tree.add_text(&format!("{documents}/copyright"), licence);
        tree.add_text(&format!("{documents}/crates.txt"), sbom::terms(&crates)?);
        tree.add_text(&format!("{documents}/sbom.spdx.json"), sbom.clone());
        Ok(Self { arch, rootfs, sbom })
    }
}

/// Writes the image, verifies it, and prints its size.
fn pack(about: &About, parts: &[&Part], output: &Path) -> Result<Layout> {
    let images: Vec<Image> = parts
        .iter()
        .map(|part| Image {
            arch: part.arch,
            tree: &part.rootfs.tree,
        })
        .collect();
    let layout = oci::layout(about, &images)?;
    layout.write(output, about.time)?;
    let found = verify::verify(output)?;
    let platforms: Vec<String> = parts
        .iter()
        .map(|part| format!("linux/{}", part.arch.name()))
        .collect();
    if found.platforms != platforms {
        bail!(
            "{platforms:?} was packed and {:?} is there",
            found.platforms
        );
    }
    for (part, (arch, compressed)) in parts.iter().zip(&layout.compressed) {
        println!(
            "{} for {}: {} unpacked, {} compressed; {}, and files of {} packages",
            about.kind.name(),
            arch.name(),
            sh::size(part.rootfs.tree.size()),
            sh::size(*compressed),
            part.rootfs.sizes(),
            part.rootfs.packages.len()
        );
    }
    Ok(layout)
}

/// Returns all licences of the image's contents. Crates add none: each of them can be used under a licence that is as
/// permissive as the agent's own.
fn licences<'a>(packages: impl IntoIterator<Item = &'a Package>) -> String {
    let mut all = BTreeSet::from(["Apache-2.0"]);
    all.extend(
        packages
            .into_iter()
            .flat_map(|package| package.licence.split(" AND ")),
    );
    all.into_iter().collect::<Vec<_>>().join(" AND ")
}

fn about(workspace: &Workspace, options: &Options, kind: Kind) -> Result<About> {
    let git = |format: &str| {
        let text = sh::read(
            sh::command("git")
                .args([
                    "log",
                    "-1",
                    "--date=format-local:%Y-%m-%dT%H:%M:%SZ",
                    format,
                ])
                .current_dir(&workspace.root)
                .env("TZ", "UTC"),
        );
        text.map(|text| text.trim().to_owned())
            .context("the image's time is that of the commit")
    };
    let registry = options
        .registry
        .as_deref()
        .map(|registry| registry.trim_end_matches('/'));
    let name = kind.name();
    Ok(About {
        kind,
        name: registry.map_or_else(|| name.to_owned(), |registry| format!("{registry}/{name}")),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: git("--format=%H")?,
        time: git("--format=%ct")?.parse().context("git tells no time")?,
        created: git("--format=%cd")?,
        source: options.source.clone(),
        licences: String::new(),
    })
}
