//! `ebla-bench-watch`: how long a committed change takes to whoever watches.
//!
//! It starts a whole cluster of its own (one process, three copies of each tablet), writes small
//! rows at a steady rate, and watches the table from one or more clients in this process. The lag
//! of a change is the time from the call of its write to its event: it holds the write itself, the
//! second copy and the way to the watcher. Whether every change came is checked.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use ebla_bench::closed_loop::new_histogram;
use ebla_bench::dev::{Dev, scratch};
use ebla_client::{Batch, Client, Since, Value, Watch, WatchChange, WriteOptions, v1};
use futures::StreamExt as _;
use hdrhistogram::Histogram;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Keys that are written, again and again.
const KEYS: u64 = 10_000;

/// Between two handfuls of writes of one caller.
const PACE: Duration = Duration::from_millis(10);

/// Longest wait for the last changes.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
#[command(about = "Measures the lag of watches and prints a markdown table")]
struct Args {
    /// The `ebla` binary, built with --release
    #[arg(long, default_value = "target/release/ebla")]
    ebla: PathBuf,
    /// Changes per second in all
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// How long, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Callers that write
    #[arg(long, default_value_t = 20)]
    writers: u64,
    /// Watches of the whole table
    #[arg(long, default_value_t = 1)]
    watches: u64,
    /// Bytes of each value, at least 8
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Where to put the temporary directory
    #[arg(long, default_value = "target")]
    dir: PathBuf,
}

/// What one watch saw.
struct Watched {
    changes: u64,
    lag_us: Histogram<u64>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.value_bytes >= 8, "--value-bytes must be 8 or more: a value holds when it was written");
    let place = scratch(&args.dir)?;
    let dev = Dev::start(&args.ebla, &place.path().join("cluster")).await.context("the cluster")?;
    create(&dev.client).await?;
    let began = Instant::now();
    let (written, watched) = measure(&dev.client, &args, began).await?;
    println!("| watches | changes/s | changes seen by each | lag p50 ms | p99 ms | max ms |");
    println!("|---|---|---|---|---|---|");
    for watch in watched {
        ensure!(watch.changes == written, "{} of {written} changes were seen", watch.changes);
        let ms = |us: u64| us as f64 / 1_000.0;
        println!(
            "| {} | {:.0} | {} | {:.1} | {:.1} | {:.1} |",
            args.watches,
            written as f64 / args.seconds as f64,
            watch.changes,
            ms(watch.lag_us.value_at_quantile(0.5)),
            ms(watch.lag_us.value_at_quantile(0.99)),
            ms(watch.lag_us.max()),
        );
    }
    Ok(())
}

async fn create(client: &Client) -> Result<()> {
    let spec = v1::TableSpec { replicas: 3, split_bytes: 1 << 50, ..v1::TableSpec::default() };
    let request = v1::CreateTableRequest { name: "t".to_owned(), spec: Some(spec), ..Default::default() };
    client.admin().create_table(request).await?;
    Ok(())
}

/// Writes at the rate while the watches look on; gives how much was written, and what each saw.
async fn measure(client: &Client, args: &Args, began: Instant) -> Result<(u64, Vec<Watched>)> {
    let mut watches = JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(None);
    let (ready, mut begun) = tokio::sync::mpsc::channel(1);
    for _ in 0..args.watches {
        watches.spawn(watch(client.clone(), began, ready.clone(), stopped.clone()));
    }
    for _ in 0..args.watches {
        begun.recv().await.context("a watch ended before it began")?;
    }
    let mut writers = JoinSet::new();
    for number in 0..args.writers {
        writers.spawn(write(
            client.clone(),
            number,
            (args.rate, args.writers, args.seconds),
            args.value_bytes,
            began,
        ));
    }
    let (mut written, mut last) = (0, ebla_client::Hlc::MIN);
    while let Some(writer) = writers.join_next().await {
        let (count, ts) = writer??;
        written += count;
        last = last.max(ts);
    }
    stop.send_replace(Some(last));
    let mut all = Vec::new();
    while let Some(watch) = watches.join_next().await {
        all.push(watch??);
    }
    Ok((written, all))
}

/// Sets rows whose values say when, a handful every few milliseconds.
async fn write(
    client: Client,
    number: u64,
    (rate, writers, seconds): (u64, u64, u64),
    value_bytes: usize,
    began: Instant,
) -> Result<(u64, ebla_client::Hlc)> {
    let mut pace = tokio::time::interval(PACE);
    let per_turn = rate as f64 * PACE.as_secs_f64() / writers as f64;
    let (mut owed, mut count, mut last) = (0.0, 0, ebla_client::Hlc::MIN);
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        pace.tick().await;
        owed += per_turn;
        let mut calls = JoinSet::new();
        while owed >= 1.0 {
            owed -= 1.0;
            count += 1;
            let key = format!("{:06}", (count * writers + number) % KEYS);
            let now_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            let mut value = now_us.to_be_bytes().to_vec();
            value.resize(value_bytes, b'x');
            let client = client.clone();
            calls.spawn(async move {
                let batch = Batch::new().set(key, Bytes::from(value));
                client.write("t", batch, WriteOptions::default()).await?.committed()
            });
        }
        while let Some(call) = calls.join_next().await {
            last = last.max(call??.ts);
        }
    }
    Ok((count, last))
}

/// Counts changes and their lags until everything up to the last write is resolved.
async fn watch(
    client: Client,
    began: Instant,
    ready: tokio::sync::mpsc::Sender<()>,
    stopped: tokio::sync::watch::Receiver<Option<ebla_client::Hlc>>,
) -> Result<Watched> {
    let mut events = client.watch("t", Watch::all().since(Since::Now))?;
    let mut watched = Watched { changes: 0, lag_us: new_histogram() };
    let mut ready = Some(ready);
    loop {
        let next = tokio::time::timeout(PATIENCE, events.next()).await.context("the watch is silent")?;
        match next.context("the watch ended")??.change {
            WatchChange::Set { value: Value::Bytes(value), .. } => {
                let written_us = value.first_chunk().map_or(0, |at| u64::from_be_bytes(*at));
                let now_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                watched.changes += 1;
                watched.lag_us.record(now_us.saturating_sub(written_us))?;
            }
            WatchChange::Resolved { ts } => {
                if let Some(ready) = ready.take() {
                    ready.send(()).await?;
                }
                if stopped.borrow().is_some_and(|last| ts >= last) {
                    return Ok(watched);
                }
            }
            other => anyhow::bail!("nobody did this: {other:?}"),
        }
    }
}
