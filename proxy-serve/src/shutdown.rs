// SPDX-License-Identifier: Apache-2.0

//! The shutdown of a process: its phases, which tasks watch, and the signals that start them. The program decides how
//! long each phase may take; [`Slots::drained`](crate::listen::accept::Slots::drained) limits the last one.

/// The phase of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The process serves.
    Serving,
    /// The process still serves, but reports that it is not ready, so that clients choose another server.
    Leaving,
    /// The process closes open connections and accepts no new ones.
    Draining,
}

#[cfg(feature = "signal")]
pub use signals::Signals;

#[cfg(feature = "signal")]
mod signals {
    use std::io;

    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// The signals that shut down a process.
    #[derive(Debug)]
    pub struct Signals {
        terminate: Signal,
        interrupt: Signal,
    }

    impl Signals {
        /// Registers for the signals, which from now on no longer kill the process. Must be called within a runtime.
        ///
        /// # Errors
        /// Returns an error if the runtime cannot wait for signals.
        pub fn new() -> io::Result<Self> {
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        }

        /// Waits for the next signal and returns its name.
        pub async fn next(&mut self) -> &'static str {
            tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            }
        }
    }
}
