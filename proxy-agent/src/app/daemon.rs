// SPDX-License-Identifier: Apache-2.0

//! The agent as a daemon: runs passes as they become due, until a signal ends it.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use proxy_kernel::capabilities::Capability;
use proxy_kernel::memory;
use proxy_kernel::privileges;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::signals::{Call, Signals};
use super::{interest, reexec_if_features_are_stale, start, status, watched_pins};
use crate::backend::select::Backend;
use crate::cleanup::{self, Scope};
use crate::config::Config;
use crate::lock::Lock;
use crate::monitor::Monitor;
use crate::node::Node;
use crate::reconcile::trigger::{Cause, Trigger};
use crate::reconcile::{Control, Mode, Report, exit_code};
use crate::state;
use crate::state::owned::Owned;
use crate::telemetry::shared::SharedState;
use crate::telemetry::{http, metrics};

/// How often debug lines of the eBPF programs are fetched.
const LOG_INTERVAL: Duration = Duration::from_millis(200);
/// How often the proxy's listener (its cgroup) and its connections to new endpoints are checked: a change is handled within a
/// second.
const LISTENER_INTERVAL: Duration = Duration::from_millis(900);
/// How often a long clean-up logs its progress.
const PROGRESS: Duration = Duration::from_secs(3);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
///
/// If it cannot start.
pub async fn run(config: Config, lock: Lock) -> Result<ExitCode> {
    // Before anything else: the kernel ignores unhandled signals to the first process of a container.
    let mut signals = Signals::listen()?;
    let (mut scope, cleanup) = (Scope::from(&config), config.cleanup);
    // Before the first observation, so that no later event is missed.
    let monitor = Monitor::open(interest(&config), watched_pins(&config))
        .context("cannot listen to kernel events")?;
    let shared = SharedState::new(&config, metrics::durations());
    let opened = signals
        .attend(&Control::default(), start(config, Mode::Apply))
        .await;
    let by = match opened {
        Ok(node) => {
            let node = node?;
            // Before threads are created: capabilities are per thread.
            restrict();
            http::start(&node.config, &shared);
            keep(node, monitor, &mut signals, &shared).await
        }
        Err(by) => by,
    };
    info!("{by}: stopping");
    shared.stopping();
    signals.systemd.stopping();
    if !cleanup {
        info!("leaving the VIP and the data plane in place; use --cleanup to remove them on exit");
        return Ok(ExitCode::SUCCESS);
    }
    let owned = Owned::load(&scope.run_dir);
    scope.owned = owned.without_claimed(&scope.vips).await;
    let mut report = Report::default();
    let control = report.control.clone();
    let work = cleanup::remove_everything(&scope, Mode::Apply, &mut report);
    match signals.attend_last(&control, PROGRESS, work).await {
        Ok(()) if report.failures.is_empty() => {
            lock.remove();
            info!("cleaned up");
            Ok(ExitCode::SUCCESS)
        }
        Ok(()) => Ok(exit_code(false)),
        Err(by) => {
            error!(
                "{by} during the clean-up: exiting; run `proxy-agent cleanup` to remove the rest"
            );
            Ok(exit_code(false))
        }
    }
}

/// Drops the privileges that the passes do not need, before the first change.
fn restrict() {
    // Programs may be loaded later, and raising the limit takes one of the capabilities that are dropped.
    memory::allow_locking();
    match privileges::restrict() {
        Ok(kept) => {
            let names: Vec<_> = kept.into_iter().map(Capability::name).collect();
            info!("capabilities kept: {}", names.join(", "));
        }
        Err(error) => warn!("cannot drop capabilities that are not needed: {error}"),
    }
}

/// Keeps the node as desired until a signal to end; returns the signal's name.
async fn keep(
    mut node: Node,
    monitor: Monitor,
    signals: &mut Signals,
    shared: &SharedState,
) -> &'static str {
    let mut trigger = Trigger::new(monitor, node.config.sync_interval);
    let mut logs = interval(LOG_INTERVAL);
    let mut listeners = interval(LISTENER_INTERVAL);
    listeners.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let debug = node.config.debugs_programs();
    let mut ready: Option<bool> = None;
    let mut asked = false;
    let mut upstream = None;
    let mut due = Some(Cause::Resync);
    loop {
        if let Some(cause) = due {
            let (begun, at) = (Instant::now(), SystemTime::now());
            shared.working();
            let control = Control::watched(shared.pulse());
            let pass = node.pass(Mode::Apply, cause, trigger.take_events(), control.clone());
            let report = match signals.attend(&control, pass).await {
                Ok(report) => report,
                Err(by) => return by,
            };
            reexec_if_features_are_stale(&node.backend);
            let works = report.failures.is_empty();
            trigger.passed(begun, !works, report.again);
            let took = begun.elapsed();
            let news = node.history.record(&report, cause, at, took);
            let state = node.state();
            let news = news || upstream.as_ref() != Some(&state.upstream);
            upstream = Some(state.upstream.clone());
            // Also without news if the file was removed.
            if news || !state::exists(&node.config.run_dir) {
                node.store_state(&state);
            }
            shared.passed(cause, took, state, node.vips.clone());
            // Last: when the state file shows the pass, the health endpoints show it too.
            let is_first = works && ready != Some(true);
            log_readiness(&mut ready, works);
            if is_first || asked {
                signals.systemd.ready();
            }
            asked = false;
            signals.systemd.status(status(&node, works));
            if cause == Cause::Resync {
                proxy_serve::memory::give_back();
            }
        }
        due = tokio::select! {
            call = signals.call() => match call {
                Call::Stop(by) => return by,
                Call::Resync => {
                    info!("SIGHUP: starting a full resync");
                    signals.systemd.reloading();
                    asked = true;
                    Some(Cause::Resync)
                }
            },
            cause = trigger.wait() => Some(cause),
            () = proxy_change(&node.backend, &mut listeners), if node.backend.follows_proxy() => {
                Some(Cause::Event)
            }
            _ = logs.tick(), if debug => {
                node.backend.forward_logs();
                None
            }
        };
    }
}

/// Waits until the proxy listens on another socket or has connections from which an endpoint is learned. It polls, because
/// the kernel sends no events about listening sockets.
async fn proxy_change(backend: &Backend, listeners: &mut Interval) {
    loop {
        listeners.tick().await;
        if backend.has_proxy_changed() {
            return;
        }
    }
}

fn log_readiness(ready: &mut Option<bool>, works: bool) {
    if *ready == Some(works) {
        return;
    }
    *ready = Some(works);
    if works {
        info!("ready");
    } else {
        warn!("not ready: see the errors above; retrying");
    }
}
