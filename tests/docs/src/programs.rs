// SPDX-License-Identifier: Apache-2.0

//! The programs of this repository with their command lines, as clap defines them.

use clap::{Arg, Command};
use proxy_tunnel::app::{self, agent, doctor, server, sidecar};
use proxy_tunnel::app::{test_client, test_server};

/// A program with its command line.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program's name, which is also that of its pages.
    pub name: String,
    /// The program's command line.
    pub command: Command,
    /// Its subcommands, with their own flags.
    pub subcommands: Vec<Command>,
    /// The whole command line of the tunnel's `doctor`, which clap does not know as a subcommand.
    pub doctor: Option<Command>,
    /// The part of the manual page that is not in the command line, in roff; `None` if the program
    /// has no manual page.
    pub manual: Option<&'static str>,
}

const AGENT: &str = r".SH FILES
.TP
\fI/run/proxy\-agent\fR
Lock and state, see \fB\-\-run\-dir\fR.
.TP
\fI/sys/fs/bpf/proxy\-agent/v2\fR
Pinned programs, links and maps of the ebpf backend, see \fB\-\-bpffs\fR. They outlive the agent.
.SH SIGNALS
.TP
SIGHUP
Everything is looked at at once.
.TP
SIGTERM, SIGINT
The agent ends within two seconds. VIP and data plane stay, unless \fB\-\-cleanup\fR is given.
.SH SEE ALSO
.BR nft (8),
.BR tc (8),
.BR bpf (2),
.BR conntrack (8)
";

const WEBHOOK: &str = r".SH SIGNALS
.TP
SIGTERM, SIGINT
It goes on serving for \fB\-\-shutdown\-delay\-seconds\fR, finishes what has begun, and ends.
.SH SEE ALSO
.BR proxy\-agent (8)
";

const SERVER: &str = r".SH ENVIRONMENT
.TP
PROXY_SERVER_ID
The server's name, if \fB\-\-server\-id\fR is empty.
.SH SIGNALS
.TP
SIGTERM, SIGINT
Connections may go on for \fB\-\-graceful\-shutdown\-timeout\fR; then, or at a second signal, they are cut and the server ends.
.SH SEE ALSO
.BR konnectivity\-agent (8),
.BR konnectivity\-sidecar (8)
";

const TUNNEL_AGENT: &str = r".SH ENVIRONMENT
.TP
PROXY_AGENT_ID
The agent's name, if \fB\-\-agent\-id\fR is empty.
.SH SIGNALS
.TP
SIGTERM, SIGINT
Servers choose other agents from now on, and open connections go on. A second signal ends the agent.
.SH SEE ALSO
.BR konnectivity\-server (8)
";

const SIDECAR: &str = r".SH SIGNALS
.TP
SIGTERM, SIGINT
No new connections are accepted; open ones have five seconds to end.
.SH SEE ALSO
.BR konnectivity\-server (8)
";

/// Returns all programs.
#[must_use]
pub fn all() -> Vec<Program> {
    let mut xtask = xtask::command();
    xtask.build();
    vec![
        program("proxy-agent", proxy_agent::command(), Some(AGENT)),
        program(
            "apiserver-proxy-pod-webhook",
            proxy_webhook::command(),
            Some(WEBHOOK),
        ),
        examined::<server::Args>(SERVER),
        examined::<agent::Args>(TUNNEL_AGENT),
        tunnel::<sidecar::Args>(Some(SIDECAR)),
        tunnel::<test_client::Args>(None),
        tunnel::<test_server::Args>(None),
        program("cargo-xtask", xtask, None),
    ]
}

fn program(name: &str, mut command: Command, manual: Option<&'static str>) -> Program {
    command.build();
    let subcommands = command.get_subcommands();
    let subcommands = subcommands.filter(|one| !one.is_hide_set() && one.get_name() != "help");
    Program {
        name: name.to_owned(),
        subcommands: subcommands.cloned().collect(),
        command,
        doctor: None,
        manual,
    }
}

fn tunnel<P: app::Program>(manual: Option<&'static str>) -> Program {
    program(P::NAME, app::command::<P>(), manual)
}

/// Returns a program of the tunnel with its doctor, which has the program's flags and its own.
fn examined<P: app::Program>(manual: &'static str) -> Program {
    let mut program = tunnel::<P>(Some(manual));
    let doctor = doctor::command::<P>();
    let is_own = |arg: &&Arg| {
        program
            .command
            .get_arguments()
            .all(|other| other.get_id() != arg.get_id())
    };
    let mut own = Command::new("doctor");
    if let Some(about) = doctor.get_about() {
        own = own.about(about.clone());
    }
    own = own.args(doctor.get_arguments().filter(is_own).cloned());
    own = own.disable_help_flag(true);
    own.build();
    program.subcommands.push(own);
    program.doctor = Some(doctor);
    program
}
