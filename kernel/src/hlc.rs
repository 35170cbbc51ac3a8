//! Hybrid logical timestamps: wall time that never repeats and never runs backwards.
//!
//! A timestamp is 48 bits of milliseconds since 1970 and 16 bits of a counter. The clock
//! here is a value: the shell tells it the wall time, it answers with timestamps, and it
//! refuses to issue above a bound that the shell has not yet persisted, so that a restart
//! (which starts above the bound) can never issue one twice. Invariants:
//! - issued timestamps strictly rise, whatever the wall clock does;
//! - nothing is issued above `bound`;
//! - a remote timestamp too far in the future is refused, not adopted.
//!
//! Source: Kulkarni et al., "Logical Physical Clocks", OPODIS 2014.

use crate::limits::{CLOCK_OFFSET_MS_MAX, HLC_BOUND_AHEAD_MS, HLC_BOUND_MARGIN_MS};
use crate::mutated;
use borsh::{BorshDeserialize, BorshSerialize};
use std::fmt;

/// A timestamp: milliseconds in the upper 48 bits, a counter in the lower 16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct Hlc(pub u64);

impl Hlc {
    /// Before every timestamp.
    pub const MIN: Self = Self(0);
    /// After every timestamp that is ever issued.
    pub const MAX: Self = Self(u64::MAX);

    /// The timestamp of `ms` milliseconds since 1970 and `counter`. Times past the year
    /// 10,000 saturate.
    #[must_use]
    pub fn new(ms: u64, counter: u16) -> Self {
        Self((ms.min((1 << 48) - 1) << 16) | u64::from(counter))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn ms(self) -> u64 {
        self.0 >> 16
    }

    /// Order of timestamps within one millisecond.
    #[must_use]
    pub fn counter(self) -> u16 {
        (self.0 & 0xFFFF) as u16
    }

    /// The next timestamp; the counter overflows into the milliseconds.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The timestamp before this one; `MIN` stays.
    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ms(), self.counter())
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why the clock gave no timestamp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClockError {
    /// The persisted bound is reached: persist `HlcClock::wanted_bound`, then ask again.
    BoundReached,
    /// A timestamp from outside is further ahead of the wall clock than is believed.
    TooFarAhead {
        /// How far ahead, in milliseconds.
        ahead_ms: u64,
    },
}

/// The clock of one server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HlcClock {
    last: Hlc,
    bound: Hlc,
}

impl HlcClock {
    /// A clock that issues only above `persisted_bound`, the greatest bound ever persisted.
    #[must_use]
    pub fn new(persisted_bound: Hlc) -> Self {
        let last = if mutated!(ClockBoundIgnored) { Hlc::MIN } else { persisted_bound };
        Self { last, bound: persisted_bound }
    }

    /// The greatest timestamp issued or observed.
    #[must_use]
    pub fn last(&self) -> Hlc {
        self.last
    }

    /// Issues the next timestamp: the wall time `wall_ms`, or just above the last one.
    ///
    /// # Errors
    /// `BoundReached` until a higher bound has been persisted.
    pub fn issue(&mut self, wall_ms: u64) -> Result<Hlc, ClockError> {
        let ts = self.peek(wall_ms);
        if ts > self.bound {
            return Err(ClockError::BoundReached);
        }
        self.last = ts;
        Ok(ts)
    }

    /// What `issue` would give now, without giving it.
    #[must_use]
    pub fn peek(&self, wall_ms: u64) -> Hlc {
        Hlc::new(wall_ms, 0).max(self.last.next())
    }

    /// Adopts a timestamp from outside, so that everything issued later is above it.
    ///
    /// # Errors
    /// `TooFarAhead` when it is more than `CLOCK_OFFSET_MS_MAX` ahead of `wall_ms`.
    pub fn observe(&mut self, ts: Hlc, wall_ms: u64) -> Result<(), ClockError> {
        let ahead_ms = ts.ms().saturating_sub(wall_ms);
        if ts > self.last && ahead_ms > CLOCK_OFFSET_MS_MAX {
            return Err(ClockError::TooFarAhead { ahead_ms });
        }
        self.raise(ts);
        Ok(())
    }

    /// Raises the clock to `ts` without doubt: for timestamps out of our own log.
    pub fn raise(&mut self, ts: Hlc) {
        self.last = self.last.max(ts);
    }

    /// The bound to persist when one is due: timestamps are about to be issued and the
    /// present bound is near. An idle clock asks for nothing.
    #[must_use]
    pub fn wanted_bound(&self, wall_ms: u64) -> Option<Hlc> {
        let next = self.peek(wall_ms);
        let near = self.bound.ms() < next.ms().saturating_add(HLC_BOUND_MARGIN_MS);
        near.then(|| Hlc::new(next.ms().saturating_add(HLC_BOUND_AHEAD_MS), 0))
    }

    /// Ends the clock: it issues nothing any more, and gives the bound that a clean stop
    /// records.
    pub fn close(&mut self) -> Hlc {
        self.bound = Hlc::MIN;
        self.last
    }

    /// Tells the clock that `bound` is durable.
    pub fn bound_persisted(&mut self, bound: Hlc) {
        self.bound = self.bound.max(bound);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> HlcClock {
        let mut clock = HlcClock::new(Hlc::new(1_000, 0));
        clock.bound_persisted(Hlc::new(10_000, 0));
        clock
    }

    #[test]
    fn rises_when_the_wall_clock_jumps_back() {
        let mut clock = clock();
        let first = clock.issue(5_000).unwrap();
        let second = clock.issue(2_000).unwrap();
        assert!(second > first);
        assert_eq!(second.ms(), 5_000);
    }

    #[test]
    fn issues_nothing_above_the_bound() {
        let mut clock = clock();
        assert_eq!(clock.issue(10_001), Err(ClockError::BoundReached));
        let bound = clock.wanted_bound(10_001).unwrap();
        clock.bound_persisted(bound);
        assert!(clock.issue(10_001).is_ok());
    }

    #[test]
    fn a_restart_starts_above_everything_issued() {
        let mut clock = clock();
        let issued = clock.issue(9_000).unwrap();
        let mut restarted = HlcClock::new(Hlc::new(10_000, 0));
        restarted.bound_persisted(Hlc::new(20_000, 0));
        assert!(restarted.issue(1).unwrap() > issued);
    }

    #[test]
    fn refuses_a_remote_clock_hours_ahead() {
        let mut clock = clock();
        let far = Hlc::new(8 * 3600 * 1000, 0);
        assert!(matches!(clock.observe(far, 5_000), Err(ClockError::TooFarAhead { .. })));
        assert!(clock.issue(5_000).unwrap() < far);
    }

    #[test]
    fn idle_clock_asks_for_no_bound() {
        let clock = clock();
        assert_eq!(clock.wanted_bound(2_000), None);
    }
}
