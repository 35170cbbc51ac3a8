//! How full the disk is, and what that forbids.
//!
//! A full disk must never surprise the log or a flush. Before the last bytes are gone, new
//! rows are refused while deletes and garbage collection go on; at the very end everything is.
//! Rows that are still in memory need their room in data files too, so it is kept for them.

use crate::limits;
use ebla_proto::error::{ApiError, Reason};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The fill of one file system, read now and then.
pub struct DiskGauge {
    path: PathBuf,
    bytes: AtomicU64,
    bytes_free: AtomicU64,
    /// Bytes of rows that a flush has yet to write.
    unflushed: AtomicU64,
}

impl DiskGauge {
    /// A gauge of the file system that holds `path`, read once.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let gauge = Self {
            path: path.to_owned(),
            bytes: AtomicU64::new(0),
            bytes_free: AtomicU64::new(u64::MAX),
            unflushed: AtomicU64::new(0),
        };
        gauge.read();
        gauge
    }

    /// Asks the system; keeps the last numbers when it does not answer.
    pub fn read(&self) {
        if let Some((bytes, bytes_free)) = statvfs(&self.path) {
            self.bytes.store(bytes, Ordering::Relaxed);
            self.bytes_free.store(bytes_free, Ordering::Relaxed);
        }
    }

    /// Sets what a flush would write now.
    pub fn set_unflushed(&self, bytes: u64) {
        self.unflushed.store(bytes, Ordering::Relaxed);
    }

    /// Counts rows that are on their way into memory.
    pub fn add_unflushed(&self, bytes: u64) {
        self.unflushed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Size and free bytes as last read.
    #[must_use]
    pub fn get(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.bytes_free.load(Ordering::Relaxed))
    }

    /// Whether there is room for copies of other servers' tablets.
    #[must_use]
    pub fn takes_copies(&self) -> bool {
        let (bytes, free) = self.get();
        free >= (bytes / limits::DISK_FREE_SHARE_FOR_COPIES).min(limits::DISK_FREE_BYTES_FOR_COPIES)
    }

    /// Whether a write may go on; one that adds no rows may for longer.
    ///
    /// # Errors
    /// `DISK_FULL`.
    pub fn check(&self, adds_rows: bool) -> Result<(), ApiError> {
        let (bytes, free) = self.get();
        let wanted = if adds_rows {
            let unflushed = self.unflushed.load(Ordering::Relaxed);
            let reserve = (bytes / limits::DISK_FREE_SHARE_FOR_SETS).min(limits::DISK_FREE_BYTES_FOR_SETS);
            reserve.saturating_add(unflushed).saturating_add(unflushed / 4)
        } else {
            (bytes / limits::DISK_FREE_SHARE_FOR_WRITES).min(limits::DISK_FREE_BYTES_FOR_WRITES)
        };
        if free >= wanted {
            return Ok(());
        }
        let hint = format!(
            "the server's disk has {free} bytes free and keeps {wanted} in reserve: \
             delete rows, drop tables or give it more space"
        );
        Err(ApiError::new(Reason::DiskFull, hint))
    }
}

/// Watches the syncs of the log: a disk that hangs must not hold leases (a leader on it could
/// neither write nor be replaced).
pub struct SyncWatch {
    started: Instant,
    log: Stretch,
    probe: Stretch,
    path: PathBuf,
}

/// One who syncs, and when.
#[derive(Default)]
struct Stretch {
    /// When the sync under way began, in milliseconds of the watch plus one; 0 for none.
    under_way: AtomicU64,
    /// When the last one ended.
    ended: AtomicU64,
}

impl SyncWatch {
    /// A watch over the disk that holds `data_dir`.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        let (log, probe) = (Stretch::default(), Stretch::default());
        Self { started: Instant::now(), log, probe, path: data_dir.join("probe") }
    }

    /// Runs a sync of the log. One thread does.
    pub fn watch<T>(&self, sync: impl FnOnce() -> T) -> T {
        self.run(&self.log, sync)
    }

    /// Whether a sync has been under way for too long.
    #[must_use]
    pub fn hangs(&self) -> bool {
        let now = self.now_ms();
        [&self.log, &self.probe].into_iter().any(|stretch| {
            let under_way = stretch.under_way.load(Ordering::Acquire);
            under_way > 0 && now.saturating_sub(under_way - 1) >= limits::DISK_HANGS_AFTER_MS
        })
    }

    /// Tries the disk with a small write when the log has been idle for a while. Only for
    /// servers that others ask for promises: an idle server writes nothing. One thread does.
    pub fn probe_if_idle(&self) {
        let idle_since = self.log.ended.load(Ordering::Acquire).max(self.probe.ended.load(Ordering::Acquire));
        let idle_ms = self.now_ms().saturating_sub(idle_since);
        let is_idle = self.log.under_way.load(Ordering::Acquire) == 0;
        if !is_idle || Duration::from_millis(idle_ms) < limits::DISK_PROBE_IDLE {
            return;
        }
        let tried = self.run(&self.probe, || {
            let mut file = File::create(&self.path)?;
            file.write_all(b"this file is written to see whether the disk answers\n")?;
            file.sync_data()
        });
        if let Err(error) = tried {
            tracing::debug!(%error, "a small write to the data directory failed");
        }
    }

    fn run<T>(&self, stretch: &Stretch, sync: impl FnOnce() -> T) -> T {
        stretch.under_way.store(self.now_ms() + 1, Ordering::Release);
        let result = sync();
        stretch.ended.store(self.now_ms(), Ordering::Release);
        stretch.under_way.store(0, Ordering::Release);
        result
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

/// Size and available bytes of the file system that holds `path`.
fn statvfs(path: &Path) -> Option<(u64, u64)> {
    let out = rustix::fs::statvfs(path).ok()?;
    Some((out.f_blocks.saturating_mul(out.f_frsize), out.f_bavail.saturating_mul(out.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauge(bytes: u64, free: u64) -> DiskGauge {
        DiskGauge {
            path: PathBuf::new(),
            bytes: AtomicU64::new(bytes),
            bytes_free: AtomicU64::new(free),
            unflushed: AtomicU64::new(0),
        }
    }

    #[test]
    fn a_sync_that_does_not_end_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let syncs = SyncWatch::new(dir.path());
        assert!(!syncs.hangs());
        let hung = syncs.watch(|| {
            std::thread::sleep(Duration::from_millis(limits::DISK_HANGS_AFTER_MS + 20));
            syncs.hangs()
        });
        assert!(hung && !syncs.hangs());
    }

    #[test]
    fn reads_this_machine() {
        let (bytes, free) = DiskGauge::new(Path::new("/")).get();
        assert!(bytes > 0 && free <= bytes);
    }

    #[test]
    fn deletes_go_on_where_sets_end() {
        let nearly_full = gauge(100_000_000, 6_000_000);
        assert_eq!(nearly_full.check(true).unwrap_err().reason, Reason::DiskFull);
        assert_eq!(nearly_full.check(false), Ok(()));
        assert!(gauge(100_000_000, 1_000_000).check(false).is_err());
    }

    #[test]
    fn rows_in_memory_keep_their_room() {
        let disk = gauge(100_000_000, 40_000_000);
        assert_eq!(disk.check(true), Ok(()));
        disk.set_unflushed(30_000_000);
        assert_eq!(disk.check(true).unwrap_err().reason, Reason::DiskFull);
        assert_eq!(disk.check(false), Ok(()));
    }

    #[test]
    fn a_large_disk_keeps_no_more_than_a_fixed_reserve() {
        assert_eq!(gauge(1 << 50, 4 << 30).check(true), Ok(()));
    }
}
