// SPDX-License-Identifier: Apache-2.0

//! A server's rejection of the agent, as an error with its causes.

use std::error::Error;
use std::fmt::{self, Display};

use tonic::Status;

/// A status as an error: its message, without the code, and its causes. With TLS 1.3 a server refuses the agent's
/// certificate after the agent's part of the handshake, so one of the causes may be the alert.
#[derive(Debug)]
pub struct Answer(Box<Status>);

impl Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.message())
    }
}

impl Error for Answer {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let source = self.0.source()?;
        // A status that was made of an error has the error's text, and the error as its source.
        if source.to_string() == self.0.message() {
            source.source()
        } else {
            Some(source)
        }
    }
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self(Box::new(status))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::connector::ConnectError;
    use super::*;

    #[test]
    fn a_refusal_is_told_with_its_causes_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("connection error")]
        struct Ended(#[source] io::Error);
        let alert = Ended(io::Error::other("received fatal alert: CertificateExpired"));
        for (status, text) in [
            (
                Status::from_error(alert.into()),
                "a:1 refuses this agent: connection error: received fatal alert: CertificateExpired",
            ),
            (
                Status::permission_denied("no token"),
                "a:1 refuses this agent: no token",
            ),
        ] {
            let error = ConnectError::Denied {
                server: "a:1".into(),
                source: status.into(),
            };
            assert_eq!(format!("{:#}", anyhow::Error::new(error)), text);
        }
    }
}
