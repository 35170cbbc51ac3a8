//! Two readings of elapsed time, for the two sides of a promise.
//!
//! A machine that is suspended stops `CLOCK_MONOTONIC` and not `CLOCK_BOOTTIME`. Whoever holds
//! a lease takes the larger of both, so that its view ends in time; whoever promised takes the
//! smaller, so that it is bound for long enough (m22). The wall clock is never used: people set it.

use ebla_kernel::ids::Tick;
use rustix::time::{ClockId, clock_gettime};

/// Time since a start.
#[derive(Clone, Copy, Debug)]
pub struct Elapsed {
    monotonic_ms: u64,
    boot_ms: u64,
}

impl Elapsed {
    /// Begins now.
    #[must_use]
    pub fn start() -> Self {
        Self { monotonic_ms: read_ms(ClockId::Monotonic), boot_ms: read_ms(ClockId::Boottime) }
    }

    /// The clock of whoever holds something for a time: it stops for nothing.
    #[must_use]
    pub fn holder(&self) -> Tick {
        let (monotonic, boot) = self.both();
        Tick(monotonic.max(boot))
    }

    /// The clock of whoever is bound for a time.
    #[must_use]
    pub fn promiser(&self) -> Tick {
        let (monotonic, boot) = self.both();
        Tick(monotonic.min(boot))
    }

    fn both(&self) -> (u64, u64) {
        let monotonic = read_ms(ClockId::Monotonic).saturating_sub(self.monotonic_ms);
        (monotonic, read_ms(ClockId::Boottime).saturating_sub(self.boot_ms))
    }
}

fn read_ms(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    seconds.unwrap_or_default() * 1_000 + nanos.unwrap_or_default() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_run() {
        let elapsed = Elapsed::start();
        std::thread::sleep(std::time::Duration::from_millis(12));
        assert!(elapsed.holder() >= Tick(10) && elapsed.promiser() >= Tick(10));
        assert!(elapsed.holder() >= elapsed.promiser());
    }
}
