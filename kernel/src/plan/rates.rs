//! Requests per second, averaged twice: over a quarter of an hour for balance, so that what
//! passes moves nothing, and over seconds for splits, so that a hot spot is seen soon.

use super::picture::Picture;
use crate::ids::{TabletId, Tick};
use crate::limits::{RATE_SMOOTHING_TIMES, RECENT_SMOOTHING_PART};

/// What is remembered of a tablet, in thousandths of a request per second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Rate {
    lasting: u64,
    recent: u64,
}

/// Rates of all tablets, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    at: Option<Tick>,
    rates: Vec<(TabletId, Rate)>,
}

impl Rates {
    /// Puts averages in the place of the picture's rates. A tablet that was not known is taken
    /// for an average one at first, and for an idle one as to what is recent. The time constants
    /// follow from `lasts_ms`.
    pub fn smooth(&mut self, now: Tick, picture: &mut Picture, lasts_ms: u64) {
        let passed = self.at.map_or(0, |at| now.ms_since(at));
        self.at = Some(now);
        let long = lasts_ms.saturating_mul(RATE_SMOOTHING_TIMES).max(1);
        let short = (lasts_ms / RECENT_SMOOTHING_PART).max(1);
        let total: u64 = picture.tablets.values().map(|tablet| tablet.requests.saturating_mul(1_000)).sum();
        let mean = total / (picture.tablets.len() as u64).max(1);
        let known = std::mem::take(&mut self.rates);
        let mut known = known.into_iter().peekable();
        self.rates.reserve(picture.tablets.len());
        for (id, tablet) in &mut picture.tablets {
            // Both are in the order of ids.
            while known.next_if(|(other, _)| other < id).is_some() {}
            let before = known.next_if(|(other, _)| other == id).map(|(_, rate)| rate);
            let before = before.unwrap_or(Rate { lasting: mean, recent: 0 });
            let sample = tablet.requests.saturating_mul(1_000);
            let after = Rate {
                lasting: towards(before.lasting, sample, passed, long),
                recent: towards(before.recent, sample, passed, short),
            };
            (tablet.requests, tablet.recent) = (after.lasting / 1_000, after.recent / 1_000);
            self.rates.push((*id, after));
        }
    }

    /// Puts the averages of the last time into a picture.
    pub fn fill(&self, picture: &mut Picture) {
        for (id, tablet) in &mut picture.tablets {
            let known = self.rates.binary_search_by_key(id, |(id, _)| *id);
            let rate = known.map_or(Rate::default(), |at| self.rates[at].1);
            (tablet.requests, tablet.recent) = (rate.lasting / 1_000, rate.recent / 1_000);
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
