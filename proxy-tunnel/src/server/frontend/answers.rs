// SPDX-License-Identifier: Apache-2.0

//! The responses to HTTP CONNECT requests, byte for byte as upstream writes them: programs parse the status line, and
//! people read the body.

/// Returns the response if no agent can be chosen.
#[must_use]
pub fn no_agent(why: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n\r\n\
         currently no tunnels available: {why}"
    )
    .into_bytes()
}

/// Returns the response to a dial that failed at the agent.
#[must_use]
pub fn dial_error(text: &str) -> Vec<u8> {
    let lower = text.to_ascii_lowercase();
    let status = if lower.contains("timeout") || lower.contains("deadline exceeded") {
        "504 Gateway Timeout"
    } else if lower.contains("too many open files") {
        "503 Service Unavailable"
    } else {
        "502 Bad Gateway"
    };
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}"
    )
    .into_bytes()
}

/// Returns the response if the agent does not answer the dial in time.
#[must_use]
pub fn dial_timeout(text: &str) -> Vec<u8> {
    plain(
        "504 Gateway Timeout",
        &format!("Backend dial timeout: {text}"),
    )
}

/// Returns the response if the dial cannot be sent to the agent.
#[must_use]
pub fn not_sent(text: &str) -> Vec<u8> {
    plain(
        "502 Bad Gateway",
        &format!("Failed to tunnel dial request: {text}"),
    )
}

/// Returns the response if a limit of the client's tenant is reached.
#[must_use]
pub fn limited(text: &str) -> Vec<u8> {
    plain("503 Service Unavailable", text)
}

/// Returns the response to a client that belongs to no tenant.
#[must_use]
pub fn forbidden(text: &str) -> Vec<u8> {
    plain("403 Forbidden", text)
}

/// Returns the response if the agent's stream ends before the agent answers.
#[must_use]
pub fn pending_lost(text: &str) -> Vec<u8> {
    plain("502 Bad Gateway", text)
}

fn plain(status: &str, text: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::super::backend::PENDING_LOST;
    use super::super::super::backend::tunnel::DIAL_TIMEOUT;
    use super::super::super::strategies::NO_AGENT;
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    /// Checks the response to each error, byte by byte, as upstream's server 0.36.0 sends it.
    #[test]
    fn answers_to_dials_are_upstreams_bytes() {
        assert_eq!(
            text(no_agent(NO_AGENT)),
            "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n\r\n\
             currently no tunnels available: No agent available"
        );
        let head = "Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n";
        for (error, status) in [
            ("dial tcp a: connect: connection refused", "502 Bad Gateway"),
            ("dial tcp a: i/o Timeout", "504 Gateway Timeout"),
            ("context Deadline Exceeded", "504 Gateway Timeout"),
            ("socket: too many open files", "503 Service Unavailable"),
        ] {
            let want = format!("HTTP/1.1 {status}\r\n{head}{error}");
            assert_eq!(text(dial_error(error)), want);
        }
        let head = "Content-Type: text/plain; charset=utf-8\r\n\r\n";
        assert_eq!(
            text(dial_timeout(DIAL_TIMEOUT)),
            format!(
                "HTTP/1.1 504 Gateway Timeout\r\n{head}\
                 Backend dial timeout: timed out waiting for backend dial\r\n"
            )
        );
        assert_eq!(
            text(pending_lost(PENDING_LOST)),
            format!(
                "HTTP/1.1 502 Bad Gateway\r\n{head}Backend context error: context canceled\r\n"
            )
        );
        assert_eq!(
            text(not_sent("x")),
            format!("HTTP/1.1 502 Bad Gateway\r\n{head}Failed to tunnel dial request: x\r\n")
        );
    }
}
