//! `ebla-bench-memory`: a table in memory beside one on disk, in one run of one cluster.
//!
//! Both tables have the same rows, copies and boundaries, and are asked by the same client in turns,
//! so that what else the machine does hits both. What counts is the ratio.

use anyhow::{Context as _, Result};
use clap::Parser;
use ebla_bench::closed_loop::Measured;
use ebla_bench::dev::{Dev, scratch};
use ebla_bench::ebla::{get, load, set};
use ebla_bench::rows::Rows;
use ebla_client::{AckLevel, Client, v1};
use std::path::PathBuf;
use std::time::Duration;

/// The tables, the one on disk first.
const TABLES: [(&str, v1::TableKind); 2] =
    [("durable", v1::TableKind::Durable), ("memory", v1::TableKind::Memory)];

/// Tablets of each table: two on each of the three servers.
const TABLETS: u64 = 6;

/// Callers at the same time.
const CALLERS: [usize; 3] = [1, 16, 256];

#[derive(Parser)]
#[command(about = "Measures a table in memory beside one on disk and prints a markdown table")]
struct Args {
    /// The `ebla` binary, built with --release
    #[arg(long, default_value = "target/release/ebla")]
    ebla: PathBuf,
    /// Rows of each table
    #[arg(long, default_value_t = 500_000)]
    rows: u64,
    /// Bytes of each value
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Seconds for each turn of a measurement
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Turns of each table in each measurement; the best counts
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Where to put the temporary directory; its disk is what is measured
    #[arg(long, default_value = "target")]
    dir: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let place = scratch(&args.dir)?;
    let rows = Rows { count: args.rows, value_bytes: args.value_bytes };
    let time = Duration::from_secs(args.seconds);
    let dev = Dev::start(&args.ebla, &place.path().join("cluster")).await.context("the cluster")?;
    let client = dev.client.clone();
    println!("{} rows of {} bytes in each table:\n", rows.count, 16 + rows.value_bytes);
    println!("| | durable per s | memory per s | ratio |\n|---|---:|---:|---:|");
    let mut loaded = Vec::new();
    for (table, kind) in TABLES {
        create(&client, table, kind, rows).await?;
        loaded.push(load(&client, table, rows, AckLevel::Leader).await?);
    }
    print_row("load", &loaded);
    for callers in CALLERS {
        let mut best = [0.0; 2];
        for _ in 0..args.turns {
            for (at, (table, _)) in TABLES.into_iter().enumerate() {
                best[at] = f64::max(best[at], get(&client, table, rows, callers, time).await?.per_second());
            }
        }
        print_rates(&format!("get, {callers} callers"), best);
    }
    for callers in CALLERS {
        let mut best = [0.0; 2];
        for _ in 0..args.turns {
            for (at, (table, _)) in TABLES.into_iter().enumerate() {
                let measured = set(&client, table, rows, (callers, AckLevel::Leader), time).await?;
                best[at] = f64::max(best[at], measured.per_second());
            }
        }
        print_rates(&format!("set, {callers} callers"), best);
    }
    Ok(())
}

async fn create(client: &Client, table: &str, kind: v1::TableKind, rows: Rows) -> Result<()> {
    let spec = v1::TableSpec { kind: kind as i32, replicas: 1, ..v1::TableSpec::default() };
    let split_keys = rows.split_keys(TABLETS);
    let request = v1::CreateTableRequest { name: table.to_owned(), spec: Some(spec), split_keys };
    client.admin().create_table(request).await?;
    Ok(())
}

fn print_row(what: &str, measured: &[Measured]) {
    if let [durable, memory] = measured {
        print_rates(what, [durable.per_second(), memory.per_second()]);
    }
}

fn print_rates(what: &str, [durable, memory]: [f64; 2]) {
    println!("| {what} | {durable:.0} | {memory:.0} | {:.2} |", memory / durable);
}
