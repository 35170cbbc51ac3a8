//! The Raft log, its hard state and its snapshots on disk.
//!
//! Invariants:
//! - whatever a persisted message speaks of was synced before, in one batch;
//! - entries are contiguous from `truncated + 1` to `last`;
//! - a snapshot file is whole and verified before the log is cut behind it, and the one
//!   before it goes only then;
//! - every failure to persist is an [`Error`] that ends the process: nothing is tried twice.

use crate::error::Error;
use crate::identity::write_durably;
use crate::limits::{LOG_FILE_BYTES, LOG_PURGE_BYTES};
use ebla_failpoints::failpoint;
use ebla_kernel::meta::{State, decode_snapshot};
use protobuf::Message as _;
use protobuf::well_known_types::BytesValue;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, StorageError};
use raft_engine::{Command, Engine, LogBatch, MessageExt, ReadableSize};
use std::fs;
use std::path::{Path, PathBuf};

/// The one group in the log.
const GROUP: u64 = 1;
const KEY_HARD_STATE: &[u8] = b"hard_state";
const KEY_SNAPSHOT: &[u8] = b"snapshot";
const KEY_TRUNCATED: &[u8] = b"truncated";
/// Bytes of the index in front of each entry.
const INDEX_BYTES: usize = 8;

struct LogEntry;

impl MessageExt for LogEntry {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let index = entry.get_value().first_chunk::<INDEX_BYTES>();
        index.map_or(0, |index| u64::from_be_bytes(*index))
    }
}

/// An index and the term of the entry there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Mark {
    index: u64,
    term: u64,
}

impl Mark {
    fn encode(self) -> Vec<u8> {
        [self.index.to_be_bytes(), self.term.to_be_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (index, term) = bytes.split_first_chunk::<8>()?;
        Some(Self { index: u64::from_be_bytes(*index), term: u64::from_be_bytes(term.try_into().ok()?) })
    }
}

/// Log, hard state and snapshots.
pub(crate) struct Storage {
    engine: Engine,
    snapshot_dir: PathBuf,
    voters: Vec<u64>,
    hard_state: HardState,
    /// The last snapshot on disk.
    snapshot: Mark,
    /// The entry before the first one in the log.
    truncated: Mark,
    last: u64,
}

impl Storage {
    /// Opens the log and gives the state of its last snapshot.
    pub fn open(log_dir: &Path, snapshot_dir: &Path, voters: Vec<u64>) -> Result<(Self, State), Error> {
        fs::create_dir_all(snapshot_dir)
            .map_err(Error::io(format!("creating {}", snapshot_dir.display())))?;
        let config = raft_engine::Config {
            dir: log_dir.to_string_lossy().into_owned(),
            target_file_size: ReadableSize(LOG_FILE_BYTES),
            purge_threshold: ReadableSize(LOG_PURGE_BYTES),
            ..raft_engine::Config::default()
        };
        let engine = Engine::open(config).map_err(Error::log("opening"))?;
        let mark = |key: &[u8]| match engine.get(GROUP, key) {
            Some(bytes) => Mark::decode(&bytes).ok_or_else(|| damaged("a mark")),
            None => Ok(Mark::default()),
        };
        let snapshot = mark(KEY_SNAPSHOT)?;
        let truncated = mark(KEY_TRUNCATED)?;
        let mut hard_state = HardState::default();
        if let Some(bytes) = engine.get(GROUP, KEY_HARD_STATE) {
            hard_state.merge_from_bytes(&bytes).map_err(|_| damaged("the hard state"))?;
        }
        let last = engine.last_index(GROUP).unwrap_or(truncated.index).max(truncated.index);
        let storage = Self {
            engine,
            snapshot_dir: snapshot_dir.to_owned(),
            voters,
            hard_state,
            snapshot,
            truncated,
            last,
        };
        let state = storage.load_state()?;
        Ok((storage, state))
    }

    /// Index of the last snapshot.
    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.index
    }

    /// Writes entries and hard state in one synced batch.
    pub fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), Error> {
        let mut batch = LogBatch::default();
        self.put_entries(&mut batch, entries)?;
        if let Some(hard_state) = hard_state {
            self.put_hard_state(&mut batch, hard_state.clone())?;
        }
        failpoint!("master.append");
        self.write(&mut batch, true)?;
        failpoint!("master.appended");
        if let Some(entry) = entries.last() {
            self.last = entry.index;
        }
        Ok(())
    }

    /// Remembers how far the log is committed; not synced, as it can be learned again.
    pub fn note_commit(&mut self, commit: u64) -> Result<(), Error> {
        let mut batch = LogBatch::default();
        let hard_state = HardState { commit, ..self.hard_state.clone() };
        self.put_hard_state(&mut batch, hard_state)?;
        self.write(&mut batch, false)
    }

    /// Takes a leader's snapshot in place of the whole log. The entries and the hard state of
    /// the same step go into the same batch.
    pub fn install(
        &mut self,
        snapshot: &Snapshot,
        entries: &[Entry],
        hard_state: Option<&HardState>,
    ) -> Result<(), Error> {
        let metadata = snapshot.metadata.clone().unwrap_or_default();
        let mark = Mark { index: metadata.index, term: metadata.term };
        failpoint!("master.install.write");
        self.write_snapshot(mark, &snapshot.data)?;
        failpoint!("master.install.mark");
        let mut batch = LogBatch::default();
        batch.add_command(GROUP, Command::Clean);
        put(&mut batch, KEY_SNAPSHOT, mark.encode())?;
        put(&mut batch, KEY_TRUNCATED, mark.encode())?;
        let hard_state = hard_state.unwrap_or(&self.hard_state).clone();
        let commit = hard_state.commit.max(mark.index);
        self.put_hard_state(&mut batch, HardState { commit, ..hard_state })?;
        self.last = mark.index;
        self.put_entries(&mut batch, entries)?;
        self.write(&mut batch, true)?;
        failpoint!("master.install.done");
        self.snapshot = mark;
        self.truncated = mark;
        self.last = entries.last().map_or(mark.index, |entry| entry.index);
        self.remove_old_snapshots()
    }

    /// Keeps the state after `index` as a snapshot and cuts the log, `kept` entries behind it.
    pub fn compact(&mut self, index: u64, data: &[u8], kept: u64) -> Result<(), Error> {
        let mark = Mark { index, term: self.term_at(index)? };
        failpoint!("master.snapshot.write");
        self.write_snapshot(mark, data)?;
        failpoint!("master.snapshot.mark");
        let cut = index.saturating_sub(kept).max(self.truncated.index);
        let truncated = Mark { index: cut, term: self.term_at(cut)? };
        let mut batch = LogBatch::default();
        put(&mut batch, KEY_SNAPSHOT, mark.encode())?;
        put(&mut batch, KEY_TRUNCATED, truncated.encode())?;
        let commit = self.hard_state.commit.max(index);
        self.put_hard_state(&mut batch, HardState { commit, ..self.hard_state.clone() })?;
        batch.add_command(GROUP, Command::Compact { index: cut + 1 });
        self.write(&mut batch, true)?;
        self.snapshot = mark;
        self.truncated = truncated;
        failpoint!("master.snapshot.tidy");
        self.remove_old_snapshots()?;
        failpoint!("master.snapshot.done");
        self.engine.purge_expired_files().map_err(Error::log("purging"))?;
        Ok(())
    }

    fn term_at(&self, index: u64) -> Result<u64, Error> {
        raft::Storage::term(self, index).map_err(Error::Raft)
    }

    fn put_entries(&self, batch: &mut LogBatch, entries: &[Entry]) -> Result<(), Error> {
        let Some(first) = entries.first() else { return Ok(()) };
        assert!(first.index <= self.last + 1, "the log has no hole");
        assert!(first.index > self.truncated.index, "what a snapshot holds is not written again");
        let records = entries.iter().map(encode_entry).collect::<Result<Vec<_>, _>>()?;
        batch.add_entries::<LogEntry>(GROUP, &records).map_err(Error::log("appending"))
    }

    fn put_hard_state(&mut self, batch: &mut LogBatch, hard_state: HardState) -> Result<(), Error> {
        let bytes = hard_state.write_to_bytes().map_err(|_| damaged("the hard state"))?;
        put(batch, KEY_HARD_STATE, bytes)?;
        self.hard_state = hard_state;
        Ok(())
    }

    fn write(&self, batch: &mut LogBatch, sync: bool) -> Result<(), Error> {
        self.engine.write(batch, sync).map_err(Error::log("writing"))?;
        Ok(())
    }

    fn load_state(&self) -> Result<State, Error> {
        if self.snapshot == Mark::default() {
            return Ok(State::default());
        }
        let bytes = self.read_snapshot()?;
        let state = decode_snapshot(&bytes).map_err(|error| Error::Corrupt(error.to_string()))?;
        if state.applied() != self.snapshot.index {
            return Err(damaged("the snapshot's index"));
        }
        Ok(state)
    }

    fn snapshot_path(&self, mark: Mark) -> PathBuf {
        self.snapshot_dir.join(snapshot_name(mark))
    }

    fn read_snapshot(&self) -> Result<Vec<u8>, Error> {
        let path = self.snapshot_path(self.snapshot);
        fs::read(&path).map_err(Error::io(format!("reading {}", path.display())))
    }

    /// Writes a snapshot file and reads it back whole.
    fn write_snapshot(&self, mark: Mark, data: &[u8]) -> Result<(), Error> {
        write_durably(&self.snapshot_dir, &snapshot_name(mark), data)?;
        let path = self.snapshot_path(mark);
        let stored = fs::read(&path).map_err(Error::io(format!("reading {}", path.display())))?;
        decode_snapshot(&stored).map_err(|error| Error::Corrupt(format!("{}: {error}", path.display())))?;
        Ok(())
    }

    fn remove_old_snapshots(&self) -> Result<(), Error> {
        let doing = || format!("tidying {}", self.snapshot_dir.display());
        let kept = snapshot_name(self.snapshot);
        for entry in fs::read_dir(&self.snapshot_dir).map_err(Error::io(doing()))? {
            let entry = entry.map_err(Error::io(doing()))?;
            if entry.file_name() != kept.as_str() {
                fs::remove_file(entry.path()).map_err(Error::io(doing()))?;
            }
        }
        Ok(())
    }
}

fn snapshot_name(mark: Mark) -> String {
    format!("{:020}-{:020}.snapshot", mark.index, mark.term)
}

fn damaged(what: &str) -> Error {
    Error::Corrupt(format!(
        "{what} in the metadata log is damaged: restore this master's data directory from its own copy"
    ))
}

fn put(batch: &mut LogBatch, key: &[u8], value: Vec<u8>) -> Result<(), Error> {
    batch.put(GROUP, key.to_vec(), value).map_err(Error::log("writing"))
}

fn encode_entry(entry: &Entry) -> Result<BytesValue, Error> {
    let mut value = entry.index.to_be_bytes().to_vec();
    value.extend(entry.write_to_bytes().map_err(|_| damaged("an entry"))?);
    let mut record = BytesValue::new();
    record.set_value(value);
    Ok(record)
}

fn decode_entry(record: &BytesValue) -> Option<Entry> {
    let mut entry = Entry::default();
    entry.merge_from_bytes(record.get_value().get(INDEX_BYTES..)?).ok()?;
    Some(entry)
}

/// An error that the library passes through.
fn storage_error(error: impl std::error::Error + Send + Sync + 'static) -> raft::Error {
    raft::Error::Store(StorageError::Other(Box::new(error)))
}

impl raft::Storage for Storage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = ConfState { voters: self.voters.clone(), ..ConfState::default() };
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let max_size = max_size.into().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let mut records = Vec::new();
        self.engine
            .fetch_entries_to::<LogEntry>(GROUP, low, high, max_size, &mut records)
            .map_err(storage_error)?;
        let entries = records.iter().map(decode_entry).collect::<Option<Vec<_>>>();
        entries.ok_or_else(|| storage_error(damaged("an entry")))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.index {
            return Ok(self.truncated.term);
        }
        if index == self.snapshot.index {
            return Ok(self.snapshot.term);
        }
        if index < self.truncated.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let record = self.engine.get_entry::<LogEntry>(GROUP, index).map_err(storage_error)?;
        match record.as_ref().map(decode_entry) {
            Some(Some(entry)) => Ok(entry.term),
            Some(None) => Err(storage_error(damaged("an entry"))),
            None => Err(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, request_index: u64, _: u64) -> raft::Result<Snapshot> {
        if self.snapshot == Mark::default() || self.snapshot.index < request_index {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let data = self.read_snapshot().map_err(storage_error)?;
        let metadata = SnapshotMetadata {
            index: self.snapshot.index,
            term: self.snapshot.term,
            conf_state: Some(ConfState { voters: self.voters.clone(), ..ConfState::default() }),
        };
        Ok(Snapshot { data, metadata: Some(metadata) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::meta::{ClusterId, Command as Meta, apply, encode_snapshot};
    use raft::Storage as _;
    use std::collections::BTreeMap;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![index as u8; 10], ..Entry::default() }
    }

    fn open(dir: &Path) -> (Storage, State) {
        Storage::open(&dir.join("log"), &dir.join("snapshots"), vec![1]).unwrap()
    }

    fn state_at(index: u64) -> State {
        let mut state = State::default();
        let command = Meta::InitCluster { cluster_id: ClusterId(7), masters: BTreeMap::new() };
        apply(&mut state, index, command);
        state
    }

    fn read(storage: &Storage, low: u64, high: u64) -> raft::Result<Vec<Entry>> {
        storage.entries(low, high, None, GetEntriesContext::empty(false))
    }

    #[test]
    fn log_and_hard_state_survive_a_restart_and_tails_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (mut storage, _) = open(dir.path());
        assert_eq!(storage.last_index().unwrap(), 0);
        let hard_state = HardState { term: 3, vote: 1, commit: 2 };
        storage.append(&[entry(1, 1), entry(2, 1), entry(3, 1)], Some(&hard_state)).unwrap();
        storage.append(&[entry(2, 3)], None).unwrap();
        drop(storage);
        let (storage, _) = open(dir.path());
        assert_eq!(storage.last_index().unwrap(), 2);
        assert_eq!(read(&storage, 1, 3).unwrap(), [entry(1, 1), entry(2, 3)]);
        assert_eq!(storage.initial_state().unwrap().hard_state, hard_state);
        assert_eq!(storage.term(2).unwrap(), 3);
    }

    #[test]
    fn the_log_is_cut_behind_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let (mut storage, _) = open(dir.path());
        let entries: Vec<Entry> = (1..=20).map(|index| entry(index, 2)).collect();
        storage.append(&entries, None).unwrap();
        storage.compact(15, &encode_snapshot(&state_at(15)), 5).unwrap();
        drop(storage);
        let (storage, state) = open(dir.path());
        assert_eq!(state, state_at(15));
        assert_eq!((storage.first_index().unwrap(), storage.last_index().unwrap()), (11, 20));
        assert_eq!(storage.term(10).unwrap(), 2);
        assert!(storage.initial_state().unwrap().hard_state.commit >= 15);
        assert_eq!(read(&storage, 11, 21).unwrap().len(), 10);
        assert!(matches!(read(&storage, 10, 12), Err(raft::Error::Store(StorageError::Compacted))));
        assert_eq!(storage.snapshot(0, 2).unwrap().metadata.unwrap().index, 15);
    }

    #[test]
    fn a_snapshot_replaces_the_log_and_appending_goes_on_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut storage, _) = open(dir.path());
        storage.append(&[entry(1, 1), entry(2, 1)], None).unwrap();
        let metadata = SnapshotMetadata { index: 50, term: 4, conf_state: None };
        let data = encode_snapshot(&state_at(50));
        storage.install(&Snapshot { data, metadata: Some(metadata) }, &[], None).unwrap();
        storage.append(&[entry(51, 4)], None).unwrap();
        drop(storage);
        let (storage, state) = open(dir.path());
        assert_eq!(state.applied(), 50);
        assert_eq!((storage.first_index().unwrap(), storage.last_index().unwrap()), (51, 51));
        assert_eq!(read(&storage, 51, 52).unwrap(), [entry(51, 4)]);
    }

    #[test]
    fn a_damaged_snapshot_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut storage, _) = open(dir.path());
        storage.append(&[entry(1, 1)], None).unwrap();
        storage.compact(1, &encode_snapshot(&state_at(1)), 0).unwrap();
        let path = storage.snapshot_path(storage.snapshot);
        drop(storage);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let opened = Storage::open(&dir.path().join("log"), &dir.path().join("snapshots"), vec![1]);
        assert!(opened.err().unwrap().to_string().contains("damaged"));
    }
}
