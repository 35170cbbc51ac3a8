//! The cluster under measurement, and every call of `ebla-client` that the benchmark makes.

use crate::closed_loop::{Measured, run_tasks};
use crate::dev::Dev;
use crate::rows::Rows;
use anyhow::{Result, ensure};
use ebla_client::{AckLevel, Batch, Client, Scan, WriteOptions, v1};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rand::rngs::SmallRng;
use std::path::Path;
use std::time::{Duration, Instant};

const TABLE: &str = "bench";

/// Tablets of the table: two on each of the three servers.
const TABLETS: u64 = 6;

/// Rows in one batch of the load, here and in raw RocksDB.
pub const LOAD_BATCH_ROWS: u64 = 500;

/// Batches under way at the same time during the load, here and in raw RocksDB.
pub const LOAD_BATCHES: usize = 16;

/// A cluster under measurement and its one table.
pub struct Ebla {
    _dev: Dev,
    client: Client,
    rows: Rows,
}

impl Ebla {
    /// Starts a cluster on an empty directory and creates the table.
    ///
    /// # Errors
    /// What the cluster reports.
    pub async fn start(binary: &Path, data_dir: &Path, rows: Rows, copies: u32) -> Result<Self> {
        let dev = Dev::start(binary, data_dir).await?;
        let split_keys = rows.split_keys(TABLETS);
        let spec = Some(v1::TableSpec { replicas: copies, ..v1::TableSpec::default() });
        let request = v1::CreateTableRequest { name: TABLE.to_owned(), spec, split_keys };
        dev.client.admin().create_table(request).await?;
        let client = dev.client.clone();
        Ok(Self { _dev: dev, client, rows })
    }

    /// Loads all rows in batches.
    ///
    /// # Errors
    /// The first error of a batch.
    pub async fn load(&self) -> Result<Measured> {
        load(&self.client, TABLE, self.rows, AckLevel::Leader).await
    }
    /// Gets of any rows, through the client's `Pipe`.
    ///
    /// # Errors
    /// The first error of a call.
    pub async fn get(&self, callers: usize, time: Duration) -> Result<Measured> {
        get(&self.client, TABLE, self.rows, callers, time).await
    }

    /// The same, a call of its own for each.
    ///
    /// # Errors
    /// The first error of a call.
    pub async fn get_unary(&self, callers: usize, time: Duration) -> Result<Measured> {
        let (client, rows) = (self.client.clone(), self.rows);
        run_tasks(callers, time, move |rng: &mut SmallRng| {
            let (client, number) = (client.clone(), rows.any(rng));
            async move {
                let found = client.get_unary(TABLE, Rows::key(number)).await?;
                ensure!(found.is_some(), "row {number} is missing");
                Ok(())
            }
        })
        .await
    }

    /// Sets of any rows; each is on disk when it returns.
    ///
    /// # Errors
    /// The first error of a call.
    pub async fn set(&self, callers: usize, level: AckLevel, time: Duration) -> Result<Measured> {
        set(&self.client, TABLE, self.rows, (callers, level), time).await
    }

    /// Reads every row in order.
    ///
    /// # Errors
    /// The first error of a call.
    pub async fn scan(&self) -> Result<Measured> {
        let began = Instant::now();
        let stream = self.client.scan(TABLE, Scan::all())?;
        let count = stream.try_fold(0_u64, async |count, _row| Ok(count + 1)).await?;
        ensure!(count == self.rows.count, "the scan found {count} of {} rows", self.rows.count);
        Ok(Measured::whole(count, began.elapsed()))
    }
}

/// Gets of any rows of a table, through the client's `Pipe`.
///
/// # Errors
/// The first error of a call.
pub async fn get(
    client: &Client,
    table: &'static str,
    rows: Rows,
    callers: usize,
    time: Duration,
) -> Result<Measured> {
    let client = client.clone();
    run_tasks(callers, time, move |rng: &mut SmallRng| {
        let (client, number) = (client.clone(), rows.any(rng));
        async move {
            let found = client.get(table, Rows::key(number)).await?;
            ensure!(found.is_some(), "row {number} is missing");
            Ok(())
        }
    })
    .await
}

/// Sets of any rows of a table at a level; each has reached it when it returns.
///
/// # Errors
/// The first error of a call.
pub async fn set(
    client: &Client,
    table: &'static str,
    rows: Rows,
    (callers, level): (usize, AckLevel),
    time: Duration,
) -> Result<Measured> {
    let client = client.clone();
    run_tasks(callers, time, move |rng: &mut SmallRng| {
        let (client, number) = (client.clone(), rows.any(rng));
        async move {
            let batch = Batch::new().set(Rows::key(number), rows.value(number));
            client.write(table, batch, WriteOptions { ack: Some(level) }).await?.committed()?;
            Ok(())
        }
    })
    .await
}

/// Loads all of `rows` into a table in batches.
///
/// # Errors
/// The first error of a batch.
pub async fn load(client: &Client, table: &str, rows: Rows, level: AckLevel) -> Result<Measured> {
    let began = Instant::now();
    let starts = (0..rows.count).step_by(usize::try_from(LOAD_BATCH_ROWS)?);
    stream::iter(starts)
        .map(|first| load_batch(client, table, rows, level, first))
        .buffer_unordered(LOAD_BATCHES)
        .try_collect::<()>()
        .await?;
    Ok(Measured::whole(rows.count, began.elapsed()))
}

async fn load_batch(client: &Client, table: &str, rows: Rows, level: AckLevel, first: u64) -> Result<()> {
    let numbers = first..(first + LOAD_BATCH_ROWS).min(rows.count);
    let add = |batch: Batch, number| batch.set(Rows::key(number), rows.value(number));
    let batch = numbers.fold(Batch::new(), add);
    for part in client.write_split(table, batch, WriteOptions { ack: Some(level) }).await? {
        part.result?.committed()?;
    }
    Ok(())
}
