// SPDX-License-Identifier: Apache-2.0

//! The fuzzer with all targets. `FUZZ_TARGET` says which; the arguments are libFuzzer's. Without a
//! target it lists them.

#![no_main]

use std::sync::OnceLock;
use std::{env, process};

use fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(
    init: choose(),
    |data: &[u8]| (TARGET.get().expect("it is chosen first").run)(data)
);

fn choose() {
    let name = env::var("FUZZ_TARGET").unwrap_or_default();
    if let Some(target) = TARGETS.iter().find(|target| target.name == name) {
        TARGET.get_or_init(|| target);
        return;
    }
    for target in TARGETS {
        println!("{:14} {}", target.name, target.about);
    }
    process::exit(i32::from(!name.is_empty()));
}
