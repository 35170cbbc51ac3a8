//! When to try again: a deadline and a pause with full jitter below a doubling bound.

use crate::error::Error;
use crate::limits::{BACKOFF_FIRST, BACKOFF_MAX};
use rand::Rng as _;
use std::time::Duration;
use tokio::time::Instant;

/// The deadline of one request and how it was set, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) timeout: Duration,
}

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Self {
        Self { at: Instant::now() + timeout, timeout }
    }

    /// Time that is left; zero when it has passed.
    pub(crate) fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    pub(crate) fn has_passed(&self) -> bool {
        self.left().is_zero()
    }
}

/// The pauses of one request.
#[derive(Debug)]
pub(crate) struct Backoff {
    bound: Duration,
    bound_max: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self::up_to(BACKOFF_MAX)
    }

    pub(crate) fn up_to(bound_max: Duration) -> Self {
        Self { bound: BACKOFF_FIRST, bound_max }
    }

    /// The next pause: evenly drawn below the bound, which then doubles.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let pause = self.bound.mul_f64(rand::rng().random::<f64>());
        self.bound = (self.bound * 2).min(self.bound_max);
        pause
    }

    /// Sleeps as long as `error` asks for or as the bound says, not past the deadline.
    /// False when the deadline has passed.
    pub(crate) async fn pause(&mut self, deadline: Deadline, error: &Error) -> bool {
        let asked = error.retry_after().unwrap_or_default();
        let pause = asked.max(self.next_pause());
        if pause >= deadline.left() {
            tokio::time::sleep_until(deadline.at).await;
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_below_a_bound_that_doubles_and_ends() {
        let mut backoff = Backoff::new();
        let mut bound = BACKOFF_FIRST;
        for _ in 0..20 {
            assert!(backoff.next_pause() <= bound);
            bound = (bound * 2).min(BACKOFF_MAX);
        }
        assert_eq!(backoff.bound, BACKOFF_MAX);
    }

    #[tokio::test]
    async fn a_pause_ends_at_the_deadline() {
        let deadline = Deadline::after(Duration::from_millis(50));
        let mut error = crate::error::Error::new(ebla_proto::error::Reason::Overloaded, "full");
        assert!(Backoff::new().pause(deadline, &error).await);
        error = Error::from_api(
            ebla_proto::error::ApiError::new(ebla_proto::error::Reason::Overloaded, "full")
                .with("retry_ms", 1_000),
        );
        assert!(!Backoff::new().pause(deadline, &error).await);
        assert!(deadline.has_passed());
    }
}
