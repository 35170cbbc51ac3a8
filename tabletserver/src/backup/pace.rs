//! How fast backups go: at the rate that was asked for, else at half a core.
//!
//! The engine's work, reading, packing, writing, is on one thread for each export or import. With
//! no rate given it rests as long as it works, so that clients keep the rest of the machine.

use crate::copying::Rate;
use crate::limits;
use async_trait::async_trait;
use ebla_backup::Pace;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// Holds the thread back that reads and writes versions.
pub(super) struct Duty {
    is_held: bool,
    since: Instant,
}

impl Duty {
    /// Work that begins now; `rate_bytes` is 0 when no rate was given.
    pub(super) fn new(rate_bytes: u64) -> Self {
        Self { is_held: rate_bytes == 0, since: Instant::now() }
    }

    /// What passed until now was no work.
    pub(super) fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// Rests when it is time to.
    pub(super) fn rest(&mut self) {
        let worked = self.since.elapsed();
        if self.is_held && worked >= limits::BACKUP_STRETCH {
            std::thread::sleep(worked.min(limits::BACKUP_REST_MAX));
            self.begin();
        }
    }
}

/// Says when it is time for a look at the world while versions go by.
#[derive(Default)]
pub(super) struct Looks {
    passed: usize,
}

impl Looks {
    /// A version of so many bytes went by; whether a look is due.
    pub(super) fn is_due(&mut self, bytes: usize) -> bool {
        self.passed += 1 + bytes / limits::BACKUP_BYTES_PER_VERSION;
        let is_due = self.passed >= limits::BACKUP_VERSIONS_PER_LOOK;
        if is_due {
            self.passed = 0;
        }
        is_due
    }
}

/// The rate that everything of one kind on this server shares.
#[derive(Default)]
pub(super) struct SharedRate(Mutex<Option<(u64, Arc<Rate>)>>);

impl SharedRate {
    /// A budget of so many bytes per second, the same for all that want as many; none for 0.
    pub(super) fn of(&self, rate_bytes: u64) -> Option<Arc<Rate>> {
        if rate_bytes == 0 {
            return None;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((bytes, rate)) if *bytes == rate_bytes => Some(Arc::clone(rate)),
            Some(_) | None => {
                let rate = Arc::new(Rate::new(rate_bytes));
                *known = Some((rate_bytes, Arc::clone(&rate)));
                Some(rate)
            }
        }
    }
}

/// Holds what is sent to a target, or comes from it, to a rate, and counts it.
pub(super) struct Transfers {
    rate: Option<Arc<Rate>>,
    moved: AtomicU64,
    hurried: watch::Sender<bool>,
}

impl Transfers {
    /// At a rate, or as fast as it goes.
    pub(super) fn new(rate: Option<Arc<Rate>>) -> Self {
        Self { rate, moved: AtomicU64::new(0), hurried: watch::Sender::new(false) }
    }

    /// Bytes that were sent or came.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Brings what is under way to its end without a rate: it is given up.
    pub(super) fn hurry(&self) {
        self.hurried.send_replace(true);
    }
}

#[async_trait]
impl Pace for Transfers {
    async fn wait(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        let Some(rate) = &self.rate else { return };
        rate.take(Instant::now(), bytes);
        // The next taker waits for these bytes, and so do they themselves.
        let pause = rate.take(Instant::now(), 0);
        let mut hurried = self.hurried.subscribe();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = hurried.wait_for(|hurried| *hurried) => {}
        }
    }
}

/// Bytes of a file at a rate: small enough that something is heard of it now and then.
pub(super) fn file_bytes(rate_bytes: u64) -> u64 {
    match rate_bytes {
        0 => limits::BACKUP_FILE_BYTES,
        rate => rate
            .saturating_mul(limits::BACKUP_FILE_SECONDS)
            .clamp(limits::BACKUP_FILE_BYTES_MIN, limits::BACKUP_FILE_BYTES),
    }
}

/// How far an export or an import is.
#[derive(Default)]
pub(super) struct Progress {
    bytes: AtomicU64,
    files: AtomicU64,
}

impl Progress {
    /// Notes bytes of versions and files that the thread of the engine is done with.
    pub(super) fn set(&self, bytes: u64, files: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.files.store(files, Ordering::Relaxed);
    }

    /// Bytes, half of them those that were `moved` so that either half of the work shows, and files.
    pub(super) fn get(&self, moved: u64) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed).midpoint(moved), self.files.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn without_a_rate_half_of_the_time_is_rest() {
        let mut duty = Duty::new(0);
        let began = Instant::now();
        let mut worked = Duration::ZERO;
        while began.elapsed() < Duration::from_millis(100) {
            let stretch = Instant::now();
            while stretch.elapsed() < Duration::from_millis(1) {}
            worked += stretch.elapsed();
            duty.rest();
        }
        assert!(worked < began.elapsed().mul_f64(0.6), "{worked:?} of {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_rate_holds_for_the_first_bytes_and_ends_with_a_hurry() {
        let transfers = Transfers::new(SharedRate::default().of(10_000));
        let began = Instant::now();
        transfers.wait(1_000).await;
        assert!(began.elapsed() >= Duration::from_millis(99));
        tokio::join!(transfers.wait(10_000_000), async { transfers.hurry() });
        assert!(began.elapsed() < Duration::from_secs(100));
        assert_eq!(transfers.moved(), 10_001_000);
    }
}
