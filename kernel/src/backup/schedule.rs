//! When a scheduled backup is due, what kind it is, and what garbage collection must leave for it.
//!
//! Times are milliseconds since 1970: a schedule outlives every process. A clock that jumps makes
//! a backup early or late, never wrong.

use crate::hlc::Hlc;
use crate::limits::{SCHEDULE_FAILURES_UNTIL_FULL, SCHEDULE_HELD_TIMES, SCHEDULE_RETRY_MS};

/// How often backups are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rhythm {
    /// From the beginning of one to the beginning of the next.
    pub every_ms: u64,
    /// From one full one to the next; those between are incremental.
    pub full_every_ms: u64,
}

/// What has become of a schedule so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Past {
    /// When the last one began, whatever became of it.
    pub started_ms: Option<u64>,
    /// The timestamp of the last one that was made.
    pub last: Option<Hlc>,
    /// The timestamp of the last full one that was made.
    pub full: Option<Hlc>,
    /// Failures since one was made.
    pub failures: u32,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Nothing before this time.
    Later(u64),
    /// A full backup.
    Full,
    /// What has changed since the last one, whose timestamp this is.
    Incremental(Hlc),
}

/// What is due now.
#[must_use]
pub fn due(now_ms: u64, rhythm: Rhythm, past: Past) -> Due {
    let pause_ms = match past.failures {
        0 => rhythm.every_ms,
        failures => retry_ms(failures).min(rhythm.every_ms),
    };
    // A beginning that is further ahead than any pause was written by a clock that was wrong.
    let started_ms = past.started_ms.filter(|started_ms| *started_ms <= now_ms.saturating_add(pause_ms));
    let at_ms = started_ms.map_or(0, |started_ms| started_ms.saturating_add(pause_ms));
    if at_ms > now_ms {
        return Due::Later(at_ms);
    }
    match safe_point(now_ms, rhythm, past) {
        Some(last) if !is_full_due(now_ms, rhythm, past) => Due::Incremental(last),
        Some(_) | None => Due::Full,
    }
}

/// The timestamp above which nothing may be collected, because the next incremental backup needs
/// it; none when there is nothing to add to, or that is too long ago.
#[must_use]
pub fn safe_point(now_ms: u64, rhythm: Rhythm, past: Past) -> Option<Hlc> {
    let held_ms = rhythm.every_ms.saturating_mul(SCHEDULE_HELD_TIMES);
    past.last.filter(|last| now_ms <= last.ms().saturating_add(held_ms))
}

fn is_full_due(now_ms: u64, rhythm: Rhythm, past: Past) -> bool {
    // Its timestamp lies a little after its beginning: the one that is due in this period is due now.
    let slack_ms = rhythm.every_ms / 2;
    let is_old =
        |full: Hlc| now_ms.saturating_add(slack_ms) >= full.ms().saturating_add(rhythm.full_every_ms);
    past.full.is_none_or(is_old) || past.failures >= SCHEDULE_FAILURES_UNTIL_FULL
}

fn retry_ms(failures: u32) -> u64 {
    SCHEDULE_RETRY_MS.saturating_mul(1 << failures.saturating_sub(1).min(20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUARTER_MS: u64 = 15 * 60_000;
    const RHYTHM: Rhythm = Rhythm { every_ms: QUARTER_MS, full_every_ms: 24 * 60 * 60_000 };
    const NOON_MS: u64 = 1_700_000_000_000;

    /// A backup began at noon, after a full one three hours before.
    fn past(failures: u32) -> Past {
        let ts = |ms| Some(Hlc::new(ms, 0));
        let (last, full) = (ts(NOON_MS + 600), ts(NOON_MS - 12 * QUARTER_MS));
        Past { started_ms: Some(NOON_MS), last, full, failures }
    }

    #[test]
    fn full_ones_keep_their_period() {
        // Each of them began with a period and has a timestamp half a second later.
        let mut past = Past::default();
        let rhythm = Rhythm { every_ms: QUARTER_MS, full_every_ms: 4 * QUARTER_MS };
        let kinds: String = (0..9)
            .map(|period| {
                let now_ms = NOON_MS + period * QUARTER_MS;
                let made = due(now_ms, rhythm, past);
                let ts = Some(Hlc::new(now_ms + 500, 0));
                past = Past { started_ms: Some(now_ms), last: ts, ..past };
                match made {
                    Due::Full => {
                        past.full = ts;
                        'f'
                    }
                    Due::Incremental(_) => 'i',
                    Due::Later(_) => '-',
                }
            })
            .collect();
        assert_eq!(kinds, "fiiifiiif");
    }

    #[test]
    fn the_first_is_full_and_at_once() {
        assert_eq!(due(NOON_MS, RHYTHM, Past::default()), Due::Full);
    }

    #[test]
    fn the_next_is_incremental_until_a_full_one_is_due() {
        let past = past(0);
        assert_eq!(due(NOON_MS + 1, RHYTHM, past), Due::Later(NOON_MS + QUARTER_MS));
        let next = due(NOON_MS + QUARTER_MS, RHYTHM, past);
        assert_eq!(next, Due::Incremental(Hlc::new(NOON_MS + 600, 0)));
        let old = Past { full: Some(Hlc::new(NOON_MS - 23 * 60 * 60_000 - 3 * QUARTER_MS, 0)), ..past };
        assert_eq!(due(NOON_MS + QUARTER_MS, RHYTHM, old), Due::Full);
    }

    #[test]
    fn a_failure_is_tried_again_soon_then_more_slowly_then_from_scratch() {
        let at = |failures| due(NOON_MS, RHYTHM, past(failures));
        assert_eq!(at(1), Due::Later(NOON_MS + 60_000));
        assert_eq!(at(2), Due::Later(NOON_MS + 120_000));
        assert_eq!(at(60), Due::Later(NOON_MS + QUARTER_MS));
        let two = due(NOON_MS + 120_000, RHYTHM, past(2));
        assert!(matches!(two, Due::Incremental(_)));
        assert_eq!(due(NOON_MS + 240_000, RHYTHM, past(3)), Due::Full);
    }

    #[test]
    fn garbage_is_held_back_for_two_periods() {
        let (last, past) = (Hlc::new(NOON_MS + 600, 0), past(0));
        let at = |ms| safe_point(ms, RHYTHM, past);
        assert_eq!(at(NOON_MS + 600 + 2 * QUARTER_MS), Some(last));
        assert_eq!(at(NOON_MS + 601 + 2 * QUARTER_MS), None);
        assert_eq!(due(NOON_MS + 3 * QUARTER_MS, RHYTHM, past), Due::Full);
        assert_eq!(safe_point(NOON_MS, RHYTHM, Past::default()), None);
    }

    #[test]
    fn a_clock_that_was_wrong_delays_nothing_for_long() {
        let ahead = Past { started_ms: Some(NOON_MS * 2), ..past(0) };
        assert!(!matches!(due(NOON_MS, RHYTHM, ahead), Due::Later(_)));
    }

    proptest! {
        /// What an incremental backup adds to is what was held for it.
        #[test]
        fn incremental_ones_rest_on_the_safe_point(
            now_ms in 0..10_000_000u64,
            (every_ms, full_every_ms) in (1..1_000_000u64, 1..5_000_000u64),
            (started, last, full) in any::<(Option<u32>, Option<u32>, Option<u32>)>(),
            failures in 0..70u32,
        ) {
            let rhythm = Rhythm { every_ms, full_every_ms };
            let ts = |ms: u32| Hlc::new(u64::from(ms), 0);
            let (started_ms, last, full) = (started.map(u64::from), last.map(ts), full.map(ts));
            let past = Past { started_ms, last, full, failures };
            match due(now_ms, rhythm, past) {
                Due::Incremental(since) => prop_assert_eq!(safe_point(now_ms, rhythm, past), Some(since)),
                Due::Later(at_ms) => {
                    prop_assert!(at_ms > now_ms && at_ms <= now_ms + 2 * every_ms);
                    prop_assert!(!matches!(due(at_ms, rhythm, past), Due::Later(_)));
                }
                Due::Full => {}
            }
        }
    }
}
