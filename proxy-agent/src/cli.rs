// SPDX-License-Identifier: Apache-2.0

//! The command line and its environment variables: parses them, validates combinations of flags, and returns the
//! [`Config`]. Errors are clap's: they name the flag and the value, and end the process with exit code 2.

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
use proxy_serve::flags::Values;
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
example PROXY_AGENT_IP_ADDRESS. Flags take precedence. Booleans and durations are written as in Go:
--daemon=false, --sync-interval=1m30s.

Examples:
  proxy-agent --ip-address=169.254.20.2
      Keep the VIP on lo and use the best backend that this node supports.
  proxy-agent --ip-address=169.254.20.2,fd00:a91::2 --interface=apiserver-proxy --port=443,8443
      Two VIPs on a dedicated dummy link, two ports.
  proxy-agent --ip-address=169.254.20.2 --service-address=auto
      Connections to the ClusterIP end on the proxy too, without kube-proxy and conntrack.
  proxy-agent --ip-address=169.254.20.2 --daemon=false
      One pass, for an init container.
  proxy-agent --ip-address=169.254.20.2 --dry-run
      Print the changes that a pass would make.
  proxy-agent --instance=b --ip-address=172.20.0.7
      A second agent beside the first, for another VIP.

Exit codes: 0 success, 1 the node is not as desired, 2 invalid usage.";

const DOCTOR_AFTER_HELP: &str = "\
Checks the network namespace it runs in: in Kubernetes run it in the agent's container. Each
finding begins with its verdict and the name of its check; docs/doctor.md explains them.

Exit codes: 0 good, 2 invalid usage, 3 warnings, or something could not be read, 4 broken.";

/// The requested operation.
#[derive(Debug)]
pub enum Invocation {
    /// Run the agent, as a daemon or for one pass.
    Run(Box<Config>),
    /// Print the state of this node's agent.
    Status(status::Request),
    /// Remove all objects of the agent.
    Cleanup(cleanup::Request),
    /// Print a completion script for a shell.
    Completions(Shell),
    /// Print the kernel features that the eBPF loader detects.
    KernelFeatures,
    /// Diagnose the node.
    Doctor(doctor::Options),
}

/// Parses the process's command line. Exits on `--help`, `--version` and invalid usage.
pub fn parse() -> Invocation {
    try_parse_from(env::args_os()).unwrap_or_else(|error| error.exit())
}

/// The completion script for a shell.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "proxy-agent", &mut script);
    script
}

/// Parses a command line that begins with the program's name.
///
/// # Errors
///
/// Invalid usage, with exit code 2; `--help` and `--version`, with exit code 0.
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
            format!("invalid value '{word}' for '--guard': cannot be combined with other values"),
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
        (&command, &matches),
    ))))
}

/// The value of an environment variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    let value = env::var_os(name).filter(|value| !value.is_empty())?;
    Some(value.to_string_lossy().into_owned())
}

/// The command, with settings common to all flags.
#[must_use]
pub fn command() -> Command {
    let command = Args::command()
        .mut_args(|arg| arg.hide_env_values(true))
        .mut_subcommands(|command| command.mut_args(|arg| arg.hide_env_values(true)));
    if env::var("PROXY_AGENT_PORT").is_ok_and(|value| value.starts_with("tcp://")) {
        // Kubernetes sets it for a Service with the name proxy-agent (`enableServiceLinks`).
        return command.mut_arg("port", |arg| arg.env(None::<&'static str>));
    }
    command
}

/// Interprets the values of `--guard`.
///
/// # Errors
///
/// `auto` or `off` if combined with other values.
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
    (command, matches): (&Command, &ArgMatches),
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
            "--proxy-upstream has no effect with backend {backend}: the proxy's own connections stay tracked; \
             use backend ebpf or nftables"
        )));
    }
    if args.guard_mode == GuardMode::Xdp
        && !matches!(backend, BackendChoice::Auto | BackendChoice::Ebpf)
    {
        log.remarks.push(Remark::Warning(format!(
            "--guard-mode=xdp has no effect with backend {backend}: only backend ebpf has an XDP program"
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
            flags: Values::read(command, matches),
        },
        bpffs: args.location.bpffs(),
        run_dir: args.location.run_dir(),
        max_connections: args.max_connections,
        tc_attach: args.tc_attach,
        log,
    }
}

/// A warning if the backend leaves Services to kube-proxy.
fn left_to_others(backend: BackendChoice) -> Option<Remark> {
    let name = match backend {
        BackendChoice::Auto | BackendChoice::Ebpf => return None,
        BackendChoice::Nftables => "nftables",
        BackendChoice::Iptables => "iptables",
        BackendChoice::None => "none",
    };
    Some(Remark::Warning(format!(
        "--service-address has no effect with backend {name}: Services end on the proxy only with backend ebpf"
    )))
}

/// Rejects duplicates: a repeated value is likely a typo for another one.
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

/// Rejects more endpoints than the eBPF map has entries for.
fn refuse_too_many(args: &Args, command: &mut Command) -> Result<(), Error> {
    let (addresses, ports) = (args.ip_address.len(), args.port.len());
    if addresses.saturating_mul(ports) <= MAX_VIPS as usize {
        return Ok(());
    }
    Err(command.error(
        ErrorKind::TooManyValues,
        format!(
            "{addresses} for --ip-address and {ports} for --port are too many: at most {MAX_VIPS} \
             combinations are supported; give fewer"
        ),
    ))
}

/// Rejects a `--listen` address that would keep the proxy from listening.
fn refuse_proxys_address(args: &Args, command: &mut Command) -> Result<(), Error> {
    for address in &args.listen.0 {
        let ip = address.ip();
        let is_proxys = ip.is_unspecified() || args.ip_address.contains(&ip);
        if is_proxys && args.port.contains(&address.port()) {
            return Err(command.error(
                ErrorKind::ValueValidation,
                format!(
                    "invalid value '{address}' for '--listen': conflicts with the proxy's port; give \
                     another one, like {}",
                    args::LISTEN
                ),
            ));
        }
    }
    Ok(())
}

/// Corrects clap's error for a stray word after flags, which it takes for a subcommand.
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

/// Adds a hint that clap cannot give: the value comes from the environment, or a boolean must be joined to its flag by an
/// equals sign.
fn with_tip(mut error: Error, command: &Command, line: &[OsString]) -> Error {
    let Some(ContextValue::String(culprit)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let tip = if error.kind() == ErrorKind::UnknownArgument && parse_bool(culprit).is_ok() {
        Some(format!(
            "a boolean value needs an equals sign, for example --daemon={culprit}"
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

/// True if a word of the command line is the flag `arg`, with or without a value.
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
