// SPDX-License-Identifier: Apache-2.0

//! The fuzzer with all targets. `FUZZ_TARGET` says which; the arguments are libFuzzer's. Without a
//! target it lists them.

#![no_main]

use std::backtrace::Backtrace;
use std::sync::OnceLock;
use std::{env, panic, process};

use fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(
    init: choose(),
    |data: &[u8]| run(data)
);

fn run(data: &[u8]) {
    let target = TARGET.get().expect("it is chosen first");
    let fails = || panic::catch_unwind(|| (target.run)(data)).is_err();
    if fails() {
        // Runs the input once more to report the place: where each of many panics that are caught
        // came from takes too long to find.
        panic::set_hook(Box::new(|panicked| {
            eprintln!("{panicked}\n{}", Backtrace::force_capture());
        }));
        fails();
        process::abort();
    }
}

fn choose() {
    let name = env::var("FUZZ_TARGET").unwrap_or_default();
    if let Some(target) = TARGETS.iter().find(|target| target.name == name) {
        TARGET.get_or_init(|| target);
        // libFuzzer's own ends the process at every panic, also at one that is caught.
        panic::set_hook(Box::new(|_| ()));
        return;
    }
    let width = TARGETS.iter().map(|target| target.name.len()).max();
    for target in TARGETS {
        println!("{:1$} {2}", target.name, width.unwrap_or(0), target.about);
    }
    process::exit(i32::from(!name.is_empty()));
}
