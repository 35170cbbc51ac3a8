//! What a server must know before it reads a single row: its replicas and its bounds.
//!
//! A small RocksDB with its log on and every commit synced; everything in it is read once at
//! start. A change that touches several records is one [`RegistryBatch`], all or nothing.
//! Keys: `'r' · tablet (8 BE)`, `'s' · tablet` what is staged for a sealed one, `'o' · tablet` a
//! retired one, `'h'` clock bound, `'l'` longest lease, `'g' · table (4 BE)` garbage floor. Values: a format byte, then borsh; worked bytes in `docs/formats.md`.
//!
//! Not here: the server's identity (a text file, [`crate::identity`]), table settings
//! (metadata has them), anything per row.

use crate::limits::{
    EPOCHS_PER_REPLICA_MAX, REGISTRY_BLOCK_CACHE_BYTES, REGISTRY_FILES_OPEN_MAX, REGISTRY_WRITE_BUFFER_BYTES,
};
use borsh::{BorshDeserialize, BorshSerialize};
use ebla_kernel::ancestry::Ancestry;
use ebla_kernel::entry::{Entry, LogEnd, SealRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{ConfigVersion, Epoch, Pos, ReplicaId, Seq, TableId, TabletId};
use ebla_kernel::limits::TOKEN_CLOCK_SLACK_MS;
use ebla_kernel::meta::TableKind;
use ebla_kernel::range::KeyRange;
use ebla_kernel::tablet::token::TokenTable;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBRecoveryMode, ErrorKind, IteratorMode, Options, WriteBatch, WriteOptions,
};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the records' layout, the first byte of each.
pub const REGISTRY_FORMAT: u8 = 5;

const REPLICA: u8 = b'r';
const STAGED: u8 = b's';
const RETIRED: u8 = b'o';
const HLC_BOUND: u8 = b'h';
const LEASE_MS_MAX: u8 = b'l';
const GC_FLOOR: u8 = b'g';

/// What went wrong in the registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Records that no version has written, or a broken file. The server refuses to start.
    #[error("the registry is damaged: {what}; nothing is served from it: restore the directory from a copy")]
    Damaged {
        /// What was found.
        what: String,
    },
    /// A newer version wrote a record.
    #[error("a registry record has format {format}, this ebla knows {REGISTRY_FORMAT}: use a newer ebla")]
    NewerFormat {
        /// Its format.
        format: u8,
    },
    /// A version from before the first release wrote a record.
    #[error(
        "a registry record has format {format}, from before the first release: begin with a new directory"
    )]
    OlderFormat {
        /// Its format.
        format: u8,
    },
    /// A replica's record lists more terms than may be.
    #[error(
        "the record of {tablet} lists {epochs} epochs, the limit is {EPOCHS_PER_REPLICA_MAX}: purge its log"
    )]
    TooManyEpochs {
        /// The tablet.
        tablet: TabletId,
        /// How many.
        epochs: usize,
    },
    /// The disk failed. What the last commit did is unknown until the registry is opened
    /// again: the process must end.
    #[error("the registry failed to {tried}")]
    Io {
        /// What was tried.
        tried: &'static str,
        /// What the engine said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where a replica stands in its life on this server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum ReplicaState {
    /// It holds its rows and its log.
    Active,
    /// Metadata has removed it; its range is still to be cleared. Never becomes active again.
    Tombstoned,
    /// It is being built from another copy: what its range and its log hold is garbage, which is
    /// never served, never acknowledged, and cleared before it is built.
    Bootstrapping {
        /// Counts the tries.
        attempt: u64,
    },
}

/// A cut of a log's tail that has begun. A crash anywhere makes it run again from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Truncation {
    /// The last entry that stays.
    pub keep: LogEnd,
    /// The last entry that was cut.
    pub last: Pos,
}

/// A term and its first entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct EpochSpan {
    /// The term.
    pub epoch: Epoch,
    /// Its first entry.
    pub first: Seq,
}

/// One replica on this server.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct ReplicaRecord {
    /// Its tablet.
    pub tablet: TabletId,
    /// The tablet's table.
    pub table: TableId,
    /// Where its rows and its log are. The record of a copy in memory lives as long as they do:
    /// it is never stored, so what is stored is on disk.
    #[borsh(skip)]
    pub kind: TableKind,
    /// Its own id.
    pub replica: ReplicaId,
    /// The tablet's keys.
    pub range: KeyRange,
    /// Where it stands in its life.
    pub state: ReplicaState,
    /// It takes nothing of an epoch below this one (m5, m34).
    pub promised_epoch: Epoch,
    /// The terms of its log, rising.
    pub epochs: Vec<EpochSpan>,
    /// Everything up to here is durable in the store: replay begins after it.
    pub flushed: LogEnd,
    /// A cut that was begun and has not ended.
    pub truncating: Option<Truncation>,
    /// The end of the parents' logs that its own goes on from; zero for one that was created.
    pub base: LogEnd,
    /// The tablets that it was made of here, whose logs it goes on from, in key order.
    pub parents: Vec<TabletId>,
    /// What its history goes back to.
    pub ancestry: Ancestry,
    /// Version of the in-sync set that it knows.
    pub config_version: ConfigVersion,
    /// Live rows, about.
    pub rows_estimate: u64,
    /// Bytes of its rows, about.
    pub bytes_estimate: u64,
    /// How it began, if it was built from another copy's rows.
    pub built: Option<Built>,
}

/// How a copy began that was built from another's rows: its log holds nothing of what was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Built {
    /// The entry that its log began with.
    pub at: Pos,
    /// No token of an entry up to that one was issued at this time or later, in milliseconds
    /// since 1970.
    pub tokens_from_ms: u64,
}

impl Built {
    /// What is known of tokens at `first`, the first entry that is left of a log: those of before
    /// are forgotten, and were issued before its own time unless the copy began with it.
    #[must_use]
    pub fn tokens_at(built: Option<Self>, first: &Entry) -> TokenTable {
        let known = built.filter(|built| built.at == first.pos).map(|built| built.tokens_from_ms);
        TokenTable::complete_from(known.unwrap_or(first.ts.ms() + TOKEN_CLOCK_SLACK_MS + 1))
    }
}

/// What is to take the place of a sealed tablet. It neither serves nor answers.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct StagedRecord {
    /// The children.
    pub seal: SealRecord,
    /// The seal in the tablet's log, which theirs go on from.
    pub end: LogEnd,
}

/// A tablet whose place others have taken here, and whose log is still needed: for rows that no
/// flush has made durable, and for tokens.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct RetiredRecord {
    /// The tablet.
    pub tablet: TabletId,
    /// Where its rows and its log are; that of one in memory is never stored.
    #[borsh(skip)]
    pub kind: TableKind,
    /// Its keys.
    pub range: KeyRange,
    /// The seal, its last entry that counts.
    pub seal: LogEnd,
    /// Everything up to here is durable in the store.
    pub flushed: LogEnd,
    /// The tablets that it was made of itself, in key order.
    pub parents: Vec<TabletId>,
    /// How it began, if it was built from another copy's rows.
    pub built: Option<Built>,
}

/// Everything in a registry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RegistryContent {
    /// The replicas, those removed included.
    pub replicas: BTreeMap<TabletId, ReplicaRecord>,
    /// What is staged, by the tablet that is sealed.
    pub staged: BTreeMap<TabletId, StagedRecord>,
    /// Tablets whose place others have taken.
    pub retired: BTreeMap<TabletId, RetiredRecord>,
    /// No timestamp above it was issued; the clock starts above it.
    pub hlc_bound: Hlc,
    /// The longest lease ever promised, in milliseconds (m21).
    pub lease_ms_max: u64,
    /// Garbage floor of each table.
    pub gc_floors: BTreeMap<TableId, Hlc>,
}

/// Changes that become durable together or not at all.
#[derive(Default)]
pub struct RegistryBatch {
    changes: WriteBatch,
    refused: Option<RegistryError>,
}

impl RegistryBatch {
    /// No change.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.refused.is_none()
    }

    /// Puts the record of a replica; of one in memory there is nothing to put.
    pub fn put_replica(&mut self, record: &ReplicaRecord) -> &mut Self {
        match record.kind {
            TableKind::Durable => {}
            TableKind::Memory => return self,
        }
        let (tablet, epochs) = (record.tablet, record.epochs.len());
        if epochs > EPOCHS_PER_REPLICA_MAX {
            self.refused = Some(RegistryError::TooManyEpochs { tablet, epochs });
        }
        self.changes.put(replica_key(tablet), encode(record));
        self
    }

    /// Forgets a replica.
    pub fn remove_replica(&mut self, tablet: TabletId) -> &mut Self {
        self.changes.delete(replica_key(tablet));
        self
    }

    /// Puts what is staged for a sealed tablet.
    pub fn put_staged(&mut self, tablet: TabletId, staged: &StagedRecord) -> &mut Self {
        self.changes.put(tablet_key(STAGED, tablet), encode(staged));
        self
    }

    /// Forgets what was staged.
    pub fn remove_staged(&mut self, tablet: TabletId) -> &mut Self {
        self.changes.delete(tablet_key(STAGED, tablet));
        self
    }

    /// Puts the record of a retired tablet; of one in memory there is nothing to put.
    pub fn put_retired(&mut self, retired: &RetiredRecord) -> &mut Self {
        match retired.kind {
            TableKind::Durable => {}
            TableKind::Memory => return self,
        }
        self.changes.put(tablet_key(RETIRED, retired.tablet), encode(retired));
        self
    }

    /// Forgets a retired tablet.
    pub fn remove_retired(&mut self, tablet: TabletId) -> &mut Self {
        self.changes.delete(tablet_key(RETIRED, tablet));
        self
    }

    /// Sets the bound of issued timestamps.
    pub fn set_hlc_bound(&mut self, bound: Hlc) -> &mut Self {
        self.changes.put([HLC_BOUND], encode(&bound));
        self
    }

    /// Sets the longest lease ever promised.
    pub fn set_lease_ms_max(&mut self, lease_ms: u64) -> &mut Self {
        self.changes.put([LEASE_MS_MAX], encode(&lease_ms));
        self
    }

    /// Sets the garbage floor of a table.
    pub fn set_gc_floor(&mut self, table: TableId, floor: Hlc) -> &mut Self {
        self.changes.put(gc_floor_key(table), encode(&floor));
        self
    }

    /// Forgets the garbage floor of a table.
    pub fn remove_gc_floor(&mut self, table: TableId) -> &mut Self {
        self.changes.delete(gc_floor_key(table));
        self
    }
}

/// The registry of a server.
pub struct Registry {
    db: DB,
}

impl Registry {
    /// Opens the registry in `dir`, creating it if there is none, and reads all of it.
    ///
    /// # Errors
    /// `Damaged`, `NewerFormat` or `Io`.
    pub fn open(dir: &Path) -> Result<(Self, RegistryContent), RegistryError> {
        let db = DB::open(&db_options(), dir).map_err(|e| failed("open its directory", e))?;
        let registry = Self { db };
        let content = registry.read_all()?;
        Ok((registry, content))
    }

    /// Makes all changes of `batch` durable, or none.
    ///
    /// # Errors
    /// `TooManyEpochs`: nothing was written. `Io`: end the process.
    pub fn commit(&self, batch: RegistryBatch) -> Result<(), RegistryError> {
        if let Some(refused) = batch.refused {
            return Err(refused);
        }
        if batch.changes.is_empty() {
            return Ok(());
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch.changes, &options).map_err(|e| failed("commit a batch", e))
    }

    fn read_all(&self) -> Result<RegistryContent, RegistryError> {
        let mut content = RegistryContent::default();
        for record in self.db.iterator(IteratorMode::Start) {
            let (key, value) = record.map_err(|e| failed("read its records", e))?;
            content.add(&key, &value)?;
        }
        Ok(content)
    }
}

impl RegistryContent {
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), RegistryError> {
        match key.split_first() {
            Some((&HLC_BOUND, [])) => self.hlc_bound = decode(value)?,
            Some((&LEASE_MS_MAX, [])) => self.lease_ms_max = decode(value)?,
            Some((&GC_FLOOR, table)) => {
                let table = table.try_into().map_err(|_| unknown_key(key))?;
                self.gc_floors.insert(TableId(u32::from_be_bytes(table)), decode(value)?);
            }
            Some((&STAGED, tablet)) => {
                self.staged.insert(read_tablet(key, tablet)?, decode(value)?);
            }
            Some((&RETIRED, tablet)) => {
                let record: RetiredRecord = decode(value)?;
                if record.tablet != read_tablet(key, tablet)? {
                    return Err(unknown_key(key));
                }
                self.retired.insert(record.tablet, record);
            }
            Some((&REPLICA, tablet)) => {
                let tablet = read_tablet(key, tablet)?;
                let record: ReplicaRecord = decode(value)?;
                if record.tablet != tablet {
                    return Err(unknown_key(key));
                }
                self.replicas.insert(tablet, record);
            }
            Some(_) | None => return Err(unknown_key(key)),
        }
        Ok(())
    }
}

fn replica_key(tablet: TabletId) -> [u8; 9] {
    tablet_key(REPLICA, tablet)
}

fn tablet_key(kind: u8, tablet: TabletId) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&tablet.0.to_be_bytes());
    key
}

fn read_tablet(key: &[u8], tablet: &[u8]) -> Result<TabletId, RegistryError> {
    Ok(TabletId(u64::from_be_bytes(tablet.try_into().map_err(|_| unknown_key(key))?)))
}

fn gc_floor_key(table: TableId) -> [u8; 5] {
    let mut key = [GC_FLOOR; 5];
    key[1..].copy_from_slice(&table.0.to_be_bytes());
    key
}

fn encode<T: BorshSerialize>(record: &T) -> Vec<u8> {
    let mut out = vec![REGISTRY_FORMAT];
    record.serialize(&mut out).expect("writing to a vector does not fail");
    out
}

fn decode<T: BorshDeserialize>(value: &[u8]) -> Result<T, RegistryError> {
    match value.split_first() {
        Some((&REGISTRY_FORMAT, record)) => borsh::from_slice(record)
            .map_err(|error| RegistryError::Damaged { what: format!("malformed record: {error}") }),
        Some((&format, _)) if format > REGISTRY_FORMAT => Err(RegistryError::NewerFormat { format }),
        Some((&format @ 1.., _)) => Err(RegistryError::OlderFormat { format }),
        Some(_) | None => Err(RegistryError::Damaged { what: "record without a format".into() }),
    }
}

fn unknown_key(key: &[u8]) -> RegistryError {
    RegistryError::Damaged { what: format!("unknown key {}", key.escape_ascii()) }
}

fn db_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_paranoid_checks(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_write_buffer_size(REGISTRY_WRITE_BUFFER_BYTES);
    options.set_max_open_files(REGISTRY_FILES_OPEN_MAX);
    options.set_keep_log_file_num(2);
    options.set_stats_dump_period_sec(0);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(REGISTRY_BLOCK_CACHE_BYTES));
    options.set_block_based_table_factory(&table);
    options
}

fn failed(tried: &'static str, source: rocksdb::Error) -> RegistryError {
    match source.kind() {
        ErrorKind::Corruption => RegistryError::Damaged { what: source.to_string() },
        _ => RegistryError::Io { tried, source: source.into() },
    }
}

#[cfg(test)]
impl ReplicaRecord {
    /// The record of a copy on disk of which nothing is known yet, for tests to say the rest.
    pub(crate) fn blank(tablet: TabletId, table: TableId, replica: ReplicaId) -> Self {
        Self {
            tablet,
            table,
            kind: TableKind::Durable,
            replica,
            range: KeyRange::all(),
            state: ReplicaState::Active,
            promised_epoch: Epoch(1),
            epochs: Vec::new(),
            flushed: LogEnd::default(),
            truncating: None,
            base: LogEnd::default(),
            parents: Vec::new(),
            ancestry: Ancestry { lineage: ebla_kernel::ids::Lineage(1), ..Ancestry::default() },
            config_version: ConfigVersion(1),
            rows_estimate: 0,
            bytes_estimate: 0,
            built: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use ebla_kernel::entry::SealedChild;
    use ebla_kernel::ids::{Attempt, Lineage};

    fn replica(tablet: u64) -> ReplicaRecord {
        ReplicaRecord {
            tablet: TabletId(tablet),
            table: TableId(2),
            kind: TableKind::Durable,
            replica: ReplicaId(tablet + 1),
            range: KeyRange::new(Bytes::from_static(b"a"), Some(Bytes::from_static(b"m"))).unwrap(),
            state: ReplicaState::Active,
            promised_epoch: Epoch(3),
            epochs: vec![EpochSpan { epoch: Epoch(3), first: Seq(9) }],
            flushed: LogEnd { pos: Pos::new(Epoch(3), Seq(12)), hash: 0xABCD, ts: Hlc(77) },
            truncating: None,
            base: LogEnd::default(),
            parents: Vec::new(),
            ancestry: Ancestry { lineage: Lineage(1), ..Ancestry::default() },
            config_version: ConfigVersion(4),
            rows_estimate: 10,
            bytes_estimate: 1_000,
            built: None,
        }
    }

    fn staged() -> StagedRecord {
        let child = SealedChild {
            tablet: TabletId(9),
            range: KeyRange::all(),
            replicas: BTreeMap::from([(ReplicaId(6), ReplicaId(10))]),
        };
        let seal = SealRecord { attempt: Attempt(3), children: vec![child] };
        StagedRecord { seal, end: replica(5).flushed }
    }

    fn retired(tablet: u64) -> RetiredRecord {
        let (seal, flushed) = (replica(5).flushed, LogEnd::default());
        let (range, parents) = (KeyRange::all(), vec![TabletId(2)]);
        let kind = TableKind::Durable;
        RetiredRecord { tablet: TabletId(tablet), kind, range, seal, flushed, parents, built: None }
    }

    #[test]
    fn a_reopened_registry_holds_what_was_committed() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, content) = Registry::open(dir.path()).unwrap();
        assert_eq!(content, RegistryContent::default());
        let mut batch = RegistryBatch::new();
        batch.put_replica(&replica(5)).put_replica(&replica(6)).set_hlc_bound(Hlc(99));
        batch.put_staged(TabletId(5), &staged()).put_staged(TabletId(6), &staged());
        batch.put_retired(&retired(3)).put_retired(&retired(4));
        batch.set_lease_ms_max(1_000).set_gc_floor(TableId(2), Hlc(4)).set_gc_floor(TableId(3), Hlc(5));
        registry.commit(batch).unwrap();
        let mut batch = RegistryBatch::new();
        batch.remove_replica(TabletId(6)).remove_gc_floor(TableId(3));
        batch.remove_staged(TabletId(6)).remove_retired(TabletId(4));
        registry.commit(batch).unwrap();
        drop(registry);
        let (_, content) = Registry::open(dir.path()).unwrap();
        let wanted = RegistryContent {
            replicas: BTreeMap::from([(TabletId(5), replica(5))]),
            staged: BTreeMap::from([(TabletId(5), staged())]),
            retired: BTreeMap::from([(TabletId(3), retired(3))]),
            hlc_bound: Hlc(99),
            lease_ms_max: 1_000,
            gc_floors: BTreeMap::from([(TableId(2), Hlc(4))]),
        };
        assert_eq!(content, wanted);
    }

    #[test]
    fn a_refused_batch_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, _) = Registry::open(dir.path()).unwrap();
        let mut swollen = replica(5);
        swollen.epochs = vec![swollen.epochs[0]; EPOCHS_PER_REPLICA_MAX + 1];
        let mut batch = RegistryBatch::new();
        batch.put_replica(&replica(4)).put_replica(&swollen);
        assert!(matches!(registry.commit(batch), Err(RegistryError::TooManyEpochs { .. })));
        assert_eq!(registry.read_all().unwrap(), RegistryContent::default());
    }

    #[test]
    fn garbage_records_are_typed_errors() {
        let wrong_key = encode(&replica(6));
        let cases: [(&[u8], &[u8], bool); 8] = [
            (b"r\0\0\0\0\0\0\0\x05", b"", false),
            (b"r\0\0\0\0\0\0\0\x05", &[REGISTRY_FORMAT, 1, 2, 3], false),
            (b"r\0\0\0\0\0\0\0\x05", &wrong_key, false),
            (b"r\x05", &wrong_key, false),
            (b"z", &[REGISTRY_FORMAT], false),
            (b"g\x05", &encode(&Hlc(1)), false),
            (b"h", &[0, 0], false),
            (b"h", &[REGISTRY_FORMAT + 1, 0], true),
        ];
        for (key, value, is_newer) in cases {
            let dir = tempfile::tempdir().unwrap();
            let (registry, _) = Registry::open(dir.path()).unwrap();
            registry.db.put(key, value).unwrap();
            drop(registry);
            match Registry::open(dir.path()).map(drop) {
                Err(RegistryError::NewerFormat { .. }) => assert!(is_newer, "{key:?}"),
                Err(RegistryError::Damaged { .. }) => assert!(!is_newer, "{key:?}"),
                other => panic!("{key:?} gave {other:?}"),
            }
        }
    }

    #[test]
    fn ten_thousand_replicas_load_fast() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, _) = Registry::open(dir.path()).unwrap();
        let mut batch = RegistryBatch::new();
        for tablet in 1..=10_000 {
            batch.put_replica(&replica(tablet));
        }
        registry.commit(batch).unwrap();
        drop(registry);
        let started = std::time::Instant::now();
        let (_, content) = Registry::open(dir.path()).unwrap();
        assert_eq!(content.replicas.len(), 10_000);
        assert!(started.elapsed().as_millis() < 1_000, "took {:?}", started.elapsed());
    }

    #[test]
    fn worked_bytes_of_the_documentation() {
        let text = include_str!("../../docs/formats.md");
        crate::documented::check(text, "registry-replica-key", &replica_key(TabletId(5)));
        crate::documented::check(text, "registry-replica", &encode(&replica(5)));
        crate::documented::check(text, "registry-hlc-bound", &encode(&Hlc::new(1, 2)));
    }
}
