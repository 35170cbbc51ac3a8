//! Tables of three copies under real faults: what was acknowledged at two copies stays, what a
//! failover takes is told, leadership goes over without an election.

use anyhow::{Context as _, Result};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::{Cluster, eventually};
use ebla_cluster_tests::process::Signal;
use serde_json::Value;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Rows that are written at each level.
const ROWS: usize = 5_000;

/// How long a failover may take on a machine that is busy with other tests.
const FAILOVER_MAX: Duration = Duration::from_secs(8);

/// How long a copy that was away may take to be in sync again.
const REJOIN_MAX: Duration = Duration::from_secs(20);

fn start() -> Result<Cluster> {
    let cluster = Cluster::start(1, 3)?;
    let create = ["table", "create", "t", "--replicas", "3", "--min-in-sync", "2"];
    let _ = cluster.cli().run(&create).expect(exit::OK);
    Ok(cluster)
}

/// Writes rows `PREFIX00000..` at a level.
fn load(cli: &Cli, prefix: &str, level: &str) {
    let mut rows = String::new();
    for row in 0..ROWS {
        writeln!(rows, "{prefix}{row:05}\tvalue {row}").expect("writing to a string does not fail");
    }
    let args = ["load", "t", "-", "--format", "tsv", "--ack", level];
    let _ = cli.run_with_input(&args, rows.as_bytes()).expect(exit::OK);
}

fn count(cli: &Cli, prefix: &str) -> Value {
    cli.json(&["range", "t", "--prefix", prefix, "--count", "--timeout", "30s"])["count"].clone()
}

/// Which of the cluster's servers leads the table's tablet.
fn leader(cluster: &Cluster) -> Option<usize> {
    let cli = cluster.cli();
    let tablets = cli.list(&["tablet", "list"])?;
    let leading = tablets.first()?["leader"].as_u64()?;
    let servers = cli.list(&["server", "list"])?;
    let found = servers.iter().find(|server| server["id"].as_u64() == Some(leading))?;
    let address = found["address"].as_str()?;
    cluster.servers.iter().position(|server| server.address == address)
}

fn await_leader(cluster: &Cluster) -> Result<usize> {
    eventually("a server leads", FAILOVER_MAX, || leader(cluster).is_some())?;
    leader(cluster).context("it still leads")
}

/// Waits until all copies are in sync.
fn await_whole(cluster: &Cluster) -> Result<()> {
    let cli = cluster.cli();
    let is_whole = || {
        let tablets = cli.list(&["tablet", "list"]).unwrap_or_default();
        tablets.first().is_some_and(|tablet| tablet["in_sync"].as_array().is_some_and(|set| set.len() == 3))
    };
    eventually("every copy is in sync", REJOIN_MAX, is_whole).map(drop)
}

#[test]
fn what_two_copies_have_survives_every_leader() -> Result<()> {
    let mut cluster = start()?;
    let cli = cluster.cli();
    load(&cli, "l", "leader");
    for round in 0..3 {
        let prefix = format!("c{round}-");
        load(&cli, &prefix, "copies=2");
        let leading = await_leader(&cluster)?;
        let since = Instant::now();
        cluster.servers[leading].process().kill()?;
        let _ =
            cli.run(&["set", "t", "after", "1", "--ack", "copies=2", "--timeout", "20s"]).expect(exit::OK);
        let took = since.elapsed();
        assert!(took <= FAILOVER_MAX, "the failover took {took:?}");
        for round in 0..=round {
            assert_eq!(count(&cli, &format!("c{round}-")), ROWS, "after kill {round}");
        }
        cluster.servers[leading].start()?;
        await_whole(&cluster)?;
    }
    Ok(())
}

#[test]
fn every_level_survives_when_all_are_killed_at_once() -> Result<()> {
    let mut cluster = start()?;
    let cli = cluster.cli();
    for (prefix, level) in [("l", "leader"), ("c", "copies=2"), ("i", "in-sync")] {
        load(&cli, prefix, level);
    }
    cluster.kill_all()?;
    cluster.start_all()?;
    for prefix in ["l", "c", "i"] {
        assert_eq!(count(&cli, prefix), ROWS, "rows {prefix}");
    }
    Ok(())
}

#[test]
fn what_a_failover_takes_is_told_and_gone() -> Result<()> {
    let mut cluster = start()?;
    let cli = cluster.cli();
    let _ = cli.run(&["set", "t", "kept", "old", "--ack", "in-sync"]).expect(exit::OK);
    let leading = await_leader(&cluster)?;
    for other in (0..3).filter(|other| *other != leading) {
        cluster.servers[other].process().kill()?;
    }
    // The lease lasts for a moment longer: these are acknowledged, and nobody else has them.
    let alone = cluster.servers[leading].cli();
    for key in ["kept", "lost"] {
        let _ =
            alone.run(&["set", "t", key, "new", "--ack", "leader", "--timeout", "800ms"]).expect(exit::OK);
    }
    cluster.servers[leading].process().kill()?;
    for other in (0..3).filter(|other| *other != leading) {
        cluster.servers[other].start()?;
    }
    let new_leader = || leader(&cluster).is_some_and(|now| now != leading);
    eventually("another copy leads", Duration::from_secs(20), new_leader)?;
    cluster.servers[leading].start()?;
    await_whole(&cluster)?;

    assert_eq!(cli.json(&["get", "t", "kept"])["value"], "old");
    let _ = cli.run(&["get", "t", "lost"]).expect(exit::NOT_FOUND);
    let records = cli.list(&["lost", "list"]).context("the ledger is listed")?;
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!((&records[0]["writes"], &records[0]["rows"]), (&Value::from(2), &Value::from(2)));
    let (server, id) = (records[0]["server"].to_string(), records[0]["id"].to_string());
    let shown = cli.run(&["lost", "show", &server, &id]).expect(exit::OK).text();
    assert!(shown.contains("kept") && shown.contains("lost"), "{shown}");
    Ok(())
}

#[test]
fn leadership_goes_over_without_an_election() -> Result<()> {
    let mut cluster = start()?;
    let cli = cluster.cli();
    let _ = await_leader(&cluster)?;
    let servers = cli.list(&["server", "list"]).context("servers are listed")?;
    let tablet = cli.list(&["tablet", "list"]).context("tablets are listed")?[0]["id"].to_string();
    for server in &servers {
        let (id, address) = (server["id"].to_string(), &server["address"]);
        if *address == cluster.servers[await_leader(&cluster)?].address.as_str() {
            continue;
        }
        let _ = cli.run(&["tablet", "transfer-leader", &tablet, "--to", &id]).expect(exit::OK);
        let leading = await_leader(&cluster)?;
        assert_eq!(*address, cluster.servers[leading].address.as_str());
        let _ = cli.run(&["set", "t", "k", &id, "--ack", "copies=2"]).expect(exit::OK);
    }
    // A server that stops cleanly hands over first.
    let leading = await_leader(&cluster)?;
    let since = Instant::now();
    cluster.servers[leading].process().signal(Signal::Term)?;
    let _ = cli.run(&["set", "t", "k", "after", "--ack", "copies=2"]).expect(exit::OK);
    assert!(since.elapsed() < Duration::from_secs(3), "took {:?}", since.elapsed());
    cluster.servers[leading].process().wait(Duration::from_secs(20))?;
    assert_ne!(await_leader(&cluster)?, leading);
    assert_eq!(cli.json(&["get", "t", "k"])["value"], "after");
    Ok(())
}

#[test]
fn copies_are_read_within_a_bound_and_by_session() -> Result<()> {
    let cluster = start()?;
    let cli = cluster.cli();
    for round in 0..5 {
        let value = round.to_string();
        let session = cli.json(&["set", "t", "k", &value, "--ack", "leader"])["session"].clone();
        let session = session.as_str().context("a write names its session")?;
        for server in &cluster.servers {
            let read = server.cli().json(&["get", "t", "k", "--session", session]);
            assert_eq!(read["value"], value.as_str());
            let read = server.cli().json(&["get", "t", "k", "--bounded", "1ms"]);
            assert_eq!(read["value"], value.as_str());
        }
    }
    let lost = cli.run(&["get", "t", "k", "--session", "1.999.1.1"]);
    let _ = lost.expect(exit::FAILED).saying(&["no longer part of tablet"]);
    Ok(())
}
