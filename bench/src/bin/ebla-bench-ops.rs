//! `ebla-bench-ops`: what an operation on tablets costs those who write and read meanwhile.
//!
//! It starts a whole cluster of its own (one process, three copies of each tablet) and measures:
//! - splits of a small and of a large tablet: the longest write that met each of them, beside the
//!   longest write in windows of the same length without a split. The load is steady, not as
//!   much as fits;
//! - a server that is drained: the longest write meanwhile;
//! - a table that is dropped and a range that is deleted: how long they are still seen, what gets
//!   of a neighbouring table take meanwhile, and when the disk space is back;
//! - a scan over the field that the deletion leaves behind, before it is collected.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use ebla_bench::closed_loop::{Measured, run_tasks};
use ebla_bench::dev::{Dev, scratch};
use ebla_bench::ebla::load;
use ebla_bench::rows::Rows;
use ebla_client::{AckLevel, Batch, Client, Reason, Scan, WriteOptions, v1};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Bytes of each value.
const VALUE_BYTES: usize = 1_000;

/// Callers that write while tablets are split and servers drained.
const WRITERS: u64 = 16;

/// How long a writer waits between two writes.
const PACE: Duration = Duration::from_millis(5);

/// Between two splits.
const REST: Duration = Duration::from_millis(300);

/// Longest wait for disk space.
const SPACE_MAX: Duration = Duration::from_secs(900);

/// Retention of the table whose range is deleted.
const RETENTION_MS: u64 = 60_000;

#[derive(Parser)]
#[command(about = "Measures what operations on tablets cost others and prints markdown tables")]
struct Args {
    /// The `ebla` binary, built with --release
    #[arg(long, default_value = "target/release/ebla")]
    ebla: PathBuf,
    /// Sizes of the tablets that are split, in MB
    #[arg(long, default_values_t = [10, 1_000], value_delimiter = ',')]
    split_mb: Vec<u64>,
    /// Splits of each
    #[arg(long, default_value_t = 40)]
    splits: u64,
    /// Size of the table that is dropped and of the range that is deleted, in MB; 0 for neither
    #[arg(long, default_value_t = 500)]
    delete_mb: u64,
    /// Where to put the temporary directory
    #[arg(long, default_value = "target")]
    dir: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let place = scratch(&args.dir)?;
    let dev = Dev::start(&args.ebla, &place.path().join("cluster")).await.context("the cluster")?;
    if !args.split_mb.is_empty() {
        pauses(&dev, &args).await?;
    }
    if args.delete_mb > 0 {
        removals(&dev, rows_of(args.delete_mb), place.path()).await?;
    }
    Ok(())
}

fn rows_of(mb: u64) -> Rows {
    Rows { count: mb * 1_000, value_bytes: VALUE_BYTES }
}

async fn create(client: &Client, name: &str, copies: u32) -> Result<()> {
    // Nothing is to be split by itself meanwhile.
    let (split_bytes, retention_ms) = (1 << 50, RETENTION_MS);
    let spec = v1::TableSpec { replicas: copies, split_bytes, retention_ms, ..v1::TableSpec::default() };
    let request = v1::CreateTableRequest { name: name.to_owned(), spec: Some(spec), ..Default::default() };
    client.admin().create_table(request).await?;
    Ok(())
}

// Pauses

/// When a write began and ended.
type Write = (Instant, Instant);

/// When an operation began and ended.
type Window = (Instant, Instant);

/// Callers that write until they are told to stop.
struct Writers {
    tasks: JoinSet<Result<Vec<Write>>>,
    stop: Arc<AtomicBool>,
}

impl Writers {
    fn start(client: &Client, table: &str, rows: Rows) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..WRITERS {
            // Every fourth waits for a second copy.
            let level = if number % 4 == 0 { AckLevel::Copies(2) } else { AckLevel::Leader };
            let (client, table, stop) = (client.clone(), table.to_owned(), Arc::clone(&stop));
            tasks.spawn(async move { write(&client, &table, rows, (number, level), &stop).await });
        }
        Self { tasks, stop }
    }

    async fn end(mut self) -> Result<Vec<Write>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        while let Some(writes) = self.tasks.join_next().await {
            all.append(&mut writes??);
        }
        Ok(all)
    }
}

async fn write(
    client: &Client,
    table: &str,
    rows: Rows,
    (number, level): (u64, AckLevel),
    stop: &AtomicBool,
) -> Result<Vec<Write>> {
    let mut rng = SmallRng::seed_from_u64(number);
    let mut writes = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let row = rows.any(&mut rng);
        let batch = Batch::new().set(Rows::key(row), rows.value(row));
        let began = Instant::now();
        client.write(table, batch, WriteOptions { ack: Some(level) }).await?.committed()?;
        writes.push((began, Instant::now()));
        tokio::time::sleep(PACE).await;
    }
    Ok(writes)
}

/// The longest write that met each window, shortest first.
fn longest(writes: &[Write], windows: &[Window]) -> Vec<Duration> {
    let met = |(from, to): &Window| {
        let meets = |(began, ended): &&Write| began <= to && ended >= from;
        writes.iter().filter(meets).map(|(began, ended)| *ended - *began).max().unwrap_or_default()
    };
    let mut longest: Vec<Duration> = windows.iter().map(met).collect();
    longest.sort();
    longest
}

fn print_pauses(what: &str, longest: &[Duration]) {
    let at = |share: usize| longest.get(longest.len().saturating_sub(1) * share / 100);
    let ms = |share| at(share).map_or(0.0, |time| time.as_secs_f64() * 1e3);
    println!("| {what} | {} | {:.1} | {:.1} | {:.1} |", longest.len(), ms(50), ms(99), ms(100));
}

async fn pauses(dev: &Dev, args: &Args) -> Result<()> {
    let client = &dev.client;
    println!("| longest write that met | times | p50 ms | p99 ms | worst ms |\n|---|---:|---:|---:|---:|");
    for mb in &args.split_mb {
        let (table, rows) = (format!("split-{mb}"), rows_of(*mb));
        create(client, &table, 3).await?;
        load(client, &table, rows, AckLevel::InSync).await?;
        dev.settle().await?;
        let writers = Writers::start(client, &table, rows);
        let (splits, quiet) = split(client, &table, rows, args.splits).await?;
        let writes = writers.end().await?;
        print_pauses(&format!("a split of a tablet of {mb} MB"), &longest(&writes, &splits));
        print_pauses("no split, for as long", &longest(&writes, &quiet));
    }
    let mb = args.split_mb.iter().copied().min().unwrap_or(1);
    drains(client, &format!("split-{mb}"), rows_of(mb)).await
}

/// Cuts slice after slice off the end of the table's first tablet, which so remains about as large.
/// Gives the splits, and between them windows of the same lengths in which nothing is split.
async fn split(client: &Client, table: &str, rows: Rows, count: u64) -> Result<(Vec<Window>, Vec<Window>)> {
    let admin = client.admin();
    let (mut splits, mut quiet) = (Vec::new(), Vec::new());
    for number in 0..count {
        let tablets = admin.list_tablets(table).await?;
        let first =
            tablets.first().and_then(|first| first.tablet.as_ref()).context("a table has a tablet")?.id;
        let at = Rows::key(rows.count - 1 - number * (rows.count / 1_000).max(1));
        tokio::time::sleep(REST).await;
        let began = Instant::now();
        admin.split_tablet(first, vec![at]).await?;
        let ended = Instant::now();
        splits.push((began, ended));
        tokio::time::sleep(REST).await;
        let from = Instant::now();
        tokio::time::sleep(ended - began).await;
        quiet.push((from, Instant::now()));
    }
    Ok((splits, quiet))
}

/// Drains each server in turn and takes it back.
async fn drains(client: &Client, table: &str, rows: Rows) -> Result<()> {
    let admin = client.admin();
    let writers = Writers::start(client, table, rows);
    let mut windows = Vec::new();
    for server in admin.list_servers().await? {
        let id = server.server.context("a summary names its server")?.id;
        let began = Instant::now();
        admin.set_server_duty(id, v1::ServerDuty::Drained).await?;
        while leads(client, table, id).await? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        windows.push((began, Instant::now()));
        admin.set_server_duty(id, v1::ServerDuty::Serves).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let writes = writers.end().await?;
    print_pauses(
        &format!("a server of {} tablets being drained", tablets(client, table).await?),
        &longest(&writes, &windows),
    );
    Ok(())
}

async fn tablets(client: &Client, table: &str) -> Result<usize> {
    Ok(client.admin().list_tablets(table).await?.len())
}

async fn leads(client: &Client, table: &str, server: u64) -> Result<bool> {
    let tablets = client.admin().list_tablets(table).await?;
    Ok(tablets.iter().filter_map(|one| one.tablet.as_ref()).any(|tablet| tablet.leader_server_id == server))
}

// Removals

/// What a removal did.
struct Removal {
    what: &'static str,
    /// Until nobody sees the rows any more.
    seen: Duration,
    /// Gets of the neighbouring table while the space comes back.
    neighbour: Measured,
    /// Until nine tenths of the space are back.
    space: Option<Duration>,
}

async fn removals(dev: &Dev, rows: Rows, place: &Path) -> Result<()> {
    let client = &dev.client;
    let near = rows_of(10);
    create(client, "near", 1).await?;
    load(client, "near", near, AckLevel::Leader).await?;
    let mut lines = Vec::new();
    for (name, what) in [("dropped", "table dropped"), ("emptied", "range deleted")] {
        let empty = bytes_in(place);
        create(client, name, 1).await?;
        load(client, name, rows, AckLevel::Leader).await?;
        dev.settle().await?;
        let full = bytes_in(place);
        let before = gets(client, near, Duration::from_secs(10)).await?;
        let began = Instant::now();
        match name {
            "dropped" => client.admin().drop_table(name).await?,
            _ => delete_all(client, name).await?,
        }
        ensure!(sees_nothing(client, name).await?, "{what}: a row is still there");
        let seen = began.elapsed();
        if name == "emptied" {
            scan_field(client, name, rows).await?;
        }
        let goal = empty + (full - empty) / 10;
        let space = tokio::spawn(space_back(place.to_owned(), goal));
        let neighbour = gets(client, near, Duration::from_secs(30)).await?;
        let space = space.await?.map(|at| at - began);
        lines.push((before, Removal { what, seen, neighbour, space }, full - empty));
    }
    println!(
        "\n| | MB on disk | still seen for | neighbour's get p99 before | meanwhile | ratio | space back after |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (before, removal, bytes) in &lines {
        let p99 = |measured: &Measured| measured.latencies.value_at_percentile(99.0) as f64 / 1e6;
        let (before, meanwhile) = (p99(before), p99(&removal.neighbour));
        let space = removal.space.map_or("never".to_owned(), |time| format!("{:.0} s", time.as_secs_f64()));
        println!(
            "| {} | {} | {:.0} ms | {before:.2} ms | {meanwhile:.2} ms | {:.2} | {space} |",
            removal.what,
            bytes / 1_000_000,
            removal.seen.as_secs_f64() * 1e3,
            meanwhile / before
        );
    }
    Ok(())
}

async fn delete_all(client: &Client, table: &str) -> Result<()> {
    for part in client.delete_range(table, Bytes::new(), Bytes::new(), WriteOptions::default()).await? {
        part.result?.committed()?;
    }
    Ok(())
}

async fn sees_nothing(client: &Client, table: &str) -> Result<bool> {
    match client.get(table, Rows::key(0)).await {
        Ok(cell) => Ok(cell.is_none()),
        Err(error) if error.reason() == Reason::TableNotFound => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Scans the rows that a deletion hides, before they are collected.
async fn scan_field(client: &Client, table: &str, rows: Rows) -> Result<()> {
    let began = Instant::now();
    let left = client.count(table, Scan::all()).await?.count;
    ensure!(left == 0, "{left} rows are left");
    println!("\nA scan over {} deleted rows: {:.1} s.", rows.count, began.elapsed().as_secs_f64());
    Ok(())
}

async fn gets(client: &Client, rows: Rows, time: Duration) -> Result<Measured> {
    let client = client.clone();
    run_tasks(4, time, move |rng: &mut SmallRng| {
        let (client, number) = (client.clone(), rows.any(rng));
        async move {
            let found = client.get("near", Rows::key(number)).await?;
            ensure!(found.is_some(), "row {number} is missing");
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok(())
        }
    })
    .await
}

/// When the files take at most `goal` bytes.
async fn space_back(place: PathBuf, goal: u64) -> Option<Instant> {
    let until = Instant::now() + SPACE_MAX;
    while Instant::now() < until {
        if bytes_in(&place) <= goal {
            return Some(Instant::now());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    None
}

/// Bytes of all rows on disk below a directory: table files of stores; logs go by their own rule.
fn bytes_in(place: &Path) -> u64 {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => bytes_in(&entry.path()),
            Ok(_) if entry.path().extension().is_some_and(|extension| extension == "sst") => {
                entry.metadata().map_or(0, |file| file.len())
            }
            Ok(_) | Err(_) => 0,
        })
        .sum()
}
