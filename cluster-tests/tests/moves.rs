//! Copies that come and go on real processes: a wiped server gets its copies back, a late copy
//! is built anew, and a copy moves under load without a client noticing.

use anyhow::{Context as _, Result, ensure};
use ebla_client::{Client, Outcome};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::{Cluster, eventually};
use ebla_cluster_tests::observe::servers_in;
use ebla_cluster_tests::process::Signal;
use serde_json::Value as Json;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    let before = cluster.id_of(2)?;
    cluster.servers[2].process().kill()?;
    std::fs::remove_dir_all(&cluster.servers[2].data_dir)?;
    cluster.servers[2].start()?;
    cluster.wait_until_serving()?;
    let took = cluster.wait_until_whole(3, &[before])?;
    println!("a wiped server had its copies back after {took:?}");
    let after = cluster.id_of(2)?;
    ensure!(after != before, "a wiped server is another one");
    cluster.let_lead(after);
    let mut wanted = wanted(1_000, 1);
    wanted.drain(100..200);
    ensure!(rows(&cluster.cli())? == wanted, "the copy that was built has other rows");
    // It goes on like any other, over a restart as well.
    load(&cluster, 1_000, 2)?;
    cluster.servers[2].kill_and_restart()?;
    cluster.wait_until_serving()?;
    cluster.wait_until_whole(3, &[before])?;
    cluster.let_lead(after);
    ensure!(rows(&cluster.cli())? == self::wanted(1_000, 2), "rows were lost over a restart");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_has_just_come_serves_after_a_restart() -> Result<()> {
    let mut cluster = Cluster::start(1, 2)?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "t", "--replicas", "1"]).expect(exit::OK);
    let client = cluster.connect(REPAIR_MAX).await?;
    let before = client.add("t", "n", 1).await?.committed()?;
    ensure!(before.counters == [Some(1)], "{before:?}");
    let tablet = cluster.first_tablet()?;
    let (id, from) = (tablet["id"].to_string(), tablet["leader"].as_u64().context("it is led")?);
    let at = (0..2).find(|at| cluster.id_of(*at).is_ok_and(|id| id != from)).context("another server")?;
    let to = cluster.id_of(at)?.to_string();
    let _ = cli.run(&["tablet", "move", &id, "--from", &from.to_string(), "--to", &to]).expect(exit::OK);
    cluster.servers[at].kill_and_restart()?;
    // Its log holds none of what came before, and yet it knows that these writes are new.
    let after = client.add("t", "n", 1).await?.committed()?;
    ensure!(after.counters == [Some(2)], "{after:?}");
    Ok(())
}

#[test]
fn a_copy_moves_and_its_rows_go_with_it() -> Result<()> {
    let mut cluster = Cluster::start(1, 4)?;
    let cli = cluster.cli();
    create_table(&cluster, "3");
    load(&cluster, 1_000, 0)?;
    cluster.wait_until_whole(3, &[])?;
    let tablet = cluster.first_tablet()?;
    let id = tablet["id"].to_string();
    let holds = servers_in(&tablet, "replicas");
    let free = cluster.ids()?.into_iter().find(|server| !holds.contains(server)).context("one is free")?;
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
    ensure!(moved["tablet"] == tablet["id"] && moved["job"].as_u64() > Some(0), "{moved}");
    let described = cli.json(&["tablet", "describe", &id]);
    let replicas = servers_in(&described, "replicas");
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
    cluster.wait_until_whole(3, &[])?;
    ensure!(rows(&cluster.cli())? == wanted(1_000, 0), "rows were lost by a power cut after the moves");
    Ok(())
}

#[test]
fn moves_that_make_no_sense_are_refused_with_the_reason() -> Result<()> {
    let cluster = Cluster::start(1, 4)?;
    let cli = cluster.cli();
    create_table(&cluster, "3");
    cluster.wait_until_whole(3, &[])?;
    let tablet = cluster.first_tablet()?;
    let id = tablet["id"].to_string();
    let holds = servers_in(&tablet, "replicas");
    let free = cluster.ids()?.into_iter().find(|server| !holds.contains(server)).context("one is free")?;
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
    cluster.wait_until_whole(3, &[])?;
    let leader = cluster.first_tablet()?["leader"].as_u64().context("it is led")?;
    let name = leader.to_string();
    let at = cluster.ids()?.iter().position(|id| *id == leader).context("it is one of ours")?;
    let drained = cli.json(&["server", "drain", &name, "--timeout", "30s"]);
    ensure!(
        drained["leaders"] == 0 && drained["duty"] == "drained" && drained["tablets"].as_u64() > Some(0),
        "{drained}"
    );
    let emptied = cli.json(&["server", "decommission", &name, "--timeout", "60s"]);
    ensure!(emptied["tablets"] == 0 && emptied["duty"] == "leaves", "{emptied}");
    cluster.wait_until_whole(3, &[leader])?;
    ensure!(rows(&cli)? == wanted(1_000, 0), "rows were lost");
    cluster.servers[at].process().kill()?;
    let forgotten = || cli.run(&["server", "forget", &name]).code == exit::OK;
    eventually("the server is forgotten", REPAIR_MAX, forgotten)?;
    let listed = cli.list(&["server", "list"]).context("the servers are listed")?;
    ensure!(listed.len() == 3, "{listed:?}");
    Ok(())
}

#[test]
fn a_server_that_leads_hundreds_is_drained() -> Result<()> {
    let cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    // More than the masters tell a server at once.
    let keys: Vec<String> = (1..1_200).map(|number| format!("{number:05}")).collect();
    let splits = keys.iter().flat_map(|key| ["--split-at", key]);
    let create: Vec<&str> = ["table", "create", "t", "--replicas", "3"].into_iter().chain(splits).collect();
    let _ = cli.run(&create).expect(exit::OK);
    cluster.wait_until_whole(3, &[])?;
    for server in cluster.ids()? {
        let name = server.to_string();
        let drained = cli.json(&["server", "drain", &name, "--timeout", "60s"]);
        ensure!(drained["leaders"] == 0 && drained["tablets"] == 1_200, "{drained}");
        let _ = cli.run(&["server", "activate", &name]).expect(exit::OK);
    }
    let all: String = keys.iter().map(|key| format!("{key}\tv\n")).collect();
    let loaded = cli.run_with_input(&["load", "t", "-", "--format", "tsv"], all.as_bytes());
    let _ = loaded.expect(exit::OK);
    Ok(())
}

#[test]
fn one_of_three_servers_may_leave() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    create_table(&cluster, "2");
    load(&cluster, 1_000, 0)?;
    // The cluster's own table has a copy on each of them, and is to have fewer.
    let rooms = || cli.list(&["table", "list", "--system"]);
    eventually("the table of rooms is there", REPAIR_MAX, || rooms().is_some_and(|rooms| !rooms.is_empty()))?;
    let name = cluster.id_of(2)?.to_string();
    let emptied = cli.json(&["server", "decommission", &name, "--timeout", "60s"]);
    ensure!(emptied["tablets"] == 0 && emptied["duty"] == "leaves", "{emptied}");
    cluster.servers[2].process().kill()?;
    let forgotten = || cli.run(&["server", "forget", &name]).code == exit::OK;
    eventually("the server is forgotten", REPAIR_MAX, forgotten)?;
    ensure!(rows(&cli)? == wanted(1_000, 0), "rows were lost");
    let _ = cli.json(&["room", "publish", "still", "here"]);
    Ok(())
}

#[test]
fn a_server_that_stays_away_is_replaced() -> Result<()> {
    let mut cluster = Cluster::start_all_with(1, 4, &["--replace-after", "3s"], &[])?;
    create_table(&cluster, "3");
    load(&cluster, 1_000, 0)?;
    cluster.wait_until_whole(3, &[])?;
    let away = cluster.id_of(0)?;
    cluster.servers[0].process().kill()?;
    cluster.wait_until_whole(3, &[away])?;
    ensure!(rows(&cluster.cli())? == wanted(1_000, 0), "rows were lost");
    let jobs = cluster.cli().list(&["job", "list"]).context("jobs are listed")?;
    ensure!(jobs.iter().any(|job| job["kind"] == "move" && job["by"] == "cluster"), "{jobs:?}");
    // It comes back, and what it had is cleared: it holds nothing any more.
    cluster.servers[0].start()?;
    cluster.wait_until_serving()?;
    cluster.wait_until_whole(3, &[])?;
    ensure!(rows(&cluster.cli())? == wanted(1_000, 0), "rows were lost when it came back");
    Ok(())
}

/// Bytes of the data files of a server.
fn data_bytes(cluster: &Cluster, at: usize) -> u64 {
    let files = std::fs::read_dir(cluster.servers[at].data_dir.join("data")).into_iter().flatten().flatten();
    let data = files.filter(|file| file.path().extension().is_some_and(|end| end == "sst"));
    data.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

/// Rows that do not compress, about a KiB each.
fn load_noise(cluster: &Cluster, count: u64) -> Result<Vec<(String, String)>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 11
    };
    let wanted: Vec<(String, String)> = (0..count)
        .map(|number| {
            let value = (0..64).fold(String::new(), |text, _| text + &format!("{:013x}", noise()));
            (format!("{number:05}"), value)
        })
        .collect();
    let mut text = String::new();
    for (key, value) in &wanted {
        writeln!(text, "{key}\t{value}")?;
    }
    let path = cluster.place.path().join("noise.tsv");
    std::fs::write(&path, text)?;
    let _ = cluster.cli().run(&["load", "t", &path.to_string_lossy(), "--format", "tsv"]).expect(exit::OK);
    Ok(wanted)
}

#[test]
fn a_copy_whose_log_was_purged_is_built_anew() -> Result<()> {
    let mut cluster = Cluster::start_with(1, 3, &["--log-max", "64KiB", "--flush-interval", "1s"])?;
    create_table(&cluster, "3");
    load(&cluster, 1_000, 0)?;
    cluster.wait_until_whole(3, &[])?;
    // The third copy, too, must have what the others purge at once, with a log as short as this.
    std::thread::sleep(Duration::from_secs(1));
    let away = cluster.id_of(1)?;
    cluster.servers[1].process().kill()?;
    for round in 1..4 {
        load(&cluster, 1_000, round)?;
        std::thread::sleep(Duration::from_millis(2_500));
    }
    cluster.servers[1].start()?;
    cluster.wait_until_serving()?;
    let cli = cluster.cli();
    let built_anew = || {
        let jobs = cli.list(&["job", "list"]).unwrap_or_default();
        jobs.iter().any(|job| job["by"] == "cluster" && job["to"] == away && job["state"] == "done")
    };
    eventually("a copy is built anew where it was", REPAIR_MAX, built_anew)
        .with_context(|| format!("{:#?}", cli.list(&["job", "list"])))?;
    cluster.wait_until_whole(3, &[])?;
    cluster.let_lead(away);
    ensure!(rows(&cli)? == wanted(1_000, 3), "the copy that was built has other rows");
    Ok(())
}

#[test]
fn the_space_of_a_copy_that_left_comes_back() -> Result<()> {
    let cluster = Cluster::start_with(1, 2, &["--flush-interval", "1s"])?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "t", "--replicas", "1"]).expect(exit::OK);
    let wanted = load_noise(&cluster, 10_000)?;
    let tablet = cluster.first_tablet()?;
    let (id, from) = (tablet["id"].to_string(), servers_in(&tablet, "replicas")[0]);
    let all = cluster.ids()?;
    let at = all.iter().position(|id| *id == from).context("it is one of ours")?;
    let to = all[1 - at].to_string();
    eventually("the rows are in files", REPAIR_MAX, || data_bytes(&cluster, at) > 4 << 20)?;
    // The only copy goes: leadership is handed over on the way.
    let _ = cli
        .run(&["tablet", "move", &id, "--from", &from.to_string(), "--to", &to, "--timeout", "60s"])
        .expect(exit::OK);
    eventually("the space is back", REPAIR_MAX, || data_bytes(&cluster, at) < 1 << 20)
        .with_context(|| format!("{} bytes are left", data_bytes(&cluster, at)))?;
    ensure!(rows(&cli)? == wanted, "rows were lost by the move");
    Ok(())
}

#[test]
fn a_move_survives_the_death_of_everybody() -> Result<()> {
    let mut cluster = Cluster::start_with(3, 4, &["--bootstrap-rate", "1MiB"])?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "t", "--replicas", "3"]).expect(exit::OK);
    let wanted = load_noise(&cluster, 10_000)?;
    cluster.wait_until_whole(3, &[])?;
    let tablet = cluster.first_tablet()?;
    let (id, leader) = (tablet["id"].to_string(), tablet["leader"].as_u64().context("it is led")?);
    let holds = servers_in(&tablet, "replicas");
    let all = cluster.ids()?;
    let free = all.iter().position(|id| !holds.contains(id)).context("one is free")?;
    let source = all.iter().position(|id| *id == leader).context("it is one of ours")?;
    let (from, to) = (leader.to_string(), all[free].to_string());
    let moved = cli.json(&["tablet", "move", &id, "--from", &from, "--to", &to, "--no-wait"]);
    let pause = || std::thread::sleep(Duration::from_millis(1_500));
    pause();
    cluster.servers[free].kill_and_restart()?;
    pause();
    for master in 0..3 {
        cluster.masters[master].kill_and_restart()?;
    }
    pause();
    cluster.servers[source].kill_and_restart()?;
    cluster.wait_until_serving()?;
    let waited = cli.run(&["job", "wait", &moved["job"].to_string(), "--timeout", "90s"]).expect(exit::OK);
    println!("{waited}");
    cluster.wait_until_whole(3, &[leader])?;
    ensure!(rows(&cli)? == wanted, "rows were lost");
    Ok(())
}

#[test]
fn a_move_is_cancelled_before_its_copy_is_in_sync() -> Result<()> {
    let cluster = Cluster::start_with(1, 4, &["--bootstrap-rate", "256KiB"])?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "t", "--replicas", "3"]).expect(exit::OK);
    let wanted = load_noise(&cluster, 5_000)?;
    cluster.wait_until_whole(3, &[])?;
    let tablet = cluster.first_tablet()?;
    let (id, holds) = (tablet["id"].to_string(), servers_in(&tablet, "replicas"));
    let free = cluster.ids()?.into_iter().find(|server| !holds.contains(server)).context("one is free")?;
    let (one, other, free) = (holds[0].to_string(), holds[1].to_string(), free.to_string());
    let moved = cli.json(&["tablet", "move", &id, "--from", &one, "--to", &free, "--no-wait"]);
    let second = cli.run(&["tablet", "move", &id, "--from", &other, "--to", &free]);
    ensure!(second.code == exit::FAILED && second.stderr.contains("job"), "two jobs on one tablet: {second}");
    let job = moved["job"].to_string();
    let is_told = || {
        let job = cli.json(&["job", "show", &job]);
        let told = ["bytes", "bytes_total", "eta_s"].iter().all(|name| job[*name].is_u64());
        told && job["bytes"].as_u64() <= job["bytes_total"].as_u64() && job["progress"].as_f64() > Some(0.0)
    };
    eventually("the job tells how far it is", REPAIR_MAX, is_told)?;
    let _ = cli.run(&["job", "cancel", &job]).expect(exit::OK);
    cluster.wait_until_whole(3, &[free.parse()?])?;
    ensure!(servers_in(&cluster.first_tablet()?, "replicas") == holds, "the copies are as before");
    ensure!(rows(&cli)? == wanted, "rows were lost");
    Ok(())
}

/// Sets rows of its own again and again; gives how often, and what went wrong.
async fn write_on(client: Client, writer: usize, stop: Arc<AtomicBool>) -> (u64, Vec<String>) {
    let (mut done, mut failed) = (0_u64, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let key = format!("{:05}", (writer * 97 + usize::try_from(done).unwrap_or(0) % 9 * 100) % 1_000);
        let key = format!("{key}-{writer}");
        match client.add("t", key, 1).await {
            Ok(Outcome::Committed(_)) => done += 1,
            other => failed.push(format!("{other:?}")),
        }
    }
    (done, failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_notices_a_move() -> Result<()> {
    let cluster = Cluster::start(1, 4)?;
    create_table(&cluster, "3");
    cluster.wait_until_whole(3, &[])?;
    let client = cluster.connect(Duration::from_secs(10)).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..16).map(|writer| tokio::spawn(write_on(client.clone(), writer, Arc::clone(&stop)))).collect();
    tokio::task::block_in_place(|| -> Result<()> {
        let cli = cluster.cli();
        let all = cluster.ids()?;
        for turn in 0..9 {
            let listed = cluster.tablets();
            let tablet = &listed[turn % listed.len()];
            let holds = servers_in(tablet, "replicas");
            let free = all.iter().find(|id| !holds.contains(id)).context("one is free")?.to_string();
            // Every second time away from the leader.
            let leader = tablet["leader"].as_u64().unwrap_or(holds[0]);
            let from = if turn % 2 == 0 { leader } else { holds[turn % holds.len()] }.to_string();
            let id = tablet["id"].to_string();
            let _ = cli
                .run(&["tablet", "move", &id, "--from", &from, "--to", &free, "--timeout", "60s"])
                .expect(exit::OK);
        }
        Ok(())
    })?;
    stop.store(true, Ordering::Relaxed);
    let mut total = 0;
    for writer in writers {
        let (done, failed) = writer.await?;
        ensure!(failed.is_empty(), "clients noticed: {failed:?}");
        total += done;
    }
    let listed = cluster.cli().list(&["range", "t"]).context("the table can be read")?;
    let counted: i64 = listed.iter().filter_map(|row| row["value"].as_i64()).sum();
    ensure!(u64::try_from(counted)? == total, "{counted} counted, {total} acknowledged");
    println!("{total} adds over nine moves");
    Ok(())
}

/// A log that is above its limit all the time, and purged five times a second.
const SHORT_LOG: [&str; 4] = ["--log-max", "64KiB", "--flush-interval", "200ms"];

/// Sets large rows until told to stop; gives how many.
async fn write_much(client: Client, stop: Arc<AtomicBool>) -> Result<u64> {
    let value = bytes::Bytes::from(vec![b'y'; 64 << 10]);
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        client.set("t", format!("much {:02}", written % 20), value.clone()).await?.committed()?;
        written += 1;
    }
    Ok(written)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_on_its_way_finds_the_log_that_it_goes_on_with() -> Result<()> {
    let rate = ["--bootstrap-rate", "2MiB"];
    let mut cluster = Cluster::start_with(1, 2, &[&SHORT_LOG[..], &rate].concat())?;
    let cli = cluster.cli();
    let _ = cli.run(&["balancer", "pause"]).expect(exit::OK);
    let _ = cli.run(&["table", "create", "t", "--replicas", "1"]).expect(exit::OK);
    let wanted = load_noise(&cluster, 10_000)?;
    let client = cluster.connect(Duration::from_secs(20)).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write_much(client, Arc::clone(&stop)));
    let tablet = cluster.first_tablet()?;
    let (id, from) = (tablet["id"].to_string(), tablet["leader"].as_u64().context("it is led")?);
    let (source, to) = (cluster.leader_of(tablet["id"].as_u64().context("an id")?)?, 3 - from);
    let moving = ["tablet", "move", &id, "--from", &from.to_string(), "--to", &to.to_string()];
    let _ = cli.run(&[&moving[..], &["--timeout", "60s"]].concat()).expect(exit::OK);
    stop.store(true, Ordering::Relaxed);
    println!("{} large rows were written meanwhile", writer.await??);
    let sent = cluster.servers[source].process().log_text().matches("sending a copy").count();
    ensure!(sent == 1, "the copy was built {sent} times");
    let all = rows(&cli)?;
    let loaded: Vec<_> = all.into_iter().filter(|(key, _)| !key.starts_with("much")).collect();
    ensure!(loaded == wanted, "{} rows", loaded.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_there_is_not_outrun_by_a_short_log() -> Result<()> {
    let mut cluster = Cluster::start_with(1, 3, &SHORT_LOG)?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "t", "--replicas", "3"]).expect(exit::OK);
    cluster.wait_until_whole(3, &[])?;
    let client = cluster.connect(Duration::from_secs(20)).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write_much(client, Arc::clone(&stop)));
    let leader = cluster.leader_of(cluster.first_tablet()?["id"].as_u64().context("an id")?)?;
    for round in 0..6 {
        // Too short for anybody to call it silent, long enough for two purges.
        let late = (leader + 1 + round % 2) % 3;
        cluster.servers[late].process().signal(Signal::Stop)?;
        tokio::time::sleep(Duration::from_millis(400)).await;
        cluster.servers[late].process().signal(Signal::Cont)?;
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    stop.store(true, Ordering::Relaxed);
    println!("{} large rows were written", writer.await??);
    cluster.wait_until_whole(3, &[])?;
    let jobs = cli.list(&["job", "list"]).context("jobs are listed")?;
    ensure!(jobs.is_empty(), "a copy that was always there was built anew: {jobs:#?}");
    Ok(())
}
