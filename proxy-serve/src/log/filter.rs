// SPDX-License-Identifier: Apache-2.0

//! Selects the records that are written, by klog's rules: one verbosity for all modules (`-v`), and higher ones for
//! single modules (`--vmodule`).

use std::str::FromStr;

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::{DEBUG_LEVEL, Severity, TRACE_LEVEL};

/// klog's verbosity for the modules that a pattern matches: one entry of `--vmodule`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleLevel {
    /// The pattern, in which `*` matches any text, `?` matches one character, and `/` separates modules.
    pub(super) pattern: String,
    /// The verbosity, which is not negative.
    pub(super) level: i32,
}

/// The reason why a text is not a valid `PATTERN=LEVEL`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ModuleLevelError {
    /// The text does not have the form `PATTERN=LEVEL`.
    #[error("expected a comma-separated list of PATTERN=LEVEL, for example link=4,ebpf=6")]
    Syntax,
    /// The level is not a number or is negative.
    #[error("the level '{0}' is not a number from 0 up, for example link=4")]
    Level(String),
    /// The pattern uses syntax that only Go's globs support.
    #[error("the pattern '{0}' may hold no other wildcards than * and ?")]
    Wildcard(String),
}

impl FromStr for ModuleLevel {
    type Err = ModuleLevelError;

    fn from_str(text: &str) -> Result<Self, ModuleLevelError> {
        let (pattern, level) = text.split_once('=').ok_or(ModuleLevelError::Syntax)?;
        let (pattern, level) = (pattern.trim(), level.trim());
        if pattern.is_empty() || level.is_empty() {
            return Err(ModuleLevelError::Syntax);
        }
        if pattern.contains(['[', ']', '\\']) {
            return Err(ModuleLevelError::Wildcard(pattern.to_owned()));
        }
        match level.parse() {
            Ok(number) if number >= 0 => Ok(Self {
                pattern: pattern.to_owned(),
                level: number,
            }),
            _ => Err(ModuleLevelError::Level(level.to_owned())),
        }
    }
}

impl ModuleLevel {
    /// Returns true if the pattern matches the last module of a target such as `proxy_agent::link::apply`. A pattern
    /// with one slash (`link/*`) is matched against the last two modules, and so on.
    fn matches(&self, target: &str) -> bool {
        let wanted = self.pattern.split('/').rev();
        let mut modules = target.rsplit("::");
        wanted.into_iter().all(|pattern| {
            modules
                .next()
                .is_some_and(|module| glob(pattern.as_bytes(), module.as_bytes()))
        })
    }
}

/// Returns true if `pattern` matches the whole of `text`. The number of steps is at most the product of their lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut pos) = (0, 0);
    // The position at which matching resumes if the text after the last `*` does not match.
    let mut retry = None;
    while pos < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at, pos));
                at += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[pos] => {
                at += 1;
                pos += 1;
            }
            _ => match retry {
                Some((star, skipped)) => {
                    retry = Some((star, skipped + 1));
                    at = star + 1;
                    pos = skipped + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Returns klog's verbosity for a single target: that of the first matching pattern, or 0 if none matches.
pub(super) fn module_level(modules: &[ModuleLevel], target: &str) -> i32 {
    modules
        .iter()
        .find(|module| module.matches(target))
        .map_or(0, |module| module.level)
}

/// Returns the most verbose level of records at one of klog's verbosities.
fn level_filter(level: i32) -> LevelFilter {
    match level {
        ..DEBUG_LEVEL => LevelFilter::INFO,
        DEBUG_LEVEL..TRACE_LEVEL => LevelFilter::DEBUG,
        TRACE_LEVEL.. => LevelFilter::TRACE,
    }
}

/// Libraries that write a debug record for every frame or packet. Their records require a verbosity that is higher by
/// `CHATTY_BY` than for this project's records. `--vmodule` applies to their modules in the same way.
const CHATTY: [&str; 7] = [
    "h2",
    "hyper",
    "hyper_util",
    "kube_client",
    "rustls",
    "tonic",
    "tower",
];
const CHATTY_BY: i32 = 4;

/// Passes the records of the selected levels. The decision for each call site is cached, so a rejected record costs
/// nothing.
pub(super) struct Filter {
    general: LevelFilter,
    chatty: LevelFilter,
    most: LevelFilter,
    modules: Box<[ModuleLevel]>,
}

impl Filter {
    pub(super) fn new(verbosity: i32, lowest: Severity, modules: &[ModuleLevel]) -> Self {
        let highest = modules.iter().map(|module| module.level).max();
        let cap = match lowest {
            Severity::Info => LevelFilter::TRACE,
            Severity::Warning => LevelFilter::WARN,
            Severity::Error => LevelFilter::ERROR,
            Severity::Fatal => LevelFilter::OFF,
        };
        let general = level_filter(verbosity);
        let most = general.max(level_filter(highest.unwrap_or(0)));
        Self {
            general: general.min(cap),
            chatty: level_filter(verbosity.saturating_sub(CHATTY_BY)).min(cap),
            most: most.min(cap),
            modules: modules.into(),
        }
    }

    /// Returns the most verbose level for a target that no pattern matches.
    fn general_of(&self, target: &str) -> LevelFilter {
        let package = target.split("::").next().unwrap_or_default();
        if CHATTY.contains(&package) {
            self.chatty
        } else {
            self.general
        }
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let level = metadata.level();
        *level <= self.general_of(metadata.target())
            || *level <= self.most
                && *level <= level_filter(module_level(&self.modules, metadata.target()))
    }
}

impl<S: Subscriber> Layer<S> for Filter {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn modules(list: &str) -> Vec<ModuleLevel> {
        list.split(',')
            .map(|entry| entry.parse().unwrap())
            .collect()
    }

    #[test]
    fn the_first_pattern_that_matches_counts() {
        let modules = modules("apply=2,a*=5,link/obs?rve=6,ebpf=4");
        assert_eq!(module_level(&modules, "proxy_agent::link::apply"), 2);
        assert_eq!(module_level(&modules, "proxy_agent::app"), 5);
        assert_eq!(module_level(&modules, "proxy_agent::link::observe"), 6);
        assert_eq!(module_level(&modules, "proxy_agent::backend::observe"), 0);
        assert_eq!(module_level(&modules, "proxy_agent::link"), 0);
        assert_eq!(module_level(&modules, "ebpf"), 4);
    }

    #[test]
    fn libraries_that_log_every_frame_need_more() {
        let filter = |verbosity| Filter::new(verbosity, Severity::Info, &[]);
        assert_eq!(
            filter(4).general_of("proxy_tunnel::server"),
            LevelFilter::DEBUG
        );
        assert_eq!(filter(4).general_of("h2::codec"), LevelFilter::INFO);
        assert_eq!(filter(8).general_of("h2::codec"), LevelFilter::DEBUG);
        assert_eq!(filter(4).general_of("h2o"), LevelFilter::DEBUG);
    }

    #[test]
    fn a_pattern_with_more_modules_than_the_target_does_not_match() {
        assert_eq!(module_level(&modules("a/ebpf=4"), "ebpf"), 0);
        assert_eq!(module_level(&modules("*/*/*=4"), "a::b"), 0);
        assert_eq!(module_level(&modules("*/*=4"), "a::b"), 4);
    }

    #[test]
    fn globs() {
        for (pattern, text, want) in [
            ("", "", true),
            ("*", "", true),
            ("*", "abc", true),
            ("a*c", "abbc", true),
            ("a*c", "abcb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xaxbx", true),
            ("*a*b*", "xbxax", false),
            ("abc", "abcd", false),
            ("abcd", "abc", false),
            ("**a", "aaa", true),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                want,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn what_is_no_module_level() {
        for (text, want) in [
            ("link", ModuleLevelError::Syntax),
            ("=4", ModuleLevelError::Syntax),
            ("link=", ModuleLevelError::Syntax),
            ("link=-1", ModuleLevelError::Level("-1".to_owned())),
            ("link=a", ModuleLevelError::Level("a".to_owned())),
            ("link=1=2", ModuleLevelError::Level("1=2".to_owned())),
            ("[a]=1", ModuleLevelError::Wildcard("[a]".to_owned())),
        ] {
            assert_eq!(text.parse::<ModuleLevel>(), Err(want), "{text}");
        }
    }

    #[test]
    fn no_level_brings_records_below_the_lowest_severity() {
        let most = |verbosity, lowest, list| Filter::new(verbosity, lowest, &modules(list)).most;
        assert_eq!(most(0, Severity::Info, "link=6"), LevelFilter::TRACE);
        assert_eq!(most(6, Severity::Warning, "link=6"), LevelFilter::WARN);
        assert_eq!(most(0, Severity::Error, "link=0"), LevelFilter::ERROR);
    }

    #[test]
    fn klog_levels() {
        assert_eq!(level_filter(-1), LevelFilter::INFO);
        assert_eq!(level_filter(3), LevelFilter::INFO);
        assert_eq!(level_filter(4), LevelFilter::DEBUG);
        assert_eq!(level_filter(5), LevelFilter::DEBUG);
        assert_eq!(level_filter(6), LevelFilter::TRACE);
        assert_eq!(level_filter(i32::MAX), LevelFilter::TRACE);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), target in any::<String>()) {
            if let Ok(module) = text.parse::<ModuleLevel>() {
                let _ = module.matches(&target);
            }
        }

        #[test]
        fn a_text_with_a_part_replaced_by_a_star_matches(
            before in "[a-c]{0,4}", part in "[a-c]{0,4}", after in "[a-c]{0,4}"
        ) {
            let text = format!("{before}{part}{after}");
            let pattern = format!("{before}*{after}");
            prop_assert!(glob(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
