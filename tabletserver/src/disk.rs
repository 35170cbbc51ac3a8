//! How full the disk is, and what that forbids.
//!
//! A full disk must never surprise the log or a flush. Before the last bytes are gone, new
//! rows are refused while deletes and garbage collection go on; at the very end everything is.
//! Rows that are still in memory need their room in data files too, so it is kept for them.

use crate::limits;
use ebla_proto::error::{ApiError, Reason};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Size and available bytes of the file system that holds `path`.
fn statvfs(path: &Path) -> Option<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut out = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` ends in NUL and `out` is a statvfs to be filled.
    let done = unsafe { libc::statvfs(path.as_ptr(), out.as_mut_ptr()) };
    if done != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it filled `out`; zeroes were valid before.
    let out = unsafe { out.assume_init() };
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
