// SPDX-License-Identifier: Apache-2.0

//! Formats points in time and durations.

use std::time::{Duration, SystemTime};

/// RFC 3339, in UTC, with milliseconds: `2026-11-20T21:55:53.120Z`. Times before 1970 become 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The two largest units of a duration, without fractions: `3d 4h`, `12m 5s`, `0s`.
pub fn rough(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Eras of 400 years that begin on 1 March, so that the leap day is the last day of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64, millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis)
    }

    #[test]
    fn times_are_written_as_date_writes_them() {
        for (seconds, millis, want) in [
            (0, 0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, 7, "2000-02-29T00:00:00.007Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, 999, "2024-12-31T23:59:59.999Z"),
            (1_795_211_753, 120, "2026-11-20T21:55:53.120Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(at(seconds, millis)), want);
        }
        assert_eq!(
            rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)),
            "1970-01-01T00:00:00.000Z"
        );
    }

    #[test]
    fn spans_have_two_units() {
        let spans = [0, 59, 60, 3599, 3600, 86_399, 86_400, 1_000_000]
            .map(|seconds| rough(Duration::from_secs(seconds)));
        let want = [
            "0s", "59s", "1m 0s", "59m 59s", "1h 0m", "23h 59m", "1d 0h", "11d 13h",
        ];
        assert_eq!(spans, want);
    }

    proptest! {
        /// The order of times is that of their texts.
        #[test]
        fn the_order_of_times_is_that_of_their_text(a in 0_u64..200_000_000_000, b in 0_u64..200_000_000_000) {
            prop_assert_eq!(a.cmp(&b), rfc3339(at(a, 0)).cmp(&rfc3339(at(b, 0))));
        }

        #[test]
        fn every_span_has_a_text(seconds: u64) {
            prop_assert!(!rough(Duration::from_secs(seconds)).is_empty());
        }
    }
}
