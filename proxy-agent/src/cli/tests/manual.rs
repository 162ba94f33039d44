// SPDX-License-Identifier: Apache-2.0

//! The manual page `docs/proxy-agent.8`: made from the command line, so that it cannot say anything else.

use std::io::{self, Write as _};

use clap_mangen::Man;

use super::{command, is_as_recorded};

/// What the command line does not know, before and after what it knows.
const FILES: &str = r".SH FILES
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

/// A part of the page, with its headings one level lower.
fn lower(render: impl Fn(&mut Vec<u8>) -> io::Result<()>) -> io::Result<String> {
    let mut part = Vec::new();
    render(&mut part)?;
    let text = String::from_utf8(part).map_err(io::Error::other)?;
    Ok(text.replace(".SH ", ".SS "))
}

fn page() -> io::Result<String> {
    let mut command = command().term_width(0);
    command.build();
    let man = Man::new(command.clone()).section("8").date("").manual("");
    let mut page = b".\\\" SPDX-License-Identifier: Apache-2.0\n".to_vec();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    writeln!(page, ".SH SUBCOMMANDS")?;
    for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        writeln!(page, ".SS proxy\\-agent {}", subcommand.get_name())?;
        let man = Man::new(subcommand.clone());
        let mut about = lower(|part| man.render_description_section(part))?;
        about.push_str(&lower(|part| man.render_options_section(part))?);
        let headings = [".SS DESCRIPTION\n", ".SS OPTIONS\n"];
        for line in about
            .split_inclusive('\n')
            .filter(|line| !headings.contains(line))
        {
            // Groups of flags need no heading here.
            let line = if line.starts_with(".SS ") {
                ".PP\n"
            } else {
                line
            };
            page.extend(line.as_bytes());
        }
    }
    let mut extra = Vec::new();
    man.render_extra_section(&mut extra)?;
    let extra = String::from_utf8(extra).map_err(io::Error::other)?;
    page.extend(extra.replace(".SH EXTRA", ".SH NOTES").as_bytes());
    page.extend(FILES.as_bytes());
    String::from_utf8(page).map_err(io::Error::other)
}

#[test]
fn the_manual_page_is_as_recorded() {
    is_as_recorded("../docs/proxy-agent.8", &page().unwrap());
}
