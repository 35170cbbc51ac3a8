//! `ebla load`: writes the rows of a file, many at a time, and accounts for every line.
//!
//! - A later line of the same key wins: a row is not written while an earlier one of its key
//!   is in flight.
//! - A line is loaded, rejected, or the load ends with an error that says how far it came.

use super::job::now_ms;
use super::load_file::{self, Chunk, Loaded, LoadedRow, Shape};
use super::{connect, output};
use crate::cli::{Global, Load};
use crate::exit::FAILED;
use crate::output::Output;
use anyhow::Context as _;
use bytes::Bytes;
use ebla_client::{Batch, Client, Error, Outcome, Reason, Value, WriteOptions};
use futures::stream::{FuturesUnordered, StreamExt as _};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::collections::HashSet;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Chunks that are written at once; with a chunk's bound, at most some ten MiB.
const CHUNKS_IN_FLIGHT: usize = 16;

/// Chunks that are read ahead.
const CHUNKS_AHEAD: usize = 4;

/// Rejected lines whose reason is told, and whose number is kept; all are counted.
const REASONS_TOLD_MAX: u64 = 20;
const NUMBERS_KEPT_MAX: usize = 1_000_000;

/// Loads the file and prints the account.
pub async fn run(global: &Global, args: Load) -> anyhow::Result<ExitCode> {
    let shape = Shape::new(&args)?;
    let (file, size) = load_file::open(&args.file)?;
    let client = connect(global, args.wait).await?;
    // Asked first, so that a missing table is an error even of an empty file.
    client.route(&args.table, &Bytes::new()).await?;
    if let Some(level) = args.ack.ack {
        client.check_ack(&args.table, level).await?;
    }
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || load_file::read_all(file, &shape, &sender));
    let options = WriteOptions { ack: args.ack.ack };
    let mut load = Loading { client, table: args.table, options, account: Account::new(size) };
    let result = load.run(chunks).await;
    load.account.report(&mut output(global), result.is_ok())?;
    result.with_context(|| {
        let loaded = load.account.loaded;
        format!("the load ended early, {loaded} rows are written; loading the file again is safe")
    })?;
    Ok(if load.account.rejected == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// A load under way.
struct Loading {
    client: Client,
    table: String,
    options: WriteOptions,
    account: Account,
}

/// How the rows of a chunk ended.
struct Written {
    rows: Vec<Loaded>,
    /// Row by row.
    ends: Vec<End>,
}

/// How one row ended.
#[derive(Clone)]
enum End {
    Loaded,
    Rejected(String),
    /// Nobody can say, or nothing more can be written.
    Failed(Error),
}

impl End {
    fn is_loaded(&self) -> bool {
        match self {
            Self::Loaded => true,
            Self::Rejected(_) | Self::Failed(_) => false,
        }
    }
}

impl Loading {
    async fn run(&mut self, mut chunks: mpsc::Receiver<io::Result<Chunk>>) -> anyhow::Result<()> {
        let mut writes = FuturesUnordered::new();
        let mut keys: HashSet<Bytes> = HashSet::new();
        let mut result = Ok(());
        while let Some(chunk) = chunks.recv().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    result = Err(anyhow::Error::new(error).context("cannot read on"));
                    break;
                }
            };
            self.account.read(&chunk);
            let is_free = |keys: &HashSet<Bytes>| chunk.rows.iter().all(|at| !keys.contains(&at.row.key));
            while writes.len() >= CHUNKS_IN_FLIGHT || !is_free(&keys) {
                let Some(written) = writes.next().await else { break };
                result = result.and(self.account.settle(written, &mut keys));
            }
            if result.is_err() {
                break;
            }
            keys.extend(chunk.rows.iter().map(|at| at.row.key.clone()));
            writes.push(write(self.client.clone(), self.table.clone(), self.options, chunk.rows));
        }
        // Whatever happened, what is in flight is accounted for.
        while let Some(written) = writes.next().await {
            result = result.and(self.account.settle(written, &mut keys));
        }
        result
    }
}

async fn write(client: Client, table: String, options: WriteOptions, rows: Vec<Loaded>) -> Written {
    if rows.is_empty() {
        return Written { rows, ends: Vec::new() };
    }
    let mut ends = vec![End::Loaded; rows.len()];
    // What a counter held before does not count: loading a file again is safe.
    let counters = rows.iter().enumerate().filter(|(_, at)| matches!(at.row.value, Value::Counter(_)));
    let (places, batch) = counters.fold((Vec::new(), Batch::new()), |(mut places, batch), (place, at)| {
        places.push(place);
        (places, batch.delete(at.row.key.clone()))
    });
    if !places.is_empty() {
        send(&client, &table, batch, options, &places, &mut ends).await;
    }
    let now_ms = now_ms();
    let (mut places, mut batch) = (Vec::new(), Batch::new());
    for (place, at) in rows.iter().enumerate().filter(|(place, _)| ends[*place].is_loaded()) {
        places.push(place);
        batch = add(batch, &at.row, now_ms);
    }
    if !places.is_empty() {
        send(&client, &table, batch, options, &places, &mut ends).await;
    }
    Written { rows, ends }
}

/// Adds what makes a row of a table that it is not in; one whose time is over goes.
fn add(batch: Batch, row: &LoadedRow, now_ms: u64) -> Batch {
    let key = row.key.clone();
    match (&row.value, row.expires_ms) {
        (Value::Counter(count), _) => batch.add(key, *count),
        (Value::Bytes(value), None) => batch.set(key, value.clone()),
        (Value::Bytes(_), Some(expires_ms)) if expires_ms <= now_ms => batch.delete(key),
        (Value::Bytes(value), Some(expires_ms)) => {
            batch.set_with_ttl(key, value.clone(), Duration::from_millis(expires_ms - now_ms))
        }
    }
}

/// Writes a batch whose operations stand for the rows at `places`, and notes how each ended.
async fn send(
    client: &Client,
    table: &str,
    batch: Batch,
    options: WriteOptions,
    places: &[usize],
    ends: &mut [End],
) {
    let parts = match client.write_split(table, batch, options).await {
        Ok(parts) => parts,
        Err(error) => {
            let end = end_of_error(error);
            return places.iter().for_each(|place| ends[*place] = end.clone());
        }
    };
    for part in parts {
        let end = match part.result {
            Ok(Outcome::Committed(_)) => End::Loaded,
            Ok(Outcome::Reverted) => End::Rejected("the write was undone".to_owned()),
            Ok(unknown @ Outcome::Unknown(_)) => {
                unknown.committed().map_or_else(End::Failed, |_| End::Loaded)
            }
            Err(error) => end_of_error(error),
        };
        for op in part.ops {
            ends[places[op]] = end.clone();
        }
    }
}

fn end_of_error(error: Error) -> End {
    match error.reason() {
        Reason::BadRequest => End::Rejected(error.message().to_owned()),
        _ => End::Failed(error),
    }
}

/// What has become of every line so far.
struct Account {
    loaded: u64,
    rejected: u64,
    rejected_lines: Vec<u64>,
    told: u64,
    bytes: u64,
    began: Instant,
    progress: ProgressBar,
}

impl Account {
    fn new(size: Option<u64>) -> Self {
        Self {
            loaded: 0,
            rejected: 0,
            rejected_lines: Vec::new(),
            told: 0,
            bytes: 0,
            began: Instant::now(),
            progress: progress(size),
        }
    }

    fn read(&mut self, chunk: &Chunk) {
        self.progress.inc(chunk.file_bytes);
        for rejected in &chunk.rejected {
            self.reject(rejected.line, &rejected.why);
        }
    }

    fn reject(&mut self, line: u64, why: &str) {
        self.rejected += 1;
        if self.rejected_lines.len() < NUMBERS_KEPT_MAX {
            self.rejected_lines.push(line);
        }
        if self.told < REASONS_TOLD_MAX {
            self.told += 1;
            // Nothing to be done when stderr is closed.
            self.progress.suspend(|| writeln!(io::stderr(), "line {line}: {why}").unwrap_or_default());
        }
    }

    /// Books a written chunk; the first row that failed ends the load.
    fn settle(&mut self, written: Written, keys: &mut HashSet<Bytes>) -> anyhow::Result<()> {
        let mut result = Ok(());
        for (row, end) in written.rows.into_iter().zip(written.ends) {
            keys.remove(&row.row.key);
            match end {
                End::Loaded => {
                    self.loaded += 1;
                    self.bytes += row.row.bytes() as u64;
                }
                End::Rejected(why) => self.reject(row.line, &why),
                End::Failed(error) if result.is_ok() => {
                    result =
                        Err(anyhow::Error::new(error)
                            .context(format!("line {} could not be written", row.line)));
                }
                End::Failed(_) => {}
            }
        }
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        self.progress.set_message(format!(
            "{} rows, {:.0} rows/s",
            self.loaded,
            self.loaded as f64 / seconds
        ));
        result
    }

    fn report(&mut self, out: &mut Output, complete: bool) -> anyhow::Result<()> {
        self.progress.finish_and_clear();
        self.rejected_lines.sort_unstable();
        let seconds = self.began.elapsed().as_secs_f64();
        let mut object = json!({
            "loaded": self.loaded,
            "rejected": self.rejected,
            "rejected_lines": self.rejected_lines,
            "bytes": self.bytes,
            "seconds": (seconds * 1_000.0).round() / 1_000.0,
        });
        if !complete {
            object["complete"] = json!(false);
        }
        out.one(&object, || self.summary(seconds))
    }

    fn summary(&self, seconds: f64) -> String {
        let rate = self.loaded as f64 / seconds.max(0.001);
        let mut text = format!(
            "loaded {} rows, {} bytes, in {seconds:.1} s ({rate:.0} rows/s); rejected {} lines",
            self.loaded, self.bytes, self.rejected
        );
        if self.rejected > 0 {
            let lines: Vec<_> = self.rejected_lines.iter().map(u64::to_string).collect();
            let more = if self.rejected > lines.len() as u64 { " and more" } else { "" };
            text.push_str(&format!("\nrejected lines: {}{more}", lines.join(" ")));
        }
        text
    }
}

/// A bar on a terminal, nothing anywhere else.
fn progress(size: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match size {
        Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {msg}",
        None => "{spinner} {bytes} {bytes_per_sec} {elapsed} {msg}",
    };
    let style = ProgressStyle::with_template(template).expect("the template is well-formed");
    let bar = size.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.with_style(style)
}
