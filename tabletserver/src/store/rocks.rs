//! The store on disk: one RocksDB for all tablets of a server.
//!
//! The write-ahead log is off: the oplog is the log, and only `flush` makes rows durable.
//! A row's prefix (all but the timestamp) is what bloom filters know, in files and in the
//! memtable, so that a point read of an absent row touches no block. Every block carries a
//! checksum that every read verifies; nothing is ever repaired in silence.

use super::gc::{FloorFilterFactory, Floors};
use super::{Applied, Cursor, Incoming, Rising, Store, StoreError, StoreHealth, VersionName, value};
use crate::limits::{
    BLOCK_CACHE_BYTES_DEFAULT, COLD_READ_BYTES, DATA_FILE_BYTES, DATA_FILE_IN_ZSTD_LEVEL,
    DATA_FILES_OPEN_MAX, DATA_LOOK_KEYS_MAX, DATA_SYNC_BYTES, STORE_THREADS_MAX, WRITE_BUFFER_BYTES_DEFAULT,
    WRITE_BUFFERS_MAX,
};
use bytes::Bytes;
use ebla_failpoints::failpoint;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::key;
use ebla_kernel::op::{Change, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstone;
use rocksdb::properties;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRawIterator, FlushOptions, IngestExternalFileOptions,
    Options, Range, ReadOptions, SliceTransform, SstFileWriter, WriteBatch, WriteOptions,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What may be tuned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RocksConfig {
    /// Size of one memtable in bytes.
    pub write_buffer_bytes: usize,
    /// Block cache in bytes.
    pub block_cache_bytes: usize,
    /// Whether the engine flushes and compacts by itself. Off only in tests of recovery.
    pub runs_in_background: bool,
}

impl Default for RocksConfig {
    fn default() -> Self {
        Self {
            write_buffer_bytes: WRITE_BUFFER_BYTES_DEFAULT,
            block_cache_bytes: BLOCK_CACHE_BYTES_DEFAULT,
            runs_in_background: true,
        }
    }
}

/// The rows of a server on disk.
pub struct RocksStore {
    db: DB,
    /// Of files that are made to be put in.
    file_options: Options,
}

/// Version of the layout of keys and values, kept in the file `FORMAT` of the directory.
const FORMAT: u32 = 1;

impl RocksStore {
    /// Opens the store in `dir`, creating it if there is none. Its compactions drop what
    /// `floors` allows.
    ///
    /// # Errors
    /// `NewerFormat`, or `Engine` when RocksDB refuses (damaged, or held by a process).
    pub fn open(dir: &Path, config: &RocksConfig, floors: Arc<Floors>) -> Result<Self, StoreError> {
        super::format::check(dir, FORMAT)?;
        let db = DB::open(&db_options(config, floors), dir).map_err(|e| engine("open its directory", e))?;
        super::format::mark(dir, FORMAT)?;
        Ok(Self { db, file_options: file_options(config) })
    }

    fn write(&self, batch: WriteBatch, tried: &'static str) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(batch, &options).map_err(|e| engine(tried, e))
    }

    /// Whether there is a stored key from `from` up to below `to`; also when that takes long to say.
    fn holds_any(&self, from: &[u8], to: &[u8]) -> bool {
        let mut options = scan_options(from.to_vec(), to.to_vec());
        options.set_max_skippable_internal_keys(DATA_LOOK_KEYS_MAX);
        let mut keys = self.db.raw_iterator_opt(options);
        keys.seek(from);
        keys.valid() || keys.status().is_err()
    }

    fn property(&self, name: &properties::PropName) -> u64 {
        // A property that cannot be read says nothing about the store's health.
        self.db.property_int_value(name).ok().flatten().unwrap_or(0)
    }
}

impl Store for RocksStore {
    fn get(&self, table: TableId, key: &[u8], at: Hlc) -> Result<Option<Version>, StoreError> {
        let wanted = key::encode_row(table, key, at);
        let mut options = ReadOptions::default();
        options.set_prefix_same_as_start(true);
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek(&wanted);
        let Some((stored_key, stored_value)) = rows.item() else {
            return rows.status().map(|()| None).map_err(|e| read_error("read a row", e));
        };
        let (prefix, ts) = super::split_stored(stored_key)?;
        if prefix != &wanted[..wanted.len() - key::TS_BYTES] {
            return Ok(None);
        }
        value::decode(ts, &Bytes::copy_from_slice(stored_value)).map(Some)
    }

    fn apply(&self, changes: &[Applied<'_>]) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for Applied { table, ts, change } in changes {
            match change {
                Change::Put { key, body, expires_ms } => {
                    batch.put(key::encode_row(*table, key, *ts), value::encode(body, *expires_ms));
                }
                Change::RangeTombstone { from, to } => {
                    let stored_key = key::encode_range_tombstone(*table, from, *ts);
                    batch.put(stored_key, value::encode_upper_end(to.as_ref()));
                }
            }
        }
        self.write(batch, "apply a batch")
    }

    fn remove(&self, versions: &[VersionName]) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for version in versions {
            batch.delete(version.stored_key());
        }
        self.write(batch, "remove versions")
    }

    fn cursor(&self, table: TableId, range: &KeyRange) -> Result<Box<dyn Cursor + '_>, StoreError> {
        let (from, to) = key::row_bounds(table, range);
        Ok(Box::new(RocksCursor { rows: self.db.raw_iterator_opt(scan_options(from, to)) }))
    }

    fn cold_cursor(&self, table: TableId, range: &KeyRange) -> Result<Box<dyn Cursor + '_>, StoreError> {
        let (from, to) = key::row_bounds(table, range);
        let mut options = scan_options(from, to);
        options.fill_cache(false);
        options.set_readahead_size(COLD_READ_BYTES);
        Ok(Box::new(RocksCursor { rows: self.db.raw_iterator_opt(options) }))
    }

    fn load_range_tombstones(
        &self,
        table: TableId,
        range: &KeyRange,
    ) -> Result<Vec<RangeTombstone>, StoreError> {
        let (from, to) = super::range_tombstone_bounds(table, &KeyRange::all());
        let mut rows = self.db.raw_iterator_opt(scan_options(from, to));
        rows.seek_to_first();
        let mut found = Vec::new();
        while let Some((stored_key, stored_value)) = rows.item() {
            let tombstone = super::read_range_tombstone(stored_key, stored_value)?;
            if tombstone.range.overlaps(range) {
                found.push(tombstone);
            }
            rows.next();
        }
        rows.status().map_err(|e| read_error("read range tombstones", e))?;
        Ok(found)
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_opt(&options).map_err(|e| engine("flush", e))
    }

    fn clear_range(&self, table: TableId, range: &KeyRange) -> Result<(), StoreError> {
        let rows = key::row_bounds(table, range);
        // Whole files go at once; the range delete covers what stands in files of its ends
        // and in the memtable. Both would overtake an unflushed write, hence the flush.
        self.flush()?;
        failpoint!("clear.files");
        self.db.delete_file_in_range(&rows.0, &rows.1).map_err(|e| engine("delete files", e))?;
        failpoint!("clear.rows");
        let mut batch = WriteBatch::default();
        for (from, to) in [rows, super::range_tombstone_bounds(table, range)] {
            // A range delete over nothing would keep what is put in next out of the last level, and
            // have it packed several times on its way there.
            if self.holds_any(&from, &to) {
                batch.delete_range(from, to);
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.write(batch, "clear a range")?;
        failpoint!("clear.flush");
        self.flush()
    }

    fn take_in(
        &self,
        table: TableId,
        range: &KeyRange,
        dir: &Path,
    ) -> Result<Box<dyn Incoming + '_>, StoreError> {
        Ok(Box::new(RocksIncoming {
            store: self,
            table,
            range: range.clone(),
            rising: Rising::new(table, range),
            dir: dir.to_owned(),
            files: Vec::new(),
            open: None,
        }))
    }

    fn compact(&self, table: TableId, range: &KeyRange) {
        let (from, to) = key::row_bounds(table, range);
        self.db.compact_range(Some(from), Some(to));
    }

    fn approximate_bytes(&self, table: TableId, range: &KeyRange) -> u64 {
        let (from, to) = key::row_bounds(table, range);
        self.db.get_approximate_sizes(&[Range::new(&from, &to)]).into_iter().sum()
    }

    fn health(&self) -> StoreHealth {
        StoreHealth {
            is_stopped: self.property(properties::IS_WRITE_STOPPED) != 0,
            slowed_to_bytes_per_s: self.property(properties::ACTUAL_DELAYED_WRITE_RATE),
            compaction_pending_bytes: self.property(properties::ESTIMATE_PENDING_COMPACTION_BYTES),
            background_errors: self.property(properties::BACKGROUND_ERRORS),
            memtable_bytes: self.property(properties::CUR_SIZE_ALL_MEM_TABLES),
        }
    }
}

/// Versions on their way in: a file for each batch, beside the store until they are installed.
struct RocksIncoming<'a> {
    store: &'a RocksStore,
    table: TableId,
    range: KeyRange,
    rising: Rising,
    dir: PathBuf,
    files: Vec<PathBuf>,
    /// The last of the files while it is written, and bytes of keys and values in it.
    open: Option<(SstFileWriter<'a>, u64)>,
}

impl<'a> RocksIncoming<'a> {
    /// The file that the next version goes into.
    fn file(&mut self) -> Result<&mut (SstFileWriter<'a>, u64), rocksdb::Error> {
        if self.open.is_none() {
            let path = self.dir.join(format!("{:06}.sst", self.files.len()));
            let writer = SstFileWriter::create(&self.store.file_options);
            writer.open(&path)?;
            self.files.push(path);
            self.open = Some((writer, 0));
        }
        Ok(self.open.as_mut().expect("it was made just now"))
    }

    /// Ends the file that is being written.
    fn cut(&mut self) -> Result<(), StoreError> {
        let Some((mut writer, _)) = self.open.take() else { return Ok(()) };
        writer.finish().map_err(file_failed)
    }
}

impl Incoming for RocksIncoming<'_> {
    fn add(&mut self, stored_key: &[u8], stored_value: &[u8]) -> Result<(), StoreError> {
        self.rising.check(stored_key, stored_value)?;
        let (writer, bytes) = self.file().map_err(file_failed)?;
        writer.put(stored_key, stored_value).map_err(file_failed)?;
        *bytes += (stored_key.len() + stored_value.len()) as u64;
        if *bytes >= DATA_FILE_BYTES { self.cut() } else { Ok(()) }
    }

    fn install(mut self: Box<Self>, tombstones: &[RangeTombstone]) -> Result<(), StoreError> {
        self.cut()?;
        failpoint!("bootstrap.clear");
        self.store.clear_range(self.table, &self.range)?;
        failpoint!("bootstrap.ingest");
        if !self.files.is_empty() {
            let mut options = IngestExternalFileOptions::default();
            options.set_move_files(true);
            let ingested = self.store.db.ingest_external_file_opts(&options, self.files);
            ingested.map_err(|e| engine("ingest files", e))?;
        }
        let mut batch = WriteBatch::default();
        for tombstone in tombstones {
            let stored_key = key::encode_range_tombstone(self.table, tombstone.range.start(), tombstone.ts);
            batch.put(stored_key, value::encode_upper_end(tombstone.range.end()));
        }
        self.store.write(batch, "put range tombstones")?;
        failpoint!("bootstrap.flush");
        self.store.flush()
    }
}

struct RocksCursor<'a> {
    rows: DBRawIterator<'a>,
}

impl Cursor for RocksCursor<'_> {
    fn seek(&mut self, stored: &[u8]) {
        self.rows.seek(stored);
    }

    fn seek_back(&mut self, stored: &[u8]) {
        self.rows.seek_for_prev(stored);
    }

    fn seek_first(&mut self) {
        self.rows.seek_to_first();
    }

    fn seek_last(&mut self) {
        self.rows.seek_to_last();
    }

    fn step(&mut self) {
        if self.rows.valid() {
            self.rows.next();
        }
    }

    fn step_back(&mut self) {
        if self.rows.valid() {
            self.rows.prev();
        }
    }

    fn stored_key(&self) -> Result<Option<&[u8]>, StoreError> {
        match self.rows.key() {
            Some(stored_key) => Ok(Some(stored_key)),
            None => self.rows.status().map(|()| None).map_err(|e| read_error("read on", e)),
        }
    }

    fn stored_value(&self) -> &[u8] {
        self.rows.value().unwrap_or(&[])
    }

    fn stored_value_owned(&self) -> Bytes {
        Bytes::copy_from_slice(self.stored_value())
    }
}

fn scan_options(from: Vec<u8>, to: Vec<u8>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_total_order_seek(true);
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(to);
    options.set_auto_readahead_size(true);
    options
}

fn db_options(config: &RocksConfig, floors: Arc<Floors>) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_paranoid_checks(true);
    options.set_max_open_files(DATA_FILES_OPEN_MAX);
    options.set_max_background_jobs(STORE_THREADS_MAX);
    // Data files go to the disk as they are written, not all at once when they are synced: that
    // would hold up every log's sync meanwhile.
    options.set_bytes_per_sync(DATA_SYNC_BYTES);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 * 1024 * 1024);
    options.set_stats_dump_period_sec(0);
    options.set_write_buffer_size(config.write_buffer_bytes);
    options.set_max_write_buffer_number(WRITE_BUFFERS_MAX);
    options.set_target_file_size_base(DATA_FILE_BYTES);
    options.set_max_bytes_for_level_base(4 * DATA_FILE_BYTES);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(DBCompressionType::Zstd);
    options.set_prefix_extractor(SliceTransform::create("ebla.row.1", row_prefix, Some(has_row_prefix)));
    options.set_memtable_prefix_bloom_ratio(0.05);
    options.set_compaction_filter_factory(FloorFilterFactory::new(floors));
    options.set_block_based_table_factory(&table_options(config));
    options.set_disable_auto_compactions(!config.runs_in_background);
    options
}

/// Files that are put in look like those that the store makes of its own at its last level, packed
/// with less effort: whoever waits for a restore or a copy waits for that, and what is compacted
/// later is packed anew.
fn file_options(config: &RocksConfig) -> Options {
    let mut options = Options::default();
    options.set_bytes_per_sync(DATA_SYNC_BYTES);
    options.set_compression_type(DBCompressionType::Zstd);
    // Only the level means anything to Zstd; a window of -14 bits is what the engine has by default.
    options.set_compression_options(-14, DATA_FILE_IN_ZSTD_LEVEL, 0, 0);
    options.set_prefix_extractor(SliceTransform::create("ebla.row.1", row_prefix, Some(has_row_prefix)));
    options.set_block_based_table_factory(&table_options(config));
    options
}

fn table_options(config: &RocksConfig) -> BlockBasedOptions {
    let mut options = BlockBasedOptions::default();
    options.set_block_cache(&Cache::new_lru_cache(config.block_cache_bytes));
    options.set_block_size(16 * 1024);
    options.set_format_version(6);
    options.set_bloom_filter(10.0, false);
    options.set_whole_key_filtering(false);
    options.set_cache_index_and_filter_blocks(true);
    options.set_pin_l0_filter_and_index_blocks_in_cache(true);
    options
}

fn row_prefix(stored: &[u8]) -> &[u8] {
    &stored[..stored.len().saturating_sub(key::TS_BYTES)]
}

fn has_row_prefix(stored: &[u8]) -> bool {
    stored.len() >= key::TS_BYTES
}

fn file_failed(source: rocksdb::Error) -> StoreError {
    engine("write a file of versions", source)
}

fn engine(tried: &'static str, source: rocksdb::Error) -> StoreError {
    StoreError::Engine { tried, source: source.into() }
}

/// As `engine`, but corruption is an error class of its own.
fn read_error(tried: &'static str, source: rocksdb::Error) -> StoreError {
    match source.kind() {
        rocksdb::ErrorKind::Corruption => StoreError::corrupt(source.to_string()),
        _ => engine(tried, source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::op::Body;

    fn open(dir: &Path) -> Result<RocksStore, StoreError> {
        RocksStore::open(dir, &RocksConfig::default(), Arc::new(Floors::new()))
    }

    #[test]
    fn garbage_values_are_corrupt_and_do_not_stop_other_rows() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        let table = TableId(3);
        for (key, garbage) in
            [(b"a", &b""[..]), (b"b", &[9][..]), (b"c", &[2, 1][..]), (b"d", &[0x81, 1][..])]
        {
            store.db.put(key::encode_row(table, key, Hlc(5)), garbage).unwrap();
            let read = store.get(table, key, Hlc(9));
            assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{key:?} gave {read:?}");
        }
        let change = Change::Put { key: Bytes::from_static(b"e"), body: Body::Counter(4), expires_ms: None };
        store.apply(&[Applied { table, ts: Hlc(5), change: &change }]).unwrap();
        assert_eq!(store.get(table, b"e", Hlc(9)).unwrap().unwrap().body, Body::Counter(4));
    }

    #[test]
    fn a_malformed_range_tombstone_is_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        let stored_key = key::encode_range_tombstone(TableId(3), b"m", Hlc(5));
        for garbage in [&[7][..], &[1, b'a'][..], &[]] {
            store.db.put(&stored_key, garbage).unwrap();
            let loaded = store.load_range_tombstones(TableId(3), &KeyRange::all());
            assert!(matches!(loaded, Err(StoreError::Corrupt { .. })), "{garbage:?} gave {loaded:?}");
        }
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()).unwrap());
        std::fs::write(dir.path().join("FORMAT"), "2\n").unwrap();
        assert!(matches!(open(dir.path()), Err(StoreError::NewerFormat { .. })));
        std::fs::write(dir.path().join("FORMAT"), "two\n").unwrap();
        assert!(matches!(open(dir.path()), Err(StoreError::Corrupt { .. })));
    }

    #[test]
    fn a_flipped_byte_in_a_data_file_is_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        let value = Body::Value(vec![7; 1_000].into());
        let change = Change::Put { key: Bytes::from_static(b"k"), body: value, expires_ms: None };
        store.apply(&[Applied { table: TableId(3), ts: Hlc(5), change: &change }]).unwrap();
        store.flush().unwrap();
        drop(store);
        let is_data = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "sst");
        let mut files = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
        let path = files.find(is_data).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[10] ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
        let read = open(dir.path()).and_then(|store| store.get(TableId(3), b"k", Hlc(9)));
        assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
    }
}
