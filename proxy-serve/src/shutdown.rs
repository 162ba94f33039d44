// SPDX-License-Identifier: Apache-2.0

//! The end of a process: its phases, which tasks watch, and the signals that begin them. How long each phase
//! may take is the program's business; [`Slots::drained`](crate::listen::accept::Slots::drained) bounds the last.

/// The phase of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    Serving,
    /// It serves, and reports that it is not ready, so that clients go elsewhere.
    Leaving,
    /// It ends open connections and accepts no new ones.
    Draining,
}

#[cfg(feature = "signal")]
pub use signals::Signals;

#[cfg(feature = "signal")]
mod signals {
    use std::io;

    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// The signals that end a process.
    #[derive(Debug)]
    pub struct Signals {
        terminate: Signal,
        interrupt: Signal,
    }

    impl Signals {
        /// From now on these signals do not kill the process. Call it within a runtime.
        ///
        /// # Errors
        /// The runtime cannot wait for signals.
        pub fn new() -> io::Result<Self> {
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        }

        /// Waits for the next one; gives its name.
        pub async fn next(&mut self) -> &'static str {
            tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            }
        }
    }
}
