// SPDX-License-Identifier: Apache-2.0

//! The programs: their flags, and their start and shutdown. The other modules implement their work.

pub mod agent;
mod args;
pub mod by_name;
mod called;
pub mod doctor;
pub mod health;
pub mod listeners;
mod reach;
pub mod server;
pub mod sidecar;
pub mod test_client;
pub mod test_server;

use std::fmt::Debug;
use std::future::Future;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::panic;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::CommandFactory as _;
use prometheus::IntGauge;
use proxy_serve::flags::{self, Values};
use proxy_serve::klog::{KlogArgs, Separator, Spelling, Style};
use proxy_serve::log::{self, LogFormat};
use proxy_serve::memory::{self, Blocks};
use proxy_serve::pages::About;
use tokio::time::{Instant, interval};

use crate::flow::Budget;

/// The maximum number of worker threads. More threads do not help a program that forwards bytes.
const MAX_THREADS: usize = 8;

/// The time for which tasks that wait for files or name lookups may delay the exit of the process.
const FAREWELL: Duration = Duration::from_millis(100);

/// The interval at which certificate files are checked for changes.
const RELOAD: Duration = Duration::from_secs(5);

/// The interval at which the number of buffered bytes is measured.
const COUNT: Duration = Duration::from_secs(1);

/// The minimum interval between two returns of memory to the kernel.
const GIVE_BACK: Duration = Duration::from_secs(10);

/// The decrease in load, in connections, from which on memory is returned to the kernel.
const ENDED: usize = 100;

/// The number of bytes in inboxes that counts as much as one connection.
const BUFFERED: usize = 64 * 1024;

/// The buffers of a bulk transfer are up to 256 KiB: two chunks, or a message and the start of the next one.
const BLOCKS: Blocks = Blocks {
    mapped: 1 << 20,
    kept: 2 << 20,
};

/// The ports that upstream's programs accept.
const PORTS: RangeInclusive<i64> = 1024..=49_151;

/// A program of this crate, implemented by its command-line flags.
pub trait Program: clap::Args + Clone + Debug + Send + 'static {
    /// The name of the program.
    const NAME: &'static str;

    /// The default verbosity of its log.
    const VERBOSITY: i32 = 4;

    /// The maximum number of worker threads that it needs.
    const THREADS: usize = MAX_THREADS;

    /// Runs the program. `flags` contains the values of all flags, including klog's, for display to operators.
    fn run(self, flags: Values) -> impl Future<Output = Result<ExitCode>> + Send;
}

/// The names of klog's flags, as in upstream's programs.
#[derive(Debug, Clone)]
struct Klog<P>(PhantomData<P>);

impl<P: Program> Style for Klog<P> {
    const SPELLING: Spelling = Spelling {
        program: P::NAME,
        separator: Separator::Hyphen,
        env_prefix: None,
        verbosity: P::VERBOSITY,
        verbosity_help: "Level of the log: debug records from 4 on, trace records from 6 on",
        modules_help: "Levels for single source files, as pattern=N,pattern=N",
        newer_flags: true,
        quoted: true,
    };
}

// This is not a doc comment, so that the program's own flags supply its description.
#[derive(Debug, clap::Parser)]
#[command(name = P::NAME, version)]
struct CommandLine<P: Program> {
    #[command(flatten)]
    program: P,
    #[command(flatten)]
    klog: KlogArgs<Klog<P>>,
}

/// Returns a program's command line, with the syntax of pflag.
#[must_use]
pub fn command<P: Program>() -> clap::Command {
    flags::pflag(CommandLine::<P>::command())
}

/// The `main` function of a program.
#[must_use]
pub fn main<P: Program>() -> ExitCode {
    memory::set_up(BLOCKS);
    let (line, values) = match flags::parse_pflag::<CommandLine<P>>() {
        Ok(read) => read,
        Err(code) => return code,
    };
    match try_main(line, values) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main<P: Program>(line: CommandLine<P>, values: Values) -> Result<ExitCode> {
    log::init(&line.klog.into_options(LogFormat::Klog))?;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.min(P::THREADS))
        .enable_all()
        .build()
        .context("cannot start the threads that serve")?;
    // On a worker, not on this thread: the loops that accept connections are part of it, and each connection would wake this
    // thread first, and then a worker.
    let running = runtime.spawn(line.program.run(values));
    let outcome = runtime.block_on(running);
    runtime.shutdown_timeout(FAREWELL);
    match outcome {
        Ok(outcome) => outcome,
        Err(error) => panic::resume_unwind(error.into_panic()),
    }
}

/// Returns the description of a program for its pages.
const fn about<P: Program>(flags: Values) -> About {
    About {
        program: P::NAME,
        version: env!("CARGO_PKG_VERSION"),
        flags,
    }
}

/// Converts a port, within the range that upstream's programs accept.
///
/// # Errors
/// Returns an error if the port is outside of this range.
fn port(flag: &str, value: i64) -> Result<u16> {
    anyhow::ensure!(
        PORTS.contains(&value),
        "--{flag} is {value}; ports from {} to {} are accepted",
        PORTS.start(),
        PORTS.end()
    );
    Ok(u16::try_from(value)?)
}

/// Returns true if both flags are set, and false if neither is.
///
/// # Errors
/// Returns an error if only one of them is set.
fn both(first: (&str, &str), second: (&str, &str)) -> Result<bool> {
    match (first.1.is_empty(), second.1.is_empty()) {
        (true, true) => Ok(false),
        (false, false) => Ok(true),
        (true, false) => anyhow::bail!("--{} needs --{}", second.0, first.0),
        (false, true) => anyhow::bail!("--{} needs --{}", first.0, second.0),
    }
}

/// Returns a random UUID of version 4, for agents and servers without a configured name.
fn uuid() -> String {
    let random = fastrand::u128(..);
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

/// Returns the name of a server or an agent, from the flag, else from the environment variable, else a random UUID.
///
/// # Errors
/// Returns an error if the name cannot be sent to the other side.
fn name(flag: (&str, &str), variable: &str) -> Result<String> {
    let (flag, value) = flag;
    let (whence, name) = if value.is_empty() {
        let name = std::env::var(variable).unwrap_or_default();
        (variable, name)
    } else {
        (flag, value.to_owned())
    };
    if name.is_empty() {
        return Ok(uuid());
    }
    ensure!(
        name.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        "{whence} is {name:?}; give a name of printable ASCII characters, as gRPC's metadata can hold"
    );
    Ok(name)
}

/// Updates the metric of buffered bytes, and returns memory to the kernel when many connections have ended. By itself
/// the allocator keeps pages between blocks in use, so after a peak of connections the process would stay large
/// permanently.
async fn watch_memory(gauge: &IntGauge, budget: &Budget, connections: impl Fn() -> usize) {
    let mut tick = interval(COUNT);
    let (mut most, mut given_back) = (0, Instant::now());
    loop {
        tick.tick().await;
        let used = budget.used();
        gauge.set(i64::try_from(used).unwrap_or(i64::MAX));
        let load = connections() + used / BUFFERED;
        most = most.max(load);
        if most - load >= ENDED && given_back.elapsed() >= GIVE_BACK {
            memory::give_back();
            (most, given_back) = (load, Instant::now());
        }
    }
}

/// Parses a command line for each of the programs.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_command_lines(words: &[&std::ffi::OsStr]) {
    server::read_command_line(words);
    agent::read_command_line(words);
    sidecar::read_command_line(words);
    test_client::read_command_line(words);
    test_server::read_command_line(words);
}

/// Parses a command line.
#[cfg(any(test, feature = "fuzzing"))]
fn read_flags<P: Program>(
    words: impl IntoIterator<Item: AsRef<std::ffi::OsStr>>,
) -> Result<P, clap::Error> {
    let words = words.into_iter().map(|word| word.as_ref().to_owned());
    let line = std::iter::once("program".into()).chain(words);
    command::<P>()
        .try_get_matches_from(line)
        .and_then(|matches| P::from_arg_matches(&matches))
}

/// Parses a command line. Returns `None` if the parser rejects it, which must include a reason.
#[cfg(feature = "fuzzing")]
fn accepted<P: Program>(words: &[&std::ffi::OsStr]) -> Option<P> {
    read_flags(words)
        .map_err(|error| assert!(!error.to_string().is_empty()))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a program's description, which the flags of klog and of other programs must not replace.
    fn description<P: Program>() -> String {
        let command = command::<P>();
        command.clone().debug_assert();
        assert_eq!(command.get_name(), P::NAME);
        command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default()
    }

    #[test]
    fn the_commands_are_sound() {
        for (description, want) in [
            (
                description::<server::Args>(),
                "Tunnels connections of an API server",
            ),
            (
                description::<agent::Args>(),
                "Connects to konnectivity servers",
            ),
            (description::<sidecar::Args>(), "An HTTP proxy"),
            (description::<test_client::Args>(), "Makes HTTP requests"),
            (description::<test_server::Args>(), "A small HTTP server"),
        ] {
            assert!(description.starts_with(want), "{description}");
        }
    }

    /// Returns the flags whose values are hidden. There must be none: secrets are in files, not in flags.
    fn classified<P: Program>() -> Vec<String> {
        let mut command = flags::pflag(CommandLine::<P>::command());
        let matches = command.try_get_matches_from_mut(["program"]).unwrap();
        let values = Values::read(&command, &matches);
        let all: Vec<_> = values.iter().collect();
        assert!(all.contains(&("logtostderr", "true")), "{all:?}");
        let secret = all.iter().filter(|(_, value)| *value == flags::CLASSIFIED);
        secret.map(|(name, _)| (*name).to_owned()).collect()
    }

    #[test]
    fn no_flag_is_a_secret() {
        let none: [String; 0] = [];
        assert_eq!(classified::<server::Args>(), none);
        assert_eq!(classified::<agent::Args>(), none);
        assert_eq!(classified::<sidecar::Args>(), none);
    }

    #[test]
    fn uuids_are_of_version_4() {
        let (one, two) = (uuid(), uuid());
        assert_ne!(one, two);
        assert_eq!(one.len(), 36);
        assert_eq!(&one[14..15], "4");
        assert!(matches!(&one[19..20], "8" | "9" | "a" | "b"), "{one}");
    }

    #[test]
    fn ports() {
        assert_eq!(port("agent-port", 8091).unwrap(), 8091);
        for bad in [0, 1023, 49_152, -1, 100_000] {
            let error = port("agent-port", bad).unwrap_err().to_string();
            assert!(error.contains("--agent-port"), "{error}");
        }
    }

    #[test]
    fn pairs() {
        assert!(both(("a", "1"), ("b", "2")).unwrap());
        assert!(!both(("a", ""), ("b", "")).unwrap());
        let error = both(("a", "1"), ("b", "")).unwrap_err().to_string();
        assert_eq!(error, "--a needs --b");
    }
}
