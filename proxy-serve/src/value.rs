// SPDX-License-Identifier: Apache-2.0

//! Flag values in the syntax of Go's libraries: booleans of `strconv.ParseBool`, durations of `time.ParseDuration`, and
//! lists. Each program's command line determines which flag has which type.

use std::fmt::{self, Display, Write as _};
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// The largest magnitude of a duration, in nanoseconds: that of the smallest `i64`.
const MAX_MAGNITUDE: u64 = 1 << 63;

/// The error for a text that Go does not accept as a boolean.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a boolean; give true or false")]
pub struct BoolError;

/// The reason why a text is not a valid duration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DurationError {
    /// A number is missing, or other text occurs where one should start.
    #[error("not a duration; give a number with a unit, for example 30s or 1m30s")]
    Syntax,
    /// A number has no unit.
    #[error("the number lacks its unit; give one of ns, us, ms, s, m, h, for example 60s")]
    MissingUnit,
    /// The unit is not one of Go's.
    #[error("unknown unit '{0}'; give one of ns, us, ms, s, m, h")]
    UnknownUnit(String),
    /// The duration exceeds 64 bits of nanoseconds.
    #[error("too long; a duration ends at about 292 years")]
    Overflow,
}

/// Parses a boolean like Go's `strconv.ParseBool`.
///
/// # Errors
///
/// Returns an error for every text other than `1 t T TRUE true True 0 f F FALSE false False`.
pub fn parse_bool(text: &str) -> Result<bool, BoolError> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(BoolError),
    }
}

/// A duration of Go: a signed 64-bit number of nanoseconds, parsed and formatted as in Go (`1m0s`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

impl GoDuration {
    /// Creates a duration from seconds.
    #[must_use]
    pub const fn from_secs(seconds: u32) -> Self {
        Self(seconds as i64 * 1_000_000_000)
    }

    /// Creates a duration from milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis as i64 * 1_000_000)
    }

    /// Converts to a standard duration, or returns `None` if the duration is negative.
    #[must_use]
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    /// Parses `[-+]?([0-9]*(\.[0-9]*)?unit)+`, or a bare `0`.
    fn from_str(text: &str) -> Result<Self, DurationError> {
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(DurationError::Syntax);
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (term, after) = term(rest)?;
            total = total.checked_add(term).ok_or(DurationError::Overflow)?;
            if total > MAX_MAGNITUDE {
                return Err(DurationError::Overflow);
            }
            rest = after;
        }
        if negative {
            // The wrapping subtraction is necessary because `total` may exceed the largest i64 by one.
            return Ok(Self(0_i64.wrapping_sub_unsigned(total)));
        }
        i64::try_from(total)
            .map(Self)
            .map_err(|_| DurationError::Overflow)
    }
}

/// Parses one number with its unit. Returns its nanoseconds and the rest of the text.
fn term(text: &str) -> Result<(u64, &str), DurationError> {
    let (whole_digits, rest) = split_digits(text);
    let (fraction_digits, rest) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if whole_digits.is_empty() && fraction_digits.is_empty() {
        return Err(DurationError::Syntax);
    }
    let unit_end = rest
        .find(|c: char| c == '.' || c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(unit_end);
    let unit: u64 = match unit {
        "" => return Err(DurationError::MissingUnit),
        "ns" => 1,
        // The micro sign and the Greek letter are both accepted.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(DurationError::UnknownUnit(unit.to_owned())),
    };
    let mut whole: u64 = 0;
    for digit in whole_digits.bytes() {
        whole = whole
            .checked_mul(10)
            .and_then(|tens| tens.checked_add(u64::from(digit - b'0')))
            .ok_or(DurationError::Overflow)?;
    }
    whole
        .checked_mul(unit)
        .and_then(|nanos| nanos.checked_add(fraction(fraction_digits, unit)))
        .filter(|nanos| *nanos <= MAX_MAGNITUDE)
        .map(|nanos| (nanos, rest))
        .ok_or(DurationError::Overflow)
}

/// Returns the nanoseconds that the digits after the point represent: less than `unit`, or `unit` if the result is
/// rounded up.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "Go computes it in float64 as well, and its results are to be met"
)]
fn fraction(digits: &str, unit: u64) -> u64 {
    let mut value: u64 = 0;
    let mut scale = 1_f64;
    for digit in digits.bytes() {
        // Like Go, this ignores the digits that do not fit.
        let next = value
            .checked_mul(10)
            .and_then(|tens| tens.checked_add(u64::from(digit - b'0')));
        match next {
            Some(next) if next <= MAX_MAGNITUDE => value = next,
            _ => break,
        }
        scale *= 10.0;
    }
    (value as f64 * (unit as f64 / scale)) as u64
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

impl Display for GoDuration {
    /// Formats like Go's `Duration.String`: `1m0s`, `1.5s`, `300ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_char('-')?;
        }
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write_decimal(f, nanos, 3, "\u{b5}s"),
            1_000_000..1_000_000_000 => write_decimal(f, nanos, 6, "ms"),
            _ => {
                let minutes = nanos / 60_000_000_000;
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(f, "{}m", minutes % 60)?;
                }
                write_decimal(f, nanos % 60_000_000_000, 9, "s")
            }
        }
    }
}

/// Writes `value / 10^places` without trailing zeros, followed by the unit.
fn write_decimal(f: &mut fmt::Formatter<'_>, value: u64, places: usize, unit: &str) -> fmt::Result {
    let scale = (0..places).fold(1_u64, |scale, _| scale * 10);
    write!(f, "{}", value / scale)?;
    let digits = format!("{:0places$}", value % scale);
    let digits = digits.trim_end_matches('0');
    if !digits.is_empty() {
        write!(f, ".{digits}")?;
    }
    f.write_str(unit)
}

/// A comma-separated list of words, from one use of a flag. An empty text is an empty list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List(Vec<String>);

impl List {
    /// Returns the words of all uses of a flag, in order.
    #[must_use]
    pub fn join(lists: &[Self]) -> Vec<String> {
        lists.iter().flat_map(|list| list.0.clone()).collect()
    }
}

impl FromStr for List {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words = text.split(',').map(str::trim);
        Ok(Self(
            words
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nanos(text: &str) -> Result<i64, DurationError> {
        text.parse::<GoDuration>().map(|duration| duration.0)
    }

    #[test]
    fn durations_as_go_reads_them() {
        let second = 1_000_000_000;
        for (text, want) in [
            ("0", 0),
            ("-0", 0),
            ("0s", 0),
            ("1m0s", 60 * second),
            ("1.5h", 5400 * second),
            ("300ms", 300_000_000),
            ("1h2m3.5s", 3723 * second + second / 2),
            ("+5s", 5 * second),
            ("-1.5s", -3 * second / 2),
            ("5.s", 5 * second),
            (".5s", second / 2),
            ("1.004s", 1_004_000_000),
            ("12us", 12_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("1s1s", 2 * second),
            ("0.3333333333333333333h", 1200 * second),
            ("0.9999999999s", 999_999_999),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("0.100000000000000000000h", 360 * second),
        ] {
            assert_eq!(nanos(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_go_refuses() {
        use DurationError::{MissingUnit, Overflow, Syntax, UnknownUnit};
        for (text, want) in [
            ("", Syntax),
            ("-", Syntax),
            ("s", Syntax),
            (".", Syntax),
            (".s", Syntax),
            ("+.s", Syntax),
            ("--1s", Syntax),
            (" 1s", Syntax),
            ("3", MissingUnit),
            ("1m60", MissingUnit),
            ("1.5", MissingUnit),
            ("1d", UnknownUnit("d".to_owned())),
            ("1 s", UnknownUnit(" s".to_owned())),
            ("1s ", UnknownUnit("s ".to_owned())),
            ("3000000h", Overflow),
            ("9223372036854775808ns", Overflow),
            ("-9223372036854775809ns", Overflow),
            ("9223372036854775.808us", Overflow),
            ("99999999999999999999s", Overflow),
            ("9223372036854ms775us808ns", Overflow),
        ] {
            assert_eq!(nanos(text), Err(want), "{text}");
        }
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (nanos, want) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (60_000_000_000, "1m0s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (3_600_000_000_000, "1h0m0s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(GoDuration(nanos).to_string(), want);
        }
        assert_eq!(GoDuration::from_secs(60).to_string(), "1m0s");
        assert_eq!(GoDuration::from_millis(1).to_string(), "1ms");
    }

    #[test]
    fn only_what_is_not_negative_is_a_standard_duration() {
        assert_eq!(GoDuration(-1).to_std(), None);
        assert_eq!(GoDuration(7).to_std(), Some(Duration::from_nanos(7)));
    }

    #[test]
    fn booleans_as_go_reads_them() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(parse_bool(text), Ok(true), "{text}");
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(parse_bool(text), Ok(false), "{text}");
        }
        for text in ["", "yes", "no", "tRUE", " true", "2"] {
            assert_eq!(parse_bool(text), Err(BoolError), "{text}");
        }
    }

    #[test]
    fn lists_have_no_empty_words() {
        let words = |text: &str| List::join(&[text.parse().unwrap()]);
        assert_eq!(words(""), Vec::<String>::new());
        assert_eq!(words("a, b,,c"), ["a", "b", "c"]);
        let lists = ["a".parse().unwrap(), "b,c".parse().unwrap()];
        assert_eq!(List::join(&lists), ["a", "b", "c"]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos in any::<i64>()) {
            let duration = GoDuration(nanos);
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = nanos(&text);
            let _ = parse_bool(&text);
        }

        #[test]
        fn no_text_that_looks_like_a_duration_panics(
            text in "[-+]?([0-9]{0,22}(\\.[0-9]{0,25})?(ns|us|\u{b5}s|ms|s|m|h|d| )?){0,5}"
        ) {
            if let Ok(duration) = text.parse::<GoDuration>() {
                prop_assert_eq!(duration.to_string().parse(), Ok(duration));
            }
        }
    }
}
