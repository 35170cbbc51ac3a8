//! Clocks that lie: wall clocks with an offset of their own that jump, and monotonic clocks
//! that run a little fast or slow and of which one stops while the machine sleeps.

use super::rng::Rng;
use ebla_kernel::ids::Tick;
use ebla_kernel::limits::LEASE_DRIFT_PER_MILLE;

/// Wall time at the start of every simulation, milliseconds since 1970.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

/// The wall clock of one machine.
#[derive(Clone, Debug, Default)]
pub struct WallClock {
    offset_ms: i64,
}

impl WallClock {
    /// A clock that is wrong by at most `ms_max`, either way.
    pub fn draw(rng: &mut Rng, ms_max: u64) -> Self {
        let offset = i64::try_from(rng.below(2 * ms_max + 1)).expect("a skew is small");
        Self { offset_ms: offset - i64::try_from(ms_max).expect("a skew is small") }
    }

    /// What the clock shows at `now_us` of simulated time.
    #[must_use]
    pub fn ms(&self, now_us: u64) -> u64 {
        (EPOCH_MS + now_us / 1_000).saturating_add_signed(self.offset_ms)
    }
}

/// The clocks of one machine that only go forward.
#[derive(Clone, Copy, Debug, Default)]
pub struct MonotonicClock {
    /// How much faster than true time it runs, in parts of a million.
    drift_ppm: i64,
    /// Where it stood at the beginning, in microseconds.
    start_us: u64,
    /// How long `CLOCK_MONOTONIC` has stood still, in microseconds.
    slept_us: u64,
}

impl MonotonicClock {
    /// A clock within the drift that leases allow for.
    pub fn draw(rng: &mut Rng, drifts: bool) -> Self {
        let most_ppm = LEASE_DRIFT_PER_MILLE * 1_000;
        let ppm = if drifts { rng.below(2 * most_ppm + 1) } else { most_ppm };
        let drift_ppm = i64::try_from(ppm).expect("small") - i64::try_from(most_ppm).expect("small");
        Self { drift_ppm, start_us: rng.below(1 << 40), slept_us: 0 }
    }

    /// The machine slept for `us`: one of its clocks stood still.
    pub fn sleep(&mut self, us: u64) {
        self.slept_us += us;
    }

    /// The greater of `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME`: by it a lease is counted.
    #[must_use]
    pub fn holder(&self, now_us: u64) -> Tick {
        Tick(self.boottime_us(now_us) / 1_000)
    }

    /// The lesser of the two: by it a promise is kept.
    #[must_use]
    pub fn promiser(&self, now_us: u64) -> Tick {
        Tick((self.boottime_us(now_us) - self.slept_us) / 1_000)
    }

    fn boottime_us(&self, now_us: u64) -> u64 {
        let now = i64::try_from(now_us).expect("a simulation is short");
        let own = now + now / 1_000_000 * self.drift_ppm + now % 1_000_000 * self.drift_ppm / 1_000_000;
        self.start_us + u64::try_from(own).expect("a clock that is 1 % wrong goes forward")
    }
}

/// The monotonic clock of the metadata node: true time.
#[must_use]
pub fn tick(now_us: u64) -> Tick {
    Tick(now_us / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_stops_one_clock_of_two() {
        let mut clock = MonotonicClock::default();
        assert_eq!(clock.holder(5_000_000), clock.promiser(5_000_000));
        clock.sleep(2_000_000);
        assert_eq!(clock.holder(9_000_000), Tick(9_000));
        assert_eq!(clock.promiser(9_000_000), Tick(7_000));
    }

    #[test]
    fn clocks_stay_within_their_drift_and_go_forward() {
        for seed in 0..50 {
            let clock = MonotonicClock::draw(&mut Rng::new(seed), true);
            let passed = clock.holder(100_000_000).ms_since(clock.holder(0));
            assert!((98_999..=101_001).contains(&passed), "{passed}");
            let ticks: Vec<Tick> = (0..2_000).map(|ms| clock.holder(995_000 + ms * 1_000)).collect();
            assert!(ticks.windows(2).all(|pair| pair[0] <= pair[1]));
        }
    }
}
