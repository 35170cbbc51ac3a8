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

/// Ids of all servers that are up, in the order of `cluster.servers`.
fn ids(cluster: &Cluster) -> Result<Vec<u64>> {
    (0..cluster.servers.len()).map(|at| id_of(cluster, at)).collect()
}

fn first_tablet(cli: &Cli) -> Result<Json> {
    tablets(cli).into_iter().next().context("there is a tablet")
}

#[test]
fn a_copy_moves_and_its_rows_go_with_it() -> Result<()> {
    let mut cluster = Cluster::start(1, 4)?;
    let cli = cluster.cli();
    create_table(&cluster, "3");
    load(&cluster, 1_000, 0)?;
    wait_until_whole(&cluster, 3, &[])?;
    let tablet = first_tablet(&cli)?;
    let id = tablet["id"].to_string();
    let holds = servers(&tablet, "replicas");
    let free = ids(&cluster)?.into_iter().find(|server| !holds.contains(server)).context("one is free")?;
    let leader = tablet["leader"].as_u64().context("it is led")?;
    // Away from the server that leads: leadership goes first.
    let moved = cli.json(&[
        "tablet",
        "move",
        &id,
        "--from",
        &leader.to_string(),
        "--to",
        &free.to_string(),
        "--timeout",
        "60s",
    ]);
    ensure!(moved["tablet"].to_string() == id && moved["job"].as_u64() > Some(0), "{moved}");
    let described = cli.json(&["tablet", "describe", &id]);
    let replicas = servers(&described, "replicas");
    ensure!(replicas.contains(&free) && !replicas.contains(&leader) && replicas.len() == 3, "{described}");
    let job = cli.json(&["job", "show", &moved["job"].to_string()]);
    ensure!(
        (&job["kind"], &job["state"], &job["by"])
            == (&Json::from("move"), &Json::from("done"), &Json::from("operator")),
        "{job}"
    );
    ensure!(rows(&cli)? == wanted(1_000, 0), "rows were lost by the move");
    // And back, onto a server that has held it before.
    let _ = cli
        .run(&[
            "tablet",
            "move",
            &id,
            "--from",
            &free.to_string(),
            "--to",
            &leader.to_string(),
            "--timeout",
            "60s",
        ])
        .expect(exit::OK);
    ensure!(rows(&cli)? == wanted(1_000, 0), "rows were lost by the move back");
    cluster.kill_all()?;
    cluster.start_all()?;
    wait_until_whole(&cluster, 3, &[])?;
    ensure!(rows(&cluster.cli())? == wanted(1_000, 0), "rows were lost by a power cut after the moves");
    Ok(())
}

#[test]
fn moves_that_make_no_sense_are_refused_with_the_reason() -> Result<()> {
    let cluster = Cluster::start(1, 4)?;
    let cli = cluster.cli();
    create_table(&cluster, "3");
    wait_until_whole(&cluster, 3, &[])?;
    let tablet = first_tablet(&cli)?;
    let id = tablet["id"].to_string();
    let holds = servers(&tablet, "replicas");
    let free = ids(&cluster)?.into_iter().find(|server| !holds.contains(server)).context("one is free")?;
    let (free, one, other) = (free.to_string(), holds[0].to_string(), holds[1].to_string());
    let refused = |args: &[&str], code: i32, says: &str| {
        let output = cli.run(args);
        ensure!(output.code == code && output.stderr.contains(says), "{args:?} gave {output}");
        Ok(())
    };
    let go = |from: &str, to: &str| {
        vec![
            "tablet".to_owned(),
            "move".into(),
            id.clone(),
            "--from".into(),
            from.into(),
            "--to".into(),
            to.into(),
        ]
    };
    let strs = |args: &[String]| {
        args.iter().map(String::as_str).collect::<Vec<_>>().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    for (args, code, says) in [
        (go(&one, &other), exit::FAILED, "has a copy"),
        (go(&free, &free), exit::FAILED, "has no copy"),
        (go(&one, "99"), exit::NOT_FOUND, "no server 99"),
    ] {
        let args = strs(&args);
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), code, says)?;
    }
    refused(&["tablet", "move", "999", "--from", &one, "--to", &free], exit::NOT_FOUND, "999")?;
    let _ = cli.run(&["server", "drain", &free]).expect(exit::OK);
    refused(&["tablet", "move", &id, "--from", &one, "--to", &free], exit::FAILED, "drained")?;
    refused(&["server", "forget", &one], exit::FAILED, "connected")?;
    // Three servers stay for three copies; then no other may go.
    let _ = cli.run(&["server", "decommission", &free, "--timeout", "60s"]).expect(exit::OK);
    refused(&["server", "decommission", &one], exit::FAILED, "too few servers")?;
    Ok(())
}

#[test]
fn a_server_is_drained_emptied_and_forgotten() -> Result<()> {
    let mut cluster = Cluster::start(1, 4)?;
    let cli = cluster.cli();
    create_table(&cluster, "3");
    load(&cluster, 1_000, 0)?;
    wait_until_whole(&cluster, 3, &[])?;
    let leader = first_tablet(&cli)?["leader"].as_u64().context("it is led")?;
    let name = leader.to_string();
    let at = ids(&cluster)?.iter().position(|id| *id == leader).context("it is one of ours")?;
    let drained = cli.json(&["server", "drain", &name, "--timeout", "30s"]);
    ensure!(
        drained["leaders"] == 0 && drained["duty"] == "drained" && drained["tablets"].as_u64() > Some(0),
        "{drained}"
    );
    let emptied = cli.json(&["server", "decommission", &name, "--timeout", "60s"]);
    ensure!(emptied["tablets"] == 0 && emptied["duty"] == "leaves", "{emptied}");
    wait_until_whole(&cluster, 3, &[leader])?;
    ensure!(rows(&cli)? == wanted(1_000, 0), "rows were lost");
    cluster.servers[at].process().kill()?;
    let forgotten = || cli.run(&["server", "forget", &name]).code == exit::OK;
    eventually("the server is forgotten", REPAIR_MAX, forgotten)?;
    let listed = cli.list(&["server", "list"]).context("the servers are listed")?;
    ensure!(listed.len() == 3, "{listed:?}");
    Ok(())
}

#[test]
fn a_server_that_stays_away_is_replaced() -> Result<()> {
    let mut cluster = Cluster::start_all_with(1, 4, &["--replace-after", "3s"], &[])?;
    create_table(&cluster, "3");
    load(&cluster, 1_000, 0)?;
    wait_until_whole(&cluster, 3, &[])?;
    let away = id_of(&cluster, 0)?;
    cluster.servers[0].process().kill()?;
    wait_until_whole(&cluster, 3, &[away])?;
    ensure!(rows(&cluster.cli())? == wanted(1_000, 0), "rows were lost");
    let jobs = cluster.cli().list(&["job", "list"]).context("jobs are listed")?;
    ensure!(jobs.iter().any(|job| job["kind"] == "move" && job["by"] == "cluster"), "{jobs:?}");
    // It comes back, and what it had is cleared: it holds nothing any more.
    cluster.servers[0].start()?;
    cluster.wait_until_serving()?;
    wait_until_whole(&cluster, 3, &[])?;
    ensure!(rows(&cluster.cli())? == wanted(1_000, 0), "rows were lost when it came back");
    Ok(())
}
