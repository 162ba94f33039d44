// SPDX-License-Identifier: Apache-2.0

//! Formats numbers for people: short, and no wider than a column.

/// Formats a number with at most seven characters; numbers below ten million are written in full.
#[must_use]
pub fn count(number: u64) -> String {
    if number < 10_000_000 {
        return number.to_string();
    }
    scaled(number, 1000, ["", "k", "M", "G", "T", "P", "E"])
}

/// Formats a number of bytes with at most nine characters.
#[must_use]
pub fn bytes(number: u64) -> String {
    if number < 1000 {
        return format!("{number} B");
    }
    scaled(
        number,
        1024,
        [" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"],
    )
}

/// Formats a number with the first unit in which it is below 1000, with one decimal, rounded down.
fn scaled(number: u64, base: u64, units: [&str; 7]) -> String {
    let mut unit = 0;
    let mut divisor = 1_u64;
    while unit + 1 < units.len() && number / divisor >= 1000 {
        divisor *= base;
        unit += 1;
    }
    let tenths = u128::from(number) * 10 / u128::from(divisor);
    format!("{}.{}{}", tenths / 10, tenths % 10, units[unit])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, want) in [
            (0, "0"),
            (9_999_999, "9999999"),
            (10_000_000, "10.0M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(number), want);
        }
        for (number, want) in [
            (999, "999 B"),
            (1000, "0.9 KiB"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "0.9 MiB"),
            (3 << 30, "3.0 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(number), want);
        }
    }

    proptest! {
        #[test]
        fn every_number_fits_its_column(number: u64) {
            prop_assert!(count(number).len() <= 7);
            prop_assert!(bytes(number).len() <= 9);
        }
    }
}
