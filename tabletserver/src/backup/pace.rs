//! How fast backups go: at the rate that was asked for, else at a core that nobody else wants.
//!
//! The engine's work, reading, packing, writing, is on one thread for each export or import, in the
//! background (`background`). With no rate given those of a server take turns, so that however many
//! there are they have one core together.

use crate::copying::Rate;
use crate::limits;
use async_trait::async_trait;
use ebla_backup::{Pace, background};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// Holds the thread back that reads and writes versions.
pub(super) struct Duty {
    is_held: bool,
    since: Instant,
    workers: Arc<AtomicU32>,
}

impl Duty {
    /// Work that begins now, of what goes as `pace` says; `rate_bytes` is 0 when no rate was given.
    pub(super) fn new(rate_bytes: u64, pace: &Transfers) -> Self {
        let workers = Arc::clone(&pace.workers);
        workers.fetch_add(1, Ordering::Relaxed);
        Self { is_held: rate_bytes == 0, since: Instant::now(), workers }
    }

    /// What passed until now was no work.
    pub(super) fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// Lets those go first who answer clients, and rests when it is time to: for what the others work
    /// meanwhile.
    pub(super) fn rest(&mut self) {
        background::give_way();
        let worked = self.since.elapsed();
        if self.is_held && worked >= limits::BACKUP_STRETCH {
            let others = self.workers.load(Ordering::Relaxed).saturating_sub(1);
            std::thread::sleep((worked * others).min(limits::BACKUP_REST_MAX));
            self.begin();
        }
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        self.workers.fetch_sub(1, Ordering::Relaxed);
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

/// What all exports and imports of a server share: the rate that was asked for, or a core.
#[derive(Default)]
pub(super) struct Budget {
    rate: Mutex<Option<(u64, Arc<Rate>)>>,
    workers: Arc<AtomicU32>,
}

impl Budget {
    /// Transfers of one export or import, at most so many bytes per second together with all that
    /// want as many; 0 for as fast as it goes.
    pub(super) fn transfers(&self, rate_bytes: u64) -> Transfers {
        let (rate, workers) = (self.rate_of(rate_bytes), Arc::clone(&self.workers));
        Transfers { rate, workers, moved: AtomicU64::new(0), hurried: watch::Sender::new(false) }
    }

    fn rate_of(&self, rate_bytes: u64) -> Option<Arc<Rate>> {
        if rate_bytes == 0 {
            return None;
        }
        let mut known = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
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
    workers: Arc<AtomicU32>,
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
    fn two_that_work_at_once_take_no_more_than_one() {
        let budget = Budget::default();
        let mut duties = [Duty::new(0, &budget.transfers(0)), Duty::new(0, &budget.transfers(0))];
        let began = Instant::now();
        let mut worked = Duration::ZERO;
        while began.elapsed() < Duration::from_millis(100) {
            let stretch = Instant::now();
            while stretch.elapsed() < Duration::from_millis(2) {}
            worked += stretch.elapsed();
            duties[0].rest();
        }
        assert!(worked < began.elapsed().mul_f64(0.6), "{worked:?} of {:?}", began.elapsed());
        let [first, second] = duties;
        drop((first, second));
        assert_eq!(budget.workers.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_rate_holds_for_the_first_bytes_and_ends_with_a_hurry() {
        let transfers = Budget::default().transfers(10_000);
        let began = Instant::now();
        transfers.wait(1_000).await;
        assert!(began.elapsed() >= Duration::from_millis(99));
        tokio::join!(transfers.wait(10_000_000), async { transfers.hurry() });
        assert!(began.elapsed() < Duration::from_secs(100));
        assert_eq!(transfers.moved(), 10_001_000);
    }
}
