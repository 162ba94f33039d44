// SPDX-License-Identifier: Apache-2.0

//! Medians and quartiles of samples, and ratios of samples that were taken in the same round.

/// The summary of many samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The first quartile.
    pub low: f64,
    /// The third quartile.
    pub high: f64,
}

impl Summary {
    /// Of at least one sample; none of none.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|s| s.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: quantile(&sorted, 0.5)?,
            low: quantile(&sorted, 0.25)?,
            high: quantile(&sorted, 0.75)?,
        })
    }

    /// Of the ratios of samples, each to that of the same round.
    #[must_use]
    pub fn of_ratio(samples: &[f64], to: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = samples.iter().zip(to).map(|(a, b)| a / b).collect();
        Self::of(&ratios)
    }
}

/// Between two samples it is interpolated.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(clippy::cast_precision_loss, reason = "there are few samples")]
    let at = q * last as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the number of samples"
    )]
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles() {
        assert_eq!(Summary::of(&[]), None);
        let summary = |median, low, high| Some(Summary { median, low, high });
        assert_eq!(Summary::of(&[3.0]), summary(3.0, 3.0, 3.0));
        assert_eq!(
            Summary::of(&[5.0, 1.0, 4.0, 2.0, 3.0]),
            summary(3.0, 2.0, 4.0)
        );
        assert_eq!(Summary::of(&[1.0, 2.0]), summary(1.5, 1.25, 1.75));
    }

    #[test]
    fn ratios_are_those_of_a_round() {
        // The machine was twice as slow in the second round.
        let summary = Summary::of_ratio(&[10.0, 20.0], &[5.0, 10.0]).expect("two rounds");
        assert!((summary.median - 2.0).abs() < 1e-9 && (summary.low - 2.0).abs() < 1e-9);
    }
}
