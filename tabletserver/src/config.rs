//! How a tablet server is set up.

use crate::limits;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of one tablet server; everything but the first three has a default that serves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Masters to register with, as HOST:PORT; any of them knows the others.
    pub masters: Vec<String>,
    /// Where to listen, as HOST:PORT; also the address that clients are told.
    pub listen: String,
    /// The data directory; belongs to this server alone.
    pub data_dir: PathBuf,
    /// Failure domain; replicas of a tablet are spread over zones.
    pub zone: String,
    /// Memtable of the data store in bytes.
    pub write_buffer_bytes: usize,
    /// Block cache of the data store in bytes.
    pub block_cache_bytes: usize,
    /// Row cache in bytes; 0 turns it off.
    pub row_cache_bytes: usize,
    /// Log bytes from which on old entries go although a token window wants them.
    pub oplog_bytes_max: u64,
    /// Longest time that applied rows stay unflushed; none: only shutdown flushes.
    pub flush_interval: Option<Duration>,
    /// How often old versions and dead tombstones are looked for.
    pub gc_interval: Duration,
    /// Bytes per second at which copies are sent to servers that lack them.
    pub bootstrap_bytes_per_s: u64,
    /// Most rooms that one stream is in.
    pub subscriptions_per_stream: usize,
    /// Most subscriptions of rooms at this server.
    pub subscriptions_max: usize,
}

impl Config {
    /// A server with default settings.
    #[must_use]
    pub fn new(masters: Vec<String>, listen: String, data_dir: PathBuf) -> Self {
        Self {
            masters,
            listen,
            data_dir,
            zone: "default".to_owned(),
            write_buffer_bytes: limits::WRITE_BUFFER_BYTES_DEFAULT,
            block_cache_bytes: limits::BLOCK_CACHE_BYTES_DEFAULT,
            row_cache_bytes: limits::ROW_CACHE_BYTES_DEFAULT,
            oplog_bytes_max: limits::OPLOG_BYTES_MAX_DEFAULT,
            flush_interval: Some(limits::FLUSH_INTERVAL_DEFAULT),
            gc_interval: limits::GC_INTERVAL_DEFAULT,
            bootstrap_bytes_per_s: limits::BOOTSTRAP_BYTES_PER_S_DEFAULT,
            subscriptions_per_stream: limits::SUBSCRIPTIONS_PER_STREAM_DEFAULT,
            subscriptions_max: limits::SUBSCRIPTIONS_PER_SERVER_DEFAULT,
        }
    }
}
