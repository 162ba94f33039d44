// SPDX-License-Identifier: Apache-2.0

//! The spelling of klog's flags, compatible with the sidecar.

use proxy_serve::klog::{Separator, Spelling, Style};

/// With underscores, as in klog; hyphens are accepted as well.
#[derive(Debug, Clone)]
pub struct Underscores;

impl Style for Underscores {
    const SPELLING: Spelling = Spelling {
        program: "proxy-agent",
        separator: Separator::Underscore,
        env_prefix: Some("PROXY_AGENT_"),
        verbosity: 0,
        verbosity_help: "Log level: 4 adds debug records, 6 trace records and those of the eBPF programs",
        modules_help: "Levels of modules, for example link=4,backend/*=6,ebpf=4",
        newer_flags: false,
        quoted: false,
    };
}
