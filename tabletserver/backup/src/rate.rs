//! Bytes per second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A budget of bytes per second. Whoever takes some waits until earlier takers have used theirs.
pub struct Rate {
    bytes_per_s: u64,
    free_at: Mutex<Instant>,
}

impl Rate {
    /// A budget that nobody has used yet.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Bytes per second, at least 1.
    #[must_use]
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// Takes `bytes`, and gives how long to wait before they may be sent.
    pub fn take(&self, now: Instant, bytes: usize) -> Duration {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = (*free_at).max(now);
        *free_at = begin + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        begin - now
    }

    /// Takes `bytes`, and gives how long until they, too, are used: the first taker waits as well.
    pub fn take_whole(&self, now: Instant, bytes: usize) -> Duration {
        self.take(now, bytes);
        self.take(now, 0)
    }

    /// Waits until `bytes` may be sent.
    pub fn wait(&self, bytes: usize) {
        std::thread::sleep(self.take(Instant::now(), bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takers_wait_for_each_other_and_nobody_saves_up() {
        let rate = Rate::new(1_000);
        let start = Instant::now();
        assert_eq!(rate.take(start, 500), Duration::ZERO);
        assert_eq!(rate.take(start, 500).as_millis(), 500);
        let later = start + Duration::from_secs(10);
        assert_eq!(rate.take(later, 100), Duration::ZERO);
        assert_eq!(rate.take(later, 100).as_millis(), 100);
        assert_eq!(rate.take_whole(later, 100).as_millis(), 300);
    }
}
