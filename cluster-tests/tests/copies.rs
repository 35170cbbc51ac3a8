//! Three copies of every tablet on real processes: whoever dies, nothing that was acknowledged
//! by two copies is lost, somebody else leads soon, and what a failover did take is told.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use ebla_client::{AckLevel, Batch, Client, Outcome, Scan, WriteOptions};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::{Cluster, Node, eventually};
use ebla_cluster_tests::observe::id_in;
use ebla_cluster_tests::process::Signal;
use futures::TryStreamExt as _;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Rows that are written at each level; `make chaos` writes more.
const ROWS: u64 = 10_000;

/// Tasks that write, each with one row at a time.
const WRITERS: u64 = 48;

/// How long a row may be without a leader after its leader was killed, for 99 of 100.
const FAILOVER_P99: Duration = Duration::from_secs(3);

/// How long a healed cluster may take until every tablet is led and every copy is back.
const HEAL_MAX: Duration = Duration::from_secs(30);

const LEVELS: [AckLevel; 3] = [AckLevel::Leader, AckLevel::Copies(2), AckLevel::InSync];

fn rows() -> u64 {
    std::env::var("ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(ROWS)
}

fn key(level: usize, number: u64) -> String {
    // The last digits first: neighbours lie in different tablets.
    format!("{:02}-{level}-{number:08}", number % 100)
}

fn create_table(cli: &Cli) {
    let splits = ["--split-at", "20-", "--split-at", "40-", "--split-at", "60-", "--split-at", "80-"];
    let created = cli.run(&[&["table", "create", "t", "--replicas", "3"], &splits[..]].concat());
    let _ = created.expect(exit::OK);
}

/// What writers have had acknowledged, by level.
#[derive(Default)]
struct Acknowledged {
    rows: [std::sync::Mutex<Vec<u64>>; 3],
}

impl Acknowledged {
    fn note(&self, level: usize, number: u64) {
        self.rows[level].lock().expect("no holder panics").push(number);
    }

    fn of(&self, level: usize) -> Vec<u64> {
        self.rows[level].lock().expect("no holder panics").clone()
    }
}

/// Writes rows at every level until all are acknowledged or it is told to stop; a row whose
/// fate is unknown is written again.
async fn write_rows(client: Client, done: Arc<Acknowledged>, next: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let turn = next.fetch_add(1, Ordering::Relaxed);
        let (level, number) = ((turn % 3) as usize, turn / 3);
        if number >= rows() {
            return;
        }
        let options = WriteOptions { ack: Some(LEVELS[level]) };
        while !stop.load(Ordering::Relaxed) {
            let key = key(level, number);
            let batch = Batch::new().set(key.clone(), format!("value of {key}"));
            if let Ok(Outcome::Committed(_)) = client.write("t", batch, options).await {
                done.note(level, number);
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Every row of the table and its value.
async fn all_rows(client: &Client) -> Result<BTreeMap<Bytes, Bytes>> {
    let mut scan = client.scan("t", Scan::all())?;
    let mut found = BTreeMap::new();
    while let Some(row) = scan.try_next().await? {
        ensure!(found.insert(row.key, row.value.into_bytes()).is_none(), "a row comes twice");
    }
    Ok(found)
}

/// Rows that were acknowledged at a level and are not there.
fn missing(found: &BTreeMap<Bytes, Bytes>, level: usize, acknowledged: &[u64]) -> Vec<String> {
    let keys = acknowledged.iter().map(|number| key(level, *number));
    let is_right = |key: &String| {
        found.get(key.as_bytes()).is_some_and(|value| value[..] == *format!("value of {key}").as_bytes())
    };
    keys.filter(|key| !is_right(key)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_dies_in_turn() -> Result<()> {
    let mut cluster = Cluster::start(3, 3)?;
    create_table(&cluster.cli());
    let client = cluster.connect(Duration::from_secs(5)).await?;
    let (done, next, stop) = (Arc::new(Acknowledged::default()), Arc::default(), Arc::default());
    let writer =
        |_| tokio::spawn(write_rows(client.clone(), Arc::clone(&done), Arc::clone(&next), Arc::clone(&stop)));
    let writers: Vec<_> = (0..WRITERS).map(writer).collect();
    for node in 0..6 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.nodes().nth(node).expect("there are six").process().kill()?;
        tokio::time::sleep(Duration::from_millis(3_000)).await;
        cluster.nodes().nth(node).expect("there are six").start()?;
        cluster.wait_until_serving()?;
        tokio::task::block_in_place(|| cluster.wait_until_whole(3, &[]))?;
    }
    let finished = tokio::time::timeout(Duration::from_secs(120), join_all(writers)).await;
    stop.store(true, Ordering::Relaxed);
    finished.context("not every row was written in two minutes")?;
    let found = all_rows(&client).await?;
    for (level, name) in LEVELS.iter().enumerate().skip(1) {
        let acknowledged = done.of(level);
        assert_eq!(acknowledged.len() as u64, rows(), "every row is written in the end");
        let missing = missing(&found, level, &acknowledged);
        assert!(missing.is_empty(), "{} rows at {} are lost: {missing:?}", missing.len(), name);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_of_everything_loses_no_acknowledged_row() -> Result<()> {
    let mut cluster = Cluster::start(3, 3)?;
    create_table(&cluster.cli());
    let client = cluster.connect(Duration::from_secs(5)).await?;
    let (done, next, stop) = (Arc::new(Acknowledged::default()), Arc::default(), Arc::default());
    let writer =
        |_| tokio::spawn(write_rows(client.clone(), Arc::clone(&done), Arc::clone(&next), Arc::clone(&stop)));
    let writers: Vec<_> = (0..WRITERS).map(writer).collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.kill_all()?;
    stop.store(true, Ordering::Relaxed);
    join_all(writers).await;
    cluster.start_all()?;
    tokio::task::block_in_place(|| cluster.wait_until_whole(3, &[]))?;
    let client = cluster.connect(Duration::from_secs(10)).await?;
    let found = all_rows(&client).await?;
    for (level, name) in LEVELS.iter().enumerate() {
        let acknowledged = done.of(level);
        assert!(!acknowledged.is_empty(), "nothing was written at {name}");
        let missing = missing(&found, level, &acknowledged);
        assert!(missing.is_empty(), "{} rows at {name} are lost: {missing:?}", missing.len());
    }
    Ok(())
}

/// Sets a row again and again and notes the longest time between two successes.
async fn longest_gap(client: Client, key: String, stop: Arc<AtomicBool>) -> Duration {
    let mut last = Instant::now();
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        if let Ok(Outcome::Committed(_)) = client.set("t", key.clone(), "again").await {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_else_leads_soon() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    create_table(&cluster.cli());
    let mut gaps = Vec::new();
    for round in 0..6 {
        let client = cluster.connect(Duration::from_secs(10)).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let keys = (0..20).map(|part| format!("{:02}-probe", part * 5));
        let probe = |key| tokio::spawn(longest_gap(client.clone(), key, Arc::clone(&stop)));
        let probes: Vec<_> = keys.map(probe).collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let victim = &mut cluster.servers[round % 3];
        victim.process().kill()?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        stop.store(true, Ordering::Relaxed);
        for probe in probes {
            gaps.push(probe.await?);
        }
        cluster.servers[round % 3].start()?;
        cluster.wait_until_serving()?;
        tokio::task::block_in_place(|| cluster.wait_until_whole(3, &[]))?;
    }
    gaps.sort_unstable();
    let p99 = gaps[gaps.len() * 99 / 100 - 1];
    println!("failover: median {:?}, p99 {p99:?}, longest {:?}", gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    assert!(p99 <= FAILOVER_P99, "rows were without a leader for {gaps:?}");
    Ok(())
}

/// The leader acknowledges rows that nobody else gets, and dies: they are gone, and told of.
#[test]
fn what_a_failover_takes_is_in_the_ledger() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    let _ = cluster.cli().run(&["table", "create", "t", "--replicas", "3"]).expect(exit::OK);
    cluster.wait_until_whole(3, &[])?;
    let tablet = id_in(&cluster.first_tablet()?)?;
    let leader = cluster.leader_of(tablet)?;
    let direct = cluster.servers[leader].cli();
    let _ = direct.run(&["set", "t", "kept", "1", "--ack", "copies=2"]).expect(exit::OK);
    let followers: Vec<usize> = (0..3).filter(|server| *server != leader).collect();
    for follower in &followers {
        cluster.servers[*follower].process().kill()?;
    }
    // The promises of the dead count for a while yet.
    let lost = direct.run(&["set", "t", "lost", "1", "--timeout", "500ms"]);
    let refused = direct.run(&["set", "t", "refused", "1", "--ack", "copies=2", "--timeout", "2s"]);
    assert_ne!(refused.code, exit::OK, "{refused}");
    cluster.servers[leader].process().kill()?;
    for follower in &followers {
        cluster.servers[*follower].start()?;
    }
    let others = Cli::new(
        &followers.iter().map(|at| cluster.servers[*at].address.clone()).collect::<Vec<_>>().join(","),
    );
    let led = || others.run(&["get", "t", "kept", "--timeout", "1s"]).code == exit::OK;
    eventually("another copy leads", HEAL_MAX, led)?;
    assert_eq!(others.run(&["get", "t", "refused"]).code, exit::NOT_FOUND);
    cluster.servers[leader].start()?;
    cluster.wait_until_serving()?;
    cluster.wait_until_whole(3, &[])?;
    let cli = cluster.cli();
    assert_eq!(cli.json(&["get", "t", "kept"])["value"], "1");
    if lost.code == exit::OK {
        println!("the leader acknowledged a row alone");
        assert_eq!(cli.run(&["get", "t", "lost"]).code, exit::NOT_FOUND);
        let told = || cli.list(&["lost", "list"]).is_some_and(|records| !records.is_empty());
        eventually("the ledger tells of the lost row", Duration::from_secs(10), told)?;
        let records = cli.list(&["lost", "list"]).context("the ledger is listed")?;
        let (server, id) = (&records[0]["server"], &records[0]["id"]);
        let shown = cli.run(&["lost", "show", &server.to_string(), &id.to_string()]).expect(exit::OK);
        assert!(shown.text().contains("lost"), "{shown}");
    }
    Ok(())
}

#[test]
fn leadership_goes_where_the_operator_wants() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "t", "--replicas", "3"]).expect(exit::OK);
    cluster.wait_until_whole(3, &[])?;
    let tablet = id_in(&cluster.first_tablet()?)?.to_string();
    let _ = cli.run(&["set", "t", "a", "1"]).expect(exit::OK);
    for _ in 0..3 {
        let described = cli.json(&["tablet", "describe", &tablet]);
        let leader = described["leader"].as_u64().context("the tablet is led")?;
        let target = (1..=3).find(|server| *server != leader).expect("there are three").to_string();
        let moved = cli.run(&["tablet", "transfer-leader", &tablet, "--to", &target]).expect(exit::OK);
        assert!(!moved.stdout.is_empty(), "{moved}");
        assert_eq!(cli.json(&["tablet", "describe", &tablet])["leader"].to_string(), target);
        assert_eq!(cli.json(&["get", "t", "a"])["value"], "1");
    }
    // Nobody can lead who is not there, does not hold a copy, or is not in sync.
    let nobody = cli.run(&["tablet", "transfer-leader", &tablet, "--to", "99"]);
    assert_ne!(nobody.code, exit::OK, "{nobody}");
    let leader = cluster.leader_of(tablet.parse()?)?;
    let away = (0..3).find(|server| *server != leader).expect("there are three");
    let servers = cli.list(&["server", "list"]).context("the servers are known")?;
    let address = cluster.servers[away].address.clone();
    let id = servers
        .iter()
        .find(|server| server["address"] == address.as_str())
        .map(|server| server["id"].to_string());
    let id = id.context("it is known")?;
    cluster.servers[away].process().kill()?;
    let shrunk = || cli.json(&["tablet", "describe", &tablet])["in_sync"].as_array().map_or(0, Vec::len) == 2;
    eventually("the dead copy leaves the in-sync set", HEAL_MAX, shrunk)?;
    let refused = cli.run(&["tablet", "transfer-leader", &tablet, "--to", &id]);
    assert_eq!(refused.code, exit::FAILED, "{refused}");
    assert!(refused.stderr.contains("in sync"), "{refused}");
    assert_eq!(cli.json(&["get", "t", "a"])["value"], "1");
    Ok(())
}

/// A copy that died is in the in-sync set for a while: writes that want all of those wait until it
/// is not.
#[test]
fn a_write_outlives_a_copy_that_it_waits_for() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    create_table(&cli);
    cluster.wait_until_whole(3, &[])?;
    cluster.servers[0].process().kill()?;
    for key in ["1", "3", "5", "7", "9"] {
        let _ = cli.run(&["set", "t", key, "v", "--ack", "in-sync"]).expect(exit::OK);
    }
    Ok(())
}

/// A master that has just come to lead knows no server yet: a table that is made then must not
/// have fewer copies for that.
#[test]
fn a_new_leading_master_waits_for_its_servers() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    for table in ["a", "b"] {
        cluster.masters[0].kill_and_restart()?;
        let _ = cli.run(&["table", "create", table]).expect(exit::OK);
        assert_eq!(cli.json(&["table", "describe", table])["replicas"], 3);
    }
    Ok(())
}

#[test]
fn bad_input_is_refused_with_a_next_step() -> Result<()> {
    let cluster = Cluster::start(1, 2)?;
    let cli = cluster.cli();
    let refused = |args: &[&str]| {
        let output = cli.run(args);
        assert_ne!(output.code, exit::OK, "{output}");
        output
    };
    let many = refused(&["table", "create", "many", "--replicas", "3"]);
    assert!(many.stderr.contains('3') && many.stderr.contains('2'), "{many}");
    let two = cli.run(&["table", "create", "two"]).expect(exit::OK);
    assert!(two.stderr.contains("2 "), "the default is told: {two}");
    assert_eq!(cli.json(&["table", "describe", "two"])["replicas"], 2);
    assert_eq!(cli.json(&["table", "describe", "two"])["failures_tolerated"], 0);
    assert_eq!(refused(&["set", "two", "k", "v", "--ack", "copies=3"]).code, exit::USAGE);
    assert_eq!(refused(&["set", "two", "k", "v", "--ack", "copies=0"]).code, exit::USAGE);
    let _ = cli.run(&["set", "two", "k", "v", "--ack", "copies=2"]).expect(exit::OK);
    assert_eq!(cli.run(&["get", "two", "nothing", "--bounded", "5s"]).code, exit::NOT_FOUND);
    assert_eq!(cli.json(&["get", "two", "k", "--bounded", "5s"])["value"], "v");
    let written = cli.json(&["set", "two", "k", "w"]);
    let session = written["session"].as_str().context("a write names its session")?;
    assert_eq!(cli.json(&["get", "two", "k", "--session", session])["value"], "w");
    assert_eq!(refused(&["get", "two", "k", "--session", "rubbish"]).code, exit::USAGE);
    Ok(())
}

/// A frozen leader comes back to a cluster that has gone on: it must not answer.
#[test]
fn a_frozen_leader_does_not_answer_for_a_tablet_it_has_lost() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "t", "--replicas", "3"]).expect(exit::OK);
    cluster.wait_until_whole(3, &[])?;
    let tablet = id_in(&cluster.first_tablet()?)?;
    let _ = cli.run(&["set", "t", "k", "old", "--ack", "copies=2"]).expect(exit::OK);
    let leader = cluster.leader_of(tablet)?;
    cluster.servers[leader].process().signal(Signal::Stop)?;
    let live: Vec<&Node> =
        cluster.servers.iter().enumerate().filter(|(at, _)| *at != leader).map(|(_, node)| node).collect();
    let others = Cli::new(&live.iter().map(|node| node.address.clone()).collect::<Vec<_>>().join(","));
    let written = || others.run(&["set", "t", "k", "new", "--timeout", "2s"]).code == exit::OK;
    eventually("another copy leads", HEAL_MAX, written)?;
    cluster.servers[leader].process().signal(Signal::Cont)?;
    let direct = cluster.servers[leader].cli();
    for _ in 0..50 {
        let got = direct.run(&["get", "t", "k", "--timeout", "300ms", "-o", "json"]);
        if got.code == exit::OK {
            assert_eq!(got.json()["value"], "new", "{got}");
        }
    }
    cluster.wait_until_whole(3, &[]).map(drop)
}

/// Of three copies one is left: it takes no write and gives no current row, yet whoever is
/// content with what was there lately gets it.
#[test]
fn the_last_copy_answers_what_it_may() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    let _ = cli.run(&["table", "create", "t", "--replicas", "3"]).expect(exit::OK);
    cluster.wait_until_whole(3, &[])?;
    let _ = cli.run(&["set", "t", "k", "v", "--ack", "in-sync"]).expect(exit::OK);
    let leader = cluster.leader_of(id_in(&cluster.first_tablet()?)?)?;
    for other in (0..3).filter(|server| *server != leader) {
        cluster.servers[other].process().kill()?;
    }
    // The lease may last a moment longer: then this row is the leader's alone.
    let _ = cli.run(&["set", "t", "k", "unsure", "--timeout", "500ms"]);
    std::thread::sleep(Duration::from_millis(1_500));
    let refused = cli.run(&["set", "t", "k", "w", "--ack", "copies=2", "--timeout", "1s"]);
    assert_eq!(refused.code, exit::UNAVAILABLE, "{refused}");
    let refused = cli.run(&["get", "t", "k", "--timeout", "1s"]);
    assert_eq!(refused.code, exit::UNAVAILABLE, "{refused}");
    assert_eq!(cli.json(&["get", "t", "k", "--bounded", "1h", "--timeout", "3s"])["value"], "v");
    let is_told = || cli.json(&["table", "describe", "t"])["tablets_serving"] == 0;
    eventually("the masters say that it does not serve", HEAL_MAX, is_told).map(drop)
}

/// The servers of two of three copies go away for good, the leader's among them: a degraded table
/// goes on with the third, a strict one waits. So does a leader that is left alone.
#[test]
fn a_degraded_table_goes_on_with_its_last_copy() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    let cli = cluster.cli();
    for (name, policy) in [("d", "degraded"), ("s", "strict")] {
        let _ = cli.run(&["table", "create", name, "--replicas", "3", "--policy", policy]).expect(exit::OK);
    }
    cluster.wait_until_whole(3, &[])?;
    let tablet = |table: &str| -> Result<u64> {
        let listed = cli.list(&["tablet", "list", table]).context("tablets are listed")?;
        id_in(listed.first().context("a table has a tablet")?)
    };
    let (degraded, strict) = (tablet("d")?, tablet("s")?);
    let leads = |tablet: u64| cli.json(&["tablet", "describe", &tablet.to_string()])["leader"].to_string();
    // One server leads both, so that both are without a leader when it dies.
    if leads(strict) != leads(degraded) {
        let transfer = ["tablet", "transfer-leader", &strict.to_string(), "--to", &leads(degraded)];
        let _ = cli.run(&transfer).expect(exit::OK);
    }
    let leader = cluster.leader_of(degraded)?;
    for table in ["d", "s"] {
        let _ = cli.run(&["set", table, "all", "1", "--ack", "in-sync"]).expect(exit::OK);
    }
    let last = (leader + 1) % 3;
    let gone: Vec<usize> = (0..3).filter(|server| *server != last).collect();
    for server in &gone {
        cluster.servers[*server].process().kill()?;
    }
    let written = || cli.run(&["set", "d", "alone", "1", "--timeout", "2s"]).code == exit::OK;
    eventually("the last copy leads", HEAL_MAX, written)?;
    assert_eq!(cli.json(&["get", "d", "all"])["value"], "1");
    let refused = cli.run(&["set", "d", "two", "1", "--ack", "copies=2", "--timeout", "1s"]);
    assert_eq!(refused.code, exit::UNAVAILABLE, "{refused}");
    let listed = cli.list(&["tablet", "list", "d"]).context("tablets are listed")?;
    assert_eq!(listed[0]["degraded"], true, "{listed:?}");
    let refused = cli.run(&["set", "s", "alone", "1", "--timeout", "1s"]);
    assert_eq!(refused.code, exit::UNAVAILABLE, "{refused}");
    for server in &gone {
        cluster.servers[*server].start()?;
    }
    cluster.wait_until_whole(3, &[])?;
    for (table, key) in [("d", "all"), ("d", "alone"), ("s", "all")] {
        assert_eq!(cli.json(&["get", table, key])["value"], "1", "{table} {key}");
    }
    // Now the leader is left alone.
    let leader = cluster.leader_of(degraded)?;
    for server in (0..3).filter(|server| *server != leader) {
        cluster.servers[server].process().kill()?;
    }
    let written = || cli.run(&["set", "d", "again", "1", "--timeout", "2s"]).code == exit::OK;
    eventually("the leader goes on alone", HEAL_MAX, written).map(drop)
}
