// SPDX-License-Identifier: Apache-2.0

//! The tests on each kernel of `tests/kernels.toml`: which run, and whether their results and skips
//! are those that the file expects.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::guest::{Job, Run};
use super::kernel::Kernel;
use super::qemu::{Accelerator, Host, Outcome, Setting};
use super::report::{self, Ran, Verdict};
use super::{Options, choose, debian, environment, took, verifier};
use crate::behaviour::{File, Files};
use crate::kernels::{self, Kernels, Selection, Support};
use crate::parallel;
use crate::previous;
use crate::variables;
use crate::workspace::Workspace;

/// The test file that compares a kernel with its entry in `kernels.toml`. A kernel with features
/// taken away runs this one only.
const EXPECTATIONS: &str = "kernel";

/// The file that needs the agent of the previous release.
const UPGRADES: &str = "upgrade";

/// How long the tests of one file may take, in seconds, and one guest.
const RUN_LIMIT: u64 = 2400;
const GUEST_LIMIT: Duration = Duration::from_hours(3);

/// One boot of the matrix.
struct Boot<'a> {
    name: String,
    kernel: &'a Kernel,
    append: String,
    supports: &'a Support,
    runs: Vec<Run>,
    /// The tests that may be skipped.
    skips: BTreeMap<String, String>,
    /// Every test runs: the tests that may be skipped must be skipped.
    complete: bool,
}

/// Runs the tests on the kernel that is asked for, or on all.
///
/// # Errors
/// When a kernel cannot be had or one of them fails.
pub fn run(workspace: &Workspace, host: &Host, options: &Options) -> Result<()> {
    let start = Instant::now();
    let kernels = Kernels::read(workspace)?;
    let runs = selected(workspace, &kernels, options)?;
    let rows = rows(&kernels, host.cache(), options)?;
    let boots: Vec<Boot> = rows
        .iter()
        .flat_map(|(name, kernel, row)| boots(name, kernel, (&kernels, row), &runs, options))
        .collect();
    let upgrades = |boot: &Boot| boot.runs.iter().any(|run| run.name == UPGRADES);
    let previous = if boots.iter().any(upgrades) {
        // Where it cannot be had, the tests say so and are skipped.
        previous::build(workspace)?.ok()
    } else {
        None
    };
    let (_, kernel, _) = rows.first().context("there is no kernel to boot")?;
    let (accelerator, why) = host.accelerator(kernel)?;
    println!("vm: {accelerator:?}: {why}");
    // An emulated guest keeps less than one processor busy, since its tests mostly wait. With KVM it has two.
    let at_once = match accelerator {
        Accelerator::Tcg => parallel::processors(),
        Accelerator::Kvm => parallel::processors().div_ceil(2),
    };
    let verdicts = parallel::each(&boots, at_once, |boot| {
        let start = Instant::now();
        let previous = previous.clone().filter(|_| upgrades(boot));
        let problems = boot.run(host, &kernels, (accelerator, previous))?;
        Ok(Verdict {
            name: boot.name.clone(),
            release: boot.kernel.release.clone(),
            problems,
            time: start.elapsed(),
        })
    });
    let verdicts = verdicts.into_iter().collect::<Result<Vec<_>>>()?;
    println!();
    report::verdicts(&verdicts);
    println!("vm: {}", took(rows.len(), start));
    report::ensure_passed(&verdicts)
}

/// The requested kernels, each with its expectations.
fn rows<'a>(
    kernels: &'a Kernels,
    cache: &Path,
    options: &Options,
) -> Result<Vec<(String, Kernel, &'a kernels::Kernel)>> {
    let Some(wanted) = &options.kernel else {
        return kernels
            .kernel
            .iter()
            .map(|row| Ok((row.name.clone(), choose(&row.name, cache)?, row)))
            .collect();
    };
    let kernel = choose(wanted, cache)?;
    let row = kernels
        .kernel
        .iter()
        .find(|row| row.name == *wanted)
        .or_else(|| kernels.of_release(&debian::numbers(&kernel.release)))
        .with_context(|| format!("{} says nothing of Linux {}", kernels::FILE, kernel.release))?;
    // A kernel that is given as a file is named by its release.
    let name = if wanted.contains('/') {
        kernel.release.clone()
    } else {
        wanted.clone()
    };
    Ok(vec![(name, kernel, row)])
}

/// A kernel as it is, then with features taken away.
fn boots<'a>(
    name: &str,
    kernel: &'a Kernel,
    (kernels, row): (&Kernels, &'a kernels::Kernel),
    runs: &[Run],
    options: &Options,
) -> Vec<Boot<'a>> {
    let skips = kernels.skips.iter().chain(&row.skips);
    let skips = skips.map(|(name, reason)| (name.clone(), reason.clone()));
    let mut boots = vec![Boot {
        name: name.to_owned(),
        kernel,
        append: options.append.clone(),
        supports: &row.supports,
        runs: runs
            .iter()
            .filter(|run| !(options.ci && row.ci_leaves_out.contains(&run.name)))
            .cloned()
            .collect(),
        skips: skips.collect(),
        complete: !options.ci && options.filter.is_none() && options.files.is_empty(),
    }];
    let expectations: Vec<Run> = runs
        .iter()
        .filter(|run| run.name == EXPECTATIONS)
        .cloned()
        .collect();
    // Where the command line already removes features, the file has no expectation for removing
    // more.
    if options.append.is_empty() && !expectations.is_empty() {
        boots.extend(row.without.iter().map(|without| Boot {
            name: format!("{name} without {}", without.what),
            kernel,
            append: without.append.clone(),
            supports: &without.supports,
            runs: expectations.clone(),
            skips: BTreeMap::new(),
            complete: false,
        }));
    }
    boots
}

impl Boot<'_> {
    /// Boots the kernel and runs its tests; returns the errors.
    fn run(
        &self,
        host: &Host,
        kernels: &Kernels,
        (accelerator, previous): (Accelerator, Option<PathBuf>),
    ) -> Result<Vec<String>> {
        println!(
            "{}: boots Linux {} {}",
            self.name, self.kernel.release, self.append
        );
        let mut variables = environment(accelerator);
        variables.push((
            variables::KERNEL_VARIABLE,
            serde_json::to_string(self.supports)?,
        ));
        let job = Job::Tests(self.runs.clone(), previous);
        let setting = Setting {
            name: &format!("guests/{}", self.name.replace(' ', "-")),
            job: &job,
            environment: &variables,
            append: &self.append,
            accelerator,
        };
        let guest = host.guest(self.kernel, &setting)?;
        let outcome = guest.watch(GUEST_LIMIT, |line| {
            report::show_line(&self.name, line);
        })?;
        guest.tidy_up();
        let problems = self.judge(&outcome, kernels.verifier_limit);
        if !problems.is_empty() {
            report::show_failure(&self.name, &outcome);
        }
        Ok(problems)
    }

    /// The errors in a guest's report.
    fn judge(&self, outcome: &Outcome, verifier_limit: u32) -> Vec<String> {
        let mut problems: Vec<String> = outcome.trouble.iter().cloned().collect();
        let ran: Vec<Ran> = outcome
            .report
            .iter()
            .filter_map(|line| Ran::read(line))
            .collect();
        for ran in ran.iter().filter(|ran| ran.status != 0) {
            problems.push(match ran.status {
                137 => format!("{} took too long and was killed", ran.name),
                status => format!("{} failed with exit code {status}", ran.name),
            });
        }
        if outcome.trouble.is_none() {
            for run in &self.runs {
                if !ran.iter().any(|ran| ran.name == run.name) {
                    problems.push(format!("{} did not run", run.name));
                }
            }
        }
        let skipped = outcome.report.iter().filter_map(|line| {
            let (name, reason) = line.strip_prefix("skipped ")?.split_once(' ')?;
            Some((name, reason.trim()))
        });
        let mut seen = BTreeSet::new();
        for (name, reason) in skipped {
            seen.insert(name);
            if !self.skips.contains_key(name) {
                problems.push(format!(
                    "{name} was skipped, and {} does not allow that: {reason}",
                    kernels::FILE
                ));
            }
        }
        if self.complete && outcome.trouble.is_none() {
            for name in self
                .skips
                .keys()
                .filter(|name| !seen.contains(name.as_str()))
            {
                problems.push(format!(
                    "{name} was not skipped, and {} says that it must be",
                    kernels::FILE
                ));
            }
        }
        for measure in verifier::Measure::of_report(&outcome.report) {
            if measure.instructions > verifier_limit {
                problems.push(format!(
                    "the verifier looked at {} instructions in {}, {} allows {verifier_limit}",
                    measure.instructions,
                    measure.program,
                    kernels::FILE
                ));
            }
        }
        if problems.is_empty() && outcome.status != Some(0) {
            problems.push(format!("the guest ended with status {:?}", outcome.status));
        }
        problems
    }
}

/// The tests of this workspace that are asked for.
fn selected(workspace: &Workspace, kernels: &Kernels, options: &Options) -> Result<Vec<Run>> {
    let files = Files::build(workspace)?;
    let run = |file: &File, arguments| Run {
        name: file.name.clone(),
        program: file.program.clone(),
        arguments,
        limit: RUN_LIMIT,
    };
    if options.ci {
        let run = |selection: &Selection| {
            println!("vm: {}: {}", selection.file, selection.why);
            let file = files.get(kernels::FILE, &selection.file)?;
            Ok(run(file, file.arguments(kernels::FILE, &selection.tests)?))
        };
        let left_out = kernels.kernel.iter().flat_map(|row| &row.ci_leaves_out);
        for name in left_out {
            files.get(kernels::FILE, name)?;
        }
        return kernels.ci.iter().map(run).collect();
    }
    for name in &options.files {
        files.get("--file", name)?;
    }
    let is_wanted = |file: &&File| {
        if options.files.is_empty() {
            !kernels.left_out.contains_key(&file.name)
        } else {
            options.files.contains(&file.name)
        }
    };
    let runs: Vec<Run> = files
        .iter()
        .filter(is_wanted)
        .filter_map(|file| Some(run(file, file.matching(options.filter.as_deref())?)))
        .collect();
    if runs.is_empty() {
        bail!(
            "no test of these files has a name with {:?}",
            options.filter
        );
    }
    Ok(runs)
}
