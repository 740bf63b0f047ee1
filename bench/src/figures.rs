//! Figures and what is made of several: percentiles within a run, minimum and median over rounds.

use std::collections::BTreeMap;

/// Figures of one row of one system in one round, by name; units are in the names.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

/// One measured row.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) row: String,
    pub(crate) system: &'static str,
    /// From 1.
    pub(crate) round: usize,
    pub(crate) figures: Figures,
}

/// The value below which `part` (0 to 1) of the values lie; the values need not be sorted. 0 when there are none.
pub(crate) fn percentile(values: &mut [u32], part: f64) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank within the slice"
    )]
    let rank = ((values.len() - 1) as f64 * part).round() as usize;
    f64::from(values[rank])
}

/// The middle value, or the mean of the two middle ones. 0 when there are none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (length, middle) if length % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The values of one figure over the rounds.
pub(crate) fn over_rounds(samples: &[Sample], row: &str, system: &str, figure: &str) -> Vec<f64> {
    let these = samples
        .iter()
        .filter(|s| s.row == row && s.system == system);
    these
        .filter_map(|s| s.figures.get(figure).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middles() {
        assert_eq!(percentile(&mut [5, 1, 3, 2, 4], 0.5), 3.0);
        assert_eq!(percentile(&mut [5, 1, 3, 2, 4], 1.0), 5.0);
        assert_eq!(percentile(&mut [], 0.5), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }
}
