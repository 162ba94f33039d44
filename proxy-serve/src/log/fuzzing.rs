// SPDX-License-Identifier: Apache-2.0

//! Fuzz targets for `--vmodule`, and the conversion of log options to flags.

use super::filter::module_level;
use super::{LogFormat, LogOptions, ModuleLevel, Severity};

/// Parses a `--vmodule` value and, in the following lines, names of modules as they appear in records.
///
/// An accepted text must have the same meaning after it is formatted and parsed again, and must match the modules that
/// a slower matcher finds. A module has the level of the first entry that matches.
pub fn klog(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    // A severity must also be accepted in lower case, since klog ignores case.
    if let Ok(severity) = first.parse::<Severity>() {
        assert_eq!(first.to_lowercase().parse(), Ok(severity));
    }
    let entries = first.split(',').filter(|entry| !entry.trim().is_empty());
    let Ok(modules) = entries
        .map(str::parse)
        .collect::<Result<Vec<ModuleLevel>, _>>()
    else {
        return;
    };
    for module in &modules {
        let written = entry(module);
        assert_eq!(written.parse(), Ok(module.clone()), "{written}");
        assert!(module.level >= 0);
    }
    let options = LogOptions {
        modules,
        ..LogOptions::default()
    };
    for target in lines.chain(["proxy_agent::link::apply", "ebpf"]).take(8) {
        let found = options
            .modules
            .iter()
            .find(|module| matches(module, target));
        let expected = found.map_or(0, |module| module.level);
        assert_eq!(module_level(&options.modules, target), expected, "{target}");
    }
    let _ = options.is_debugging("ebpf");
}

/// Returns true if a pattern matches a module, by trying all texts that a `*` may match.
fn matches(module: &ModuleLevel, target: &str) -> bool {
    let patterns: Vec<_> = module.pattern.split('/').collect();
    // The modules are aligned at the end. They are taken from the end, as in the matcher, because a name may contain
    // three colons in a row.
    let mut modules: Vec<_> = target.rsplit("::").collect();
    modules.reverse();
    let Some(skipped) = modules.len().checked_sub(patterns.len()) else {
        return false;
    };
    let mut pairs = patterns.iter().zip(&modules[skipped..]);
    pairs.all(|(pattern, name)| glob(pattern.as_bytes(), name.as_bytes()))
}

/// Matches with a table that records which suffixes of the pattern match which suffixes of the text.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let mut ends = vec![false; text.len() + 1];
    ends[text.len()] = true;
    for byte in pattern.iter().rev() {
        let mut longer = vec![false; text.len() + 1];
        for at in (0..=text.len()).rev() {
            longer[at] = match byte {
                b'*' => ends[at] || (at < text.len() && longer[at + 1]),
                byte => at < text.len() && (*byte == b'?' || *byte == text[at]) && ends[at + 1],
            };
        }
        ends = longer;
    }
    ends[0]
}

fn entry(module: &ModuleLevel) -> String {
    format!("{}={}", module.pattern, module.level)
}

/// Returns the flags that represent these options, in the agent's spelling.
pub fn written(options: &LogOptions) -> Vec<String> {
    let modules: Vec<_> = options.modules.iter().map(entry).collect();
    let format = match options.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
        LogFormat::Klog => "klog",
    };
    let threshold = match options.stderr_threshold {
        Severity::Info => "INFO",
        Severity::Warning => "WARNING",
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    let mut line = vec![
        format!("--log-format={format}"),
        format!("--v={}", options.verbosity),
        format!("--vmodule={}", modules.join(",")),
        format!("--stderrthreshold={threshold}"),
        format!("--skip_headers={}", !options.headers),
        format!("--add_dir_header={}", options.source),
    ];
    if let Some(file) = &options.file {
        line.push("--logtostderr=false".to_owned());
        line.push(format!("--log_file={}", file.path.display()));
        // The size is rounded up, so that the largest possible size is preserved.
        line.push(format!(
            "--log_file_max_size={}",
            file.max_bytes.div_ceil(1024 * 1024)
        ));
    }
    line
}
