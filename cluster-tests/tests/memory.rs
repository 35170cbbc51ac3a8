//! Tables in memory on real processes: one, two and all copies are lost, tablets split, merge and
//! move under load, limits hold, and a cluster in one process is killed and comes back.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use ebla_client::{AckLevel, Batch, WriteOptions};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::{Cluster, Dev, eventually};
use ebla_cluster_tests::observe::servers_in;
use ebla_cluster_tests::process::Signal;
use ebla_cluster_tests::writers::{Writers, Written, check, mixed_level};
use serde_json::Value as Json;
use std::fmt::Write as _;
use std::time::Duration;

/// How long a table may take until it serves again after all copies were lost and the servers
/// are back. Promised are 5 s; the rest is for a machine that does other things.
const BACK_MAX: Duration = Duration::from_secs(15);

/// How long a change of a table may take until servers act on it, a slow machine included.
const LIVE_MAX: Duration = Duration::from_secs(5);

/// How long a copy may take until it is built and in sync, a slow machine included.
const REPAIR_MAX: Duration = Duration::from_secs(60);

fn tablets(cli: &Cli) -> Vec<Json> {
    cli.list(&["tablet", "list", "m"]).unwrap_or_default()
}

fn describe(cli: &Cli, at: usize) -> Json {
    let id = tablets(cli)[at]["id"].to_string();
    cli.json(&["tablet", "describe", &id])
}

/// The fewest copies in sync of any tablet that is led and at rest; a lost copy is none.
fn copies_in_sync(cli: &Cli) -> usize {
    let count = |tablet: &Json| {
        let is_at_rest = tablet["leader"].as_u64().is_some() && tablet["job"].is_null();
        if is_at_rest && servers_in(tablet, "lost").is_empty() {
            servers_in(tablet, "in_sync").len()
        } else {
            0
        }
    };
    tablets(cli).iter().map(count).min().unwrap_or(0)
}

fn load(cli: &Cli, rows: usize) {
    let mut text = String::new();
    for row in 0..rows {
        writeln!(text, "{row:05}\tvalue {row}").expect("a string takes everything");
    }
    let _ = cli.run_with_input(&["load", "m", "-", "--format", "tsv"], text.as_bytes()).expect(exit::OK);
}

fn count(cli: &Cli) -> Option<usize> {
    let read = cli.run(&["range", "m", "-o", "jsonl", "--timeout", "2s"]);
    (read.code == exit::OK).then(|| read.json_lines().len())
}

#[test]
fn what_makes_no_sense_is_refused_with_the_way_out() -> Result<()> {
    let dev = Dev::start(&[])?;
    let cli = dev.node.cli();
    let refused = |args: &[&str], hint: &str| {
        let args = [&["table", "create", "x"], args].concat();
        let _ = cli.run(&args).expect(exit::USAGE).saying(&[hint]);
    };
    refused(&["--kind", "memory", "--max-memory", "fast"], "--max-memory");
    refused(&["--kind", "memory", "--max-memory", "0"], "above zero");
    refused(&["--kind", "memory", "--max-memory", "1000"], "--max-memory 1MiB");
    refused(&["--kind", "memory", "--eviction", "lru"], "--max-memory");
    refused(&["--kind", "memory", "--max-memory", "1MiB", "--eviction", "best"], "--eviction");
    refused(&["--eviction", "lru", "--max-memory", "1MiB"], "--kind memory");
    refused(&["--eviction", "none"], "--kind memory");
    refused(&["--max-memory", "1GiB"], "--kind memory");
    refused(&["--kind", "paper"], "--kind");
    let made = ["table", "create", "m", "--kind", "memory", "--max-memory", "1GiB", "--eviction", "lfu"];
    let _ = cli.run(&made).expect(exit::OK);
    let described = cli.json(&["table", "describe", "m"]);
    assert_eq!(described["kind"], "memory");
    assert_eq!(described["max_memory"], 1_u64 << 30);
    assert_eq!(described["eviction"], "lfu");
    assert_eq!(described["policy"], "degraded");
    assert_eq!(described["replicas"], 3);
    let listed = cli.list(&["table", "list"]).context("tables are listed")?;
    assert_eq!(listed[0]["kind"], "memory");
    Ok(())
}

#[test]
fn rows_outlive_one_server_and_two_and_not_all() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "m", "--kind", "memory", "--split-at", "00500"]).expect(exit::OK);
    load(&cli, 1_000);
    // Behind all others of their tablets: every copy has everything before.
    for key in ["0-all", "all"] {
        let _ = cli.run(&["set", "m", key, "copies", "--ack", "in-sync"]).expect(exit::OK);
    }
    let one = |cluster: &mut Cluster, at: usize| -> Result<()> {
        cluster.servers[at].process().kill()?;
        cluster.servers[at].start()?;
        // Until it is registered anew its copies are not known to be lost.
        cluster.wait_until_serving()
    };
    // One: it comes back without its rows and gets them from the others, under a new name.
    let before = describe(&cli, 0)["lineage"].clone();
    for at in 0..3 {
        eventually("three copies are in sync", REPAIR_MAX, || copies_in_sync(&cli) == 3)?;
        one(&mut cluster, at)?;
        let found = eventually("the rows are there", BACK_MAX, || count(&cli) == Some(1_002));
        found.with_context(|| {
            let read = cli.run(&["range", "m", "-o", "jsonl", "--timeout", "2s"]);
            let error = read.text().lines().last().unwrap_or_default().to_owned();
            format!("server {at}: {:?} rows, {error}, {:?}", count(&cli), tablets(&cli))
        })?;
    }
    eventually("three copies are in sync", REPAIR_MAX, || copies_in_sync(&cli) == 3)?;
    // Two at once: the third alone has what all had.
    for at in [0, 1] {
        cluster.servers[at].process().kill()?;
    }
    for at in [0, 1] {
        cluster.servers[at].start()?;
    }
    eventually("the rows are there", BACK_MAX, || count(&cli) == Some(1_002))?;
    eventually("three copies are in sync", REPAIR_MAX, || copies_in_sync(&cli) == 3)?;
    assert_eq!(describe(&cli, 0)["lineage"], before, "a copy was there all the while");
    assert_eq!(describe(&cli, 0)["emptied"], Json::Null);
    all_at_once(&mut cluster, &cli)
}

/// Every copy is lost: the table comes back by itself, empty, and says so.
fn all_at_once(cluster: &mut Cluster, cli: &Cli) -> Result<()> {
    let written = cli.json(&["set", "m", "00001", "x"]);
    let before = describe(cli, 0)["lineage"].clone();
    for server in &mut cluster.servers {
        server.process().kill()?;
    }
    for server in &mut cluster.servers {
        server.start()?;
    }
    cluster.wait_until_serving()?;
    let took = eventually("the table is back", BACK_MAX, || count(cli) == Some(0))?;
    println!("empty after {took:?}");
    assert_eq!(tablets(cli).len(), 2, "boundaries stay");
    let described = describe(cli, 0);
    assert_ne!(described["lineage"], before);
    assert_eq!(described["emptied"]["lineage_before"], before);
    let lost = cli.list(&["lost", "list"]).context("losses are listed")?;
    assert_eq!(lost.iter().filter(|record| record["state"] == "all copies lost").count(), 2, "{lost:?}");
    let session = written["session"].as_str().context("a write has a session token")?;
    let _ = cli.run(&["get", "m", "00001", "--session", session]).expect(exit::FAILED);
    let _ = cli.run(&["set", "m", "00001", "again", "--ack", "copies=2"]).expect(exit::OK);
    assert_eq!(count(cli), Some(1));
    Ok(())
}

#[test]
fn a_cluster_in_one_process_comes_back_empty_and_at_once() -> Result<()> {
    let mut dev = Dev::start(&[])?;
    let cli = dev.node.cli();
    let _ = cli.run(&["table", "create", "m", "--kind", "memory", "--split-at", "00500"]).expect(exit::OK);
    let _ = cli.run(&["table", "create", "d"]).expect(exit::OK);
    let _ = cli.run(&["set", "d", "k", "stays"]).expect(exit::OK);
    for round in 1..=2 {
        load(&cli, 1_000);
        dev.node.kill_and_restart()?;
        dev.node.wait_for_ready_line()?;
        eventually("the table is back", BACK_MAX, || count(&cli) == Some(0))?;
        let _ = cli.run(&["set", "m", "00700", "new", "--ack", "in-sync"]).expect(exit::OK);
        assert_eq!(describe(&cli, 1)["emptied"]["times"], round);
        assert!(describe(&cli, 1)["emptied"]["time_ms"].as_u64() > Some(0), "it is dated");
        let _ = cli.run(&["get", "d", "k"]).expect(exit::OK);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tablets_split_merge_and_move_under_load() -> Result<()> {
    let cluster = Cluster::start(1, 4)?;
    let cli = cluster.cli();
    let _ = cli.run(&["balancer", "pause"]).expect(exit::OK);
    let _ = cli.run(&["table", "create", "t", "--kind", "memory"]).expect(exit::OK);
    let client = cluster.connect(Duration::from_secs(10)).await?;
    let writers = Writers::start(&client, (0..8).map(mixed_level)).and_scan(&client);
    let ids = || -> Vec<String> {
        let tablets = cli.list(&["tablet", "list", "t"]).unwrap_or_default();
        tablets.iter().map(|tablet| tablet["id"].to_string()).collect()
    };
    for round in 0..2 {
        let _ = cli.run(&["tablet", "split", &ids()[0], "--at", "050"]).expect(exit::OK);
        assert_eq!(ids().len(), 2);
        let first = cli.json(&["tablet", "describe", &ids()[0]]);
        let held = servers_in(&first, "replicas");
        let to = (1..=4).find(|server| !held.contains(server)).context("a server has no copy")?;
        let (from, to) = (held[round].to_string(), to.to_string());
        let _ = cli.run(&["tablet", "move", &ids()[0], "--from", &from, "--to", &to]).expect(exit::OK);
        let _ = cli.run(&["tablet", "merge", &ids()[0], &ids()[1]]).expect(exit::OK);
        assert_eq!(ids().len(), 1);
    }
    let Written { models, took, scans } = writers.end().await?;
    println!("{} writes, {scans} scans", took.len());
    check(&client, &models).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_table_refuses_what_adds_and_takes_deletes() -> Result<()> {
    let cluster = Cluster::start(1, 1)?;
    let cli = cluster.cli();
    let made = ["table", "create", "m", "--kind", "memory", "--max-memory", "4MiB"];
    let _ = cli.run(&made).expect(exit::OK);
    let client = cluster.connect(Duration::from_secs(20)).await?;
    let value = Bytes::from(vec![b'v'; 1_000]);
    let mut written = 0;
    let refused = loop {
        let key = Bytes::from(format!("{written:06}"));
        match client.set("m", key, value.clone()).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        ensure!(written < 10_000, "the limit does not hold");
    };
    assert!(refused.to_string().contains("--max-memory"), "{refused}");
    assert!((2_500..4_200).contains(&written), "{written} rows of about 1.2 kB in 4 MiB");
    let more = "m".repeat(2_000);
    let _ = cli.run(&["set", "m", "one", &more]).expect(exit::FAILED).saying(&["limit"]);
    let _ = cli.run(&["delete-range", "m", "000000", "000500", "--yes"]).expect(exit::OK);
    eventually("deletes make room", BACK_MAX, || cli.run(&["set", "m", "one", &more]).code == exit::OK)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eviction_keeps_what_is_read_and_the_limit() -> Result<()> {
    for eviction in ["lru", "lfu"] {
        let cluster = Cluster::start(1, 1)?;
        let cli = cluster.cli();
        let limit = 8 << 20;
        let made =
            ["table", "create", "m", "--kind", "memory", "--max-memory", "8MiB", "--eviction", eviction];
        let _ = cli.run(&made).expect(exit::OK);
        let client = cluster.connect(Duration::from_secs(20)).await?;
        let value = Bytes::from(vec![b'v'; 1_000]);
        let hot = |number: u64| Bytes::from(format!("hot-{number:03}"));
        for number in 0..100 {
            let _ = client.set("m", hot(number), value.clone()).await?;
        }
        let mut used_max: f64 = 0.0;
        // About five times of what fits; hot rows lie between those that are written once.
        for number in 0..30_000_u64 {
            let key = Bytes::from(format!("{}-{number:06}", ["a", "h", "z"][(number % 3) as usize]));
            let _ = client.set("m", key, value.clone()).await?;
            for read in 0..2 {
                let _ = client.get("m", hot((number * 2 + read) % 100)).await?;
            }
            if number.is_multiple_of(500) {
                used_max = used_max.max(cluster.servers[0].metric("ebla_memory_used_bytes")?);
            }
        }
        let mut kept = 0;
        for number in 0..100 {
            kept += u64::from(client.get("m", hot(number)).await?.is_some());
        }
        println!("{eviction}: {kept} of 100 hot rows kept, {used_max} bytes of {limit} at most");
        assert!(kept >= 95, "{eviction}: {kept} of 100 hot rows are left");
        assert!(used_max <= f64::from(limit) * 1.05, "{used_max} bytes");
        let left = count(&cli).context("the table can be read")?;
        assert!((1_000..8_000).contains(&left), "{left} rows in 8 MiB");
    }
    Ok(())
}

#[test]
fn a_write_that_finds_no_room_gets_as_much_as_it_needs() -> Result<()> {
    let dev = Dev::start(&[])?;
    let cli = dev.node.cli();
    let create = ["table", "create", "m", "--kind", "memory", "--max-memory", "1MiB", "--eviction", "lru"];
    let _ = cli.run(&create).expect(exit::OK);
    // Some hundred rows come at once: more than what eviction leaves free, and nobody is overtaken
    // until its ten seconds are over.
    let rows: String = (0..6_000).map(|row| format!("{row:05}\t{}\n", "v".repeat(1_000))).collect();
    let load = ["load", "m", "-", "--format", "tsv"];
    let _ = cli.run_with_input(&load, rows.as_bytes()).expect(exit::OK);
    let left = count(&cli).context("the table can be read")?;
    assert!((100..1_000).contains(&left), "{left} rows in 1 MiB");
    let huge = "v".repeat(1_100_000);
    let line = format!("huge\t{huge}\n");
    let refused = cli.run_with_input(&["load", "m", "-", "--format", "tsv"], line.as_bytes());
    let _ = refused.expect(exit::FAILED).saying(&["more than the limit", "--max-memory"]);
    // And no row has gone for it.
    std::thread::sleep(Duration::from_secs(1));
    assert!((100..1_000).contains(&count(&cli).context("the table can be read")?));
    Ok(())
}

#[test]
fn rows_expire_and_conditions_hold() -> Result<()> {
    let dev = Dev::start(&[])?;
    let cli = dev.node.cli();
    let _ = cli.run(&["table", "create", "m", "--kind", "memory"]).expect(exit::OK);
    let _ = cli.run(&["set", "m", "soon", "gone", "--ttl", "1s"]).expect(exit::OK);
    let _ = cli.run(&["get", "m", "soon"]).expect(exit::OK);
    eventually("the row expires", BACK_MAX, || cli.run(&["get", "m", "soon"]).code == exit::NOT_FOUND)?;
    let _ = cli.run(&["set", "m", "k", "1", "--if-absent"]).expect(exit::OK);
    let _ = cli.run(&["set", "m", "k", "2", "--if-absent"]).expect(exit::FAILED);
    let _ = cli.run(&["get", "m", "k"]).expect(exit::OK);
    Ok(())
}

#[test]
fn a_limit_is_changed_while_the_table_is_used() -> Result<()> {
    let cluster = Cluster::start(1, 1)?;
    let cli = cluster.cli();
    let set = |more: &[&str]| cli.run(&[&["table", "set"], more].concat());
    let used = || cluster.servers[0].metric("ebla_memory_used_bytes").unwrap_or(f64::MAX);
    let _ = cli.run(&["table", "create", "d"]).expect(exit::OK);
    let _ = set(&["d", "--max-memory", "1GiB"]).expect(exit::USAGE).saying(&["kind memory"]);
    let _ = cli.run(&["table", "create", "m", "--kind", "memory"]).expect(exit::OK);
    let _ = set(&["m", "--eviction", "lru"]).expect(exit::USAGE).saying(&["--max-memory"]);
    let _ = set(&["m", "--max-memory", "1000"]).expect(exit::USAGE).saying(&["1MiB"]);
    let rows: String = (0..4_000).map(|row| format!("{row:05}\t{}\n", "v".repeat(1_000))).collect();
    let _ = cli.run_with_input(&["load", "m", "-", "--format", "tsv"], rows.as_bytes()).expect(exit::OK);
    // Far below what it has: nothing more comes in, what is there stays and can be deleted.
    let changed = set(&["m", "--max-memory", "2MiB", "-o", "json"]).expect(exit::OK).json();
    assert_eq!((&changed["max_memory"], &changed["eviction"]), (&(2 << 20).into(), &"none".into()));
    let refused = || cli.run(&["set", "m", "03999", "more"]).code == exit::FAILED;
    eventually("the lower limit holds", LIVE_MAX, refused)?;
    let _ = cli.run(&["set", "m", "03999", "more"]).expect(exit::FAILED).saying(&["table set"]);
    assert_eq!(count(&cli), Some(4_000));
    let _ = cli.run(&["delete-range", "m", "00000", "00500", "--yes"]).expect(exit::OK);
    assert_eq!(count(&cli), Some(3_500));
    let _ = set(&["m", "--max-memory", "16MiB"]).expect(exit::OK);
    let takes = || cli.run(&["set", "m", "03999", "more"]).code == exit::OK;
    eventually("the higher limit holds", LIVE_MAX, takes)?;
    assert_eq!(count(&cli), Some(3_500));
    // With eviction the rows make way by themselves.
    let _ = set(&["m", "--max-memory", "1MiB", "--eviction", "lru"]).expect(exit::OK);
    eventually("rows make way", BACK_MAX, || used() <= f64::from(1 << 20))?;
    eventually("sets go on", BACK_MAX, takes)?;
    let left = count(&cli).context("the table can be read")?;
    ensure!((100..1_000).contains(&left), "{left} rows of about 1.2 kB in 1 MiB");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_with_another_history_are_built_anew() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "m", "--kind", "memory"]).expect(exit::OK);
    let _ = cli.run(&["set", "m", "kept", "by all", "--ack", "in-sync"]).expect(exit::OK);
    eventually("three copies are in sync", REPAIR_MAX, || copies_in_sync(&cli) == 3)?;
    let client = cluster.connect(Duration::from_secs(10)).await?;
    let _ = client.get("m", "kept").await?;
    let tablet = cluster.first_tablet()?["id"].as_u64().context("an id")?;
    let leader = cluster.leader_of(tablet)?;
    let last = (leader + 1) % 3;
    let others: Vec<usize> = (0..3).filter(|server| *server != last).collect();
    // Without masters nobody can be taken out of the in-sync set: the third copy stays in it, frozen,
    // and lacks what no longer fits on the way to it.
    cluster.masters[0].process().kill()?;
    cluster.servers[last].process().signal(Signal::Stop)?;
    let options = WriteOptions { ack: Some(AckLevel::Copies(2)) };
    for row in 0..24 {
        let value = Bytes::from(vec![b'x'; 1 << 20]);
        let batch = Batch::new().set(format!("row {row:02}"), value);
        client.write("m", batch, options).await?.committed()?;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for server in &others {
        cluster.servers[*server].process().signal(Signal::Stop)?;
    }
    cluster.servers[last].process().signal(Signal::Cont)?;
    cluster.masters[0].start()?;
    let is_led_by_the_last = || {
        let tablets = tablets(&cli);
        let is_led = tablets.first().is_some_and(|tablet| tablet["degraded"] == true);
        is_led && cluster.id_of(last).is_ok_and(|id| tablets[0]["leader"] == id)
    };
    eventually("the copy that lacks rows is appointed", REPAIR_MAX, is_led_by_the_last)?;
    for server in &others {
        cluster.servers[*server].process().signal(Signal::Cont)?;
    }
    let built = || {
        let jobs = cli.list(&["job", "list"]).unwrap_or_default();
        jobs.iter()
            .filter(|job| job["by"] == "cluster" && job["kind"] == "move" && job["state"] == "done")
            // The table of rooms may get copies meanwhile, too.
            .filter(|job| job["tablet"] == tablet)
            .count()
    };
    eventually("both are built anew", REPAIR_MAX, || built() == 2 && copies_in_sync(&cli) == 3)
        .with_context(|| format!("{:#?} {:#?}", tablets(&cli), cli.list(&["job", "list"])))?;
    // Whoever is asked has the history of the leader now.
    let kept = cli.run(&["get", "m", "kept", "--bounded", "10s"]).expect(exit::OK).text();
    ensure!(kept.contains("by all"), "{kept}");
    let _ = cli.run(&["get", "m", "row 23"]).expect(exit::NOT_FOUND);
    let lost = cli.list(&["lost", "list"]).context("what was lost is listed")?;
    ensure!(lost.iter().any(|record| record["writes"].as_u64() > Some(0)), "{lost:#?}");
    for server in &others {
        let said = cluster.servers[*server].process().log_text();
        ensure!(said.contains("its leader does not have"), "server {server} says nothing of it");
    }
    let rows = count(&cli).context("the table can be read")?;
    for server in 1..=3 {
        cluster.let_lead(server);
        ensure!(count(&cli) == Some(rows), "the copy on server {server} has other rows");
    }
    Ok(())
}
