// SPDX-License-Identifier: Apache-2.0

//! The programs: their flags, and the order in which they start and end. What they do is the other
//! modules' business.

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

/// More threads than this do not help a program that carries bytes.
const MAX_THREADS: usize = 8;

/// How long tasks that wait for files or names may hold the process up when it ends.
const FAREWELL: Duration = Duration::from_millis(100);

/// How often files with certificates are looked at.
const RELOAD: Duration = Duration::from_secs(5);

/// How often the bytes that are buffered are counted.
const COUNT: Duration = Duration::from_secs(1);

/// How often memory is given back at most.
const GIVE_BACK: Duration = Duration::from_secs(10);

/// Connections that have ended, after which it is worth it.
const ENDED: usize = 100;

/// Bytes in inboxes that count as much as a connection.
const BUFFERED: usize = 64 * 1024;

/// Buffers of a bulk transfer are up to 256 KiB: two chunks, or a message beside the start of the next one.
const BLOCKS: Blocks = Blocks {
    mapped: 1 << 20,
    kept: 2 << 20,
};

/// Ports that upstream's programs accept.
const PORTS: RangeInclusive<i64> = 1024..=49_151;

/// A program of this crate, by its own flags.
pub trait Program: clap::Args + Clone + Debug {
    /// Its name.
    const NAME: &'static str;

    /// The level of its log by default.
    const VERBOSITY: i32 = 4;

    /// How many threads it needs.
    const THREADS: usize = MAX_THREADS;

    /// Does its work. `flags` are the values of all its flags, klog's too, for its operators.
    fn run(self, flags: Values) -> impl Future<Output = Result<ExitCode>>;
}

/// klog's flags as upstream's programs spell them.
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

// Not a doc comment: the program's description is that of its own flags.
#[derive(Debug, clap::Parser)]
#[command(name = P::NAME, version)]
struct CommandLine<P: Program> {
    #[command(flatten)]
    program: P,
    #[command(flatten)]
    klog: KlogArgs<Klog<P>>,
}

/// A program's command line, as pflag reads it.
#[must_use]
pub fn command<P: Program>() -> clap::Command {
    flags::pflag(CommandLine::<P>::command())
}

/// The whole of a program.
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
    let outcome = runtime.block_on(line.program.run(values));
    runtime.shutdown_timeout(FAREWELL);
    outcome
}

/// A program as its pages name it.
const fn about<P: Program>(flags: Values) -> About {
    About {
        program: P::NAME,
        version: env!("CARGO_PKG_VERSION"),
        flags,
    }
}

/// A port as upstream's programs accept it.
///
/// # Errors
/// It is outside of their range.
fn port(flag: &str, value: i64) -> Result<u16> {
    anyhow::ensure!(
        PORTS.contains(&value),
        "--{flag} is {value}; ports from {} to {} are accepted",
        PORTS.start(),
        PORTS.end()
    );
    Ok(u16::try_from(value)?)
}

/// Both or none of two flags.
///
/// # Errors
/// One of them is missing.
fn both(first: (&str, &str), second: (&str, &str)) -> Result<bool> {
    match (first.1.is_empty(), second.1.is_empty()) {
        (true, true) => Ok(false),
        (false, false) => Ok(true),
        (true, false) => anyhow::bail!("--{} needs --{}", second.0, first.0),
        (false, true) => anyhow::bail!("--{} needs --{}", first.0, second.0),
    }
}

/// A uuid of version 4, for agents and servers without a name of their own.
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

/// The name of a server or an agent: the flag's, the environment's, or one of its own.
///
/// # Errors
/// It cannot be sent to the other end.
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

/// Keeps the gauge of the bytes that are buffered, and gives memory back when many connections have ended: by itself
/// the allocator keeps pages between blocks in use, and many connections once would be a large process for ever.
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

/// Reads a command line as each of the programs does.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_command_lines(words: &[&std::ffi::OsStr]) {
    server::read_command_line(words);
    agent::read_command_line(words);
    sidecar::read_command_line(words);
    test_client::read_command_line(words);
    test_server::read_command_line(words);
}

/// Reads a command line.
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

/// Reads a command line; none if it is refused, with a reason.
#[cfg(feature = "fuzzing")]
fn accepted<P: Program>(words: &[&std::ffi::OsStr]) -> Option<P> {
    read_flags(words)
        .map_err(|error| assert!(!error.to_string().is_empty()))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The description, which klog's flags and those of other programs must not replace.
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

    /// None takes a secret: those are in files.
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
