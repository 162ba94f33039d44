// SPDX-License-Identifier: Apache-2.0

//! Drives one HTTP connection of a server that has many, until it ends by itself, exceeds a time limit, or the process
//! drains. The program handles the requests and responses.

mod activity;

use std::fmt::Display;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use hyper_util::server::graceful::GracefulConnection;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

pub use self::activity::{Activity, Busy, Overdue, Watched};
use crate::shutdown::Phase;

/// Time limits of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The time from the first byte of an HTTP/1 head to its last.
    pub head: Duration,
    /// The time without a request.
    pub idle: Duration,
    /// The time for a graceful end, after which the connection is cut.
    pub farewell: Duration,
}

/// The next event of a connection.
enum Event<E> {
    Ended(Result<(), E>),
    Drain,
    Alarm,
}

/// Drives a connection until it ends by itself, exceeds a time limit, or the process drains. An HTTP/1 connection must
/// read through [`Watched`], and its service must mark requests with [`Activity::request`].
///
/// # Errors
/// Returns the reason for the log if the connection ended early.
pub async fn drive<C>(
    connection: C,
    activity: &Activity,
    mut phase: watch::Receiver<Phase>,
) -> Result<(), String>
where
    C: GracefulConnection,
    C::Error: Display,
{
    let mut connection = pin!(connection);
    // The alarm is not postponed with each request. Instead the deadline is computed again when the alarm fires.
    let mut alarm = pin!(sleep_until(activity.deadline().0));
    let mut leaving = false;
    loop {
        let progress = poll_fn(|context| {
            if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                return Poll::Ready(Event::Ended(ended));
            }
            // A head has begun, and its time limit is shorter than that of an idle connection.
            let (deadline, _) = activity.deadline();
            if !leaving && deadline < alarm.deadline() {
                alarm.as_mut().reset(deadline);
            }
            alarm.as_mut().poll(context).map(|()| Event::Alarm)
        });
        let event = tokio::select! {
            // The phase is checked first, so that a response that is sent from now on announces that it is the last
            // one.
            biased;
            _ = phase.wait_for(|phase| *phase == Phase::Draining), if !leaving => Event::Drain,
            event = progress => event,
        };
        match event {
            Event::Ended(ended) => return ended.map_err(|error| error.to_string()),
            Event::Drain => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            Event::Alarm => {
                let (deadline, overdue) = activity.deadline();
                if deadline > Instant::now() {
                    alarm.as_mut().reset(deadline);
                } else if leaving || overdue == Overdue::Head {
                    return Err(format!("cut: {overdue:?} for too long"));
                } else {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                    alarm
                        .as_mut()
                        .reset(Instant::now() + activity.limits().farewell);
                }
            }
        }
    }
}
