//! The cluster under measurement, and every call of `ebla-client` that the benchmark makes.

use crate::closed_loop::{Measured, run_tasks};
use crate::rows::Rows;
use anyhow::{Context as _, Result, ensure};
use ebla_client::{AckLevel, Batch, Client, Scan, WriteOptions, v1};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rand::rngs::SmallRng;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TABLE: &str = "bench";

/// Tablets of the table: two on each of the three servers.
const TABLETS: u64 = 6;

/// Rows in one batch of the load, here and in raw RocksDB.
pub const LOAD_BATCH_ROWS: u64 = 500;

/// Batches under way at the same time during the load, here and in raw RocksDB.
pub const LOAD_BATCHES: usize = 16;

/// A cluster of its own, ended when dropped.
pub struct Ebla {
    process: Child,
    client: Client,
    rows: Rows,
}

impl Ebla {
    /// Starts `ebla dev` on an empty directory and creates the table.
    pub async fn start(binary: &Path, data_dir: &Path, rows: Rows, copies: u32) -> Result<Self> {
        let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let log = File::create(data_dir.with_extension("log"))?;
        let mut process = Command::new(binary)
            .args(["dev", "--listen", &listen, "--data-dir"])
            .arg(data_dir)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}: build it with `cargo build --release`", binary.display()))?;
        let stdout = process.stdout.take().expect("stdout was asked to be a pipe");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.starts_with("ready "), "the cluster did not become ready: {line:?}");

        let client = Client::builder().endpoints([listen]).timeout(Duration::from_secs(60)).connect().await?;
        let split_keys = rows.split_keys(TABLETS);
        let spec = Some(v1::TableSpec { replicas: copies, ..v1::TableSpec::default() });
        let request = v1::CreateTableRequest { name: TABLE.to_owned(), spec, split_keys };
        client.admin().create_table(request).await?;
        Ok(Self { process, client, rows })
    }

    /// Loads all rows in batches.
    pub async fn load(&self) -> Result<Measured> {
        let began = Instant::now();
        let starts = (0..self.rows.count).step_by(usize::try_from(LOAD_BATCH_ROWS)?);
        stream::iter(starts)
            .map(|first| self.load_batch(first))
            .buffer_unordered(LOAD_BATCHES)
            .try_collect::<()>()
            .await?;
        Ok(Measured::whole(self.rows.count, began.elapsed()))
    }

    async fn load_batch(&self, first: u64) -> Result<()> {
        let numbers = first..(first + LOAD_BATCH_ROWS).min(self.rows.count);
        let add = |batch: Batch, number| batch.set(Rows::key(number), self.rows.value(number));
        let batch = numbers.fold(Batch::new(), add);
        for part in self.client.write_split(TABLE, batch, WriteOptions::default()).await? {
            part.result?.committed()?;
        }
        Ok(())
    }

    /// Gets of any rows, through the client's `Pipe`.
    pub async fn get(&self, callers: usize, time: Duration) -> Result<Measured> {
        let (client, rows) = (self.client.clone(), self.rows);
        run_tasks(callers, time, move |rng: &mut SmallRng| {
            let (client, number) = (client.clone(), rows.any(rng));
            async move {
                let found = client.get(TABLE, Rows::key(number)).await?;
                ensure!(found.is_some(), "row {number} is missing");
                Ok(())
            }
        })
        .await
    }

    /// The same, a call of its own for each.
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
    pub async fn set(&self, callers: usize, level: AckLevel, time: Duration) -> Result<Measured> {
        let (client, rows) = (self.client.clone(), self.rows);
        run_tasks(callers, time, move |rng: &mut SmallRng| {
            let (client, number) = (client.clone(), rows.any(rng));
            async move {
                let batch = Batch::new().set(Rows::key(number), rows.value(number));
                client.write(TABLE, batch, WriteOptions { ack: Some(level) }).await?.committed()?;
                Ok(())
            }
        })
        .await
    }

    /// Reads every row in order.
    pub async fn scan(&self) -> Result<Measured> {
        let began = Instant::now();
        let stream = self.client.scan(TABLE, Scan::all())?;
        let count = stream.try_fold(0_u64, async |count, _row| Ok(count + 1)).await?;
        ensure!(count == self.rows.count, "the scan found {count} of {} rows", self.rows.count);
        Ok(Measured::whole(count, began.elapsed()))
    }
}

impl Drop for Ebla {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
