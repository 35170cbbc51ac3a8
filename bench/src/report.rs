//! The result as a markdown table, with the machine it was measured on.

use crate::closed_loop::Measured;
use crate::rows::Rows;
use anyhow::Result;
use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Syncs timed to tell how fast the disk is.
const SYNCS: u32 = 100;

/// A table that grows line by line.
pub struct Report {
    head: String,
    lines: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    /// An empty table; times a few syncs in `dir`.
    pub fn new(rows: &Rows, dir: &Path) -> Result<Self> {
        let cores = thread::available_parallelism()?;
        let sync = sync_time(dir)?;
        let head = format!(
            "{} rows of {} bytes, {cores} cores ({}), one sync of 4 KiB: {:.2} ms; cluster, client and raw \
             RocksDB on one machine",
            rows.count,
            rows.bytes() / rows.count.max(1),
            processor(),
            sync.as_secs_f64() * 1e3
        );
        Ok(Self { head, lines: Vec::new(), notes: Vec::new() })
    }

    /// Adds a line, and shows it on stderr at once.
    pub fn compare(&mut self, what: &str, ebla: &Measured, raw: &Measured) {
        let line = format!(
            "| {what} | {:.0} | {} | {} | {:.0} | {} | {} | {:.2} |",
            ebla.per_second(),
            millis(ebla, 50.0),
            millis(ebla, 99.0),
            raw.per_second(),
            millis(raw, 50.0),
            millis(raw, 99.0),
            ebla.per_second() / raw.per_second()
        );
        eprintln!("{line}");
        self.lines.push(line);
    }

    /// Adds a sentence below the table.
    pub fn note(&mut self, note: String) {
        eprintln!("{note}");
        self.notes.push(note);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.head)?;
        writeln!(f, "| | Ebla per s | p50 ms | p99 ms | RocksDB per s | p50 ms | p99 ms | ratio |")?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|---:|---:|")?;
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        writeln!(f)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

/// A percentile in milliseconds; a dash where single operations were not timed.
fn millis(measured: &Measured, percentile: f64) -> String {
    if measured.latencies.is_empty() {
        return "-".to_owned();
    }
    format!("{:.3}", measured.latencies.value_at_percentile(percentile) as f64 / 1e6)
}

/// Mean time of writing and syncing 4 KiB.
fn sync_time(dir: &Path) -> Result<Duration> {
    let path = dir.join("ebla-bench-sync");
    let mut file = File::create(&path)?;
    let began = Instant::now();
    for _ in 0..SYNCS {
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
    }
    let time = began.elapsed() / SYNCS;
    fs::remove_file(path)?;
    Ok(time)
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split(": ").nth(1));
    name.unwrap_or("unknown processor").trim().to_owned()
}
