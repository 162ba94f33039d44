// SPDX-License-Identifier: Apache-2.0

//! One HTTP connection of a server that has many: it is run until it ends by itself, is overdue, or the process
//! drains. Requests and their answers are the program's business.

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
    /// From the first byte of an HTTP/1 head to its last.
    pub head: Duration,
    /// Without a request.
    pub idle: Duration,
    /// To end in good order once it is to end, before it is cut.
    pub farewell: Duration,
}

/// The next event of a connection.
enum Event<E> {
    Ended(Result<(), E>),
    Drain,
    Alarm,
}

/// Runs a connection until it ends by itself, is overdue, or the process drains. An HTTP/1 connection must
/// read through [`Watched`], and its service mark requests by [`Activity::request`].
///
/// # Errors
/// The reason why it ended early, for the log.
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
    // Moved forward only, not with each request: when it fires, the deadline is looked at again.
    let mut alarm = pin!(sleep_until(activity.deadline().0));
    let mut leaving = false;
    loop {
        let progress = poll_fn(|context| {
            if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                return Poll::Ready(Event::Ended(ended));
            }
            // A head has begun: there is less time for it than for an idle connection.
            let (deadline, _) = activity.deadline();
            if !leaving && deadline < alarm.deadline() {
                alarm.as_mut().reset(deadline);
            }
            alarm.as_mut().poll(context).map(|()| Event::Alarm)
        });
        let event = tokio::select! {
            // First, so that an answer that is sent from now on says that it is the last one.
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
