// SPDX-License-Identifier: Apache-2.0

//! `docs/reference`: a page of Markdown for each program, and a manual page for each installed one. Both are generated
//! from the command line, so that they cannot differ from it. The existing clap-markdown supports neither environment
//! variables nor tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::Result;
use clap::{Arg, Command};
use clap_mangen::Man;

use crate::programs::{self, Program};

/// The directory of the pages.
pub const DIRECTORY: &str = "docs/reference";

/// Returns the pages by their paths from the top of the checkout.
///
/// # Errors
/// Never returns an error: the pages are written to memory.
pub fn pages() -> Result<BTreeMap<String, String>> {
    let mut pages = BTreeMap::new();
    let all = programs::all();
    for program in &all {
        let path = |extension: &str| format!("{DIRECTORY}/{}.{extension}", program.name);
        pages.insert(path("md"), markdown(program));
        if let Some(notes) = program.manual {
            pages.insert(path("8"), manual(program, notes)?);
        }
    }
    pages.insert(format!("{DIRECTORY}/README.md"), index(&all));
    Ok(pages)
}

const MADE: &str = "Made from the programs' own command lines by `cargo xtask reference`.";

fn index(all: &[Program]) -> String {
    let mut page = format!(
        "# Command lines\n\n{MADE}\nThe manual pages are read with `man ./docs/reference/proxy-agent.8` and are in each \
         release.\n\n| program | manual page | what it does |\n|---|---|---|\n"
    );
    for program in all {
        let name = &program.name;
        let manual = program.manual.map(|_| format!("[{name}(8)]({name}.8)"));
        let about = program.command.get_about().map(ToString::to_string);
        let _ = writeln!(
            page,
            "| [{}]({name}.md) | {} | {} |",
            title(program),
            manual.unwrap_or_default(),
            cell(&about.unwrap_or_default())
        );
    }
    page
}

/// Returns the name as a user types it.
fn title(program: &Program) -> &str {
    program.command.get_bin_name().unwrap_or(&program.name)
}

fn markdown(program: &Program) -> String {
    let title = title(program);
    let mut page = format!("# {title}\n\n{MADE}\n");
    describe(&mut page, &program.command);
    for subcommand in &program.subcommands {
        let _ = write!(page, "\n## {title} {}\n", subcommand.get_name());
        describe(&mut page, subcommand);
    }
    if let Some(notes) = program.command.get_after_help() {
        let _ = write!(page, "\n## Notes\n\n```text\n{notes}\n```\n");
    }
    page
}

/// Writes the description of a command, and tables of its flags by their headings.
fn describe(page: &mut String, command: &Command) {
    let about = command.get_long_about().or_else(|| command.get_about());
    if let Some(about) = about {
        let _ = write!(page, "\n{about}\n");
    }
    let mut headings: Vec<&str> = Vec::new();
    for arg in shown(command) {
        let heading = arg.get_help_heading().unwrap_or_default();
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    let has_variables = shown(command).any(|arg| arg.get_env().is_some());
    for heading in headings {
        if heading.is_empty() {
            page.push('\n');
        } else {
            let _ = write!(page, "\n### {heading}\n\n");
        }
        page.push_str(if has_variables {
            "| flag | default | variable | meaning |\n|---|---|---|---|\n"
        } else {
            "| flag | default | meaning |\n|---|---|---|\n"
        });
        for arg in
            shown(command).filter(|arg| arg.get_help_heading().unwrap_or_default() == heading)
        {
            let variable = has_variables.then(|| {
                let variable = arg.get_env().map(|name| format!("`{}`", name.display()));
                format!(" {} |", variable.unwrap_or_default())
            });
            let _ = writeln!(
                page,
                "| {} | {} |{} {} |",
                flag(arg),
                default(arg),
                variable.unwrap_or_default(),
                meaning(arg)
            );
        }
    }
}

/// Returns the arguments that belong to the reference.
fn shown(command: &Command) -> impl Iterator<Item = &Arg> {
    let arguments = command.get_arguments();
    arguments
        .filter(|arg| !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version")
}

fn flag(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap_or_default();
    let takes = arg.get_action().takes_values();
    let value = if takes {
        values.join(" ")
    } else {
        String::new()
    };
    let Some(long) = arg.get_long() else {
        let short = arg.get_short().map(|short| format!("`-{short} {value}`"));
        return short.unwrap_or_else(|| format!("`{value}`"));
    };
    let value = match (value.is_empty(), arg.is_require_equals_set()) {
        (true, _) => String::new(),
        (false, true) => format!("[={value}]"),
        (false, false) => format!("={value}"),
    };
    let short = arg.get_short().map(|short| format!("`-{short}`, "));
    format!("{}`--{long}{value}`", short.unwrap_or_default())
}

fn default(arg: &Arg) -> String {
    let values = arg.get_default_values().iter();
    let values: Vec<String> = values
        .filter(|value| !value.is_empty())
        .map(|value| format!("`{}`", cell(&value.to_string_lossy())))
        .collect();
    if arg.is_required_set() && values.is_empty() {
        return "required".to_owned();
    }
    if arg.get_action().takes_values() {
        values.join(", ")
    } else {
        String::new()
    }
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help());
    let mut text = cell(&help.map(ToString::to_string).unwrap_or_default());
    let values = arg.get_possible_values();
    if !values.is_empty() && arg.get_action().takes_values() {
        let one = |value: &clap::builder::PossibleValue| {
            let name = value.get_name();
            let help = value
                .get_help()
                .map(|help| format!(": {}", cell(&help.to_string())));
            format!("`{name}`{}", help.unwrap_or_default())
        };
        let shown = values.iter().filter(|value| !value.is_hide_set());
        let _ = write!(
            text,
            "<br>{}",
            shown.map(one).collect::<Vec<_>>().join("<br>")
        );
    }
    text
}

/// Escapes a text for a table.
fn cell(text: &str) -> String {
    let text = text.replace('|', "\\|").replace('<', "&lt;");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns a part of the manual page, with its headings one level lower.
fn lower(render: impl Fn(&mut Vec<u8>) -> io::Result<()>) -> io::Result<String> {
    let mut part = Vec::new();
    render(&mut part)?;
    let text = String::from_utf8(part).map_err(io::Error::other)?;
    Ok(text.replace(".SH ", ".SS "))
}

fn manual(program: &Program, notes: &str) -> io::Result<String> {
    let command = program.command.clone().term_width(0);
    let name = program.name.replace('-', "\\-");
    let man = Man::new(command).section("8").date("").manual("");
    let mut page = b".\\\" SPDX-License-Identifier: Apache-2.0\n".to_vec();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if !program.subcommands.is_empty() {
        writeln!(page, ".SH SUBCOMMANDS")?;
    }
    for subcommand in &program.subcommands {
        writeln!(page, ".SS {name} {}", subcommand.get_name())?;
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
    page.extend(notes.as_bytes());
    String::from_utf8(page).map_err(io::Error::other)
}
