//! Copies that do not lead: what may be read from them, and what becomes of their leader when
//! it stops.

use anyhow::{Context as _, Result};
use ebla_cluster_tests::cli::exit;
use ebla_cluster_tests::cluster::{Cluster, eventually};
use ebla_cluster_tests::process::Signal;
use std::time::{Duration, Instant};

/// How long a write may be held up by a leader that stops cleanly, on a busy machine. An
/// election after a silence takes longer than the second of a lease.
const HAND_OVER_MAX: Duration = Duration::from_millis(900);

fn start() -> Result<Cluster> {
    let cluster = Cluster::start(1, 3)?;
    let create = ["table", "create", "t", "--replicas", "3", "--min-in-sync", "2"];
    let _ = cluster.cli().run(&create).expect(exit::OK);
    Ok(cluster)
}

/// Which of the cluster's servers leads the table's tablet.
fn leader(cluster: &Cluster) -> Option<usize> {
    let cli = cluster.cli();
    let leading = cli.list(&["tablet", "list"])?.first()?["leader"].as_u64()?;
    let servers = cli.list(&["server", "list"])?;
    let found = servers.iter().find(|server| server["id"].as_u64() == Some(leading))?;
    let address = found["address"].as_str()?;
    cluster.servers.iter().position(|server| server.address == address)
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
            for how in [["--session", session], ["--bounded", "1ms"]] {
                let read = server.cli().json(&[&["get", "t", "k"], &how[..]].concat());
                assert_eq!(read["value"], value.as_str(), "{how:?} at {}", server.address);
            }
        }
    }
    let lost = cli.run(&["get", "t", "k", "--session", "1.999.1.1"]);
    let _ = lost.expect(exit::FAILED).saying(&["no longer part of tablet"]);
    Ok(())
}

#[test]
fn a_server_that_stops_hands_over_first() -> Result<()> {
    let mut cluster = start()?;
    let cli = cluster.cli();
    let _ = cli.run(&["set", "t", "k", "before", "--ack", "in-sync"]).expect(exit::OK);
    let leading = leader(&cluster).context("a server leads")?;
    let since = Instant::now();
    cluster.servers[leading].process().signal(Signal::Term)?;
    eventually("another server leads", Duration::from_secs(10), || {
        leader(&cluster).is_some_and(|now| now != leading)
    })?;
    let _ = cli.run(&["set", "t", "k", "after", "--ack", "copies=2"]).expect(exit::OK);
    let took = since.elapsed();
    assert!(took <= HAND_OVER_MAX, "the hand-over took {took:?}");
    assert!(cluster.servers[leading].process().wait(Duration::from_secs(20))?.success());
    assert_eq!(cli.json(&["get", "t", "k"])["value"], "after");
    Ok(())
}
