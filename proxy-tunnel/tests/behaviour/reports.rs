// SPDX-License-Identifier: Apache-2.0

//! The tests that docs/tunnel.md names for reports about upstream exist.

use std::fs;
use std::path::Path;

/// The number of reports in the table.
const REPORTS: usize = 18;

/// The directory of tests that are named without a path.
const BEHAVIOUR: &str = "proxy-tunnel/tests/behaviour";

#[test]
fn every_report_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = fs::read_to_string(root.join("docs/tunnel.md")).unwrap();
    let (_, table) = document
        .split_once("| report | what must hold | test |\n")
        .unwrap();
    let rows = table.lines().skip(1).take_while(|line| !line.is_empty());
    let mut count = 0;
    for row in rows {
        let [_, report, _, tests, _] = row.split('|').collect::<Vec<_>>()[..] else {
            panic!("another number of columns: {row}");
        };
        let mut names = tests.split('`').skip(1).step_by(2).peekable();
        assert!(names.peek().is_some(), "no test for{report}");
        for name in names {
            let (file, test) = name.split_once("::").unwrap();
            let path = if file.contains('/') {
                root.join(file)
            } else {
                root.join(BEHAVIOUR).join(format!("{file}.rs"))
            };
            let source = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let (before, _) = source
                .split_once(&format!("fn {test}()"))
                .unwrap_or_else(|| panic!("there is no {name}"));
            let attributes = before.rsplit("\n\n").next().unwrap();
            assert!(
                attributes.contains("#[test]") || attributes.contains("#[tokio::test"),
                "{name} is no test"
            );
        }
        count += 1;
    }
    assert_eq!(count, REPORTS);
}
