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

/// An hour becomes 15 s: neighbours are merged when they have been idle for 720 rounds.
const HOURS_PASS: [&str; 2] = ["--balance-interval", "20ms"];

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

/// What keeps the first tablet and the next one apart.
fn kept_apart_by(cluster: &Cluster) -> String {
    let tablets = cluster.tablets();
    let why = |tablet: &Json| cluster.cli().json(&["balancer", "why", &tablet["id"].to_string()]);
    tablets.first().map(|first| why(first)["findings"].to_string()).unwrap_or_default()
}

#[test]
fn idle_neighbours_are_merged_but_not_over_what_a_person_drew() -> Result<()> {
    let cluster = Cluster::start_all_with(1, 1, &HOURS_PASS, &[])?;
    let cli = cluster.cli();
    let create = ["table", "create", "t", "--split-size", "512KiB", "--split-at", "00750"];
    let _ = cli.run(&create).expect(exit::OK);
    load(&cluster, 1_500)?;
    eventually("both halves are split for their size", EVEN_MAX, || cluster.tablets().len() >= 4)?;
    // Now all of them are small, and nobody asks for anything.
    let _ = cli.run(&["table", "set", "t", "--split-size", "1GiB"]).expect(exit::OK);
    let calm = |cluster: &Cluster| kept_apart_by(cluster).contains("small and idle for");
    eventually("the first two wait for their hour", EVEN_MAX, || calm(&cluster))?;
    let in_two = || cluster.tablets().len() == 2;
    let took = eventually("what the cluster cut is one again", EVEN_MAX, in_two)
        .with_context(|| cli.json(&["balancer", "status"]).to_string())?;
    ensure!(took > Duration::from_secs(5), "it waits for its hour, not for {took:?}");
    let merges = |by: &str| {
        let jobs = cli.list(&["job", "list"]).unwrap_or_default();
        jobs.iter().filter(|job| job["kind"] == "merge" && job["by"] == by).count()
    };
    ensure!(merges("cluster") >= 2 && merges("operator") == 0, "{:?}", cli.list(&["job", "list"]));
    // Two of its hours later the boundary of the table's maker still stands, and says why.
    std::thread::sleep(Duration::from_secs(32));
    let bounds: Vec<Json> = cluster.tablets().iter().map(|tablet| tablet["start"].clone()).collect();
    ensure!(bounds == ["", "00750"], "{bounds:?}");
    let why = kept_apart_by(&cluster);
    ensure!(why.contains("a person drew the boundary") && why.contains("--auto-merge all"), "{why}");
    let _ = cli.run(&["table", "set", "t", "--auto-merge", "all"]).expect(exit::OK);
    eventually("every boundary goes", EVEN_MAX, || cluster.tablets().len() == 1)?;
    let rows = cli.list(&["range", "t", "--keys-only"]).context("the table can be read")?;
    ensure!(rows.len() == 1_500, "{} rows", rows.len());
    Ok(())
}
