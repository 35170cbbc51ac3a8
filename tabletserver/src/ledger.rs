//! The loss ledger: what a failover took from a deposed leader's log, kept for people.
//!
//! One file per cut: a header that sums it up, then the entries, each with its length and
//! checksum. A record is durable before the first of its rows is undone
//! (`kernel::tablet::truncate`), and it is written under a name of its own and renamed, so a
//! file that is there is whole. A cut that a crash makes run again finds its record by what it
//! is about and writes no second one.
//!
//! The ledger is bounded: past [`LEDGER_BYTES_MAX`] the oldest records are dropped, counted and
//! said. Nothing of the server depends on what it holds.

use crate::limits::{LEDGER_BYTES_MAX, LEDGER_ENTRY_BYTES_MAX};
use borsh::{BorshDeserialize, BorshSerialize};
use ebla_kernel::entry::Entry;
use ebla_kernel::ids::{Pos, ReplicaId, TableId, TabletId};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use tracing::warn;

/// First byte of a record's file.
const LEDGER_FORMAT: u8 = 1;

/// Ending of a record's file name.
const ENDING: &str = "lost";

/// Bytes of header that are read at most; a valid one has about a hundred.
const HEADER_BYTES_MAX: u32 = 1_024;

/// What one cut took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct LossSummary {
    /// The tablet.
    pub tablet: TabletId,
    /// Its table.
    pub table: TableId,
    /// The copy whose log was cut.
    pub replica: ReplicaId,
    /// First position that was cut.
    pub first: Pos,
    /// Last position that was cut.
    pub last: Pos,
    /// Writes among the entries.
    pub writes: u64,
    /// Rows that they put.
    pub rows: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
}

impl LossSummary {
    /// Whether both are about the same cut, tried once or twice.
    fn is_same_cut(&self, other: &Self) -> bool {
        (self.tablet, self.replica, self.first, self.last)
            == (other.tablet, other.replica, other.first, other.last)
    }
}

/// What went wrong in the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The disk failed.
    #[error("the loss ledger failed to {tried}")]
    Io {
        /// What was tried.
        tried: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A record cannot be read.
    #[error("record {id} of the loss ledger is damaged: {what}")]
    Damaged {
        /// The record.
        id: u64,
        /// What was found.
        what: String,
    },
    /// There is no such record.
    #[error("the loss ledger has no record {id}: `ebla lost list` shows what there is")]
    NoRecord {
        /// What was asked for.
        id: u64,
    },
}

struct Kept {
    summary: LossSummary,
    bytes: u64,
}

/// The ledger of a server.
pub struct Ledger {
    dir: PathBuf,
    bytes_max: u64,
    records: Mutex<BTreeMap<u64, Kept>>,
}

impl Ledger {
    /// Opens the ledger in `dir`, creating it if there is none. Records that cannot be read
    /// are left where they are and said.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(dir: &Path) -> Result<Self, LedgerError> {
        Self::open_with_limit(dir, LEDGER_BYTES_MAX)
    }

    fn open_with_limit(dir: &Path, bytes_max: u64) -> Result<Self, LedgerError> {
        fs::create_dir_all(dir).map_err(io_error("create its directory"))?;
        let mut records = BTreeMap::new();
        for file in fs::read_dir(dir).map_err(io_error("list its directory"))? {
            let path = file.map_err(io_error("list its directory"))?.path();
            let Some(id) = record_id(&path) else { continue };
            match Reading::open(&path, id) {
                Ok(reading) => {
                    records.insert(id, Kept { summary: reading.summary, bytes: file_bytes(&path) });
                }
                Err(error) => warn!(%error, path = %path.display(), "a record of lost writes is left out"),
            }
        }
        Ok(Self { dir: dir.to_owned(), bytes_max, records: Mutex::new(records) })
    }

    /// Writes the record of a cut; durable on return. `tail` gives the entries batch by batch,
    /// oldest first, until it gives none.
    ///
    /// # Errors
    /// When the record is not durable, or `tail` fails: then nothing may be undone.
    pub fn record<E: From<LedgerError>>(
        &self,
        summary: LossSummary,
        mut tail: impl FnMut() -> Result<Vec<Entry>, E>,
    ) -> Result<u64, E> {
        let mut records = self.lock();
        if let Some((id, _)) = records.iter().find(|(_, kept)| kept.summary.is_same_cut(&summary)) {
            return Ok(*id);
        }
        let id = records.last_key_value().map_or(1, |(last, _)| last + 1);
        let path = self.path(id);
        let beside = path.with_extension("new");
        let mut writing = Writing::begin(&beside, &summary)?;
        loop {
            let entries = tail()?;
            if entries.is_empty() {
                break;
            }
            entries.iter().try_for_each(|entry| writing.add(entry))?;
        }
        let bytes = writing.finish(&path)?;
        records.insert(id, Kept { summary, bytes });
        self.drop_oldest(&mut records, id);
        Ok(id)
    }

    /// Every record, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<(u64, LossSummary)> {
        self.lock().iter().map(|(id, kept)| (*id, kept.summary)).collect()
    }

    /// Reads the entries of a record, oldest first.
    ///
    /// # Errors
    /// `NoRecord`, `Damaged` or `Io`.
    pub fn read(
        &self,
        id: u64,
    ) -> Result<impl Iterator<Item = Result<Entry, LedgerError>> + use<>, LedgerError> {
        if !self.lock().contains_key(&id) {
            return Err(LedgerError::NoRecord { id });
        }
        Reading::open(&self.path(id), id)
    }

    fn drop_oldest(&self, records: &mut BTreeMap<u64, Kept>, newest: u64) {
        let mut bytes: u64 = records.values().map(|kept| kept.bytes).sum();
        while bytes > self.bytes_max {
            let Some(oldest) = records.first_entry().filter(|oldest| *oldest.key() != newest) else { return };
            let (id, kept) = oldest.remove_entry();
            bytes -= kept.bytes;
            metrics::counter!("ebla_lost_records_dropped_total").increment(1);
            warn!(
                id, tablet = %kept.summary.tablet, rows = kept.summary.rows,
                "the loss ledger is full: its oldest record is dropped"
            );
            if let Err(error) = fs::remove_file(self.path(id)) {
                warn!(%error, id, "a dropped record's file stays");
            }
        }
    }

    fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:08}.{ENDING}"))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Kept>> {
        self.records.lock().expect("no holder of this lock panics")
    }
}

fn record_id(path: &Path) -> Option<u64> {
    let is_record = path.extension().is_some_and(|ending| ending == ENDING);
    path.file_stem().filter(|_| is_record)?.to_str()?.parse().ok()
}

fn file_bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn io_error(tried: &'static str) -> impl Fn(io::Error) -> LedgerError {
    move |source| LedgerError::Io { tried, source }
}

/// A record on its way to the disk.
struct Writing {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Writing {
    fn begin(path: &Path, summary: &LossSummary) -> Result<Self, LedgerError> {
        let file = File::create(path).map_err(io_error("create a record"))?;
        let mut writing = Self { file: BufWriter::new(file), path: path.to_owned() };
        writing.file.write_all(&[LEDGER_FORMAT]).map_err(io_error("write a record"))?;
        let header = borsh::to_vec(summary).expect("writing to a vector does not fail");
        writing.piece(&header)?;
        Ok(writing)
    }

    fn add(&mut self, entry: &Entry) -> Result<(), LedgerError> {
        self.piece(&entry.encode())
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<(), LedgerError> {
        let length = u32::try_from(bytes.len()).map_err(|_| LedgerError::Io {
            tried: "write a record",
            source: io::Error::from(io::ErrorKind::InvalidInput),
        })?;
        let head = [length.to_be_bytes(), crc32fast::hash(bytes).to_be_bytes()].concat();
        self.file
            .write_all(&head)
            .and_then(|()| self.file.write_all(bytes))
            .map_err(io_error("write a record"))
    }

    fn finish(self, path: &Path) -> Result<u64, LedgerError> {
        let file = self.file.into_inner().map_err(|error| io_error("write a record")(error.into_error()))?;
        file.sync_all().map_err(io_error("sync a record"))?;
        fs::rename(&self.path, path).map_err(io_error("name a record"))?;
        let dir = path.parent().unwrap_or(path);
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync its directory"))?;
        Ok(file_bytes(path))
    }
}

/// A record that is read.
struct Reading {
    id: u64,
    file: BufReader<File>,
    summary: LossSummary,
}

impl Reading {
    fn open(path: &Path, id: u64) -> Result<Self, LedgerError> {
        let mut file = BufReader::new(File::open(path).map_err(io_error("open a record"))?);
        let mut format = [0];
        file.read_exact(&mut format).map_err(io_error("read a record"))?;
        if format[0] != LEDGER_FORMAT {
            return Err(LedgerError::Damaged { id, what: format!("unknown format {}", format[0]) });
        }
        let header = read_piece(&mut file, id, HEADER_BYTES_MAX)?
            .ok_or_else(|| LedgerError::Damaged { id, what: "no header".into() })?;
        let summary = borsh::from_slice(&header)
            .map_err(|error| LedgerError::Damaged { id, what: format!("malformed header: {error}") })?;
        Ok(Self { id, file, summary })
    }
}

impl Iterator for Reading {
    type Item = Result<Entry, LedgerError>;

    fn next(&mut self) -> Option<Self::Item> {
        let id = self.id;
        let piece = read_piece(&mut self.file, id, LEDGER_ENTRY_BYTES_MAX).transpose()?;
        Some(piece.and_then(|bytes| {
            Entry::decode(&bytes).map_err(|error| LedgerError::Damaged { id, what: error.to_string() })
        }))
    }
}

/// The next piece; none at the end of the file.
fn read_piece(file: &mut BufReader<File>, id: u64, bytes_max: u32) -> Result<Option<Vec<u8>>, LedgerError> {
    let mut head = [0; 8];
    match file.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(source) => return Err(LedgerError::Io { tried: "read a record", source }),
    }
    let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if number(0) > bytes_max {
        return Err(LedgerError::Damaged { id, what: format!("a piece of {} bytes", number(0)) });
    }
    let mut bytes = vec![0; number(0) as usize];
    file.read_exact(&mut bytes).map_err(io_error("read a record"))?;
    if crc32fast::hash(&bytes) != number(4) {
        return Err(LedgerError::Damaged { id, what: "a checksum does not fit".into() });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::entry::{LogEnd, Payload};
    use ebla_kernel::hlc::Hlc;
    use ebla_kernel::ids::{Epoch, Incarnation, Seq};

    fn summary(tablet: u64, first: u64) -> LossSummary {
        LossSummary {
            tablet: TabletId(tablet),
            table: TableId(1),
            replica: ReplicaId(4),
            first: Pos::new(Epoch(2), Seq(first)),
            last: Pos::new(Epoch(2), Seq(first + 1)),
            writes: 1,
            rows: 3,
            time_ms: 99,
        }
    }

    fn entry() -> Entry {
        let payload = Payload::EpochStart { replica: ReplicaId(4), incarnation: Incarnation(1) };
        LogEnd::default().follow(Epoch(2), Hlc(7), payload)
    }

    fn record(ledger: &Ledger, summary: LossSummary) -> u64 {
        let mut batches = vec![vec![entry()], vec![entry()]];
        ledger.record(summary, || Ok::<_, LedgerError>(batches.pop().unwrap_or_default())).unwrap()
    }

    #[test]
    fn what_was_recorded_is_found_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let id = record(&ledger, summary(1, 5));
        drop(ledger);
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.list(), [(id, summary(1, 5))]);
        let entries: Result<Vec<_>, _> = ledger.read(id).unwrap().collect();
        assert_eq!(entries.unwrap(), [entry(), entry()]);
        assert!(matches!(ledger.read(id + 1).map(drop), Err(LedgerError::NoRecord { .. })));
    }

    #[test]
    fn a_cut_that_runs_twice_is_recorded_once() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let again = LossSummary { time_ms: 100, ..summary(1, 5) };
        assert_eq!(record(&ledger, summary(1, 5)), record(&ledger, again));
        assert_ne!(record(&ledger, summary(1, 5)), record(&ledger, summary(1, 9)));
        assert_eq!(ledger.list().len(), 2);
    }

    #[test]
    fn the_oldest_record_goes_when_the_ledger_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open_with_limit(dir.path(), 400).unwrap();
        let ids: Vec<u64> = (1..=4).map(|tablet| record(&ledger, summary(tablet, 5))).collect();
        let left: Vec<u64> = ledger.list().into_iter().map(|(id, _)| id).collect();
        assert!(left.len() < ids.len() && left.ends_with(&ids[3..]), "left {left:?} of {ids:?}");
    }

    #[test]
    fn a_flipped_byte_is_said_and_not_answered_from() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let id = record(&ledger, summary(1, 5));
        let path = ledger.path(id);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        let entries: Result<Vec<_>, _> = ledger.read(id).unwrap().collect();
        assert!(matches!(entries, Err(LedgerError::Damaged { .. })));
    }
}
