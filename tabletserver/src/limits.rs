//! Every bound that a tablet server sets by itself, each with its reason.

/// Memtable of the data store in bytes: what a crash makes replay from the log, and what
/// three servers in one process may hold at once.
pub const WRITE_BUFFER_BYTES_DEFAULT: usize = 64 * 1024 * 1024;

/// Memtables that may wait for their flush before writes are stalled.
pub const WRITE_BUFFERS_MAX: i32 = 3;

/// Block cache of the data store in bytes; index and filter blocks count against it, so it
/// bounds what open files cost.
pub const BLOCK_CACHE_BYTES_DEFAULT: usize = 64 * 1024 * 1024;

/// Files that the data store keeps open. Each costs a descriptor; the usual limit is 1,024
/// per process and three servers may share one.
pub const DATA_FILES_OPEN_MAX: i32 = 200;

/// Threads of the data store for flushes and compactions.
pub const STORE_THREADS_MAX: i32 = 2;

/// Size of a data file before compression. Ranges are cleared and moved by file.
pub const DATA_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Row cache in bytes, keys and values and bookkeeping together.
pub const ROW_CACHE_BYTES_DEFAULT: usize = 64 * 1024 * 1024;

/// Rows above this share of the row cache are not cached: one of them would drive out
/// thousands of others.
pub const ROW_CACHE_ROW_SHARE_MAX: usize = 64;

/// Counters that guard the filling of the row cache. A write makes fills of the same stripe
/// fail, so there must be many more stripes than writes in flight.
pub const ROW_CACHE_STRIPES: usize = 4_096;

/// Locks among which the timestamps of running reads are spread.
pub const READ_PIN_SHARDS: usize = 16;

/// Versions of one row that a cursor steps over before it seeks past the rest. A seek costs
/// about as much as this many steps.
pub const VERSIONS_STEPPED_MAX: usize = 8;

/// Exact versions that a garbage pass removes in one batch.
pub const GC_BATCH_VERSIONS_MAX: usize = 1_000;

/// Size of one file of the log. Whole files are purged, so it is the grain of the space
/// that a purge gives back.
pub const OPLOG_FILE_BYTES_DEFAULT: u64 = 32 * 1024 * 1024;

/// Bytes of log below which a purge does nothing.
pub const OPLOG_PURGE_BYTES_DEFAULT: u64 = 128 * 1024 * 1024;

/// Bytes of entries that one append may bring; the log's own limit is 2 GiB per batch.
pub const OPLOG_GROUP_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Log batches above this are compressed; below it compression costs more than it saves.
pub const OPLOG_COMPRESS_BYTES: u64 = 8 * 1024;

/// Threads that read the log at start.
pub const OPLOG_RECOVERY_THREADS: usize = 2;

/// Memtable of the registry in bytes: some 100,000 records.
pub const REGISTRY_WRITE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Block cache of the registry in bytes: it is read once, at start.
pub const REGISTRY_BLOCK_CACHE_BYTES: usize = 1024 * 1024;

/// Files that the registry keeps open.
pub const REGISTRY_FILES_OPEN_MAX: i32 = 16;

/// Terms that a replica's record may list. One is added per change of leader and dropped
/// when its entries are purged; more than this means that purging does not work.
pub const EPOCHS_PER_REPLICA_MAX: usize = 4_096;

/// Longest IDENTITY file that is read; a valid one has a few hundred bytes.
pub const IDENTITY_BYTES_MAX: u64 = 4_096;
