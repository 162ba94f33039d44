// SPDX-License-Identifier: Apache-2.0

//! Tests with one fault per file, and the findings for it. The faults are assembled at run time,
//! because `tidy` reads this file too.

use super::*;

const HEADER: &str = "// SPDX-License-Identifier: Apache-2.0\n\n//! A module.\n";

fn said(path: &str, text: &str) -> Vec<String> {
    findings(path, text)
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// Returns the findings for a Rust file with this as its fifth line.
fn in_rust(line: &str) -> Vec<String> {
    said("a.rs", &format!("{HEADER}\n{line}\n"))
}

#[test]
fn a_good_file_is_fine() {
    assert_eq!(in_rust("fn main() {}"), [""; 0]);
    assert_eq!(
        said("run", "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n"),
        [""; 0]
    );
    assert_eq!(said("README.md", "# Title\n"), [""; 0]);
    assert_eq!(said("py.typed", ""), [""; 0]);
}

#[test]
fn sources_and_scripts_name_their_licence() {
    assert_eq!(
        said("a.rs", "//! A module.\n"),
        ["a.rs: no `SPDX-License-Identifier: Apache-2.0` in the first 5 lines"]
    );
    assert_eq!(
        said(".ci/run", "#!/bin/sh\n").len(),
        1,
        "a script is known by its first line"
    );
    assert_eq!(said("a.sh", "true\n").len(), 1);
}

#[test]
fn modules_say_what_lives_in_them() {
    let spdx = "// SPDX-License-Identifier: Apache-2.0\n";
    assert_eq!(said("a.rs", &format!("{spdx}\nfn main() {{}}\n")).len(), 1);
    assert_eq!(said("a.rs", spdx).len(), 1);
    assert_eq!(
        said("a.rs", &format!("{spdx}#![no_std]\n\n//! A module.\n")),
        [""; 0]
    );
}

#[test]
fn long_files_are_noted_and_longer_ones_refused() {
    let file = |lines: usize| HEADER.to_owned() + &"//\n".repeat(lines - 3);
    assert_eq!(note("a.rs", &file(400)), None);
    assert_eq!(
        note("a.rs", &file(401)).unwrap().to_string(),
        "a.rs: 401 lines, more than 400"
    );
    assert_eq!(said("a.rs", &file(600)), [""; 0]);
    assert!(said("a.rs", &file(601))[0].starts_with("a.rs: 601 lines, at most 600"));
    assert_eq!(note("a.rs", &file(601)), None, "a fault needs no note");
    assert_eq!(said("Cargo.lock", &file(601)), [""; 0], "nobody wrote it");
}

#[test]
fn leftovers_are_found() {
    for (leftover, _) in LEFTOVERS {
        let said = in_rust(&format!("    {leftover}"));
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].starts_with(&format!("a.rs:5: `{leftover}`")),
            "{said:?}"
        );
    }
    for word in UNFINISHED {
        assert_eq!(in_rust(&format!("// {word}: later")).len(), 1);
        assert_eq!(in_rust(&format!("// {word}{word} and A{word}")), [""; 0]);
    }
}

#[test]
fn white_space_is_looked_at_where_people_write() {
    assert_eq!(
        in_rust("fn a() {} "),
        ["a.rs:5: white space at the end of the line"]
    );
    assert_eq!(said("a.toml", "a = 1\r\n").len(), 1);
    assert_eq!(in_rust("\tfn a() {}").len(), 1);
    assert_eq!(said("a.md", "text"), ["a.md: no newline at the end"]);
    assert_eq!(said("golden/rules.txt", "-A INPUT \n\tx"), [""; 0]);
}

#[test]
fn machines_and_networks_are_not_named() {
    for directory in PRIVATE {
        assert_eq!(in_rust(&format!("// see {directory}notes")).len(), 1);
        assert_eq!(said("a.txt", &format!("\"{directory}x\"\n")).len(), 1);
        assert_eq!(
            in_rust(&format!(
                "// https://example.org{directory}x and a{directory}b"
            )),
            [""; 0]
        );
    }
    for host in INTERNAL
        .iter()
        .map(|end| format!("packages{end}"))
        .chain(MIRRORS.iter().map(|label| format!("{label}.example.org")))
    {
        let said = said("a.toml", &format!("index = \"https://{host}:8443/x\"\n"));
        assert_eq!(
            said,
            [format!(
                "a.toml:1: the host `{host}` means nothing outside one network"
            )]
        );
    }
    assert_eq!(
        in_rust("// https://kubernetes.default.svc.cluster.local/"),
        [""; 0]
    );
}

#[test]
fn crates_come_from_the_public_registry() {
    assert_eq!(
        said("Cargo.lock", &format!("source = \"{REGISTRY}\"\n")),
        [""; 0]
    );
    assert_eq!(
        said(
            "Cargo.lock",
            "source = \"registry+https://example.org/index\"\n"
        )
        .len(),
        1
    );
}
