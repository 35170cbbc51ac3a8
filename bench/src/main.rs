//! `ebla-bench`: the cluster beside raw RocksDB, in one run on one machine.
//!
//! It starts a whole cluster of its own (`ebla dev`) in a temporary directory, loads rows
//! through the Rust client, then measures point reads, point writes and a full scan. The same
//! work is done by RocksDB used in this process with the same durability: every write is
//! synced, concurrent writers share a sync. The ratio of the two is what each table is about;
//! the numbers themselves depend on the machine, the ratio much less.

use anyhow::{Context as _, Result};
use clap::Parser;
use ebla_bench::closed_loop::Measured;
use ebla_bench::dev::scratch;
use ebla_bench::ebla::Ebla;
use ebla_bench::raw::Raw;
use ebla_bench::report::Report;
use ebla_bench::rows::Rows;
use ebla_client::AckLevel;
use std::path::PathBuf;
use std::time::Duration;

/// Callers at the same time for which point operations are measured.
const CALLERS: [usize; 3] = [1, 16, 256];

#[derive(Parser)]
#[command(about = "Measures an Ebla cluster beside raw RocksDB and prints a markdown table")]
struct Args {
    /// The `ebla` binary, built with --release
    #[arg(long, default_value = "target/release/ebla")]
    ebla: PathBuf,
    /// Rows to load, to read and to scan
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Bytes of each value
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Seconds for each measurement of point operations
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Copies of each tablet; sets are measured at the level `leader`, and with more than one
    /// copy at `copies=2` too
    #[arg(long, default_value_t = 1)]
    copies: u32,
    /// Where to put the temporary directories; its disk is what is measured
    #[arg(long, default_value = "target")]
    dir: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let place = scratch(&args.dir)?;
    let rows = Rows { count: args.rows, value_bytes: args.value_bytes };
    let time = Duration::from_secs(args.seconds);
    let mut report = Report::new(&rows, &args.dir)?;

    let ebla = Ebla::start(&args.ebla, &place.path().join("cluster"), rows, args.copies).await;
    let ebla = ebla.context("the cluster")?;
    let raw = Raw::open(&place.path().join("rocksdb"), rows).context("raw RocksDB")?;
    load(&mut report, &ebla, &raw).await?;
    for callers in CALLERS {
        get(&mut report, &ebla, &raw, callers, time).await?;
    }
    let levels: &[AckLevel] =
        if args.copies > 1 { &[AckLevel::Leader, AckLevel::Copies(2)] } else { &[AckLevel::Leader] };
    for level in levels {
        for callers in CALLERS {
            set(&mut report, &ebla, &raw, (callers, *level), time).await?;
        }
    }
    scan(&mut report, &ebla, &raw).await?;
    print!("{report}");
    Ok(())
}

async fn load(report: &mut Report, ebla: &Ebla, raw: &Raw) -> Result<()> {
    let measured = ebla.load().await?;
    let beside = raw.clone().blocking(Raw::load).await?;
    report.compare("load", &measured, &beside);
    Ok(())
}

async fn get(report: &mut Report, ebla: &Ebla, raw: &Raw, callers: usize, time: Duration) -> Result<()> {
    let through_pipe = ebla.get(callers, time).await?;
    let beside = raw.clone().blocking(move |raw| raw.get(callers, time)).await?;
    report.compare(&format!("get, {callers} callers"), &through_pipe, &beside);
    if Some(&callers) == CALLERS.last() {
        let unary = ebla.get_unary(callers, time).await?;
        report.compare(&format!("unary get, {callers} callers"), &unary, &beside);
        let ratio = through_pipe.per_second() / unary.per_second();
        report.note(format!("Gets at {callers} callers through `Pipe`: {ratio:.1} times unary `Get`."));
    }
    Ok(())
}

async fn set(
    report: &mut Report,
    ebla: &Ebla,
    raw: &Raw,
    (callers, level): (usize, AckLevel),
    time: Duration,
) -> Result<()> {
    let measured = ebla.set(callers, level, time).await?;
    let beside = raw.clone().blocking(move |raw| raw.set(callers, time)).await?;
    report.compare(&format!("set at {level}, {callers} callers"), &measured, &beside);
    Ok(())
}

async fn scan(report: &mut Report, ebla: &Ebla, raw: &Raw) -> Result<()> {
    let measured: Measured = ebla.scan().await?;
    let beside = raw.clone().blocking(Raw::scan).await?;
    report.compare("full scan", &measured, &beside);
    Ok(())
}
