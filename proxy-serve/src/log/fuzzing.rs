// SPDX-License-Identifier: Apache-2.0

//! Any `--vmodule`, and options written as flags, for the fuzz targets.

use super::filter::module_level;
use super::{LogFormat, LogOptions, ModuleLevel, Severity};

/// `--vmodule`, and below it modules as they are called in records.
///
/// An accepted text means the same when it is written out, and matches the modules that another, slower
/// matcher finds. A module has the level of the first entry that matches.
pub fn klog(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    // In any case as well, as klog's severities are.
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

/// Whether a pattern names a module, by trying everything that a `*` may stand for.
fn matches(module: &ModuleLevel, target: &str) -> bool {
    let patterns: Vec<_> = module.pattern.split('/').collect();
    // From the end, as a name of three colons has it.
    let mut modules: Vec<_> = target.rsplit("::").collect();
    modules.reverse();
    let Some(skipped) = modules.len().checked_sub(patterns.len()) else {
        return false;
    };
    let mut pairs = patterns.iter().zip(&modules[skipped..]);
    pairs.all(|(pattern, name)| glob(pattern.as_bytes(), name.as_bytes()))
}

/// By a table of which ends of the pattern match which ends of the text.
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

/// The flags that say these options, as the agent spells them.
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
        // Rounded up, so that the largest size there is comes out again.
        line.push(format!(
            "--log_file_max_size={}",
            file.max_bytes.div_ceil(1024 * 1024)
        ));
    }
    line
}
