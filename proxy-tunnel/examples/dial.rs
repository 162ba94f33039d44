// SPDX-License-Identifier: Apache-2.0

//! Sends an HTTP request through a konnectivity server, either this project's or upstream's, with the client library:
//!
//! ```sh
//! cargo run --release -p proxy-tunnel --example dial -- /tmp/uds-proxy localhost:8000 /success
//! ```
//!
//! The socket is that of a server with `--uds-name`. An agent resolves the target.

use std::path::Path;
use std::process::ExitCode;

use proxy_tunnel::client::{Connection, DialError, Endpoint};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [socket, target, path] = args.as_slice() else {
        eprintln!("usage: dial SOCKET HOST:PORT PATH");
        return ExitCode::from(2);
    };
    match request(Path::new(socket), target, path).await {
        Ok(answer) => {
            print!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the whole response, head and body.
///
/// # Errors
/// Returns an error if the server or the target cannot be reached, or if the response is cut.
pub async fn request(socket: &Path, target: &str, path: &str) -> anyhow::Result<String> {
    // One connection to the server can carry any number of tunnels.
    let connection = Connection::open(&Endpoint::unix(socket), "dial-example").await?;
    let mut tunnel = match connection.dial(target).await {
        Ok(tunnel) => tunnel,
        // There is no agent, or the agent's dial failed. In the second case the text is the agent's, in the wording of
        // Go.
        Err(DialError::Endpoint { text, .. }) => anyhow::bail!("{target}: {text}"),
        Err(other) => return Err(other.into()),
    };
    // From here on the tunnel behaves like a TCP connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {target}\r\n\r\n");
    tunnel.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).await?;
    Ok(answer)
}
