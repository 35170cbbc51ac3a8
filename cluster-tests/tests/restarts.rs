//! Processes are killed and restarted, one by one and all at once, with and without load:
//! every acknowledged row is found again and every counter is exact.

use anyhow::{Result, ensure};
use bytes::Bytes;
use ebla_client::{Client, Outcome, Scan, Value};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::{Cluster, Node};
use futures::future::join_all;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Rows of one file that is loaded.
const ROWS_PER_LOAD: u64 = 10_000;

/// Rows in all, at least.
const ROWS: u64 = 100_000;

/// Tasks that add to counters, and counters.
const ADDERS: usize = 16;
const COUNTERS: u64 = 5;

fn key(number: u64) -> String {
    format!("row-{number:08}")
}

fn value(number: u64) -> String {
    format!("value of {number}, {}", "x".repeat((number % 90) as usize))
}

fn create_table(cli: &Cli) {
    let splits = [1, 2, 3, 4, 5].map(|part| key(part * ROWS / 6));
    let mut args = vec!["table", "create", "rows"];
    splits.iter().for_each(|split| args.extend(["--split-at", split]));
    let _ = cli.run(&args).expect(exit::OK);
}

/// Loads file `number`; true when every row of it was acknowledged.
fn load(cli: &Cli, number: u64) -> bool {
    let mut text = String::new();
    // Spread over all tablets: neighbours come in different files.
    let files = ROWS / ROWS_PER_LOAD;
    for row in 0..ROWS_PER_LOAD {
        let row = row * files + number % files;
        writeln!(text, "{}\t{}", key(row), value(row)).expect("a string takes everything");
    }
    let loaded = cli.run_with_input(&["load", "rows", "-", "--format", "tsv"], text.as_bytes());
    assert!([exit::OK, exit::FAILED, exit::UNAVAILABLE].contains(&loaded.code), "{loaded}");
    loaded.code == exit::OK
}

/// Every row there is must be right; gives how many there are.
fn check_rows(cli: &Cli) -> u64 {
    let rows = cli.run(&["range", "rows", "-o", "jsonl"]).expect(exit::OK).json_lines();
    for row in &rows {
        let found = row["key"].as_str().and_then(|key| key.strip_prefix("row-"));
        let number: u64 = found.and_then(|digits| digits.parse().ok()).expect("only our keys are there");
        assert_eq!(row["value"], value(number), "row {number}");
    }
    let mut keys: Vec<_> = rows.iter().map(|row| row["key"].as_str()).collect();
    keys.dedup();
    assert_eq!(keys.len(), rows.len(), "no row comes twice");
    assert!(keys.is_sorted(), "rows come in order");
    rows.len() as u64
}

#[test]
fn rows_outlive_every_process() -> Result<()> {
    let mut cluster = Cluster::start(3, 3)?;
    let cli = cluster.cli();
    create_table(&cli);
    for file in 0..ROWS / ROWS_PER_LOAD {
        assert!(load(&cli, file), "a load without faults succeeds");
    }
    assert_eq!(check_rows(&cli), ROWS);
    for node in 0..6 {
        cluster.nodes().nth(node).expect("there are six").kill_and_restart()?;
        cluster.wait_until_serving()?;
        assert_eq!(cli.json(&["range", "rows", "--count"])["count"], ROWS, "after node {node} was killed");
    }
    cluster.kill_all()?;
    cluster.start_all()?;
    assert_eq!(check_rows(&cli), ROWS);
    for node in cluster.nodes() {
        node.process().stop()?;
    }
    cluster.start_all()?;
    assert_eq!(check_rows(&cli), ROWS);
    Ok(())
}

/// Nothing but the log holds the rows: every restart replays all of it.
#[test]
fn rows_that_were_never_flushed_outlive_every_process() -> Result<()> {
    let mut cluster = Cluster::start_with(1, 3, &["--flush-interval", "off"])?;
    let cli = cluster.cli();
    create_table(&cli);
    for file in 0..3 {
        assert!(load(&cli, file), "a load without faults succeeds");
        cluster.kill_all()?;
        cluster.start_all()?;
        assert_eq!(check_rows(&cli), (file + 1) * ROWS_PER_LOAD);
    }
    Ok(())
}

#[test]
fn rows_loaded_while_processes_die_are_found() -> Result<()> {
    let mut cluster = Cluster::start(3, 3)?;
    let cli = cluster.cli();
    create_table(&cli);
    let done = Arc::new(AtomicBool::new(false));
    let loader = thread::spawn({
        let (cli, done) = (cli.clone(), done.clone());
        move || {
            let mut files = BTreeMap::new();
            for file in (0..ROWS / ROWS_PER_LOAD).cycle() {
                if done.load(Ordering::Relaxed) && files.len() as u64 == ROWS / ROWS_PER_LOAD {
                    break;
                }
                *files.entry(file).or_insert(false) |= load(&cli, file);
            }
            files
        }
    });
    for node in 0..6 {
        thread::sleep(Duration::from_millis(700));
        cluster.nodes().nth(node).expect("there are six").kill_and_restart()?;
        cluster.wait_until_serving()?;
    }
    thread::sleep(Duration::from_millis(300));
    cluster.kill_all()?;
    cluster.start_all()?;
    done.store(true, Ordering::Relaxed);
    let files = loader.join().expect("the loader does not panic");
    let acknowledged = files.values().filter(|acknowledged| **acknowledged).count() as u64 * ROWS_PER_LOAD;
    ensure!(acknowledged > 0, "no load succeeded at all");
    assert!(check_rows(&cli) >= acknowledged);
    for (file, _) in files.iter().filter(|(_, acknowledged)| **acknowledged) {
        let last = key((ROWS_PER_LOAD - 1) * (ROWS / ROWS_PER_LOAD) + file);
        let _ = cli.run(&["get", "rows", &last]).expect(exit::OK);
    }
    Ok(())
}

/// What one adder knows of its own adds, per counter.
#[derive(Default)]
struct Adds {
    committed: BTreeMap<u64, i64>,
    unknown: BTreeMap<u64, i64>,
}

async fn add_until(client: Client, stop: Arc<AtomicBool>, committed: Arc<AtomicU64>) -> Adds {
    let mut adds = Adds::default();
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let counter = round % COUNTERS;
        // An error is definite: nothing was written.
        match client.add("counters", counter_key(counter), 1).await {
            Ok(Outcome::Committed(_)) => {
                committed.fetch_add(1, Ordering::Relaxed);
                *adds.committed.entry(counter).or_default() += 1;
            }
            Ok(Outcome::Unknown(ticket)) => match resolve(&client, &ticket).await {
                Some(true) => *adds.committed.entry(counter).or_default() += 1,
                Some(false) => {}
                None => *adds.unknown.entry(counter).or_default() += 1,
            },
            Ok(Outcome::Reverted) => {}
            Err(error) => {
                assert!(error.is_definite(), "an error must be definite: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    adds
}

/// Whether the write of `ticket` stands; none when nobody can tell any more.
async fn resolve(client: &Client, ticket: &ebla_client::Ticket) -> Option<bool> {
    for _ in 0..30 {
        match client.outcome(ticket).await {
            Ok(Outcome::Committed(_)) => return Some(true),
            Ok(Outcome::Reverted) => return Some(false),
            Ok(Outcome::Unknown(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
    None
}

fn counter_key(counter: u64) -> Bytes {
    format!("counter-{counter}").into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_count_each_add_once() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    let splits = ["--split-at", "counter-1", "--split-at", "counter-3"];
    let _ = cluster.cli().run(&[&["table", "create", "counters"], &splits[..]].concat()).expect(exit::OK);
    let endpoints = cluster.servers.iter().chain(&cluster.masters).map(|node| node.address.clone());
    let client = Client::builder().endpoints(endpoints).timeout(Duration::from_secs(5)).connect().await?;
    let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let adders: Vec<_> = (0..ADDERS)
        .map(|_| tokio::spawn(add_until(client.clone(), stop.clone(), committed.clone())))
        .collect();
    let kill_some = move || -> Result<Cluster> {
        for round in 0..8 {
            thread::sleep(Duration::from_millis(600));
            cluster.servers[round % 3].kill_and_restart()?;
            cluster.wait_until_serving()?;
        }
        cluster.servers.iter_mut().try_for_each(Node::kill_and_restart)?;
        cluster.wait_until_serving()?;
        Ok(cluster)
    };
    let cluster = tokio::task::spawn_blocking(kill_some).await??;
    stop.store(true, Ordering::Relaxed);
    let adds: Vec<Adds> = join_all(adders).await.into_iter().collect::<Result<_, _>>()?;
    ensure!(committed.load(Ordering::Relaxed) > 1_000, "too few adds to prove anything");
    for counter in 0..COUNTERS {
        let sum = |of: fn(&Adds) -> &BTreeMap<u64, i64>| -> i64 {
            adds.iter().filter_map(|adds| of(adds).get(&counter)).sum()
        };
        let (committed, unknown) = (sum(|adds| &adds.committed), sum(|adds| &adds.unknown));
        let cell = client.get("counters", counter_key(counter)).await?.expect("the counter exists");
        let Value::Counter(found) = cell.value else { panic!("counter {counter} is no counter") };
        assert!(
            (committed..=committed + unknown).contains(&found),
            "counter {counter} is {found}: {committed} adds stand, {unknown} are unknown"
        );
        assert_eq!(unknown, 0, "with every server back, each outcome can be told");
    }
    assert_eq!(client.count("counters", Scan::all()).await?.count, COUNTERS);
    drop(cluster);
    Ok(())
}
