//! Tablets are merged under load, on real processes: no client sees an error, no write is lost or
//! doubled, no row is read twice or missed, wherever the copies lay and whoever is killed.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use ebla_client::{AckLevel, Batch, Client, Scan, WriteOptions, v1};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::{Cluster, eventually};
use ebla_cluster_tests::writers::{Writers, Written, check, longest, mixed_level};
use futures::TryStreamExt as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::time::{Duration, Instant};

/// How long a client tries: longer than any failover takes.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Tasks that write, each its own rows.
const WRITERS: u64 = 8;

/// Longest time that merges may hold writes. What the design aims at on a machine of its own is
/// 200 ms; here tests share two cores with whatever else runs.
const PAUSE_MAX: Duration = Duration::from_millis(1_000);

/// How long a merge may take, its moves included.
const MERGE_MAX: Duration = Duration::from_secs(60);

/// How long a healed cluster may take until every tablet is led and every copy is back.
const HEAL_MAX: Duration = Duration::from_secs(60);

/// Merges two tablets and waits until that is done; gives the new one.
async fn merge(client: &Client, one: u64, other: u64) -> Result<u64> {
    let merge = client.admin().merge_tablets(one, other).await?;
    let job = client.admin().wait_for_job(merge.job_id, MERGE_MAX).await?;
    ensure!(job.state() == v1::JobState::Done, "{job:?}");
    Ok(merge.child_tablet_id)
}

/// Waits until every tablet is led, at rest, and has `copies` copies, all in sync.
async fn settle(cluster: &Cluster, copies: usize) -> Result<()> {
    tokio::task::block_in_place(|| cluster.wait_until_whole(copies, &[])).map(drop)
}

/// The tablets in key order.
async fn tablets(cluster: &Cluster) -> Vec<u64> {
    tokio::task::block_in_place(|| cluster.tablet_ids())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merges_under_load_are_hardly_noticed() -> Result<()> {
    let cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    let mut create = vec!["table", "create", "t", "--replicas", "3"];
    for key in ["020", "040", "060", "080"] {
        create.extend(["--split-at", key]);
    }
    let _ = cli.run(&create).expect(exit::OK);
    settle(&cluster, 3).await?;
    let client = cluster.connect(TIMEOUT).await?;
    let writers = Writers::start(&client, (0..WRITERS).map(mixed_level)).and_scan(&client);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut sealed = Vec::new();
    let mut left = tablets(&cluster).await;
    while left.len() > 1 {
        // Whichever is named first.
        let (one, other) = if left.len().is_multiple_of(2) { (left[0], left[1]) } else { (left[1], left[0]) };
        let began = Instant::now();
        let child = merge(&client, one, other).await.context("a merge")?;
        sealed.push((began, Instant::now()));
        left.splice(0..2, [child]);
        ensure!(tablets(&cluster).await == left, "{left:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // And apart again, and together.
    for _ in 0..2 {
        let split = client.admin().split_tablet(left[0], vec![Bytes::from_static(b"050")]).await?;
        let began = Instant::now();
        left = vec![merge(&client, split.child_tablet_ids[0], split.child_tablet_ids[1]).await?];
        sealed.push((began, Instant::now()));
    }
    let Written { models, took, scans } = writers.end().await?;
    println!("{} writes, {scans} scans, {} merges", took.len(), sealed.len());
    check(&client, &models).await?;
    let longest = longest(&took, &sealed);
    println!("longest write during each merge, leaderships handed over included: {longest:?}");
    assert!(longest.iter().all(|pause| *pause <= PAUSE_MAX), "merges are noticed: {longest:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_on_different_servers_are_brought_together() -> Result<()> {
    let cluster = Cluster::start(1, 4)?;
    let cli = cluster.cli();
    let _ = cli.run(&["balancer", "pause"]).expect(exit::OK);
    let _ = cli.run(&["table", "create", "t", "--replicas", "2", "--split-at", "050"]).expect(exit::OK);
    settle(&cluster, 2).await?;
    // One tablet on the servers 1 and 2, the other on 3 and 4.
    for (at, wanted) in [(0, ["1", "2"]), (1, ["3", "4"])] {
        place(&cli, at, wanted)?;
    }
    // Whoever leads now must have heard of the other copy before a write waits for both.
    settle(&cluster, 2).await?;
    let client = cluster.connect(TIMEOUT).await?;
    let writers = Writers::start(&client, (0..WRITERS).map(mixed_level));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ids = tablets(&cluster).await;
    let child = merge(&client, ids[0], ids[1]).await?;
    let models = writers.end().await?.models;
    check(&client, &models).await?;
    settle(&cluster, 2).await?;
    let tablet = cli.json(&["tablet", "describe", &child.to_string()]);
    ensure!(tablet["start"] == "" && tablet["end"] == "", "{tablet}");
    // What left its server is gone there: the job is over, and so are its moves.
    let jobs = cli.list(&["job", "list", "--running"]).context("jobs")?;
    ensure!(jobs.is_empty(), "{jobs:?}");
    Ok(())
}

/// Moves the copies of the tablet at `at` to exactly these servers.
fn place(cli: &Cli, at: usize, wanted: [&str; 2]) -> Result<()> {
    let tablet = cli.list(&["tablet", "list", "t"]).context("tablets")?[at].clone();
    let id = tablet["id"].to_string();
    let held: Vec<String> =
        tablet["replicas"].as_array().context("copies")?.iter().map(ToString::to_string).collect();
    let to = wanted.iter().filter(|server| !held.iter().any(|held| held == *server));
    let from = held.iter().filter(|held| !wanted.contains(&held.as_str()));
    for (from, to) in from.zip(to) {
        let _ = cli.run(&["tablet", "move", &id, "--from", from, "--to", to]).expect(exit::OK);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_around_a_merge_nothing_is_lost_or_doubled() -> Result<()> {
    let mut cluster = Cluster::start(3, 3)?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "t", "--replicas", "3", "--ack", "copies=2"]).expect(exit::OK);
    let client = cluster.connect(TIMEOUT).await?;
    // What those are told who wait for two copies survives a failover.
    let writers = Writers::start(&client, (0..WRITERS).map(|writer| (writer, AckLevel::Copies(2))));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut random = StdRng::seed_from_u64(seed);
    let mut done = 0;
    for _ in 0..5 {
        let ids = tablets(&cluster).await;
        let ids = match ids[..] {
            [only] => {
                let split = client.admin().split_tablet(only, vec![Bytes::from_static(b"050")]).await;
                split.map(|split| split.child_tablet_ids).unwrap_or_default()
            }
            _ => ids,
        };
        let admin = client.admin();
        let merged = tokio::spawn(async move {
            let (Some(one), Some(other)) = (ids.first(), ids.get(1)) else { return Ok(()) };
            let merge = admin.merge_tablets(*one, *other).await?;
            admin.wait_for_job(merge.job_id, MERGE_MAX).await.map(drop)
        });
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        let node = random.random_range(0..6);
        cluster.nodes().nth(node).context("there are six")?.process().kill()?;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..3_000))).await;
        cluster.nodes().nth(node).context("there are six")?.start()?;
        done += usize::from(merged.await?.is_ok());
        cluster.wait_until_serving()?;
        settle(&cluster, 3).await?;
    }
    let models = writers.end().await?.models;
    println!("{done} merges ended");
    check(&client, &models).await?;
    cluster.kill_all()?;
    cluster.start_all()?;
    settle(&cluster, 3).await?;
    check(&cluster.connect(TIMEOUT).await?, &models).await
}

/// Rows `0000` to `1199`, of which one range deletion over the border at `0600` takes most, and a
/// row that was deleted right at the border.
async fn fill(client: &Client) -> Result<()> {
    let options = WriteOptions { ack: Some(AckLevel::Copies(2)) };
    for hundred in 0..12 {
        let mut batch = Batch::new();
        for row in hundred * 100..(hundred + 1) * 100 {
            batch = batch.set(format!("{row:04}"), "value");
        }
        client.write("t", batch, options).await?.committed()?;
    }
    for part in client.delete_range("t", "0101", "1150", options).await? {
        part.result?.committed()?;
    }
    Ok(())
}

async fn count(client: &Client) -> Result<usize> {
    let rows: Vec<_> = client.scan("t", Scan::all())?.try_collect().await?;
    Ok(rows.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_right_after_a_merge_loses_nothing() -> Result<()> {
    for pause_ms in [0, 1_000] {
        let mut cluster = Cluster::start_with(1, 3, &["--flush-interval", "off"])?;
        let cli = cluster.cli();
        let _ = cli.run(&["table", "create", "t", "--replicas", "3"]).expect(exit::OK);
        let client = cluster.connect(TIMEOUT).await?;
        fill(&client).await?;
        let first = tablets(&cluster).await[0];
        // Split over the range deletion, written on either side, merged at once: the rows of the
        // grandparent come back by way of both parents.
        let split = client.admin().split_tablet(first, vec![Bytes::from_static(b"0600")]).await?;
        client.set("t", "0500", "left").await?.committed()?;
        client.set("t", "0700", "right").await?.committed()?;
        client.delete("t", "0050").await?.committed()?;
        client.add("t", "n", 7).await?.committed()?;
        let ids = split.child_tablet_ids;
        let merged = merge(&client, ids[1], ids[0]).await?;
        client.set("t", "0600", "after the merge").await?.committed()?;
        ensure!(count(&client).await? == 154, "{} rows after the merge", count(&client).await?);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        cluster.kill_all()?;
        cluster.start_all()?;
        settle(&cluster, 3).await?;
        let client = cluster.connect(TIMEOUT).await?;
        ensure!(count(&client).await? == 154, "{} rows after a power cut", count(&client).await?);
        // Apart again where the border was, and a power cut before any flush.
        let again = client.admin().split_tablet(merged, vec![Bytes::from_static(b"0600")]).await?;
        cluster.kill_all()?;
        cluster.start_all()?;
        settle(&cluster, 3).await?;
        let client = cluster.connect(TIMEOUT).await?;
        ensure!(count(&client).await? == 154, "{} rows after another", count(&client).await?);
        let last = merge(&client, again.child_tablet_ids[0], again.child_tablet_ids[1]).await?;
        ensure!(tablets(&cluster).await == [last], "one tablet");
        let added = client.add("t", "n", 5).await?.committed()?;
        ensure!(added.counters == [Some(12)], "{added:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_from_before_a_merge_go_on() -> Result<()> {
    let cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "t", "--replicas", "3", "--split-at", "m"]).expect(exit::OK);
    settle(&cluster, 3).await?;
    let client = cluster.connect(TIMEOUT).await?;
    let mut seen = Vec::new();
    for (key, value) in [("a", "1"), ("x", "2"), ("x", "3")] {
        let written = client.set("t", key, value).await?.committed()?;
        seen.push((key, value, written.session.context("a session")?));
    }
    let ids = tablets(&cluster).await;
    let _ = merge(&client, ids[0], ids[1]).await?;
    for (key, value, session) in [&seen[0], &seen[2]] {
        let read = cli.json(&["get", "t", key, "--session", &session.to_string()]);
        ensure!(read["value"] == *value, "{key} with {session}: {read}");
    }
    let after = client.set("t", "x", "4").await?.committed()?.session.context("a session")?;
    let read = cli.json(&["get", "t", "x", "--session", &after.to_string()]);
    ensure!(read["value"] == "4", "{read}");
    Ok(())
}

/// The tablets of a table in key order.
fn ids_of(cli: &Cli, table: &str) -> Vec<u64> {
    let tablets = cli.list(&["tablet", "list", table]).expect("tablets");
    tablets.iter().filter_map(|tablet| tablet["id"].as_u64()).collect()
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() -> Result<()> {
    let cluster = Cluster::start(1, 2)?;
    let cli = cluster.cli();
    let _ = cli.run(&["balancer", "pause"]).expect(exit::OK);
    let create = ["table", "create", "t", "--replicas", "1", "--split-at", "g", "--split-at", "p"];
    let _ = cli.run(&create).expect(exit::OK);
    let _ = cli.run(&["table", "create", "u", "--replicas", "1"]).expect(exit::OK);
    for (row, value) in [("a", "1"), ("h", "2"), ("x", "3")] {
        let _ = cli.run(&["set", "t", row, value]).expect(exit::OK);
    }
    let ids: Vec<String> = ids_of(&cli, "t").iter().map(u64::to_string).collect();
    let other = cli.list(&["tablet", "list", "u"]).context("tablets")?[0]["id"].to_string();
    let refused = |one: &str, two: &str, code: i32, words: &[&str]| {
        let _ = cli.run(&["tablet", "merge", one, two]).expect(code).saying(words);
    };
    refused(&ids[0], &ids[0], exit::USAGE, &["with itself"]);
    refused(&ids[0], &ids[2], exit::USAGE, &["no neighbours"]);
    refused(&ids[2], &other, exit::USAGE, &["different tables"]);
    refused(&ids[0], "999", exit::NOT_FOUND, &["999"]);
    let begun = cli.json(&["tablet", "merge", &ids[1], &ids[0]]);
    let (job, child) = (begun["job"].to_string(), begun["tablet"].to_string());
    ensure!(ids_of(&cli, "t").len() == 2 && ids_of(&cli, "t")[0].to_string() == child, "{begun}");
    let shown = cli.json(&["job", "show", &job]);
    ensure!(shown["kind"] == "merge" && shown["state"] == "done" && shown["progress"] == 1.0, "{shown}");
    for command in [&["tablet", "merge", &ids[0], &ids[2]][..], &["tablet", "describe", &ids[1]]] {
        let _ = cli.run(command).expect(exit::FAILED).saying(&[&child]);
    }
    let _ = cli.run(&["job", "cancel", &job]).expect(exit::FAILED).saying(&["done already"]);
    let rows = cli.list(&["range", "t"]).context("rows")?;
    ensure!(rows.len() == 3, "{rows:?}");
    Ok(())
}

#[test]
fn a_merge_that_cannot_go_on_can_be_cancelled() -> Result<()> {
    let mut cluster = Cluster::start(1, 2)?;
    let cli = cluster.cli();
    let _ = cli.run(&["balancer", "pause"]).expect(exit::OK);
    let _ = cli.run(&["table", "create", "t", "--replicas", "1", "--split-at", "m"]).expect(exit::OK);
    let ids: Vec<String> = ids_of(&cli, "t").iter().map(u64::to_string).collect();
    let place = |id: &str| cli.json(&["tablet", "describe", id])["leader"].to_string();
    let (stays, comes) = (place(&ids[0]), place(&ids[1]));
    if stays == comes {
        let to = if comes == "1" { "2" } else { "1" };
        let _ = cli.run(&["tablet", "move", &ids[1], "--from", &comes, "--to", to]).expect(exit::OK);
    }
    // The larger one stays, and the server to which the other is to go is away.
    let large = "v".repeat(10_000);
    for (row, value) in [("a", large.as_str()), ("x", "v")] {
        let _ = cli.run(&["set", "t", row, value]).expect(exit::OK);
    }
    let is_known = || cli.json(&["tablet", "describe", &ids[0]])["bytes"].as_u64() > Some(9_000);
    let _ = eventually("the master knows which is larger", HEAL_MAX, is_known)?;
    let servers = cli.list(&["server", "list"]).context("servers")?;
    let id: u64 = stays.parse()?;
    let away = servers.iter().find(|server| server["id"].as_u64() == Some(id)).context("a server")?;
    let address = away["address"].as_str().context("an address")?.to_owned();
    let node = cluster.servers.iter().position(|node| node.address == address).context("a node")?;
    cluster.servers[node].process().kill()?;
    let begun = cli.json(&["tablet", "merge", &ids[1], &ids[0], "--no-wait"]);
    let job = begun["job"].to_string();
    ensure!(cli.json(&["tablet", "describe", &ids[1]])["state"] == "merging", "it says so");
    for command in [&["tablet", "split", &ids[1], "--at", "t"][..], &["tablet", "merge", &ids[0], &ids[1]]] {
        let _ = cli.run(command).expect(exit::FAILED).saying(&[&format!("job {job} (merge)")]);
    }
    // The other serves all the while.
    let _ = cli.run(&["set", "t", "y", "v"]).expect(exit::OK);
    let _ = cli.run(&["job", "cancel", &job]).expect(exit::OK);
    ensure!(cli.json(&["job", "show", &job])["state"] == "cancelled", "it is over");
    cluster.servers[node].start()?;
    let _ = cluster.wait_until_whole(1, &[])?;
    for row in ["a", "x", "y"] {
        let _ = cli.run(&["get", "t", row]).expect(exit::OK);
    }
    let _ = cli.run(&["tablet", "merge", &ids[0], &ids[1]]).expect(exit::OK);
    ensure!(cli.list(&["range", "t"]).context("rows")?.len() == 3, "all rows are there");
    Ok(())
}
