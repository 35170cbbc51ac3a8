//! Load on real processes: a hot range is split where its requests halve and spread over the
//! servers, a hot key is told and not split, rows that are added at the end are left in one tablet.

use anyhow::{Context as _, Result, ensure};
use ebla_client::Client;
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::{Cluster, eventually};
use futures::future::join_all;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value as Json;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Rounds that follow each other fast: a load counts after 0.6 s, an imbalance after 1.2 s. A
/// sample still takes its two windows of ten seconds.
const FAST: [&str; 2] = ["--balance-interval", "100ms"];

/// How long it may take until a hot range is split and spread, a slow machine included.
const SPLIT_MAX: Duration = Duration::from_secs(90);

/// Rows of a table, and those of them that are hot.
const ROWS: u64 = 2_000;
const HOT_ROWS: u64 = 100;

/// Tasks that ask for each table.
const CALLERS: u64 = 4;

/// What callers ask for.
#[derive(Clone, Copy)]
enum Keys {
    /// Some at the start of the table, each as often.
    HotRange,
    /// One.
    One,
    /// Each time a new one at the end.
    Rising,
}

async fn connect(cluster: &Cluster) -> Result<Client> {
    let nodes = cluster.servers.iter().chain(&cluster.masters);
    let endpoints: Vec<String> = nodes.map(|node| node.address.clone()).collect();
    Ok(Client::builder().endpoints(endpoints).timeout(Duration::from_secs(10)).connect().await?)
}

/// Reads and writes until told to stop. Any error ends it.
async fn call(client: Client, keys: Keys, caller: u64, stop: Arc<AtomicBool>) -> Result<u64> {
    static NEXT: AtomicU64 = AtomicU64::new(ROWS);
    let mut random = StdRng::seed_from_u64(caller);
    let mut calls = 0;
    while !stop.load(Ordering::Relaxed) {
        let hot = format!("{:06}", random.random_range(0..HOT_ROWS));
        match keys {
            Keys::HotRange if calls % 8 == 0 => {
                let _ = client.set("range", hot, "again").await.context("a set")?;
            }
            Keys::HotRange => drop(client.get("range", hot).await.context("a get")?),
            Keys::One => drop(client.get("key", "000700").await.context("a get")?),
            Keys::Rising => {
                let key = format!("{:06}", NEXT.fetch_add(1, Ordering::Relaxed));
                let _ = client.set("end", key, "new").await.context("a set")?;
            }
        }
        calls += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(calls)
}

fn load(cluster: &Cluster, table: &str) -> Result<()> {
    let mut rows = String::new();
    for number in 0..ROWS {
        writeln!(rows, "{number:06}\tvalue {number}")?;
    }
    let path = cluster.place.path().join("rows.tsv");
    std::fs::write(&path, rows)?;
    let path = path.to_string_lossy().into_owned();
    let _ = cluster.cli().run(&["load", table, &path, "--format", "tsv"]).expect(exit::OK);
    Ok(())
}

fn tablets(cli: &Cli, table: &str) -> Vec<Json> {
    cli.list(&["tablet", "list", table]).unwrap_or_default()
}

/// Whether the hot rows lie in several tablets, which several servers lead.
fn is_spread(tablets: &[Json]) -> bool {
    let last_hot = format!("{HOT_ROWS:06}");
    let hot: Vec<_> =
        tablets.iter().filter(|tablet| tablet["start"].as_str() < Some(last_hot.as_str())).collect();
    let mut leaders: Vec<_> = hot.iter().filter_map(|tablet| tablet["leader"].as_u64()).collect();
    leaders.sort_unstable();
    leaders.dedup();
    hot.len() >= 2 && leaders.len() >= 2
}

fn why(cli: &Cli, tablet: &Json) -> String {
    cli.json(&["balancer", "why", &tablet["id"].to_string()])["findings"].to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_range_is_split_by_load_and_a_hot_key_is_told() -> Result<()> {
    let cluster = Cluster::start_all_with(1, 3, &FAST, &[])?;
    let cli = cluster.cli();
    for table in ["range", "key", "end"] {
        let create = ["table", "create", table, "--replicas", "1", "--split-load", "200"];
        let _ = cli.run(&create).expect(exit::OK);
        load(&cluster, table)?;
    }
    let client = connect(&cluster).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let begin = |keys| {
        let one = |caller| tokio::spawn(call(client.clone(), keys, caller, Arc::clone(&stop)));
        (0..CALLERS).map(one).collect::<Vec<_>>()
    };
    let mut callers = begin(Keys::HotRange);
    let mut watched = tokio::task::block_in_place(|| watch_range(&cli));
    callers.extend([Keys::One, Keys::Rising].into_iter().flat_map(begin));
    watched = watched.and_then(|()| tokio::task::block_in_place(|| watch_others(&cli)));
    stop.store(true, Ordering::Relaxed);
    let mut calls = 0;
    for ended in join_all(callers).await {
        calls += ended??;
    }
    println!("{calls} calls");
    watched.with_context(|| cli.json(&["balancer", "status"]).to_string())
}

/// While callers ask for the hot range.
fn watch_range(cli: &Cli) -> Result<()> {
    let took =
        eventually("the hot range is split and spread", SPLIT_MAX, || is_spread(&tablets(cli, "range")))?;
    println!("the hot range was split and spread after {took:?}");
    let decisions = cli.json(&["balancer", "status"])["decisions"].to_string();
    ensure!(decisions.contains("by load") && decisions.contains("requests a second"), "{decisions}");
    let inner = &tablets(cli, "range")[1];
    ensure!(inner["boundary"] == "cluster", "{inner}");
    ensure!(why(cli, inner).contains("it is not merged with"), "{}", why(cli, inner));
    Ok(())
}

/// While others ask for one key, and add rows at an end.
fn watch_others(cli: &Cli) -> Result<()> {
    // One key: told, and not split.
    let hot = || cli.json(&["balancer", "status"])["hot_keys"].clone();
    eventually("the hot key is told", SPLIT_MAX, || hot()[0]["key"] == "000700")?;
    let hot = hot();
    ensure!(hot[0]["percent"].as_u64() > Some(95) && hot[0]["table"] == "key", "{hot}");
    let [only] = &tablets(cli, "key")[..] else { anyhow::bail!("the hot key was split") };
    ensure!(why(cli, only).contains("the key \\\"000700\\\" has"), "{}", why(cli, only));
    let id = only["id"].to_string();
    let split = ["tablet", "split", &id, "--parts", "2", "--by-load"];
    let _ = cli.run(&split).expect(exit::FAILED).saying(&["000700", "no split would halve"]);
    let top = cli.json(&["top", "--interval", "1s"]);
    let keys = top["keys"].as_array().context("keys are listed")?;
    let one = keys.iter().find(|key| key["key"] == "000700").context("the hot key is shown")?;
    ensure!(one["tablet_percent"].as_u64() > Some(50), "{one}");
    // New rows at the end: no cut would halve those to come.
    let [only] = &tablets(cli, "end")[..] else { anyhow::bail!("the end was split") };
    let along = || why(cli, only).contains("go along its keys");
    eventually("requests that go along the keys are told", SPLIT_MAX, along)?;
    Ok(())
}
