//! A backup and a restore beside `cp` of the same files on the same disk, and what they cost
//! those who read meanwhile.
//!
//! Three tablet servers in one process, one copy of each tablet: a backup reads every row once,
//! a restore writes it once, as `cp` does. Rates are of bytes of keys and values.

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use ebla_bench::closed_loop::Measured;
use ebla_bench::dev::{Dev, scratch};
use ebla_bench::ebla::{get, load};
use ebla_bench::rows::Rows;
use ebla_client::{AckLevel, Client, v1};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const TABLE: &str = "bench";
const TABLETS: u64 = 12;
const CALLERS: usize = 16;
/// Bytes per second that nothing reaches.
const UNLIMITED: u64 = 1 << 40;

/// Measures backups beside `cp` and prints markdown tables.
#[derive(Parser)]
#[command(version, about)]
struct Args {
    /// The `ebla` binary, built with --release
    #[arg(long, default_value = "target/release/ebla")]
    ebla: PathBuf,
    /// Rows of the table
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Bytes of each value; half of them compress away
    #[arg(long, default_value_t = 500)]
    value_bytes: usize,
    /// Bytes per second that each server may read while callers get; 0 for the default, half a core
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Where to put the temporary directory
    #[arg(long, default_value = "target")]
    dir: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let place = scratch(&args.dir)?;
    let rows = Rows { count: args.rows, value_bytes: args.value_bytes };
    let dev = Dev::start(&args.ebla, &place.path().join("cluster")).await.context("the cluster")?;
    let client = dev.client.clone();
    let spec = v1::TableSpec { replicas: 1, ..v1::TableSpec::default() };
    let split_keys = rows.split_keys(TABLETS);
    let table = v1::CreateTableRequest { name: TABLE.to_owned(), spec: Some(spec), split_keys };
    client.admin().create_table(table).await?;
    load(&client, TABLE, rows, AckLevel::Leader).await?;
    dev.settle().await?;
    let quiet = get(&client, TABLE, rows, CALLERS, Duration::from_secs(5)).await?;

    let target = std::fs::canonicalize(place.path())?.join("target");
    std::fs::create_dir(&target)?;
    let url = format!("file://{}", target.display());
    let backup = create(&client, &url, UNLIMITED).await?;
    let files = size(&target)?;
    dev.settle().await?;
    let copied = copy(&target, &place.path().join("copied"))?;
    let alone = [("backup", backup), ("restore", restored(&client, &url, "alone", UNLIMITED).await?)];
    dev.settle().await?;
    let (backup, while_backed_up) = beside_gets(&client, rows, create(&client, &url, args.rate)).await?;
    let restore = restored(&client, &url, "beside", args.rate);
    let (restore, while_restored) = beside_gets(&client, rows, restore).await?;
    drop(dev);

    let (count, bytes) = (rows.count, 16 + rows.value_bytes);
    println!("{count} rows of {bytes} bytes, {} MB in all, {} MB in files\n", mb(rows.bytes()), mb(files));
    println!("| alone, as fast as it goes | s | MB/s of rows | beside cp |\n|---|---:|---:|---:|");
    for (what, time) in [("cp -r and sync", copied)].into_iter().chain(alone) {
        let ratio = copied.as_secs_f64() / time.as_secs_f64();
        println!("| {what} | {:.1} | {:.0} | {ratio:.2} |", time.as_secs_f64(), rate(rows, time));
    }
    println!("\n| while {CALLERS} callers get | s | MB/s of rows | p99 of gets ms | beside quiet |");
    println!("|---|---:|---:|---:|---:|\n| nothing | | | {:.2} | 1.0 |", p99_ms(&quiet));
    for (what, time, gets) in [("backup", backup, &while_backed_up), ("restore", restore, &while_restored)] {
        let p99 = p99_ms(gets);
        let ratio = p99 / p99_ms(&quiet);
        println!("| {what} | {:.1} | {:.0} | {p99:.2} | {ratio:.1} |", time.as_secs_f64(), rate(rows, time));
    }
    Ok(())
}

/// How long `work` took, and the gets that went on meanwhile.
async fn beside_gets(
    client: &Client,
    rows: Rows,
    work: impl Future<Output = Result<Duration>>,
) -> Result<(Duration, Measured)> {
    let gets = get(client, TABLE, rows, CALLERS, Duration::from_secs(5));
    let (took, gets) = tokio::join!(work, gets);
    Ok((took?, gets?))
}

async fn create(client: &Client, url: &str, rate_bytes: u64) -> Result<Duration> {
    let began = Instant::now();
    let request =
        v1::CreateBackupRequest { url: url.to_owned(), rate_bytes, ..v1::CreateBackupRequest::default() };
    let job = client.admin().create_backup(request).await?;
    wait(client, job.id).await?;
    Ok(began.elapsed())
}

async fn restored(client: &Client, url: &str, new_name: &str, rate_bytes: u64) -> Result<Duration> {
    let began = Instant::now();
    let request = v1::RestoreBackupRequest {
        url: url.to_owned(),
        table: TABLE.to_owned(),
        new_name: new_name.to_owned(),
        rate_bytes,
        ..v1::RestoreBackupRequest::default()
    };
    let job = client.admin().restore_backup(request).await?;
    wait(client, job.id).await?;
    Ok(began.elapsed())
}

async fn wait(client: &Client, job: u64) -> Result<()> {
    let job = client.admin().wait_for_job(job, Duration::from_secs(3_600)).await?;
    if job.state() != v1::JobState::Done {
        bail!("job {} was not done: {}", job.id, job.error);
    }
    Ok(())
}

/// `cp` and `sync` of what the backup has written.
fn copy(from: &Path, to: &Path) -> Result<Duration> {
    let began = Instant::now();
    let copied = Command::new("cp").arg("-r").args([from, to]).status()?;
    let synced = Command::new("sync").arg("-f").arg(to).status()?;
    if !copied.success() || !synced.success() {
        bail!("cp or sync failed");
    }
    Ok(began.elapsed())
}

fn size(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let about = entry.metadata()?;
        bytes += if about.is_dir() { size(&entry.path())? } else { about.len() };
    }
    Ok(bytes)
}

fn mb(bytes: u64) -> u64 {
    bytes / 1_000_000
}

fn rate(rows: Rows, time: Duration) -> f64 {
    rows.bytes() as f64 / 1e6 / time.as_secs_f64()
}

fn p99_ms(measured: &Measured) -> f64 {
    measured.latencies.value_at_quantile(0.99) as f64 / 1e6
}
