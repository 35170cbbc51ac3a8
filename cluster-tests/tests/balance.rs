//! What the cluster does by itself, on real processes: it splits what grew, spreads the parts
//! over all servers, stops when it is told to, and lets a server that was away lead again.

use anyhow::{Context as _, Result, ensure};
use ebla_cluster_tests::cli::exit;
use ebla_cluster_tests::cluster::{Cluster, eventually};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Rounds that follow each other fast: an imbalance counts after 1.2 s.
const FAST: [&str; 2] = ["--balance-interval", "100ms"];

/// How long the cluster may take to become even, a slow machine included.
const EVEN_MAX: Duration = Duration::from_secs(60);

/// Puts `count` rows of a kilobyte into table `t`.
fn load(cluster: &Cluster, count: usize) -> Result<()> {
    let mut rows = String::new();
    for number in 0..count {
        writeln!(rows, "{number:05}\tvalue {number} {}", "x".repeat(1_000))?;
    }
    let path = cluster.place.path().join("rows.tsv");
    std::fs::write(&path, rows)?;
    let path = path.to_string_lossy().into_owned();
    let _ = cluster.cli().run(&["load", "t", &path, "--format", "tsv"]).expect(exit::OK);
    Ok(())
}

/// How many tablets each server leads.
fn leaders(tablets: &[Json]) -> BTreeMap<u64, usize> {
    let mut leaders = BTreeMap::new();
    for tablet in tablets {
        *leaders.entry(tablet["leader"].as_u64().unwrap_or(0)).or_default() += 1;
    }
    leaders
}

/// Whether all of `servers` lead something, and none of them much more than another: a difference
/// of less than two tablets of the mean size is left, and with small ones that is up to four.
fn is_even(tablets: &[Json], servers: usize) -> bool {
    let leaders = leaders(tablets);
    let (most, least) = (leaders.values().max(), leaders.values().min());
    !leaders.contains_key(&0) && leaders.len() == servers && most <= least.map(|least| least + 4).as_ref()
}

#[test]
fn a_table_that_grows_is_split_and_spread_by_itself() -> Result<()> {
    let cluster = Cluster::start_all_with(1, 3, &FAST, &[])?;
    let cli = cluster.cli();
    let create = ["table", "create", "t", "--replicas", "1", "--split-size", "512KiB"];
    let _ = cli.run(&create).expect(exit::OK);
    load(&cluster, 6_000)?;
    let spread = || {
        let tablets = cluster.tablets();
        tablets.len() >= 12 && is_even(&tablets, 3)
    };
    let took =
        eventually("the table is in many tablets on all servers", EVEN_MAX, spread).with_context(|| {
            format!("{:#?} {}", leaders(&cluster.tablets()), cli.json(&["balancer", "status"]))
        })?;
    println!("{} tablets were spread after {took:?}", cluster.tablets().len());
    let rows = cli.list(&["range", "t"]).context("the table can be read")?;
    ensure!(rows.len() == 6_000, "{} rows", rows.len());
    let in_order = rows.iter().enumerate().all(|(number, row)| row["key"] == format!("{number:05}"));
    ensure!(in_order, "every row once, in order");
    // Every step says why.
    let status = cli.json(&["balancer", "status"]);
    let decisions = status["decisions"].as_array().context("decisions are listed")?;
    ensure!(
        decisions.iter().any(|one| one["kind"] == "split" && one["reason"].to_string().contains("bytes"))
    );
    ensure!(decisions.iter().any(|one| one["kind"] == "move" && one["tablet"].as_u64() > Some(0)));
    let jobs = cli.list(&["job", "list"]).context("jobs are listed")?;
    ensure!(jobs.iter().all(|job| job["by"] == "cluster"), "no operator did anything");
    let id = cluster.tablets()[0]["id"].to_string();
    let why = cli.json(&["balancer", "why", &id]);
    let findings = why["findings"].as_array().context("there are findings")?;
    ensure!(findings.iter().any(|one| one.to_string().contains("is split above 524288")), "{why}");
    let _ = cli.run(&["balancer", "why", "99999"]).expect(exit::NOT_FOUND);
    Ok(())
}

#[test]
fn a_pause_holds_over_a_restart_of_the_master() -> Result<()> {
    let mut cluster = Cluster::start_all_with(1, 3, &FAST, &[])?;
    let cli = cluster.cli();
    ensure!(cli.json(&["balancer", "pause"])["paused"] == true);
    cluster.masters[0].kill_and_restart()?;
    cluster.wait_until_serving()?;
    let create = ["table", "create", "t", "--replicas", "1", "--split-size", "64KiB"];
    let _ = cli.run(&create).expect(exit::OK);
    load(&cluster, 500)?;
    let is_seen = || cluster.tablets().iter().any(|tablet| tablet["bytes"].as_u64() > Some(400_000));
    eventually("the masters know its size", EVEN_MAX, is_seen)?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(cluster.tablets().len() == 1, "a paused balancer splits nothing");
    let planned = cli.json(&["balancer", "status", "--dry-run"])["planned"].clone();
    ensure!(planned[0]["kind"] == "split" && planned[0]["outcome"].is_null(), "{planned}");
    ensure!(cluster.tablets().len() == 1 && cli.json(&["balancer", "status"])["planned"].is_null());
    let status = cli.json(&["status"]);
    ensure!(status["warnings"].to_string().contains("balancer is paused"), "{status}");
    let id = cluster.tablets()[0]["id"].to_string();
    ensure!(cli.json(&["balancer", "why", &id])["findings"][0].to_string().contains("paused"));
    ensure!(cli.json(&["balancer", "resume"])["paused"] == false);
    eventually("it is split", EVEN_MAX, || cluster.tablets().len() > 4)?;
    Ok(())
}

#[test]
fn leaders_come_back_to_a_server_that_was_away() -> Result<()> {
    let mut cluster = Cluster::start_all_with(1, 3, &FAST, &[])?;
    let cli = cluster.cli();
    let keys = ["b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let splits = keys.iter().flat_map(|key| ["--split-at", key]);
    let create: Vec<&str> = ["table", "create", "t", "--replicas", "3"].into_iter().chain(splits).collect();
    let _ = cli.run(&create).expect(exit::OK);
    eventually("all lead", EVEN_MAX, || is_even(&cluster.tablets(), 3))?;
    cluster.servers[2].process().kill()?;
    let others_lead = || {
        let leaders = leaders(&cluster.tablets());
        leaders.len() == 2 && !leaders.contains_key(&0)
    };
    eventually("the others lead", EVEN_MAX, others_lead)?;
    cluster.servers[2].start()?;
    let took = eventually("it leads its share again", EVEN_MAX, || is_even(&cluster.tablets(), 3))
        .with_context(|| {
            format!("{:#?} {}", leaders(&cluster.tablets()), cli.json(&["balancer", "status"]))
        })?;
    println!("leaders were even again after {took:?}");
    let decisions = cli.json(&["balancer", "status"])["decisions"].to_string();
    ensure!(decisions.contains("hand leadership over"), "{decisions}");
    Ok(())
}
