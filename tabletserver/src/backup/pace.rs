//! What the backups and restores of a server share: the rate that was asked for, or a part of a core.

use crate::limits;
use async_trait::async_trait;
use ebla_backup::{Crew, Held, Pace, Rate, Worker};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

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

/// What all exports and imports of a server share.
#[derive(Default)]
pub(super) struct Budget {
    rate: Mutex<Option<Arc<Rate>>>,
    crew: Crew,
}

impl Budget {
    /// Transfers of one export or import, at most so many bytes per second together with all that
    /// want as many; 0 for as fast as it goes with one in `parts` of a core.
    pub(super) fn transfers(&self, rate_bytes: u64, parts: u32) -> Transfers {
        let held = match rate_bytes {
            0 => Held::Core(self.crew.clone(), parts),
            rate_bytes => Held::Rate(self.rate_of(rate_bytes)),
        };
        Transfers { held, moved: AtomicU64::new(0), hurried: watch::Sender::new(false) }
    }

    fn rate_of(&self, rate_bytes: u64) -> Arc<Rate> {
        let mut known = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(rate) if rate.bytes_per_s() == rate_bytes => Arc::clone(rate),
            Some(_) | None => Arc::clone(known.insert(Arc::new(Rate::new(rate_bytes)))),
        }
    }
}

/// Holds what is sent to a target, or comes from it, to its pace, and counts it.
pub(super) struct Transfers {
    held: Held,
    moved: AtomicU64,
    hurried: watch::Sender<bool>,
}

impl Transfers {
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
        let mut hurried = self.hurried.subscribe();
        tokio::select! {
            biased;
            () = self.held.wait(bytes) => {}
            _ = hurried.wait_for(|hurried| *hurried) => {}
        }
    }

    fn worker(&self) -> Worker {
        self.held.worker()
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

/// How far an export is.
#[derive(Default)]
pub(super) struct Progress {
    passed: AtomicU64,
    packed: AtomicU64,
    files: AtomicU64,
}

impl Progress {
    /// Notes about how many bytes of rows went by.
    pub(super) fn pass(&self, bytes: u64) {
        self.passed.store(bytes, Ordering::Relaxed);
    }

    /// Notes a file that is to be sent, of so many bytes.
    pub(super) fn pack(&self, bytes: u64) {
        self.packed.fetch_add(bytes, Ordering::Relaxed);
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    /// Files that were packed.
    pub(super) fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }

    /// Bytes of rows: half of those that went by, and of the other half as much as has `moved` of what
    /// was packed of them, so that either half of the work shows.
    pub(super) fn bytes(&self, moved: u64) -> u64 {
        let (passed, packed) = (self.passed.load(Ordering::Relaxed), self.packed.load(Ordering::Relaxed));
        let sent = u128::from(passed) * u128::from(moved.min(packed)) / u128::from(packed.max(1));
        passed.midpoint(u64::try_from(sent).unwrap_or(passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[tokio::test]
    async fn a_rate_holds_for_the_first_bytes_and_ends_with_a_hurry() {
        let transfers = Budget::default().transfers(10_000, 1);
        let began = Instant::now();
        transfers.wait(1_000).await;
        assert!(began.elapsed() >= Duration::from_millis(99));
        tokio::join!(transfers.wait(10_000_000), async { transfers.hurry() });
        assert!(began.elapsed() < Duration::from_secs(100));
        assert_eq!(transfers.moved(), 10_001_000);
    }

    #[test]
    fn packing_and_sending_are_half_of_an_export_each() {
        let progress = Progress::default();
        progress.pass(1_000);
        assert_eq!(progress.bytes(0), 500);
        progress.pack(200);
        assert_eq!([0, 100, 200, 300].map(|moved| progress.bytes(moved)), [500, 750, 1_000, 1_000]);
        assert_eq!(progress.files(), 1);
    }
}
