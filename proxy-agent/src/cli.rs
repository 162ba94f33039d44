// SPDX-License-Identifier: Apache-2.0

//! The command line and its environment variables: reads them, checks what must hold between
//! flags, and gives the [`Config`] that everything else works from. Its errors are clap's: they
//! name the flag and the value, and end the process with exit code 2.

mod args;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod services;
mod upstream;
mod values;

#[cfg(test)]
mod tests;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory as _, Error, FromArgMatches as _};
use clap_complete::Shell;
use proxy_common::limits::{MAX_ALLOWED, MAX_VIPS};
use proxy_serve::log::Remark;
use proxy_serve::value::parse_bool;

use self::args::{Args, Subcommand};
use self::services::Resolved;
use crate::cleanup;
use crate::config::{BackendChoice, Config, Guard, GuardMode, ProxyUpstream, Serve};
use crate::doctor;
use crate::status;

const AFTER_HELP: &str = "\
Every flag can also be set by an environment variable: PROXY_AGENT_ and its name in capitals, for
example PROXY_AGENT_IP_ADDRESS. The flag wins. Booleans and durations are written as in Go:
--daemon=false, --sync-interval=1m30s.

Examples:
  proxy-agent --ip-address=169.254.20.2
      Keep the VIP on lo, take the best backend that works here.
  proxy-agent --ip-address=169.254.20.2,fd00:a91::2 --interface=apiserver-proxy --port=443,8443
      Two VIPs on a dummy link of their own, two ports.
  proxy-agent --ip-address=169.254.20.2 --service-address=auto
      The ClusterIP ends on the proxy too: neither kube-proxy nor conntrack is in the path.
  proxy-agent --ip-address=169.254.20.2 --daemon=false
      One pass, for an init container.
  proxy-agent --ip-address=169.254.20.2 --dry-run
      Print what would be changed.
  proxy-agent --instance=b --ip-address=172.20.0.7
      A second agent beside the first, for another VIP.

Exit codes: 0 done, 1 the node is not as desired, 2 bad usage.";

const DOCTOR_AFTER_HELP: &str = "\
It judges the network namespace it runs in: in Kubernetes run it in the agent's container. Each
finding begins with its verdict and the name of its check; docs/doctor.md explains them.

Exit codes: 0 good, 2 bad usage, 3 warnings, or something could not be looked at, 4 broken.";

/// What the process was asked to do.
#[derive(Debug)]
pub enum Invocation {
    /// To run the agent, as a daemon or once.
    Run(Box<Config>),
    /// To tell what the agent of this node is doing.
    Status(status::Request),
    /// To remove everything of the agent.
    Cleanup(cleanup::Request),
    /// To print the completions for a shell.
    Completions(Shell),
    /// To print what the kernel is taken for.
    KernelFeatures,
    /// To look for what may be wrong.
    Doctor(doctor::Options),
}

/// Reads the process's command line. Ends the process on `--help`, `--version` and bad usage.
pub fn parse() -> Invocation {
    try_parse_from(env::args_os()).unwrap_or_else(|error| error.exit())
}

/// The completions for a shell, as it reads them.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "proxy-agent", &mut script);
    script
}

/// Reads a command line, the program's name first.
///
/// # Errors
///
/// Bad usage, with exit code 2; `--help` and `--version`, with exit code 0.
pub fn try_parse_from<I, T>(line: I) -> Result<Invocation, Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let line: Vec<OsString> = line.into_iter().map(Into::into).collect();
    let mut command = command();
    let matches = command
        .try_get_matches_from_mut(&line)
        .map_err(|error| with_tip(stray_word(error, &mut command), &command, &line))?;
    let mut args = Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    match args.command.take() {
        Some(Subcommand::Completions { shell }) => return Ok(Invocation::Completions(shell)),
        Some(Subcommand::KernelFeatures) => return Ok(Invocation::KernelFeatures),
        Some(Subcommand::Status {
            output,
            all,
            location,
        }) => {
            return Ok(Invocation::Status(status::Request {
                output,
                all,
                run_dir: location.run_dir(),
                bpffs: location.bpffs,
            }));
        }
        Some(Subcommand::Cleanup {
            dry_run,
            ip_address,
            interface,
            drain,
            location,
        }) => {
            return Ok(Invocation::Cleanup(cleanup::Request {
                dry_run,
                instance: location.instance,
                run_dir: location.run_dir(),
                bpffs: location.bpffs,
                vips: ip_address,
                interface,
                drain_timeout: drain.timeout(),
            }));
        }
        Some(Subcommand::Doctor {
            location,
            output,
            ip_address,
            port,
        }) => {
            return Ok(Invocation::Doctor(doctor::Options {
                instance: location.instance,
                format: output,
                run_dir: location.run_dir(),
                bpffs: location.bpffs,
                vips: ip_address,
                ports: port,
            }));
        }
        None => {}
    }
    refuse_repeated("--ip-address", &args.ip_address, &mut command)?;
    refuse_repeated("--port", &args.port, &mut command)?;
    refuse_too_many(&args, &mut command)?;
    refuse_proxys_address(&args, &mut command)?;
    refuse_repeated("--guard", &args.guard, &mut command)?;
    refuse_repeated("--allow-from", &args.allow_from, &mut command)?;
    if args.allow_from.len() > MAX_ALLOWED as usize {
        return Err(command.error(
            ErrorKind::TooManyValues,
            format!("too many values for --allow-from; give at most {MAX_ALLOWED}"),
        ));
    }
    let guard = guard(&args.guard).map_err(|word| {
        command.error(
            ErrorKind::ValueValidation,
            format!("invalid value '{word}' for '--guard': it stands alone; give it or links"),
        )
    })?;
    let services = services::resolve(&args, variable)
        .map_err(|refused| command.error(ErrorKind::ValueValidation, refused))?;
    let upstream = upstream::resolve(&args, &services)
        .map_err(|refused| command.error(ErrorKind::ValueValidation, refused))?;
    Ok(Invocation::Run(Box::new(config(
        args,
        (services, upstream),
        guard,
        &matches,
    ))))
}

/// An environment variable that says something.
fn variable(name: &str) -> Option<String> {
    let value = env::var_os(name).filter(|value| !value.is_empty())?;
    Some(value.to_string_lossy().into_owned())
}

/// The command with what all its flags have in common.
fn command() -> Command {
    let command = Args::command()
        .mut_args(|arg| arg.hide_env_values(true))
        .mut_subcommands(|command| command.mut_args(|arg| arg.hide_env_values(true)));
    if env::var("PROXY_AGENT_PORT").is_ok_and(|value| value.starts_with("tcp://")) {
        // Not ours: Kubernetes sets it for a Service that is called proxy-agent
        // (`enableServiceLinks`).
        return command.mut_arg("port", |arg| arg.env(None::<&'static str>));
    }
    command
}

/// What `--guard` means.
///
/// # Errors
///
/// A word that excludes others and stands beside them.
fn guard(values: &[String]) -> Result<Guard, String> {
    let words = [(values::AUTO, Guard::Auto), (values::OFF, Guard::Off)];
    for (word, meaning) in words {
        match values {
            [only] if only == word => return Ok(meaning),
            _ if values.iter().any(|value| value == word) => return Err(word.to_owned()),
            _ => {}
        }
    }
    Ok(Guard::Links(values.to_vec()))
}

fn config(
    args: Args,
    (services, proxy_upstream): (Resolved, ProxyUpstream),
    guard: Guard,
    matches: &ArgMatches,
) -> Config {
    let is_explicit = |flag| {
        matches
            .value_source(flag)
            .is_some_and(|source| source != ValueSource::DefaultValue)
    };
    let backend = match args.setup_iptables {
        _ if is_explicit("backend") => args.backend,
        Some(true) => BackendChoice::Iptables,
        Some(false) => BackendChoice::None,
        None => args.backend,
    };
    let mut log = args.klog.into_options(args.log_format);
    log.remarks.extend(services.remark);
    if !services.services.is_empty() {
        log.remarks.extend(left_to_others(backend));
    }
    if matches!(proxy_upstream, ProxyUpstream::Named(_))
        && matches!(backend, BackendChoice::Iptables | BackendChoice::None)
    {
        log.remarks.push(Remark::Warning(format!(
            "--proxy-upstream with backend {backend}: the proxy's own connections are tracked; backends ebpf \
             and nftables keep them from conntrack"
        )));
    }
    if args.guard_mode == GuardMode::Xdp
        && !matches!(backend, BackendChoice::Auto | BackendChoice::Ebpf)
    {
        log.remarks.push(Remark::Warning(format!(
            "--guard-mode=xdp with backend {backend}: there is no XDP program; only backend ebpf has one"
        )));
    }
    Config {
        instance: args.location.instance,
        vips: args.ip_address,
        ports: args.port,
        interface: args.interface,
        address_scope: args.address_scope,
        sync_interval: args.sync_interval,
        daemon: args.daemon,
        cleanup: args.cleanup,
        backend,
        services: services.services,
        proxy_listener: args.proxy_listener,
        proxy_upstream,
        drain_timeout: args.drain.timeout(),
        repair: services.repair,
        accept_rules: args.accept_rules,
        guard,
        guard_mode: args.guard_mode,
        allow_from: args.allow_from,
        dry_run: args.dry_run,
        serve: Serve {
            addresses: args.listen.0,
            ready_requires_listener: args.ready_requires_listener,
        },
        bpffs: args.location.bpffs(),
        run_dir: args.location.run_dir(),
        max_connections: args.max_connections,
        tc_attach: args.tc_attach,
        log,
    }
}

/// What is to be said about a backend that leaves the Services to kube-proxy.
fn left_to_others(backend: BackendChoice) -> Option<Remark> {
    let name = match backend {
        BackendChoice::Auto | BackendChoice::Ebpf => return None,
        BackendChoice::Nftables => "nftables",
        BackendChoice::Iptables => "iptables",
        BackendChoice::None => "none",
    };
    Some(Remark::Warning(format!(
        "--service-address with backend {name}: no Service ends on the proxy; that takes backend ebpf"
    )))
}

/// A value given twice is a slip of the pen that hides the value that was meant.
fn refuse_repeated<T: Display + PartialEq>(
    flag: &str,
    values: &[T],
    command: &mut Command,
) -> Result<(), Error> {
    for (index, value) in values.iter().enumerate() {
        if values[..index].contains(value) {
            return Err(command.error(
                ErrorKind::ValueValidation,
                format!("invalid value '{value}' for '{flag}': given more than once; give it once"),
            ));
        }
    }
    Ok(())
}

/// Every address with every port takes an entry in a map whose size the programs know.
fn refuse_too_many(args: &Args, command: &mut Command) -> Result<(), Error> {
    let (addresses, ports) = (args.ip_address.len(), args.port.len());
    if addresses.saturating_mul(ports) <= MAX_VIPS as usize {
        return Ok(());
    }
    Err(command.error(
        ErrorKind::TooManyValues,
        format!(
            "{addresses} for --ip-address and {ports} for --port are too many: addresses times \
             ports may be {MAX_VIPS}; give fewer"
        ),
    ))
}

/// The proxy could not listen any more.
fn refuse_proxys_address(args: &Args, command: &mut Command) -> Result<(), Error> {
    for address in &args.listen.0 {
        let ip = address.ip();
        let is_proxys = ip.is_unspecified() || args.ip_address.contains(&ip);
        if is_proxys && args.port.contains(&address.port()) {
            return Err(command.error(
                ErrorKind::ValueValidation,
                format!(
                    "invalid value '{address}' for '--listen': it would take the proxy's port; give \
                     another one, like {}",
                    args::LISTEN
                ),
            ));
        }
    }
    Ok(())
}

/// A stray word behind flags is no subcommand, though clap takes it for one.
fn stray_word(error: Error, command: &mut Command) -> Error {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return error;
    };
    if error.kind() != ErrorKind::ArgumentConflict || command.find_subcommand(word).is_some() {
        return error;
    }
    let mut stray = Error::new(ErrorKind::UnknownArgument).with_cmd(command);
    stray.insert(ContextKind::InvalidArg, ContextValue::String(word.clone()));
    stray
}

/// Adds to an error what clap cannot know: that a value comes from the environment, or that a
/// boolean stands apart from its flag.
fn with_tip(mut error: Error, command: &Command, line: &[OsString]) -> Error {
    let Some(ContextValue::String(culprit)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let tip = if error.kind() == ErrorKind::UnknownArgument && parse_bool(culprit).is_ok() {
        Some(format!(
            "a boolean stands behind an equals sign, for example --daemon={culprit}"
        ))
    } else {
        command
            .get_arguments()
            .find(|arg| arg.to_string() == *culprit)
            .filter(|arg| !line.iter().any(|word| names(word, arg)))
            .and_then(Arg::get_env)
            .filter(|variable| env::var_os(variable).is_some())
            .map(|variable| format!("the value comes from {}", variable.display()))
    };
    if let Some(tip) = tip {
        error.insert(
            ContextKind::Suggested,
            ContextValue::StyledStrs(vec![tip.into()]),
        );
    }
    error
}

/// Whether a word of the command line is the flag `arg`, with or without a value.
fn names(word: &OsStr, arg: &Arg) -> bool {
    let word = word.to_string_lossy();
    match word.strip_prefix("--") {
        Some(long) => {
            let long = long.split_once('=').map_or(long, |(name, _)| name);
            arg.get_long() == Some(long)
                || arg
                    .get_all_aliases()
                    .is_some_and(|aliases| aliases.contains(&long))
        }
        None => word
            .strip_prefix('-')
            .and_then(|short| short.chars().next())
            .is_some_and(|short| arg.get_short() == Some(short)),
    }
}
