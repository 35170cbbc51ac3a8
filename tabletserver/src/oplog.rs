//! The log of a server: one stream of checksummed records shared by all its tablets.
//!
//! A group of appends for any number of tablets is one write and one fsync. The engine below
//! is `raft-engine`; it is named nowhere else. Invariants:
//! - the records of a tablet are consecutive: a hole is refused before anything is written;
//! - an append at or below the end cuts the tail, but only when the caller says so;
//! - after a failed fsync nothing is appended any more: what the disk holds is unknown;
//! - damage before the last record is an error of [`Oplog::open`], never a shorter log.
//!
//! A record is stored as `seq (8 bytes BE) · entry` (`kernel::entry`), see `docs/formats.md`.
//! The log does not know epochs, quorums or what was flushed: its callers say what may go.

mod memory;
mod tail;

use crate::limits::{
    OPLOG_COMPRESS_BYTES, OPLOG_FILE_BYTES_DEFAULT, OPLOG_GROUP_BYTES_MAX, OPLOG_PURGE_BYTES_DEFAULT,
    OPLOG_RECOVERY_THREADS,
};
use bytes::Bytes;
use ebla_kernel::entry::{Entry, EntryError};
use ebla_kernel::ids::{Seq, TabletId};
use memory::MemoryLog;
use protobuf::well_known_types::BytesValue;
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};
use std::any::Any;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tail::Finding;

/// What may be tuned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OplogConfig {
    /// Size of one file in bytes.
    pub file_bytes: u64,
    /// Bytes of log below which a purge does nothing; at least `file_bytes`.
    pub purge_bytes: u64,
}

impl Default for OplogConfig {
    fn default() -> Self {
        Self { file_bytes: OPLOG_FILE_BYTES_DEFAULT, purge_bytes: OPLOG_PURGE_BYTES_DEFAULT }
    }
}

/// What went wrong in the log.
#[derive(Debug, thiserror::Error)]
pub enum OplogError {
    /// Records are broken that were synced. The server refuses to start and removes nothing
    /// (`docs/decisions/0008-damage-refuses-to-start.md`).
    #[error("the log is damaged: {what}; nothing is served from it: restore the directory from a copy")]
    Damaged {
        /// What was found.
        what: String,
    },
    /// The append does not continue the tablet's log. Nothing was written.
    #[error("append of {tablet} at {got} does not continue its log, which wants {want}")]
    NotContiguous {
        /// The tablet.
        tablet: TabletId,
        /// Where the append, or the record within it, stands.
        got: Seq,
        /// Where it should stand.
        want: Seq,
    },
    /// More bytes than one group may bring. Nothing was written.
    #[error("a group of {bytes} bytes is above the limit of {OPLOG_GROUP_BYTES_MAX}: append it in parts")]
    GroupTooLarge {
        /// How many there were.
        bytes: usize,
    },
    /// A write failed; what of the group is in the log is unknown until it is opened again.
    #[error("the log failed to {tried}")]
    Write {
        /// What was tried.
        tried: &'static str,
        /// What the engine said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An fsync failed, now or earlier. Final: the process must end.
    #[error("the log could not be synced ({what}): this process must end, its disk is not to be trusted")]
    SyncFailed {
        /// What the engine said.
        what: String,
    },
    /// The entries were purged.
    #[error("entries of {tablet} from {from} were purged, its log begins at {first}: bootstrap instead")]
    Purged {
        /// The tablet.
        tablet: TabletId,
        /// What was asked for.
        from: Seq,
        /// What is left.
        first: Seq,
    },
    /// A newer version wrote a record.
    #[error("a log record has format {format}: use a newer ebla")]
    NewerFormat {
        /// Its format.
        format: u8,
    },
    /// The log cannot be opened for another reason than damage.
    #[error("the log in {dir} cannot be opened")]
    Open {
        /// The directory.
        dir: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Whether an append waits for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fsync {
    /// Durable on return.
    Now,
    /// Durable some time later: the explicit opt-out.
    Later,
}

/// Whether an append may drop what stands at and above its first record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// It continues the log.
    Continue,
    /// It cuts the log there first.
    Cut,
}

/// Entries for one tablet.
#[derive(Clone, Debug)]
pub struct Append<'a> {
    /// The tablet.
    pub tablet: TabletId,
    /// Whether they may replace a tail.
    pub tail: Tail,
    /// Consecutive entries. A tablet without entries may begin at any sequence number.
    pub entries: Vec<&'a Arc<Logged>>,
}

/// An entry on its way to the log and to other copies; encoded once for all of them.
#[derive(Debug)]
pub struct Logged {
    /// The entry.
    pub entry: Entry,
    bytes: OnceLock<Bytes>,
}

impl Logged {
    /// The entry as a log record and a frame carry it.
    pub fn bytes(&self) -> &Bytes {
        self.bytes.get_or_init(|| self.entry.encode().into())
    }
}

impl From<Entry> for Logged {
    fn from(entry: Entry) -> Self {
        Self { entry, bytes: OnceLock::new() }
    }
}

/// The log of a server.
pub struct Oplog {
    engine: Engine,
    /// The logs of tablets that live in memory.
    memory: MemoryLog,
    /// One writer at a time: what stands behind a record was written after its fsync.
    writer: Mutex<()>,
    failed: AtomicBool,
}

impl Oplog {
    /// Opens the log in `dir`, creating it if there is none. A torn last record is cut.
    ///
    /// # Errors
    /// `Damaged` when a record is broken that others follow; `Open` otherwise.
    pub fn open(dir: &Path, config: &OplogConfig) -> Result<Self, OplogError> {
        let open_error = |source: Box<dyn std::error::Error + Send + Sync>| OplogError::Open {
            dir: dir.display().to_string(),
            source,
        };
        fs::create_dir_all(dir).map_err(|error| open_error(error.into()))?;
        match tail::inspect(dir).map_err(|error| open_error(error.into()))? {
            Finding::Sound => {}
            Finding::Damaged(what) => return Err(OplogError::Damaged { what }),
        }
        let engine = catch_unwind(AssertUnwindSafe(|| Engine::open(engine_config(dir, config))));
        let engine = engine
            .map_err(|panic| OplogError::Damaged { what: panic_message(&*panic) })?
            .map_err(|error| if is_damage(&error) { damaged(&error) } else { open_error(error.into()) })?;
        let memory = MemoryLog::default();
        Ok(Self { engine, memory, writer: Mutex::default(), failed: AtomicBool::new(false) })
    }

    /// Keeps the log of `tablet` in memory from now on; before its first entry.
    pub fn keep_in_memory(&self, tablet: TabletId) {
        self.memory.add(tablet);
    }

    /// Bytes that the logs in memory take, about.
    #[must_use]
    pub fn bytes_in_memory(&self) -> u64 {
        self.memory.bytes()
    }

    /// Appends entries of any number of tablets: one write, one fsync. Gives the bytes
    /// written. All or nothing, also across a crash. Entries of tablets in memory are there when
    /// all of them fit; a group of nothing else touches no disk.
    ///
    /// # Errors
    /// `NotContiguous` and `GroupTooLarge`: nothing was written. `Write`: the group may be in
    /// the log or not. `SyncFailed`: end the process.
    pub fn append_group(&self, group: &[Append<'_>], fsync: Fsync) -> Result<usize, OplogError> {
        let (memory, disk): (Vec<&Append<'_>>, Vec<&Append<'_>>) =
            group.iter().partition(|append| self.memory.has(append.tablet));
        memory.iter().try_for_each(|append| self.check_contiguous(append))?;
        let bytes = if disk.is_empty() { 0 } else { self.append_to_disk(&disk, fsync)? };
        memory.into_iter().for_each(|append| self.memory.append(append));
        Ok(bytes)
    }

    fn append_to_disk(&self, group: &[&Append<'_>], fsync: Fsync) -> Result<usize, OplogError> {
        let writing = self.begin_write()?;
        let mut batch = LogBatch::with_capacity(group.len());
        let mut bytes = 0;
        for append in group {
            self.check_contiguous(append)?;
            let records: Vec<BytesValue> = append.entries.iter().map(|logged| record(logged)).collect();
            bytes += records.iter().map(|record| record.value.len()).sum::<usize>();
            if bytes > OPLOG_GROUP_BYTES_MAX {
                return Err(OplogError::GroupTooLarge { bytes });
            }
            let added = batch.add_entries::<Records>(append.tablet.0, &records);
            added.map_err(|error| write_failed("encode a group", error))?;
        }
        self.write(writing, batch, fsync, "append a group")
    }

    /// The entries of `tablet` from `from` on, up to about `bytes_max` and at least one;
    /// none past the end.
    ///
    /// # Errors
    /// `Purged` when `from` is gone, `Damaged` when what is there cannot be read,
    /// `NewerFormat` when a newer version wrote it.
    pub fn read(&self, tablet: TabletId, from: Seq, bytes_max: usize) -> Result<Vec<Entry>, OplogError> {
        if self.memory.has(tablet) {
            return self.memory.read(tablet, from, bytes_max);
        }
        let Some((first, last)) = self.bounds(tablet) else { return Ok(Vec::new()) };
        if from < first {
            return Err(OplogError::Purged { tablet, from, first });
        }
        let mut records = Vec::new();
        let fetched = catch_unwind(AssertUnwindSafe(|| {
            let end = last.next().0;
            self.engine.fetch_entries_to::<Records>(tablet.0, from.0, end, Some(bytes_max), &mut records)
        }));
        fetched
            .map_err(|panic| OplogError::Damaged { what: panic_message(&*panic) })?
            .map_err(|error| damaged(&error))?;
        let seqs = from.0..;
        records.iter().zip(seqs).map(|(record, seq)| read_record(tablet, Seq(seq), &record.value)).collect()
    }

    /// First and last sequence number of `tablet`; none when it has no entries.
    #[must_use]
    pub fn bounds(&self, tablet: TabletId) -> Option<(Seq, Seq)> {
        if self.memory.has(tablet) {
            return self.memory.bounds(tablet);
        }
        let first = self.engine.first_index(tablet.0)?;
        Some((Seq(first), Seq(self.engine.last_index(tablet.0)?)))
    }

    /// Every tablet that has ever appended here and was not removed, in order.
    #[must_use]
    pub fn tablets(&self) -> Vec<TabletId> {
        let mut tablets: Vec<TabletId> = self.engine.raft_groups().into_iter().map(TabletId).collect();
        tablets.sort_unstable();
        tablets
    }

    /// Cuts the log of `tablet` after `keep`; durable on return. The engine cuts only where it
    /// appends, so the last entry that stays is written once more.
    ///
    /// # Errors
    /// `Purged` when that entry is gone; `Damaged`, `Write` or `SyncFailed`.
    pub fn cut_after(&self, tablet: TabletId, keep: Seq) -> Result<(), OplogError> {
        if self.bounds(tablet).is_none_or(|(_, last)| last <= keep) {
            return Ok(());
        }
        if self.memory.has(tablet) {
            self.memory.cut_after(tablet, keep);
            return Ok(());
        }
        if self.bounds(tablet).is_some_and(|(first, _)| first == keep.next()) {
            return self.remove(&[tablet]); // what stays is in the log of the tablet's parent
        }
        let last = self.read(tablet, keep, 1)?.into_iter().next();
        let last = last.map(Logged::from).map(Arc::new);
        let last =
            last.ok_or_else(|| OplogError::Damaged { what: format!("record {keep} of {tablet} is gone") })?;
        self.append_group(&[Append { tablet, tail: Tail::Cut, entries: vec![&last] }], Fsync::Now).map(drop)
    }

    /// Forgets the entries below the given ones; at the latest a purge gives the space back.
    ///
    /// # Errors
    /// `Write` or `SyncFailed`.
    pub fn compact_to(&self, keep_from: &[(TabletId, Seq)]) -> Result<(), OplogError> {
        let mut keep_from = keep_from.to_vec();
        keep_from.retain(|(tablet, seq)| {
            let is_in_memory = self.memory.has(*tablet);
            if is_in_memory {
                self.memory.compact_to(*tablet, *seq);
            }
            !is_in_memory
        });
        if keep_from.is_empty() {
            return Ok(());
        }
        let writing = self.begin_write()?;
        let mut batch = LogBatch::with_capacity(keep_from.len());
        for (tablet, seq) in &keep_from {
            if self.bounds(*tablet).is_some_and(|(first, _)| first < *seq) {
                batch.add_command(tablet.0, Command::Compact { index: seq.0 });
            }
        }
        self.write(writing, batch, Fsync::Now, "forget entries").map(drop)
    }

    /// Forgets everything about `tablets`.
    ///
    /// # Errors
    /// `Write` or `SyncFailed`.
    pub fn remove(&self, tablets: &[TabletId]) -> Result<(), OplogError> {
        let (memory, disk): (Vec<TabletId>, Vec<TabletId>) =
            tablets.iter().partition(|tablet| self.memory.has(**tablet));
        memory.into_iter().for_each(|tablet| self.memory.remove(tablet));
        if disk.is_empty() {
            return Ok(());
        }
        let writing = self.begin_write()?;
        let mut batch = LogBatch::with_capacity(disk.len());
        for tablet in disk {
            batch.add_command(tablet.0, Command::Clean);
        }
        self.write(writing, batch, Fsync::Now, "remove tablets").map(drop)
    }

    /// Deletes files that hold nothing any more, rewriting the few entries that hold an old
    /// file back. Gives the tablets whose many old entries still do: flush and compact them.
    ///
    /// # Errors
    /// `Write` or `SyncFailed`.
    pub fn purge(&self) -> Result<Vec<TabletId>, OplogError> {
        let _writing = self.begin_write()?;
        let purged = catch_unwind(AssertUnwindSafe(|| self.engine.purge_expired_files()));
        let behind = self.not_panicked(purged)?.map_err(|error| write_failed("purge files", error))?;
        Ok(behind.into_iter().map(TabletId).collect())
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes_on_disk(&self) -> u64 {
        self.engine.get_used_size() as u64
    }

    fn begin_write(&self) -> Result<MutexGuard<'_, ()>, OplogError> {
        let writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if self.failed.load(Ordering::Acquire) {
            return Err(OplogError::SyncFailed { what: "an earlier write failed".into() });
        }
        Ok(writing)
    }

    fn write(
        &self,
        writing: MutexGuard<'_, ()>,
        mut batch: LogBatch,
        fsync: Fsync,
        tried: &'static str,
    ) -> Result<usize, OplogError> {
        let written = catch_unwind(AssertUnwindSafe(|| self.engine.write(&mut batch, fsync == Fsync::Now)));
        let written = self.not_panicked(written)?.map_err(|error| write_failed(tried, error));
        drop(writing);
        written
    }

    /// The engine panics where it cannot go on, above all when an fsync fails.
    fn not_panicked<T>(&self, outcome: std::thread::Result<T>) -> Result<T, OplogError> {
        outcome.map_err(|panic| {
            self.failed.store(true, Ordering::Release);
            OplogError::SyncFailed { what: panic_message(&*panic) }
        })
    }

    fn check_contiguous(&self, append: &Append<'_>) -> Result<(), OplogError> {
        let tablet = append.tablet;
        let refuse = |got, want| Err(OplogError::NotContiguous { tablet, got, want });
        let Some(first) = append.entries.first().map(|logged| logged.entry.seq()) else { return Ok(()) };
        if let Some((log_first, log_last)) = self.bounds(tablet) {
            let fits = match append.tail {
                Tail::Continue => first == log_last.next(),
                Tail::Cut => (log_first..=log_last.next()).contains(&first),
            };
            if !fits {
                return refuse(first, log_last.next());
            }
        }
        for pair in append.entries.windows(2) {
            let (before, after) = (pair[0].entry.seq(), pair[1].entry.seq());
            if after != before.next() {
                return refuse(after, before.next());
            }
        }
        Ok(())
    }
}

/// How the engine finds the index of a record.
struct Records;

impl MessageExt for Records {
    type Entry = BytesValue;

    fn index(record: &BytesValue) -> u64 {
        record.value.first_chunk().map_or(0, |seq| u64::from_be_bytes(*seq))
    }
}

fn record(logged: &Logged) -> BytesValue {
    let mut record = BytesValue::new();
    record.set_value([&logged.entry.seq().0.to_be_bytes()[..], logged.bytes()].concat());
    record
}

fn read_record(tablet: TabletId, seq: Seq, record: &[u8]) -> Result<Entry, OplogError> {
    let at_fault = |what: &str| OplogError::Damaged { what: format!("record {seq} of {tablet}: {what}") };
    let (stored_seq, entry) = record.split_first_chunk().ok_or_else(|| at_fault("too short"))?;
    let entry = Entry::decode(entry).map_err(|error| match error {
        EntryError::UnknownFormat(format) => OplogError::NewerFormat { format },
        EntryError::Empty | EntryError::Malformed(_) => at_fault(&error.to_string()),
    })?;
    if u64::from_be_bytes(*stored_seq) != seq.0 || entry.seq() != seq {
        return Err(at_fault("stands at the wrong place"));
    }
    Ok(entry)
}

fn engine_config(dir: &Path, config: &OplogConfig) -> Config {
    Config {
        dir: dir.to_string_lossy().into_owned(),
        recovery_mode: RecoveryMode::TolerateTailCorruption,
        recovery_threads: OPLOG_RECOVERY_THREADS,
        batch_compression_threshold: ReadableSize(OPLOG_COMPRESS_BYTES),
        target_file_size: ReadableSize(config.file_bytes),
        purge_threshold: ReadableSize(config.purge_bytes.max(config.file_bytes)),
        // Old records in a reused file would look like records behind a torn tail.
        enable_log_recycle: false,
        ..Config::default()
    }
}

fn is_damage(error: &raft_engine::Error) -> bool {
    use raft_engine::Error;
    match error {
        Error::Corruption(_) | Error::Codec(_) | Error::Protobuf(_) => true,
        Error::InvalidArgument(_)
        | Error::Io(_)
        | Error::TryAgain(_)
        | Error::EntryCompacted
        | Error::EntryNotFound
        | Error::Full
        | Error::Other(_) => false,
    }
}

fn damaged(error: &raft_engine::Error) -> OplogError {
    OplogError::Damaged { what: error.to_string() }
}

fn write_failed(tried: &'static str, source: raft_engine::Error) -> OplogError {
    OplogError::Write { tried, source: source.into() }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "the log engine panicked".to_owned())
}

#[cfg(test)]
mod tests;
