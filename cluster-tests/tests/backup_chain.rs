//! A full backup and three that add to it, made while clients write and tablets split, out of a
//! directory and out of a bucket, into clusters of other sizes: what comes back is what the
//! writers know, row by row and version by version.
//!
//! `ROWS=1000000` is what `make backups` runs; a few thousand are a sample.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use ebla_bucket::Bucket;
use ebla_client::{AckLevel, Batch, Client, Hlc, Outcome, Row, Scan, Value, WriteOptions};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::Cluster;
use ebla_cluster_tests::history::{History, Version};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value as Json;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, block_in_place};

/// The deadline of every call.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Backups of the chain: a full one and what was changed, three times.
const BACKUPS: usize = 4;

/// Those who write meanwhile.
const WRITERS: u64 = 8;

/// Rows in a batch of the beginning.
const BATCH: u64 = 100;

/// Pause of a writer between two writes: with a million rows the test takes minutes.
const PAUSE: Duration = Duration::from_millis(2);

fn rows() -> u64 {
    std::env::var("ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(3_000)
}

/// How long a backup or a restore may take, on a slow machine, in a build that is not optimized.
fn patience() -> Duration {
    Duration::from_secs(120 + rows() / 500)
}

/// Says how far a long run is.
fn say(since: Instant, what: &str) {
    eprintln!("{:7.1} s  {what}", since.elapsed().as_secs_f64());
}

/// A task that sets and deletes rows, adds to counters and sets rows that end by themselves.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<History>>,
}

impl Writer {
    fn start(client: &Client, number: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(write(client.clone(), number, Arc::clone(&stop)));
        Self { stop, task }
    }

    async fn end(self) -> Result<History> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

/// What a writer does in a turn.
enum Turn {
    Set(Bytes),
    SetFor(Bytes, Duration),
    Delete,
    Add(i64),
}

impl Turn {
    fn draw(random: &mut StdRng, number: u64) -> Self {
        let value = Bytes::from(number.to_string());
        match number % 5 {
            0 => Self::Delete,
            1 => Self::Add(random.random_range(-5..10)),
            2 => Self::SetFor(value, Duration::from_millis(random.random_range(50..3_000))),
            _ => Self::Set(value),
        }
    }

    fn batch(&self, key: Bytes) -> Batch {
        let batch = Batch::new();
        match self {
            Self::Set(value) => batch.set(key, value.clone()),
            Self::SetFor(value, ttl) => batch.set_with_ttl(key, value.clone(), *ttl),
            Self::Delete => batch.delete(key),
            Self::Add(delta) => batch.add(key, *delta),
        }
    }

    fn version(self, ts: Hlc, counter: Option<i64>) -> Version {
        let (value, expires_ms) = match self {
            Self::Set(value) => (Some(Value::Bytes(value)), None),
            Self::SetFor(value, ttl) => (
                Some(Value::Bytes(value)),
                Some(ts.ms() + u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            ),
            Self::Delete => (None, None),
            Self::Add(_) => (counter.map(Value::Counter), None),
        };
        Version { ts, value, expires_ms }
    }
}

/// Rows of a writer are all over the table, counters are everybody's.
async fn write(client: Client, writer: u64, stop: Arc<AtomicBool>) -> Result<History> {
    let mut random = StdRng::seed_from_u64(writer);
    let mut history = History::default();
    let options = WriteOptions { ack: Some(AckLevel::Copies(2)) };
    for number in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let turn = Turn::draw(&mut random, number);
        let row = random.random_range(0..200) * kept().end / 200;
        let key = match turn {
            Turn::Add(_) => Bytes::from(format!("{:07}-counter", number % 7)),
            Turn::SetFor(..) => Bytes::from(format!("{row:07}-ttl{writer}")),
            Turn::Set(_) | Turn::Delete => Bytes::from(format!("{row:07}-w{writer}")),
        };
        match client.write("t", turn.batch(key.clone()), options).await? {
            Outcome::Committed(committed) => {
                let counter = committed.counters.first().copied().flatten();
                history.note(key, turn.version(committed.ts, counter));
            }
            Outcome::Reverted => {}
            Outcome::Unknown(ticket) => anyhow::bail!("the outcome of {ticket} is unknown"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(history)
}

/// Numbers of the rows that writers may write beside.
fn kept() -> Range<u64> {
    0..rows() / 10 * 9
}

/// Puts the rows there that lie still.
async fn fill(client: &Client, table: &str, rows: u64) -> Result<History> {
    let batches = (0..rows).step_by(usize::try_from(BATCH)?).map(|first| async move {
        let keys = first..rows.min(first + BATCH);
        let key = |row: u64| Bytes::from(format!("{row:07}-fill"));
        let value = |row: u64| Bytes::from(format!("value {row}"));
        let batch = keys.clone().fold(Batch::new(), |batch, row| batch.set(key(row), value(row)));
        // A batch lies in one tablet.
        let ts = client.write(table, batch, WriteOptions::default()).await?.committed()?.ts;
        let mut history = History::default();
        for row in keys {
            let value = Some(Value::Bytes(value(row)));
            history.note(key(row), Version { ts, value, expires_ms: None });
        }
        anyhow::Ok(history)
    });
    let mut all = History::default();
    let mut done = stream::iter(batches).buffer_unordered(16);
    while let Some(history) = done.next().await {
        all.append(history?);
    }
    Ok(all)
}

/// Deletes ranges above the rows of the writers, another one each time.
async fn delete_some(client: &Client, history: &mut History, number: u64) -> Result<()> {
    let at = kept().end + number * 20;
    let (from, to) = (format!("{at:07}"), format!("{:07}", at + 10));
    let mut ts = Hlc::MIN;
    for part in client.delete_range("t", from.clone(), to.clone(), WriteOptions::default()).await? {
        ts = ts.max(part.result?.committed()?.ts);
    }
    history.note_range_deleted(from.as_bytes(), to.as_bytes(), ts);
    Ok(())
}

fn json(cli: &Cli, args: &[&str]) -> Json {
    block_in_place(|| cli.json(args))
}

fn ts_of(record: &Json) -> Result<Hlc> {
    let ts = record["ts"].as_str().and_then(|ts| ts.parse().ok());
    ts.map(Hlc).with_context(|| format!("there is no ts in {record}"))
}

fn id_of(record: &Json) -> Result<&str> {
    record["id"].as_str().with_context(|| format!("there is no id in {record}"))
}

async fn split_somewhere(client: &Client, cluster: &Cluster) -> Result<()> {
    for tablet in block_in_place(|| cluster.tablet_ids()) {
        let Ok(keys) = client.admin().suggest_split(tablet, 2).await else { continue };
        if client.admin().split_tablet(tablet, keys).await.is_ok() {
            return Ok(());
        }
    }
    anyhow::bail!("no tablet could be split")
}

/// Makes the chain, each backup while tablets split.
async fn back_up(cluster: &Cluster, client: &Client, to: &str, history: &mut History) -> Result<Vec<Json>> {
    let cli = cluster.cli().with_patience(patience());
    let mut backups: Vec<Json> = Vec::new();
    for number in 0..BACKUPS {
        tokio::time::sleep(Duration::from_millis(500)).await;
        delete_some(client, history, number as u64).await?;
        let mut args: Vec<String> = ["backup", "create", "--to", to, "--wait"].map(str::to_owned).to_vec();
        if let Some(parent) = backups.last() {
            args.extend(["--incremental-from".to_owned(), id_of(parent)?.to_owned()]);
        }
        let cli = cli.clone();
        let making = tokio::task::spawn_blocking(move || {
            cli.json(&args.iter().map(String::as_str).collect::<Vec<_>>())
        });
        split_somewhere(client, cluster).await?;
        let made = making.await?;
        ensure!(made["state"] == "done" && made["bytes"].as_u64() > Some(0), "{made}");
        backups.push(made);
    }
    Ok(backups)
}

/// Two tables hold the same at a timestamp.
async fn check_same(source: (&Client, &str), restored: (&Client, &str), at: Hlc) -> Result<()> {
    let all = |(client, table): (&Client, &str)| {
        let scan = client.scan(table, Scan { at: Some(at), ..Scan::all() });
        async { anyhow::Ok(scan?.try_collect::<Vec<Row>>().await?) }
    };
    ensure!(all(source).await? == all(restored).await?, "{} differs at {}", restored.1, at.0);
    Ok(())
}

/// What a chain was made of, and what must come out of it.
struct Made {
    to: String,
    environment: Vec<(&'static str, String)>,
    backups: Vec<Json>,
    times: Vec<Hlc>,
    history: History,
}

impl Made {
    /// A restored table holds all rows and versions up to a backup, and nothing else.
    async fn check(&self, client: &Client, table: &str, backup: usize, rows: Option<&Json>) -> Result<()> {
        for (number, at) in self.times[..=backup].iter().enumerate() {
            let count = self.history.check_rows(client, table, *at).await?;
            if let Some(rows) = rows.filter(|_| number == backup) {
                ensure!(rows.as_u64() == Some(count), "{rows} rows were restored, and there were {count}");
            }
        }
        Ok(())
    }

    /// Into another cluster, where everything goes on.
    async fn check_elsewhere(&self, source: &Client, servers: usize, replicas: &str) -> Result<()> {
        let cluster = Cluster::start_in(&self.environment, 1, servers)?;
        let (cli, client) = (cluster.cli().with_patience(patience()), cluster.connect(TIMEOUT).await?);
        let restored = json(&cli, &["backup", "restore", "--from", &self.to, "--replicas", replicas]);
        ensure!(restored["state"] == "done", "{restored}");
        self.check(&client, "t", BACKUPS - 1, None).await?;
        self.history.check_versions(&client, "t").await?;
        let newest = self.times[BACKUPS - 1];
        check_same((source, "m"), (&client, "m"), newest).await?;
        // What came after the backup is not there.
        let now = client.count("t", Scan { limit: Some(1), ..Scan::all() }).await?.ts;
        self.history.check_rows(&client, "t", now).await?;
        // It is a table like any other.
        let before = client.get_at("t", "0000001-counter", newest).await?;
        let before = match before.map(|cell| cell.value) {
            Some(Value::Counter(count)) => count,
            Some(Value::Bytes(_)) | None => 0,
        };
        let added = client.add("t", "0000001-counter", 1).await?.committed()?;
        ensure!(added.counters == [Some(before + 1)], "{added:?} after {before}");
        split_somewhere(&client, &cluster).await?;
        self.check(&client, "t", BACKUPS - 1, None).await
    }
}

async fn a_chain_comes_back(to: String, environment: &[(&'static str, String)]) -> Result<()> {
    let since = Instant::now();
    let cluster = Cluster::start_in(environment, 1, 3)?;
    let (cli, client) = (cluster.cli().with_patience(patience()), cluster.connect(TIMEOUT).await?);
    let _ = block_in_place(|| cli.run(&["table", "create", "t", "--replicas", "3", "--retention", "6h"]))
        .expect(exit::OK);
    let memory = ["table", "create", "m", "--kind", "memory", "--replicas", "2"];
    let _ = block_in_place(|| cli.run(&memory)).expect(exit::OK);
    let mut history = fill(&client, "t", rows()).await?;
    fill(&client, "m", 300).await?;
    say(since, "the rows are there");
    let writers: Vec<Writer> = (0..WRITERS).map(|number| Writer::start(&client, number)).collect();
    let backups = back_up(&cluster, &client, &to, &mut history).await?;
    for writer in writers {
        history.append(writer.end().await?);
    }
    say(since, "the backups are made");
    let times: Vec<Hlc> = backups.iter().map(ts_of).collect::<Result<_>>()?;
    history.check_versions(&client, "t").await.context("the source")?;
    history.cut(times[BACKUPS - 1]);
    let made = Made { to, environment: environment.to_vec(), backups, times, history };
    made.check(&client, "t", BACKUPS - 1, None).await.context("the source")?;
    say(since, &format!("the source holds {} versions", made.history.versions()));

    let verified = json(&cli, &["backup", "verify", "--from", &made.to, "--sample", "1%"]);
    ensure!(verified["state"] == "ok" && verified["backups"] == BACKUPS, "{verified}");
    say(since, "the backups are verified");
    // Beside the table itself: the newest, and one in the middle of the chain.
    let restore = ["backup", "restore", "--from", &made.to, "--table", "t", "--as"];
    let restored = json(&cli, &[&restore[..], &["t2"]].concat());
    ensure!(restored["table"] == "t2" && ts_of(&restored)? == made.times[BACKUPS - 1], "{restored}");
    made.check(&client, "t2", BACKUPS - 1, Some(&restored["rows"])).await?;
    let middle = json(&cli, &[&restore[..], &["t3", "--id", id_of(&made.backups[1])?]].concat());
    ensure!(ts_of(&middle)? == made.times[1], "{middle}");
    made.check(&client, "t3", 1, Some(&middle["rows"])).await?;
    say(since, "it came back beside the table");

    for (servers, replicas) in [(1, "1"), (5, "3")] {
        made.check_elsewhere(&client, servers, replicas)
            .await
            .with_context(|| format!("{servers} servers"))?;
        say(since, &format!("it came back in a cluster of {servers}"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_in_a_directory_comes_back_in_clusters_of_other_sizes() -> Result<()> {
    let place = tempfile::tempdir()?;
    a_chain_comes_back(format!("file://{}", place.path().display()), &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_in_a_bucket_comes_back_in_clusters_of_other_sizes() -> Result<()> {
    let place = tempfile::tempdir()?;
    let bucket = Bucket::start(place.path())?;
    a_chain_comes_back(bucket.url("a/chain"), &bucket.environment()).await
}
