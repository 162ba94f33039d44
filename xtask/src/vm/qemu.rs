// SPDX-License-Identifier: Apache-2.0

//! Boots a guest in qemu, with KVM where that really works, and ends one that hangs.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::emulator::{Emulator, QEMU};
use super::guest::{self, Job};
use super::kernel::Kernel;
use crate::debian::make_dir;
use crate::sh;
use crate::workspace::Workspace;

/// The guest's memory: its unpacked files and a thousand links fit.
const MEMORY: &str = "2G";

/// The command line of every kernel: a panic ends the guest, and conntrack works without any rule
/// for it.
const APPEND: &str = "console=ttyS0 panic=-1 quiet loglevel=4 random.trust_cpu=on no_timer_check nf_conntrack.enable_hooks=1";

/// Added to the command line where qemu emulates each instruction: programs lie at the same
/// addresses each time, so that qemu translates them once and not with every start of one. This
/// halves the time of tests.
const APPEND_TCG: &str = "norandmaps";

/// A guest that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_mins(10);

/// How long a guest under KVM may take to come up.
const TRIAL: Duration = Duration::from_secs(20);

/// How often a guest is looked after.
const TICK: Duration = Duration::from_millis(50);

/// How a guest's instructions are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By qemu, some ten times slower.
    Tcg,
}

/// This machine, as far as guests are concerned.
pub struct Host<'a> {
    workspace: &'a Workspace,
    cache: PathBuf,
    /// The agent's program, which guests run.
    agent: PathBuf,
    emulator: Emulator,
}

/// A guest to boot.
pub struct Guest<'a> {
    kernel: &'a Kernel,
    emulator: &'a Emulator,
    initramfs: PathBuf,
    append: String,
    accelerator: Accelerator,
    dir: PathBuf,
}

/// The settings of one guest.
pub struct Setting<'a> {
    /// Where its console and its report are kept, below the cache.
    pub name: &'a str,
    /// Its job.
    pub job: &'a Job,
    /// Variables that everything in it gets.
    pub environment: &'a [(&'static str, String)],
    /// Words for the kernel's command line.
    pub append: &'a str,
    /// See [`Host::accelerator`].
    pub accelerator: Accelerator,
}

/// The result of a guest.
#[derive(Debug)]
pub struct Outcome {
    /// The status it ended with; none if it did not get so far.
    pub status: Option<i32>,
    /// The failure of the guest itself, if any.
    pub trouble: Option<String>,
    /// Everything it reported.
    pub report: Vec<String>,
    /// The file with the output of its console.
    pub console: PathBuf,
}

impl<'a> Host<'a> {
    /// Finds qemu, or fetches it.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn open(workspace: &'a Workspace, cache: PathBuf, agent: PathBuf) -> Result<Self> {
        Ok(Self {
            workspace,
            emulator: Emulator::find(&cache)?,
            cache,
            agent,
        })
    }

    /// Kernels, package lists and the output of guests.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Makes a guest ready to boot.
    ///
    /// # Errors
    /// When something that belongs in it is not here.
    pub fn guest(&'a self, kernel: &'a Kernel, setting: &Setting) -> Result<Guest<'a>> {
        let dir = self.cache.join(setting.name);
        make_dir(&dir)?;
        let initramfs = dir.join("initramfs");
        guest::write(
            self.workspace,
            &self.agent,
            kernel,
            setting.job,
            setting.environment,
            &initramfs,
        )?;
        Ok(Guest {
            kernel,
            emulator: &self.emulator,
            initramfs,
            append: setting.append.to_owned(),
            accelerator: setting.accelerator,
            dir,
        })
    }

    /// KVM if a guest comes up with it, and how that was found out. `/dev/kvm` may exist and yet not run
    /// a kernel. What was found holds until this machine is booted again.
    ///
    /// # Errors
    /// When the guest for the trial cannot be made.
    pub fn accelerator(&self, kernel: &Kernel) -> Result<(Accelerator, &'static str)> {
        if OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return Ok((Accelerator::Tcg, "there is no /dev/kvm"));
        }
        let note = self.cache.join("kvm");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let known = fs::read_to_string(&note).unwrap_or_default();
        let works = match known.strip_prefix(&boot) {
            Some("works") => true,
            Some("fails") => false,
            _ => {
                let works = self.kvm_works(kernel)?;
                let found = if works { "works" } else { "fails" };
                fs::write(&note, format!("{boot}{found}"))
                    .with_context(|| format!("cannot write {}", note.display()))?;
                works
            }
        };
        Ok(if works {
            (Accelerator::Kvm, "a guest comes up with it")
        } else {
            (
                Accelerator::Tcg,
                "/dev/kvm is there, but no guest comes up with it",
            )
        })
    }

    fn kvm_works(&self, kernel: &Kernel) -> Result<bool> {
        let trial = Setting {
            name: "trial",
            job: &Job::Nothing,
            environment: &[],
            append: "",
            accelerator: Accelerator::Kvm,
        };
        let outcome = self.guest(kernel, &trial)?.watch(TRIAL, |_| ())?;
        Ok(outcome.status == Some(0))
    }
}

impl Guest<'_> {
    /// Boots it with this terminal as its console.
    ///
    /// # Errors
    /// When qemu cannot be started.
    pub fn talk(&self) -> Result<Outcome> {
        let report = self.prepare()?;
        let mut command = self.command("mon:stdio", &report);
        let status = command
            .status()
            .with_context(|| format!("cannot start {QEMU}"))?;
        Ok(self.outcome(lines(&report), trouble(status)))
    }

    /// Boots it, passes each line of its report to `report_line` as it comes, and ends it when it
    /// hangs or takes longer than `limit`.
    ///
    /// # Errors
    /// When qemu cannot be started.
    pub fn watch(&self, limit: Duration, mut report_line: impl FnMut(&str)) -> Result<Outcome> {
        let report = self.prepare()?;
        let console = self.console();
        let mut command = self.command(&format!("file:{}", console.display()), &report);
        command.stdin(Stdio::null());
        let mut child = Running(
            command
                .spawn()
                .with_context(|| format!("cannot start {QEMU}"))?,
        );
        let start = Instant::now();
        let mut said = 0;
        let mut heard = (0, start);
        let trouble = loop {
            let ended = child.0.try_wait().context("waiting for qemu")?;
            let now = lines(&report);
            for line in now.iter().skip(said) {
                report_line(line);
            }
            said = said.max(now.len());
            if let Some(status) = ended {
                break trouble(status);
            }
            let length = fs::metadata(&console).map_or(0, |meta| meta.len());
            if length != heard.0 {
                heard = (length, Instant::now());
            }
            if heard.1.elapsed() > SILENCE {
                break Some(format!(
                    "it hung: nothing came from its console for {}",
                    sh::duration(SILENCE)
                ));
            }
            if start.elapsed() > limit {
                break Some(format!("it took more than {}", sh::duration(limit)));
            }
            sleep(TICK);
        };
        Ok(self.outcome(lines(&report), trouble))
    }

    fn console(&self) -> PathBuf {
        self.dir.join("console")
    }

    /// Removes large files that can be made again.
    pub fn tidy_up(self) {
        let _ = fs::remove_file(&self.initramfs);
    }

    /// Removes the files of an earlier run; returns the path of the report.
    fn prepare(&self) -> Result<PathBuf> {
        let report = self.dir.join("report");
        for file in [&report, &self.console()] {
            fs::write(file, "").with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(report)
    }

    fn command(&self, console: &str, report: &Path) -> Command {
        let mut command = self.emulator.command();
        let (accelerator, more): (&[&str], &str) = match self.accelerator {
            Accelerator::Kvm => (&["-accel", "kvm", "-cpu", "host"], ""),
            Accelerator::Tcg => (&["-accel", "tcg,thread=multi", "-cpu", "max"], APPEND_TCG),
        };
        command
            .args(accelerator)
            .args(["-m", MEMORY, "-smp", "2", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot", "-nic", "none"])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", &format!("{APPEND} {more} {}", self.append)])
            .args(["-serial", console, "-serial"])
            .arg(format!("file:{}", report.display()));
        command
    }

    fn outcome(&self, report: Vec<String>, trouble: Option<String>) -> Outcome {
        let status = report
            .iter()
            .find_map(|line| line.strip_prefix("end "))
            .and_then(|status| status.parse().ok());
        let trouble = trouble.or_else(|| {
            status.is_none().then(|| {
                "it ended before its job was done: its kernel may have panicked".to_owned()
            })
        });
        Outcome {
            status,
            trouble,
            report,
            console: self.console(),
        }
    }
}

/// qemu, killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn trouble(status: ExitStatus) -> Option<String> {
    (!status.success()).then(|| format!("{QEMU} failed: {status}"))
}

/// The whole lines of a report. A serial line ends them with both characters.
fn lines(report: &Path) -> Vec<String> {
    let bytes = fs::read(report).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| line.trim_end_matches('\r').to_owned())
        .collect()
}
