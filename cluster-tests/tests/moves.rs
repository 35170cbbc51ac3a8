//! Copies that come and go on real processes: a wiped server gets its copies back, a late copy
//! is built anew, and a copy moves under load without a client noticing.

use anyhow::{Context as _, Result, ensure};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::{Cluster, eventually};
use serde_json::Value as Json;
use std::fmt::Write as _;
use std::time::Duration;

/// How long a copy may take until it is built and in sync, a slow machine included.
const REPAIR_MAX: Duration = Duration::from_secs(60);

/// Puts `count` rows into table `t`, whose values tell `round`.
fn load(cluster: &Cluster, count: usize, round: usize) -> Result<()> {
    let mut rows = String::new();
    for number in 0..count {
        writeln!(rows, "{number:05}\t{}", value(number, round))?;
    }
    let path = cluster.place.path().join(format!("rows-{round}.tsv"));
    std::fs::write(&path, rows)?;
    let path = path.to_string_lossy().into_owned();
    let _ = cluster.cli().run(&["load", "t", &path, "--format", "tsv"]).expect(exit::OK);
    Ok(())
}

fn value(number: usize, round: usize) -> String {
    format!("value {number} of round {round} {}", "x".repeat(100))
}

/// Every row of table `t`, as the CLI prints it.
fn rows(cli: &Cli) -> Result<Vec<(String, String)>> {
    let listed = cli.list(&["range", "t"]).context("the table can be read")?;
    let text = |row: &Json, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    Ok(listed.iter().map(|row| (text(row, "key"), text(row, "value"))).collect())
}

fn wanted(count: usize, round: usize) -> Vec<(String, String)> {
    (0..count).map(|number| (format!("{number:05}"), value(number, round))).collect()
}

fn tablets(cli: &Cli) -> Vec<Json> {
    cli.list(&["tablet", "list"]).unwrap_or_default()
}

/// Ids of servers in a field of a tablet.
fn servers(tablet: &Json, field: &str) -> Vec<u64> {
    tablet[field].as_array().map(|ids| ids.iter().filter_map(Json::as_u64).collect()).unwrap_or_default()
}

/// Waits until every tablet is led and has exactly `copies` copies, all in sync, none on `without`.
fn wait_until_whole(cluster: &Cluster, copies: usize, without: &[u64]) -> Result<Duration> {
    let cli = cluster.cli();
    let is_whole = |tablet: &Json| {
        let (replicas, in_sync) = (servers(tablet, "replicas"), servers(tablet, "in_sync"));
        tablet["leader"].as_u64() > Some(0)
            && (replicas.len(), in_sync.len()) == (copies, copies)
            && without.iter().all(|server| !replicas.contains(server))
    };
    let whole = || {
        let tablets = tablets(&cli);
        !tablets.is_empty() && tablets.iter().all(is_whole)
    };
    eventually("every tablet has all its copies in sync", REPAIR_MAX, whole)
        .with_context(|| format!("{:#?}", tablets(&cli)))
}

/// Lets the copies on `server` lead every tablet.
fn let_lead(cluster: &Cluster, server: u64) {
    let (cli, server) = (cluster.cli(), server.to_string());
    for tablet in tablets(&cli) {
        if tablet["leader"].to_string() != server {
            let id = tablet["id"].to_string();
            let _ = cli.run(&["tablet", "transfer-leader", &id, "--to", &server]).expect(exit::OK);
        }
    }
}

/// The id of the server that is up at the address of the `at`th one.
fn id_of(cluster: &Cluster, at: usize) -> Result<u64> {
    let servers = cluster.cli().list(&["server", "list"]).context("the servers are listed")?;
    let address = cluster.servers[at].address.as_str();
    // A server that was wiped is listed beside the one that has its address now.
    let found = servers.iter().rfind(|server| server["address"] == address && server["state"] == "up");
    found.and_then(|server| server["id"].as_u64()).context("it is up")
}

fn create_table(cluster: &Cluster, replicas: &str) {
    let splits = ["--split-at", "00300", "--split-at", "00600"];
    let create = [&["table", "create", "t", "--replicas", replicas], &splits[..]].concat();
    let _ = cluster.cli().run(&create).expect(exit::OK);
}

#[test]
fn a_wiped_server_gets_its_copies_back() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    create_table(&cluster, "3");
    load(&cluster, 1_000, 0)?;
    load(&cluster, 1_000, 1)?;
    let _ = cluster.cli().run(&["delete-range", "t", "00100", "00200", "--yes"]).expect(exit::OK);
    let before = id_of(&cluster, 2)?;
    cluster.servers[2].process().kill()?;
    std::fs::remove_dir_all(&cluster.servers[2].data_dir)?;
    cluster.servers[2].start()?;
    cluster.wait_until_serving()?;
    let took = wait_until_whole(&cluster, 3, &[before])?;
    println!("a wiped server had its copies back after {took:?}");
    let after = id_of(&cluster, 2)?;
    ensure!(after != before, "a wiped server is another one");
    let_lead(&cluster, after);
    let mut wanted = wanted(1_000, 1);
    wanted.drain(100..200);
    ensure!(rows(&cluster.cli())? == wanted, "the copy that was built has other rows");
    // It goes on like any other, over a restart as well.
    load(&cluster, 1_000, 2)?;
    cluster.servers[2].kill_and_restart()?;
    cluster.wait_until_serving()?;
    wait_until_whole(&cluster, 3, &[before])?;
    let_lead(&cluster, after);
    ensure!(rows(&cluster.cli())? == self::wanted(1_000, 2), "rows were lost over a restart");
    Ok(())
}
