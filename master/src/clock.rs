//! The clocks and random numbers of the shell, which the kernel takes as inputs.

use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::Tick;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 by the wall clock.
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock as a timestamp.
pub(crate) fn wall() -> Hlc {
    Hlc::new(wall_ms(), 0)
}

/// A reading of the monotonic clock relative to `start`.
pub(crate) fn tick_since(start: Instant) -> Tick {
    Tick(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// A random number that is not zero: zero means none.
pub(crate) fn random_id() -> u64 {
    rand::random_range(1..=u64::MAX)
}
