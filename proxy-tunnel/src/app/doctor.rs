// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-server doctor` and `konnectivity-agent doctor`: these commands report faults and their remedies.
//!
//! The flags to check are those after `doctor`. Without any, the doctor uses the flags of the process with the same
//! program in this network namespace. It changes nothing. docs/tunnel-doctor.md explains each check by its id. The
//! modules of the programs define the checks.

pub mod api_server;
pub mod certificates;
pub mod running;
pub mod words;

use std::env;
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use proxy_serve::doctor::{self, Check};
use proxy_serve::flags;
use proxy_serve::klog::KlogArgs;

use self::running::{Process, WORD};
use self::words::Output;
use super::{Klog, Program};

/// The exit code for wrong usage. It is the same as that of the node agent's doctor.
const BAD_USAGE: u8 = 2;

/// A program that the doctor can examine.
pub trait Examined: Program {
    /// Runs all checks.
    fn examine(self) -> impl Future<Output = Vec<Check>>;
}

// This is not a doc comment, so that the program's own flags supply its description.
#[derive(Debug, clap::Parser)]
struct Line<P: Program> {
    #[command(flatten)]
    program: P,
    #[command(flatten)]
    klog: KlogArgs<Klog<P>>,
    /// How findings are printed: table or json
    #[arg(long, value_name = "FORM", default_value = "table")]
    output: Output,
}

/// The `main` function of a program that has a doctor.
#[must_use]
pub fn main<P: Examined>() -> ExitCode {
    let mut words = env::args_os().skip(1);
    if words.next().is_some_and(|word| word == WORD) {
        return examine::<P>(words.collect());
    }
    super::main::<P>()
}

fn examine<P: Examined>(mut words: Vec<OsString>) -> ExitCode {
    let mut checks = Vec::new();
    let mut has_flags = true;
    if names_no_flag(&words) {
        let (found, process) = only(running::processes());
        checks.extend(found);
        has_flags = process.is_some();
        if let Some(process) = process {
            // Relative paths then refer to the same files. Without the permission for this, they are not found and are
            // reported.
            let _ = env::set_current_dir(format!("/proc/{}/cwd", process.id));
            // The words after `doctor` follow those of the process and therefore take precedence.
            words.splice(..0, process.words);
        }
    }
    let line = match parse::<P>(words) {
        Ok(line) => line,
        Err(error) => {
            // A closed stdout or stderr does not change the exit code.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(BAD_USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    // The defaults alone start no program, so without flags there is nothing to examine.
    if has_flags {
        match run(line.program.examine()) {
            Ok(found) => checks.extend(found),
            Err(error) => {
                eprintln!("Error: cannot start the threads that look: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if let Err(error) = doctor::print(&checks, line.output == Output::Json) {
        eprintln!("Error: cannot print what was found: {error}");
        return ExitCode::FAILURE;
    }
    doctor::exit_code(&checks)
}

fn run(checks: impl Future<Output = Vec<Check>>) -> io::Result<Vec<Check>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let checks = runtime.block_on(checks);
    runtime.shutdown_background();
    Ok(checks)
}

/// Returns the command line of a program's doctor.
#[must_use]
pub fn command<P: Program>() -> clap::Command {
    let about = "Looks at what this program needs, changes nothing, and reports what may be wrong and what to do about it. \
                 Without flags it takes those of the process that runs here";
    let command = Line::<P>::command()
        .name(format!("{} {WORD}", P::NAME))
        .about(about);
    flags::pflag(command)
}

fn parse<P: Program>(words: Vec<OsString>) -> Result<Line<P>, clap::Error> {
    let line = std::iter::once(P::NAME.into()).chain(words);
    let matches = command::<P>().try_get_matches_from(line)?;
    Line::from_arg_matches(&matches)
}

/// Returns true if the command line contains no flag other than `--output`.
fn names_no_flag(words: &[OsString]) -> bool {
    let mut words = words.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if word == "--output" {
            words.next();
        } else if !word.starts_with("--output=") {
            return false;
        }
    }
    true
}

/// Returns the process whose flags are checked, if there is exactly one, and the checks that say which one it is.
/// Without one, the flags are not judged: the command line that lacks them is the doctor's and not the program's.
fn only(found: io::Result<Vec<Process>>) -> (Vec<Check>, Option<Process>) {
    let id = "process";
    let remedy = "give the program's flags behind `doctor`";
    let check = match found.map(<[_; 1]>::try_from) {
        Ok(Ok([process])) => {
            let finding = format!("process {} runs here; these are its flags", process.id);
            return (vec![Check::ok(id, finding)], Some(process));
        }
        Ok(Err(found)) if found.is_empty() => Check::warning(
            id,
            "no process of this program runs here; it must be started",
            "start it, or pass the flags that it will be started with",
        ),
        Ok(Err(found)) => {
            let ids: Vec<String> = found.iter().map(|found| found.id.to_string()).collect();
            let finding = format!("several run here, as processes {}", ids.join(", "));
            Check::unknown(id, finding, remedy)
        }
        Err(error) => {
            let finding = format!("which process runs here cannot be seen: {error}");
            Check::unknown(id, finding, remedy)
        }
    };
    let why = "no flags were given to the doctor, and it has none of a process";
    (vec![check, Check::not_applicable("flags", why)], None)
}

#[cfg(test)]
mod tests {
    use proxy_serve::doctor::Verdict;

    use super::super::{agent, server};
    use super::*;

    #[test]
    fn the_commands_are_sound() {
        command::<agent::Args>().debug_assert();
        command::<server::Args>().debug_assert();
    }

    #[test]
    fn the_form_of_the_output_is_no_flag_of_the_program() {
        let none = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            names_no_flag(&words)
        };
        assert!(none(&[]));
        assert!(none(&["--output=json"]) && none(&["--output", "json"]));
        assert!(!none(&["--output", "json", "--ca-cert=x"]));
        assert!(!none(&["--help"]));
    }

    #[test]
    fn without_one_process_no_flags_are_judged() {
        let process = |id| Process {
            id,
            words: vec!["--ca-cert=x".into()],
        };
        let (checks, found) = only(Ok(vec![process(1)]));
        assert_eq!((checks.len(), checks[0].verdict), (1, Verdict::Ok));
        assert_eq!(found.unwrap().words, ["--ca-cert=x"]);
        for (found, verdict, remedy) in [
            (Ok(Vec::new()), Verdict::Warning, "start it"),
            (Ok(vec![process(1), process(2)]), Verdict::Unknown, "flags"),
            (
                Err(io::ErrorKind::NotFound.into()),
                Verdict::Unknown,
                "flags",
            ),
        ] {
            let (checks, found) = only(found);
            assert!(found.is_none());
            assert_eq!((checks[0].id, checks[0].verdict), ("process", verdict));
            let text = checks[0].remedy.as_deref().unwrap();
            assert!(text.contains(remedy), "{text}");
            assert_eq!(
                (checks[1].id, checks[1].verdict),
                ("flags", Verdict::NotApplicable)
            );
        }
    }

    #[test]
    fn flags_are_the_programs() {
        let line = parse::<agent::Args>(vec!["--ca-cert=x".into(), "--output=json".into()]);
        let line = line.unwrap();
        assert_eq!(
            (line.program.ca_cert.as_str(), line.output),
            ("x", Output::Json)
        );
        let error = parse::<agent::Args>(vec!["--output=xml".into()]).unwrap_err();
        assert!(error.to_string().contains("xml"), "{error}");
    }
}
