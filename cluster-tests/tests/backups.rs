//! Backups and restores on real processes: what is refused, whoever dies meanwhile, and targets
//! that fail.

use anyhow::{Context as _, Result, ensure};
use ebla_bucket::Bucket;
use ebla_client::{Batch, Client, Hlc, Row, Scan, WriteOptions};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::{Cluster, eventually};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::Value as Json;
use std::path::Path;
use std::time::Duration;
use tokio::task::block_in_place;

/// The deadline of every call.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How long a backup or a restore may take that is not slowed down, a slow machine included.
const DONE_MAX: Duration = Duration::from_secs(120);

/// Rows at the beginning; `ROWS=1000000` for more.
fn rows() -> u64 {
    std::env::var("ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(3_000)
}

async fn fill(client: &Client, table: &str, rows: u64) -> Result<()> {
    let options = WriteOptions::default();
    for first in (0..rows).step_by(100) {
        let keys = first..rows.min(first + 100);
        let batch = keys.fold(Batch::new(), |batch, row| {
            batch.set(format!("{:06}-fill", row * 7 % 6_200), format!("value {row}"))
        });
        // A batch lies in one tablet.
        client.write(table, batch, options).await?.committed()?;
    }
    // More than are deleted one by one.
    for part in client.delete_range(table, "005900", "005990", options).await? {
        part.result?.committed()?;
    }
    Ok(())
}

async fn all(client: &Client, table: &str, at: Hlc) -> Result<Vec<Row>> {
    let scan = Scan { at: Some(at), ..Scan::all() };
    client.scan(table, scan)?.try_collect().await.with_context(|| format!("{table} at {}", at.0))
}

/// Two tables are the same at a timestamp, row by row, with the time of each.
async fn check_same(source: (&Client, &str), restored: (&Client, &str), at: Hlc) -> Result<usize> {
    let wanted = all(source.0, source.1, at).await?;
    let found = all(restored.0, restored.1, at).await?;
    let differs = wanted.iter().zip(&found).find(|(wanted, found)| wanted != found);
    ensure!(differs.is_none(), "at {}: {differs:?}", at.0);
    ensure!(wanted.len() == found.len(), "at {}: {} rows, {} restored", at.0, wanted.len(), found.len());
    Ok(found.len())
}

fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

fn ts_of(record: &Json) -> Result<Hlc> {
    let ts = record["ts"].as_str().and_then(|ts| ts.parse().ok());
    ts.map(Hlc).with_context(|| format!("there is no ts in {record}"))
}

fn text<'a>(record: &'a Json, field: &str) -> Result<&'a str> {
    record[field].as_str().with_context(|| format!("there is no {field} in {record}"))
}

fn json(cli: &Cli, args: &[&str]) -> Json {
    block_in_place(|| cli.json(args))
}

fn wait_for_job(cli: &Cli, job: &Json) -> Result<Json> {
    let id = job.to_string();
    block_in_place(|| {
        eventually("the job has ended", DONE_MAX, || {
            let shown = cli.run(&["job", "show", &id, "-o", "json"]);
            shown.code == exit::OK && shown.json()["state"] != "running"
        })
    })?;
    Ok(json(cli, &["job", "show", &id]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_says_why_and_leaves_nothing() -> Result<()> {
    let cluster = Cluster::start(1, 2)?;
    let (cli, client) = (cluster.cli(), cluster.connect(TIMEOUT).await?);
    let _ = block_in_place(|| cli.run(&["table", "create", "t", "--replicas", "2"])).expect(exit::OK);
    fill(&client, "t", 2_000).await?;
    let place = tempfile::tempdir()?;
    let to = url(place.path());
    let run = |args: &[&str]| block_in_place(|| cli.run(args));

    // So slow that it is under way for long.
    let slow = json(&cli, &["backup", "create", "--to", &to, "--rate", "1KiB/s"]);
    let second = run(&["backup", "create", "--to", &to]).expect(exit::FAILED);
    let (id, job) = (text(&slow, "id")?.to_owned(), slow["job"].to_string());
    ensure!(second.stderr.contains(&id), "{} does not name {id}", second.stderr);
    let _ = run(&["job", "cancel", &job]).expect(exit::OK);
    ensure!(wait_for_job(&cli, &slow["job"])?["state"] == "cancelled");
    ensure!(json(&cli, &["backup", "list", "--to", &to]) == Json::Array(Vec::new()));
    let _ = run(&["backup", "restore", "--from", &to, "--id", &id]).expect(exit::NOT_FOUND);
    let left = || files(place.path()).iter().filter(|name| name.contains("data/")).count();
    block_in_place(|| eventually("nothing is left of it", DONE_MAX, || left() == 0))?;

    let made = json(&cli, &["backup", "create", "--to", &to, "--wait"]);
    let restore = ["backup", "restore", "--from", &to, "--table", "t"];
    let exists = run(&restore).expect(exit::FAILED);
    ensure!(exists.stderr.contains("exists"), "{}", exists.stderr);
    let log = block_in_place(|| cli.list(&["backup", "log"])).unwrap_or_default();
    let refused: Vec<_> = log.iter().filter(|attempt| attempt["state"] == "failed").collect();
    ensure!(refused.len() == 3 && refused.iter().all(|it| it["url"] == to.as_str()), "{log:?}");

    // Nobody reads or writes a table that is not whole yet, and it is no longer there afterwards.
    let restoring = json(&cli, &[&restore[..], &["--as", "u", "--rate", "1KiB/s", "--no-wait"]].concat());
    let refused = |args: &[&str]| {
        let output = run(args);
        output.code == exit::UNAVAILABLE && output.stderr.contains("is being restored")
    };
    block_in_place(|| eventually("the table is there", DONE_MAX, || refused(&["get", "u", "000007-fill"])))?;
    for args in [&["set", "u", "a", "b"][..], &["range", "u"], &["delete-range", "u", "a", "b", "--yes"]] {
        ensure!(refused(args), "{args:?}: {}", run(args).stderr);
    }
    let _ = run(&["job", "cancel", &restoring["job"].to_string()]).expect(exit::OK);
    let _ = wait_for_job(&cli, &restoring["job"])?;
    block_in_place(|| {
        eventually("the table is gone", DONE_MAX, || run(&["get", "u", "a"]).code == exit::NOT_FOUND)
    })?;

    let restored = json(&cli, &[&restore[..], &["--as", "u"]].concat());
    check_same((&client, "t"), (&client, "u"), ts_of(&made)?).await?;
    ensure!(restored["rows"] == made["rows"], "{restored} of {made}");
    let nowhere = run(&["backup", "create", "--to", "file:///proc/no/such", "--wait"]);
    ensure!(nowhere.code != exit::OK && !nowhere.stderr.is_empty(), "{nowhere}");
    Ok(())
}

/// Names of all files below a directory.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(_) | Err(_) => found.push(entry.path().to_string_lossy().into_owned()),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_meanwhile_it_comes_to_its_end() -> Result<()> {
    let mut cluster = Cluster::start(3, 3)?;
    let (cli, client) = (cluster.cli(), cluster.connect(TIMEOUT).await?);
    let cuts = ["--split-at", "001000", "--split-at", "002000", "--split-at", "004000"];
    let create = [&["table", "create", "t", "--replicas", "3"][..], &cuts].concat();
    let _ = block_in_place(|| cli.run(&create)).expect(exit::OK);
    fill_wide(&client, "t", rows()).await?;
    let place = tempfile::tempdir()?;
    let to = url(place.path());
    let begun = json(&cli, &["backup", "create", "--to", &to, "--rate", "10KiB/s"]);
    kill_some(&mut cluster, &cli).await?;
    let done = wait_for_job(&cli, &begun["job"])?;
    ensure!(done["state"] == "done", "{done}");
    let ts = ts_of(&begun)?;

    let args =
        ["backup", "restore", "--from", &to, "--table", "t", "--as", "u", "--rate", "10KiB/s", "--no-wait"];
    let begun = json(&cli, &args);
    kill_some(&mut cluster, &cli).await?;
    let done = wait_for_job(&cli, &begun["job"])?;
    ensure!(done["state"] == "done", "{done}");
    let rows = check_same((&client, "t"), (&client, "u"), ts).await?;
    ensure!(rows > 0);
    // Every copy has them: whoever leads after a power cut shows them.
    cluster.kill_all()?;
    cluster.start_all()?;
    block_in_place(|| cluster.wait_until_whole(3, &[]))?;
    check_same((&client, "t"), (&client, "u"), ts).await?;
    Ok(())
}

/// As `fill`, one by one, for tables of several tablets.
async fn fill_wide(client: &Client, table: &str, rows: u64) -> Result<()> {
    let sets = (0..rows).map(|row| async move {
        let key = format!("{:06}-fill", row * 7 % 6_200);
        client.set(table, key, vec![b'v'; 100]).await?.committed()?;
        anyhow::Ok(())
    });
    futures::stream::iter(sets).buffer_unordered(64).try_collect().await
}

/// A server, then the leading master, then another server die, and come back.
async fn kill_some(cluster: &mut Cluster, cli: &Cli) -> Result<()> {
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let master = block_in_place(|| leading_master(cluster, cli))?;
        let node = if round == 1 { &mut cluster.masters[master] } else { &mut cluster.servers[round] };
        node.process().kill()?;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        node.start()?;
    }
    block_in_place(|| cluster.wait_until_serving())
}

fn leading_master(cluster: &Cluster, cli: &Cli) -> Result<usize> {
    let mut found = None;
    eventually("a master leads", DONE_MAX, || {
        let status = cli.run(&["status", "-o", "json"]);
        if status.code != exit::OK {
            return false;
        }
        let status = status.json();
        let masters = status["masters"].as_array().cloned().unwrap_or_default();
        let leading = masters.iter().find(|master| master["leader"] == true);
        let address = leading.and_then(|master| master["address"].as_str().map(str::to_owned));
        found = address.and_then(|address| cluster.masters.iter().position(|node| node.address == address));
        found.is_some()
    })?;
    found.context("a master leads")
}

/// A key for the files of backups, and another one.
const KEYS: [&str; 2] = [
    "0101010101010101010101010101010101010101010101010101010101010101",
    "0202020202020202020202020202020202020202020202020202020202020202",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_backups_lie_in_a_bucket_that_fails_now_and_then() -> Result<()> {
    let place = tempfile::tempdir()?;
    let bucket = Bucket::start(place.path())?;
    let mut environment = bucket.environment().to_vec();
    environment.push(("EBLA_BACKUP_KEY", KEYS[0].to_owned()));
    let cluster = block_in_place(|| Cluster::start_in(&environment, 1, 2))?;
    let (cli, client) = (cluster.cli(), cluster.connect(TIMEOUT).await?);
    let _ = block_in_place(|| cli.run(&["table", "create", "t", "--replicas", "2"])).expect(exit::OK);
    fill(&client, "t", 2_000).await?;
    bucket.fail_every(3);
    let to = bucket.url("some/where");
    let made = json(&cli, &["backup", "create", "--to", &to, "--encrypt", "--wait"]);
    let restore = ["backup", "restore", "--from", &to, "--table", "t", "--as", "u"];
    let restored = json(&cli, &restore);
    ensure!(restored["rows"] == made["rows"], "{restored} of {made}");
    check_same((&client, "t"), (&client, "u"), ts_of(&made)?).await?;
    let stored: Vec<Vec<u8>> =
        files(place.path()).iter().filter_map(|file| std::fs::read(file).ok()).collect();
    let shows = |text: &[u8]| stored.iter().any(|file| file.windows(text.len()).any(|part| part == text));
    ensure!(
        !shows(b"value 1999") && !shows(bucket.environment()[1].1.as_bytes()),
        "a secret lies in the bucket"
    );

    environment.last_mut().context("the key")?.1 = KEYS[1].to_owned();
    let other = block_in_place(|| Cluster::start_in(&environment, 1, 2))?;
    let refused = block_in_place(|| other.cli().run(&restore)).expect(exit::FAILED);
    ensure!(refused.stderr.contains("key"), "{}", refused.stderr);
    bucket.set_full(true);
    let full = block_in_place(|| cli.run(&["backup", "create", "--to", &to, "--wait"])).expect(exit::FAILED);
    ensure!(!full.stderr.is_empty());
    Ok(())
}
