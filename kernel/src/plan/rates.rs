//! Requests per second, smoothed: what lasts for minutes counts, what passes does not.

use super::picture::Picture;
use crate::ids::{TabletId, Tick};
use crate::limits::RATE_SMOOTHING_TIMES;
use std::collections::BTreeMap;

/// Smoothed rates, in thousandths of a request per second.
#[derive(Debug, Default)]
pub(super) struct Rates {
    at: Option<Tick>,
    rates: BTreeMap<TabletId, u64>,
}

impl Rates {
    /// Puts smoothed rates in the place of the picture's. A tablet that was not known is
    /// taken for an average one at first. The time constant is so many times `lasts_ms`.
    pub fn smooth(&mut self, now: Tick, picture: &mut Picture, lasts_ms: u64) {
        let passed = self.at.map_or(0, |at| now.ms_since(at));
        self.at = Some(now);
        let constant = lasts_ms.saturating_mul(RATE_SMOOTHING_TIMES).max(1);
        let total: u64 = picture.tablets.values().map(|tablet| tablet.requests.saturating_mul(1_000)).sum();
        let mean = total / (picture.tablets.len() as u64).max(1);
        let mut rates = BTreeMap::new();
        for (id, tablet) in &mut picture.tablets {
            let before = self.rates.get(id).copied().unwrap_or(mean);
            let after = towards(before, tablet.requests.saturating_mul(1_000), passed, constant);
            tablet.requests = after / 1_000;
            rates.insert(*id, after);
        }
        self.rates = rates;
    }

    /// Puts the smoothed rates of the last time into a picture.
    pub fn fill(&self, picture: &mut Picture) {
        for (id, tablet) in &mut picture.tablets {
            tablet.requests = self.rates.get(id).copied().unwrap_or(0) / 1_000;
        }
    }
}

/// `before` after it went towards `sample` for `passed` of the time constant.
fn towards(before: u64, sample: u64, passed: u64, constant: u64) -> u64 {
    // Of 32 bits, 49 days, so that no product overflows.
    let bounded = |ms: u64| u128::from(ms.min(u64::from(u32::MAX)));
    let (whole, passed) = (bounded(passed) + bounded(constant), bounded(passed));
    let sum = u128::from(before) * (whole - passed) + u128::from(sample) * passed;
    u64::try_from(sum / whole).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_reached_and_a_short_one_hardly_counts() {
        let mut rate = 0;
        (0..12).for_each(|_| rate = towards(rate, 1_000_000, 5_000, 600_000));
        assert!((80_000..110_000).contains(&rate), "{rate}");
        (0..1_200).for_each(|_| rate = towards(rate, 1_000_000, 5_000, 600_000));
        assert!(rate > 990_000, "{rate}");
        assert_eq!(towards(u64::MAX, u64::MAX, u64::MAX, u64::MAX), u64::MAX);
    }
}
