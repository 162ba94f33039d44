// SPDX-License-Identifier: Apache-2.0

//! The agent as a daemon: passes as they become due, until a signal ends it.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::signals::{Call, Signals};
use super::{Node, exit_code, interest, start_again_if_misjudged};
use crate::backend::select::Backend;
use crate::cleanup::{self, Scope};
use crate::config::Config;
use crate::kernel::capabilities::Capability;
use crate::kernel::memory;
use crate::kernel::monitor::Monitor;
use crate::kernel::privileges;
use crate::lock::Lock;
use crate::reconcile::trigger::{Cause, Trigger};
use crate::reconcile::{Control, Mode, Report};
use crate::state;
use crate::state::owned::Owned;
use crate::telemetry::board::Board;
use crate::telemetry::http;

/// How often debug lines of the eBPF programs are fetched.
const LOG_INTERVAL: Duration = Duration::from_millis(200);
/// How often it is looked whether the proxy listens from another cgroup, or has connections to new endpoints: for what follows
/// within a second.
const LISTENER_INTERVAL: Duration = Duration::from_millis(900);
/// How often a long clean-up tells that it goes on.
const PROGRESS: Duration = Duration::from_secs(3);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
///
/// If it cannot start.
pub async fn run(config: Config, lock: Lock) -> Result<ExitCode> {
    // First of all: as the first process of a container it would not even end otherwise.
    let mut signals = Signals::listen()?;
    let (mut scope, cleanup) = (Scope::from(&config), config.cleanup);
    // Before the first look, so that nothing that happens after it is missed.
    let monitor = Monitor::open(interest(&config)).context("cannot listen to kernel events")?;
    let board = Board::new(&config);
    let opened = signals
        .attend(&Control::default(), Node::start(config, Mode::Apply))
        .await;
    let by = match opened {
        Ok(node) => {
            let node = node?;
            // Before there are threads: each has capabilities of its own.
            restrict();
            http::start(&node.config, &board);
            keep(node, monitor, &mut signals, &board).await
        }
        Err(by) => by,
    };
    info!("{by}: stopping");
    board.stopping();
    signals.systemd.stopping();
    if !cleanup {
        info!("the VIP and the data plane stay in place; --cleanup would remove them");
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
                "{by} again: ending in the middle of it; `proxy-agent cleanup` removes the rest"
            );
            Ok(exit_code(false))
        }
    }
}

/// Gives up what is not needed any more, before the first change.
fn restrict() {
    // Programs may come to be loaded later, and raising the limit takes one of the capabilities.
    memory::allow_locking();
    match privileges::restrict() {
        Ok(kept) => {
            let names: Vec<_> = kept.into_iter().map(Capability::name).collect();
            info!("capabilities kept: {}", names.join(", "));
        }
        Err(error) => warn!("capabilities that are not needed are kept: {error}"),
    }
}

/// Keeps the node as desired until a signal to end, whose name is returned.
async fn keep(
    mut node: Node,
    monitor: Monitor,
    signals: &mut Signals,
    board: &Board,
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
            board.working();
            let control = Control::watched(board.pulse());
            let pass = node.pass(Mode::Apply, cause, trigger.told(), control.clone());
            let report = match signals.attend(&control, pass).await {
                Ok(report) => report,
                Err(by) => return by,
            };
            start_again_if_misjudged(&node.backend);
            let works = report.failures.is_empty();
            trigger.passed(begun, !works, report.again);
            let took = begun.elapsed();
            let news = node.history.record(&report, cause, at, took);
            let state = node.state();
            let news = news || upstream.as_ref() != Some(&state.upstream);
            upstream = Some(state.upstream.clone());
            // Without news too if somebody has removed it.
            if news || !state::exists(&node.config.run_dir) {
                node.tell_state(&state);
            }
            board.passed(cause, took, state, node.vips.clone());
            // Last: whoever waits for it finds the state, and health endpoints that say the same.
            let is_first = works && ready != Some(true);
            tell_readiness(&mut ready, works);
            if is_first || asked {
                signals.systemd.ready();
            }
            asked = false;
            signals.systemd.status(node.status(works));
            if cause == Cause::Resync {
                proxy_serve::memory::give_back();
            }
        }
        due = tokio::select! {
            call = signals.call() => match call {
                Call::Stop(by) => return by,
                Call::Resync => {
                    info!("SIGHUP: looking at everything again");
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

/// Waits until the proxy listens by another socket, or has connections from which an endpoint is learned: the kernel
/// sends no events about sockets that listen.
async fn proxy_change(backend: &Backend, listeners: &mut Interval) {
    loop {
        listeners.tick().await;
        if backend.has_proxy_changed() {
            return;
        }
    }
}

fn tell_readiness(ready: &mut Option<bool>, works: bool) {
    if *ready == Some(works) {
        return;
    }
    *ready = Some(works);
    if works {
        info!("ready");
    } else {
        warn!("not ready: see the errors above; trying again");
    }
}
