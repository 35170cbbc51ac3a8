//! Writers that no error is allowed, each with rows and counters of its own in table `t`, and what
//! the table must hold in the end; for tests that change tablets under them.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use ebla_client::{AckLevel, Batch, Client, Outcome, Scan, WriteOptions};
use futures::TryStreamExt as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Rows of each writer.
const ROWS: u64 = 100;

/// What a writer knows: for each of its rows the last value, and what it added in all.
#[derive(Default)]
pub struct Model {
    rows: BTreeMap<String, String>,
    added: i64,
}

/// A write that succeeded: when it began and how long it took.
pub type Took = (Instant, Duration);

/// A task that writes, and what it knows when it ends.
type Writer = JoinHandle<Result<(Model, Vec<Took>)>>;

/// Tasks that write, and perhaps one that scans.
pub struct Writers {
    stop: Arc<AtomicBool>,
    writers: Vec<Writer>,
    scans: Option<JoinHandle<Result<u64>>>,
}

/// What came of them.
pub struct Written {
    /// What each writer knows.
    pub models: Vec<Model>,
    /// All writes.
    pub took: Vec<Took>,
    /// Scans of the whole table that were ended.
    pub scans: u64,
}

impl Writers {
    /// Starts writers of these numbers, each with the level that all of its writes ask for.
    #[must_use]
    pub fn start(client: &Client, writers: impl IntoIterator<Item = (u64, AckLevel)>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |(writer, level)| tokio::spawn(write(client.clone(), writer, level, Arc::clone(&stop)));
        let writers = writers.into_iter().map(start).collect();
        Self { stop, writers, scans: None }
    }

    /// Lets one task scan the table beside them.
    #[must_use]
    pub fn and_scan(mut self, client: &Client) -> Self {
        self.scans = Some(tokio::spawn(scan(client.clone(), Arc::clone(&self.stop))));
        self
    }

    /// Lets every call end that is under way.
    ///
    /// # Errors
    /// The first error that any of them met.
    pub async fn end(self) -> Result<Written> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut models, mut took) = (Vec::new(), Vec::new());
        for writer in self.writers {
            let (model, writes) = writer.await??;
            models.push(model);
            took.extend(writes);
        }
        let scans = match self.scans {
            Some(scans) => scans.await??,
            None => 0,
        };
        Ok(Written { models, took, scans })
    }
}

/// Half of the writers wait for a second copy: those of odd numbers.
#[must_use]
pub fn mixed_level(writer: u64) -> (u64, AckLevel) {
    (writer, if writer.is_multiple_of(2) { AckLevel::Leader } else { AckLevel::Copies(2) })
}

/// Sets rows and adds to counters until told to stop. Any error ends it.
async fn write(
    client: Client,
    writer: u64,
    level: AckLevel,
    stop: Arc<AtomicBool>,
) -> Result<(Model, Vec<Took>)> {
    let options = WriteOptions { ack: Some(level) };
    let mut random = StdRng::seed_from_u64(writer);
    let (mut model, mut took) = (Model::default(), Vec::new());
    let mut turn = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        // The rows of a writer lie all over the table.
        let row = random.random_range(0..ROWS);
        let (name, value) = (format!("{row:03}-{writer:02}"), format!("{turn}"));
        let batch = match turn % 2 {
            0 => Batch::new().set(name.clone(), value.clone()),
            _ => Batch::new().add(format!("{name}-counter"), 1),
        };
        let began = Instant::now();
        match client.write("t", batch, options).await.with_context(|| format!("{name} at turn {turn}"))? {
            Outcome::Committed(_) if turn.is_multiple_of(2) => drop(model.rows.insert(name, value)),
            Outcome::Committed(_) => model.added += 1,
            Outcome::Reverted => {}
            Outcome::Unknown(ticket) => anyhow::bail!("the outcome of {ticket} is unknown"),
        }
        took.push((began, began.elapsed()));
    }
    Ok((model, took))
}

/// Scans the whole table again and again: rows rise, none comes twice.
async fn scan(client: Client, stop: Arc<AtomicBool>) -> Result<u64> {
    let mut scans = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut rows = client.scan("t", Scan::all())?;
        let mut last = Bytes::new();
        while let Some(row) = rows.try_next().await.context("a scan")? {
            ensure!(row.key > last, "{:?} comes after {last:?}", row.key);
            last = row.key;
        }
        scans += 1;
    }
    Ok(scans)
}

/// Checks that the table holds what the writers know, and nothing else.
///
/// # Errors
/// When it does not, with the first row that differs.
pub async fn check(client: &Client, models: &[Model]) -> Result<()> {
    let (mut found, mut added) = (BTreeMap::new(), 0);
    let mut rows = client.scan("t", Scan::all())?;
    while let Some(row) = rows.try_next().await? {
        let name = String::from_utf8(row.key.to_vec())?;
        let value = row.value.into_bytes();
        if name.ends_with("-counter") {
            added += i64::from_be_bytes(value[..].try_into()?);
        } else {
            found.insert(name, String::from_utf8(value.to_vec())?);
        }
    }
    let mut wanted = BTreeMap::new();
    models.iter().for_each(|model| wanted.extend(model.rows.clone()));
    ensure!(added == models.iter().map(|model| model.added).sum::<i64>(), "counters say {added}");
    let differs = wanted.iter().find(|(name, value)| found.get(*name) != Some(value));
    ensure!(differs.is_none(), "{differs:?} is {:?}", differs.and_then(|(name, _)| found.get(name)));
    ensure!(found.len() == wanted.len(), "{} rows instead of {}", found.len(), wanted.len());
    Ok(())
}

/// Longest write that was under way during each of `windows`, shortest first.
#[must_use]
pub fn longest(took: &[Took], windows: &[(Instant, Instant)]) -> Vec<Duration> {
    let during = |(from, to): &(Instant, Instant)| {
        let meets = |(began, took): &&Took| began <= to && *began + *took >= *from;
        took.iter().filter(meets).map(|(_, took)| *took).max().unwrap_or_default()
    };
    let mut longest: Vec<Duration> = windows.iter().map(during).collect();
    longest.sort();
    longest
}
