// SPDX-License-Identifier: Apache-2.0

//! Removes network namespaces, mounts and directories of test and demo runs that were killed.

fn main() {
    let runs = tests::leftovers::remove();
    if runs > 0 {
        println!("removed the leftovers of {runs} killed runs");
    }
}
