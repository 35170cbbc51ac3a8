//! Backups of an earlier time, and backups that the cluster makes by itself.

use anyhow::{Result, ensure};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::{Dev, eventually};
use serde_json::Value as Json;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long something may take that the cluster does by itself, a slow machine included.
const SOON: Duration = Duration::from_secs(120);

fn fill(cli: &Cli, table: &str, rows: u32) {
    let lines: String = (0..rows).map(|row| format!("{row:05}\tvalue {row}\n")).collect();
    let load = ["load", table, "-", "--format", "tsv"];
    let _ = cli.run_with_input(&load, lines.as_bytes()).expect(exit::OK);
}

fn create_table(cli: &Cli, name: &str) {
    let _ = cli.run(&["table", "create", name, "--replicas", "1"]).expect(exit::OK);
}

fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

/// The present, as a timestamp of a version.
fn now() -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    Ok((now << 16).to_string())
}

fn id_of(made: &Json) -> String {
    made["id"].as_str().unwrap_or_default().to_owned()
}

fn create<'a>(to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["backup", "create", "--to", to, "--wait"], more].concat()
}

#[test]
fn a_backup_of_an_earlier_time_holds_what_was_there_then() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let to = url(dir.path());
    let cluster = Dev::start(&["--servers", "1"])?;
    let cli = cluster.node.cli();
    create_table(&cli, "old");
    fill(&cli, "old", 100);
    sleep(Duration::from_secs(1));
    let then = now()?;
    sleep(Duration::from_secs(1));
    fill(&cli, "old", 200);
    create_table(&cli, "young");
    fill(&cli, "young", 10);
    let made = cli.json(&create(&to, &["--at", &then]));
    ensure!(made["tables"] == 1 && made["rows"] == 100, "{made}");
    let named = cli.run(&create(&to, &["--at", &then, "--table", "young"]));
    let _ = named.expect(exit::USAGE).saying(&["young came into being", "--at"]);
    let ago = cli.json(&create(&to, &["--at", "-1ms", "--table", "young"]));
    ensure!(ago["rows"] == 10, "{ago}");

    // What a dropped table held is gone: a backup of all of them would lack it.
    create_table(&cli, "dropped");
    let between = now()?;
    sleep(Duration::from_secs(1));
    let _ = cli.run(&["table", "drop", "dropped", "--yes"]).expect(exit::OK);
    let all = cli.run(&create(&to, &["--at", &between]));
    let _ = all.expect(exit::USAGE).saying(&["a table was dropped", "--table"]);
    let one = cli.json(&create(&to, &["--at", &between, "--table", "old"]));
    ensure!(one["rows"] == 200, "{one}");

    // Older than the table; and names that a script has left empty.
    let aged = cli.run(&create(&to, &["--at", "-5m", "--table", "old"]));
    let _ = aged.expect(exit::USAGE).saying(&["came into being"]);
    let _ = cli.run(&create(&to, &["--incremental-from", ""])).expect(exit::USAGE);
    let _ = cli.run(&["backup", "restore", "--from", &to, "--id", ""]).expect(exit::USAGE);
    Ok(())
}

#[test]
fn a_schedule_keeps_its_own_and_leaves_those_of_others_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let target = dir.path().join("target");
    fs::create_dir(&target)?;
    let to = url(&target);
    let (cluster, other) = (Dev::start(&["--servers", "1"])?, Dev::start(&["--servers", "1"])?);
    let (cli, neighbour) = (cluster.node.cli(), other.node.cli());
    for cli in [&cli, &neighbour] {
        create_table(cli, "t");
        fill(cli, "t", 50);
    }
    let create = ["backup", "create", "--to", &to, "--wait"];
    let theirs = id_of(&neighbour.json(&create));
    let added = id_of(&neighbour.json(&[&create[..], &["--incremental-from", &theirs]].concat()));
    let by_hand = id_of(&cli.json(&create));

    let set = ["backup", "schedule", "set", "--every", "1s", "--keep", "2", "--to"];
    let short = [&set[..], &[&to, "--full-every", "500ms"]].concat();
    let _ = cli.run(&short).expect(exit::USAGE).saying(&["full"]);
    let scheduled = cli.json(&[&set[..], &[&format!("{to}/"), "--full-every", "3s"]].concat());
    ensure!(scheduled["url"] == to, "one directory has one schedule: {scheduled}");
    let log = || cli.list(&["backup", "log"]).unwrap_or_default();
    eventually("the schedule has made eight", SOON, || {
        log().iter().filter(|job| job["scheduled"] == true && job["state"] == "done").count() >= 8
    })?;
    let _ = cli.run(&["backup", "schedule", "remove", "--to", &to]).expect(exit::OK);
    ensure!(cli.json(&["backup", "schedule", "list"]) == serde_json::json!([]));
    eventually("the last one is done", SOON, || log().iter().all(|job| job["state"] != "running"))?;
    let listed = cli.json(&["backup", "list", "--to", &to]);
    let ids: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(|it| it["id"].as_str()).collect();
    let others = [&theirs, &added, &by_hand];
    ensure!(others.iter().all(|id| ids.contains(&id.as_str())), "{others:?} of {listed}");
    // The newest two and what they add to; one more came after the last look.
    ensure!(ids.len() < others.len() + 7, "older ones go: {listed}");
    let _ = cli.run(&["backup", "verify", "--from", &to]).expect(exit::OK);
    Ok(())
}

#[test]
fn a_schedule_that_fails_is_an_alarm() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let target = dir.path().join("target");
    fs::create_dir(&target)?;
    let to = url(&target);
    let cluster = Dev::start(&["--servers", "1"])?;
    let cli = cluster.node.cli();
    create_table(&cli, "t");
    let set = ["backup", "schedule", "set", "--every", "1s", "--to", &to];
    let _ = cli.run(&set).expect(exit::OK);
    let schedule = || cli.json(&["status"])["backup_schedules"][0].clone();
    eventually("it makes one", SOON, || schedule()["last_id"].is_string())?;
    fs::remove_dir_all(&target)?;
    fs::write(&target, b"no directory any more")?;
    eventually("people are told", SOON, || {
        let status = cli.json(&["status"]);
        let is_told = |warning: &Json| warning.as_str().is_some_and(|text| text.contains("backup"));
        schedule()["failures"].as_u64() > Some(0)
            && status["warnings"].as_array().is_some_and(|warnings| warnings.iter().any(is_told))
    })?;
    fs::remove_file(&target)?;
    eventually("it goes on by itself", SOON, || schedule()["failures"] == 0)?;
    Ok(())
}
