// SPDX-License-Identifier: Apache-2.0

//! A kernel to boot: its image and those of its modules that a guest needs, unpacked once and kept.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::debian::{Kernels, Package, numbers};
use crate::{debian, sh};

/// The modules of a guest, as directories and files below `kernel/`, without their suffix. What
/// those depend on comes along; modules that a kernel does not have, or has built in, are not an
/// error.
const MODULES: &[&str] = &[
    "net/netfilter",
    "net/ipv4",
    "net/ipv6",
    "net/sched",
    "net/bridge",
    "net/8021q",
    "net/core",
    "net/xfrm",
    "net/packet",
    "net/unix",
    "net/netlink",
    // libcrc32c asks for it by name.
    "crypto/crc32c_generic",
    "drivers/net/veth",
    "drivers/net/dummy",
    "drivers/net/ifb",
    "drivers/net/tun",
    "drivers/net/vrf",
    "drivers/net/vxlan",
    "drivers/net/macvlan",
    "drivers/net/ipvlan",
    "drivers/net/bonding",
    "drivers/net/wireguard",
    "drivers/net/virtio_net",
];

/// The suffix of the unpacked kernel's directory as long as it is incomplete.
const UNFINISHED: &str = "unfinished";

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// Its image.
    pub image: PathBuf,
    /// The directory that has `lib/modules/<release>`, if there are modules.
    pub root: Option<PathBuf>,
}

impl Kernel {
    /// The newest of Debian's kernels whose version starts with this, or `newest`.
    ///
    /// # Errors
    /// When there is none, or it cannot be fetched or unpacked.
    pub fn of_debian(version: &str, cache: &Path) -> Result<Self> {
        let archive = Kernels::read(cache.join("apt"))?;
        let kernels = archive.kernels()?;
        let wanted = numbers(version);
        let fits = |package: &&Package| {
            version == "newest"
                || (!wanted.is_empty() && numbers(&package.version).starts_with(&wanted))
        };
        let Some(kernel) = kernels.iter().find(fits) else {
            let there: Vec<&str> = kernels
                .iter()
                .map(|kernel| kernel.version.as_str())
                .collect();
            bail!(
                "Debian has no kernel {version}, and there is no such file: there are {}",
                there.join(", ")
            );
        };
        let home = cache.join("kernels").join(&kernel.version);
        if let Ok(kernel) = Self::unpacked(&home) {
            return Ok(kernel);
        }
        println!("vm: fetching Debian's kernel {}", kernel.version);
        let packages = cache.join("packages").join(&kernel.version);
        let packages = archive.fetch(kernel, &packages)?;
        Self::unpack(&packages, &home)
    }

    /// The kernel in a file: a package, or an image with everything built in that the guest needs.
    ///
    /// # Errors
    /// When it is neither.
    pub fn of_file(path: &Path, cache: &Path) -> Result<Self> {
        if path.extension().is_some_and(|end| end == "deb") {
            let name = path.file_stem().unwrap_or_default();
            let home = cache.join("kernels/files").join(name);
            let _ = fs::remove_dir_all(&home);
            return Self::unpack(&[path.to_owned()], &home);
        }
        Ok(Self {
            release: release(path)?,
            image: path.to_owned(),
            root: None,
        })
    }

    /// One that was unpacked earlier.
    fn unpacked(home: &Path) -> Result<Self> {
        let image = home.join("vmlinuz");
        Ok(Self {
            release: release(&image)?,
            image,
            root: Some(home.to_owned()),
        })
    }

    fn unpack(packages: &[PathBuf], home: &Path) -> Result<Self> {
        let work = home.with_extension(UNFINISHED);
        let _ = fs::remove_dir_all(&work);
        let whole = work.join("whole");
        debian::extract(packages, &whole)?;
        let modules = ["lib/modules", "usr/lib/modules"]
            .map(|path| whole.join(path))
            .into_iter()
            .find(|path| path.is_dir())
            .context("the kernel's packages have no modules")?;
        let release = only_entry(&modules)?;
        let from = modules.join(&release);
        let image = [
            whole.join(format!("boot/vmlinuz-{release}")),
            from.join("vmlinuz"),
        ];
        let image = image
            .iter()
            .find(|path| path.is_file())
            .context("the kernel's packages have no image")?;
        copy(image, &work.join("vmlinuz"))?;
        let to = work.join("lib/modules").join(&release);
        take_modules(&from, &to)?;
        depmod(&work, &release)?;
        fs::remove_dir_all(&whole).with_context(|| format!("cannot remove {}", whole.display()))?;
        let _ = fs::remove_dir_all(home);
        fs::rename(&work, home).with_context(|| format!("cannot rename {}", work.display()))?;
        Self::unpacked(home)
    }
}

/// Copies the modules in [`MODULES`] and those they need, uncompressed.
fn take_modules(from: &Path, to: &Path) -> Result<()> {
    // The lists of built-in modules are the only ones that packages bring.
    for list in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        if from.join(list).is_file() {
            copy(&from.join(list), &to.join(list))?;
        }
    }
    // depmod works below a directory lib/modules.
    let above = from
        .ancestors()
        .nth(3)
        .context("modules lie in lib/modules")?;
    let release = from.file_name().unwrap_or_default().to_string_lossy();
    depmod(above, &release)?;
    let path = from.join("modules.dep");
    let depends =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    for module in closure(&depends) {
        let target = to.join(module);
        copy(&from.join(module), &target)?;
        // Which compressions a kernel reads by itself depends on its version.
        let program = match target.extension().and_then(|end| end.to_str()) {
            Some("xz") => "unxz",
            Some("zst") => "unzstd",
            Some("gz") => "gunzip",
            _ => continue,
        };
        sh::read(sh::command(program).arg("-f").arg(&target))?;
        // unzstd keeps the unpacked file.
        let _ = fs::remove_file(&target);
    }
    Ok(())
}

/// The wanted modules of a `modules.dep`, with their dependencies; its lines are `module: needs
/// needs`.
fn closure(depends: &str) -> Vec<&str> {
    let mut taken: Vec<&str> = Vec::new();
    for line in depends.lines() {
        let (module, needs) = line.split_once(':').unwrap_or((line, ""));
        let name = module.strip_prefix("kernel/").unwrap_or(module);
        let is_wanted = MODULES.iter().any(|wanted| {
            name.strip_prefix(wanted)
                .is_some_and(|rest| rest.starts_with(['/', '.']))
        });
        if is_wanted {
            taken.push(module);
            taken.extend(needs.split_whitespace());
        }
    }
    taken.sort_unstable();
    taken.dedup();
    taken
}

fn depmod(root: &Path, release: &str) -> Result<()> {
    sh::read(sh::command("depmod").arg("-b").arg(root).arg(release)).map(drop)
}

/// The release that a kernel image says it is. The boot protocol for x86 has a mark at 0x202, and at 0x20e
/// where the text stands, less 0x200.
fn release(image: &Path) -> Result<String> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(image)?;
        let mut header = [0; 14];
        file.seek(SeekFrom::Start(0x202))?;
        file.read_exact(&mut header)?;
        if !header.starts_with(b"HdrS") {
            return Ok(String::new());
        }
        let place = u16::from_le_bytes([header[12], header[13]]);
        file.seek(SeekFrom::Start(u64::from(place) + 0x200))?;
        let mut text = Vec::new();
        file.take(200).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let text = read().with_context(|| format!("cannot read {}", image.display()))?;
    let release = text.split([' ', '\0']).next().unwrap_or_default();
    if numbers(release).len() < 2 {
        bail!("{} is no kernel image for x86-64", image.display());
    }
    Ok(release.to_owned())
}

fn only_entry(directory: &Path) -> Result<String> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        _ => bail!("{} should hold one kernel's modules", directory.display()),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(above) = to.parent() {
        debian::make_dir(above)?;
    }
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::closure;

    #[test]
    fn modules_come_with_what_they_need() {
        let depends = "kernel/net/netfilter/xt_bpf.ko.xz: kernel/net/netfilter/x_tables.ko.xz\n\
                       kernel/net/ipv4/tunnel4.ko:\n\
                       kernel/net/ipv4lookalike/a.ko:\n\
                       kernel/drivers/net/veth.ko:\n\
                       kernel/drivers/net/bonding/bonding.ko: kernel/net/tls/tls.ko\n\
                       kernel/drivers/net/vethish.ko:\n";
        assert_eq!(
            closure(depends),
            [
                "kernel/drivers/net/bonding/bonding.ko",
                "kernel/drivers/net/veth.ko",
                "kernel/net/ipv4/tunnel4.ko",
                "kernel/net/netfilter/x_tables.ko.xz",
                "kernel/net/netfilter/xt_bpf.ko.xz",
                "kernel/net/tls/tls.ko",
            ]
        );
    }
}
