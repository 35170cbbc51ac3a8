//! Wall clocks that lie: each server has its own offset, and it jumps.
//!
//! The monotonic clock of a process is the simulation's own time; only it decides deadlines.

use ebla_kernel::ids::Tick;

/// Wall time at the start of every simulation, milliseconds since 1970.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

/// The wall clock of one machine.
#[derive(Clone, Debug, Default)]
pub struct WallClock {
    offset_ms: i64,
}

impl WallClock {
    /// What the clock shows at `now_us` of simulated time.
    #[must_use]
    pub fn ms(&self, now_us: u64) -> u64 {
        (EPOCH_MS + now_us / 1_000).saturating_add_signed(self.offset_ms)
    }

    /// Sets the clock wrong by `offset_ms`.
    pub fn set(&mut self, offset_ms: i64) {
        self.offset_ms = offset_ms;
    }
}

/// The monotonic clock of every process.
#[must_use]
pub fn tick(now_us: u64) -> Tick {
    Tick(now_us / 1_000)
}
