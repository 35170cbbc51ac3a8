//! RocksDB used directly in this process, with the durability that Ebla gives: each write is
//! in a synced log before it returns, and concurrent writers share a sync.

use crate::closed_loop::{Measured, run_threads};
use crate::ebla::{LOAD_BATCH_ROWS, LOAD_BATCHES};
use crate::rows::Rows;
use anyhow::{Context as _, Result, ensure};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, IteratorMode, Options, WriteBatch, WriteOptions,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Block cache: larger than the rows of a default run.
const CACHE_BYTES: usize = 256 * 1024 * 1024;

/// Bits per key of the bloom filters.
const BLOOM_BITS: f64 = 10.0;

/// An open database.
#[derive(Clone)]
pub struct Raw {
    db: Arc<DB>,
    rows: Rows,
}

impl Raw {
    /// Creates one.
    pub fn open(path: &Path, rows: Rows) -> Result<Self> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
        table.set_bloom_filter(BLOOM_BITS, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        Ok(Self { db: Arc::new(DB::open(&options, path)?), rows })
    }

    /// Does something that takes long on a thread of its own.
    pub async fn blocking<T: Send + 'static>(
        self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        tokio::task::spawn_blocking(move || work(&self)).await?
    }

    /// Loads all rows in synced batches from several threads.
    pub fn load(&self) -> Result<Measured> {
        let began = Instant::now();
        let next = AtomicU64::new(0);
        let work = || {
            loop {
                let first = next.fetch_add(LOAD_BATCH_ROWS, Ordering::Relaxed);
                if first >= self.rows.count {
                    return anyhow::Ok(());
                }
                let mut batch = WriteBatch::default();
                for number in first..(first + LOAD_BATCH_ROWS).min(self.rows.count) {
                    batch.put(Rows::key(number), self.rows.value(number));
                }
                self.db.write_opt(batch, &synced())?;
            }
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..LOAD_BATCHES).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("a writer does not panic"))
        })?;
        Ok(Measured::whole(self.rows.count, began.elapsed()))
    }

    /// Gets of any rows.
    pub fn get(&self, callers: usize, time: Duration) -> Result<Measured> {
        run_threads(callers, time, |rng| {
            let number = self.rows.any(rng);
            self.db.get(Rows::key(number))?.with_context(|| format!("row {number} is missing"))?;
            Ok(())
        })
    }

    /// Synced sets of any rows.
    pub fn set(&self, callers: usize, time: Duration) -> Result<Measured> {
        run_threads(callers, time, |rng| {
            let number = self.rows.any(rng);
            self.db.put_opt(Rows::key(number), self.rows.value(number), &synced())?;
            Ok(())
        })
    }

    /// Reads every row in order, keys and values copied out as a caller would want them.
    pub fn scan(&self) -> Result<Measured> {
        let began = Instant::now();
        let mut count = 0;
        for row in self.db.iterator(IteratorMode::Start) {
            row?;
            count += 1;
        }
        ensure!(count == self.rows.count, "the iterator found {count} of {} rows", self.rows.count);
        Ok(Measured::whole(count, began.elapsed()))
    }
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}
