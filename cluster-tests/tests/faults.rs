//! Single faults and what must not be noticed of them: lost masters, drained servers,
//! directories that belong to somebody else, damaged files.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use ebla_client::Client;
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::{Cluster, Dev, Node, eventually, free_addresses};
use ebla_cluster_tests::process::Signal;
use ebla_proto::v1::GetRoutesRequest;
use ebla_proto::v1::route_service_client::RouteServiceClient;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long the group may be without a leader after one died.
const LEADERLESS_MAX: Duration = Duration::from_millis(1_500);

/// How long a process may take to say that it cannot start.
const REFUSAL_MAX: Duration = Duration::from_secs(15);

fn create_table(cli: &Cli) {
    let _ = cli.run(&["table", "create", "t", "--split-at", "g", "--split-at", "p"]).expect(exit::OK);
}

/// Who leads the masters, as the master at `address` sees it.
async fn leader_seen_by(address: &str) -> Option<usize> {
    let connect = RouteServiceClient::connect(format!("http://{address}"));
    let mut routes = tokio::time::timeout(Duration::from_millis(300), connect).await.ok()?.ok()?;
    let call = routes.get_routes(GetRoutesRequest { table: String::new() });
    let map = tokio::time::timeout(Duration::from_millis(300), call).await.ok()?.ok()?;
    let masters = map.into_inner().routes?.masters;
    let leader = masters.iter().find(|master| master.leader)?;
    usize::try_from(leader.id).ok()
}

/// Index of the master that the others take for their leader.
async fn find_leader(cluster: &Cluster, except: Option<usize>) -> Result<usize> {
    let since = Instant::now();
    loop {
        for (index, master) in cluster.masters.iter().enumerate() {
            if Some(index) == except {
                continue;
            }
            match leader_seen_by(&master.address).await {
                Some(id) if Some(id - 1) != except => return Ok(id - 1),
                Some(_) | None => {}
            }
        }
        anyhow::ensure!(since.elapsed() < Duration::from_secs(15), "no master leads");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Sets and gets rows of every tablet until told to stop; the first failure ends it.
async fn use_rows(client: Client, stop: Arc<AtomicBool>) -> Result<u64> {
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        for key in ["a", "h", "q"] {
            let value = Bytes::from(format!("value {done}"));
            client.set("t", key, value.clone()).await?.committed()?;
            let cell = client.get("t", key).await?.context("the row is there")?;
            anyhow::ensure!(cell.value.into_bytes() == value, "another value was read than was written");
            done += 1;
        }
    }
    Ok(done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_master_leads_soon_and_data_does_not_notice() -> Result<()> {
    let mut cluster = Cluster::start(3, 3)?;
    create_table(&cluster.cli());
    let endpoints: Vec<_> = cluster.servers.iter().map(|server| server.address.clone()).collect();
    let client = Client::builder().endpoints(endpoints).timeout(Duration::from_secs(1)).connect().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let data = tokio::spawn(use_rows(client, stop.clone()));

    let mut leaderless = Vec::new();
    for signal in [Signal::Kill, Signal::Term, Signal::Kill] {
        let leader = find_leader(&cluster, None).await?;
        let since = Instant::now();
        cluster.masters[leader].process().signal(signal)?;
        find_leader(&cluster, Some(leader)).await?;
        leaderless.push(since.elapsed());
        cluster.masters[leader].process().wait(Duration::from_secs(20))?;
        cluster.masters[leader].start()?;
        cluster.wait_until_serving()?;
    }
    stop.store(true, Ordering::Relaxed);
    let done = data.await?.context("an operation on data failed while masters changed")?;
    assert!(done > 100, "only {done} operations ran");
    leaderless.sort();
    assert!(leaderless[1] <= LEADERLESS_MAX, "without a leader for {leaderless:?}");
    Ok(())
}

#[test]
fn data_does_not_need_masters() -> Result<()> {
    let mut cluster = Cluster::start(3, 3)?;
    create_table(&cluster.cli());
    let _ = cluster.cli().run(&["set", "t", "before", "1"]).expect(exit::OK);
    for master in &mut cluster.masters {
        master.process().kill()?;
    }
    std::thread::sleep(Duration::from_secs(4));
    // Each command is a new client that knows nothing.
    let cli = Cli::new(&cluster.server_endpoints());
    assert_eq!(cli.json(&["get", "t", "before"])["value"], "1");
    for key in ["a", "h", "q"] {
        let _ = cli.run(&["set", "t", key, "while masters are down"]).expect(exit::OK);
        assert_eq!(cli.json(&["add", "t", &format!("{key}-counter"), "2"])["value"], 2);
    }
    assert_eq!(cli.json(&["range", "t", "--count"])["count"], 7);
    // A master among the endpoints that does not answer is no hindrance.
    let mixed = Cli::new(&format!("{},{}", cluster.master_endpoints(), cluster.server_endpoints()));
    assert_eq!(mixed.json(&["get", "t", "a"])["value"], "while masters are down");
    let refused = mixed.run(&["table", "create", "later", "--timeout", "2s"]);
    assert_eq!(refused.code, exit::UNAVAILABLE, "{refused}");

    for master in &mut cluster.masters {
        master.start()?;
    }
    cluster.wait_until_serving()?;
    let _ = cluster.cli().run(&["table", "create", "later"]).expect(exit::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains() -> Result<()> {
    let mut cluster = Cluster::start(1, 2)?;
    create_table(&cluster.cli());
    let endpoints: Vec<_> = cluster.servers.iter().map(|server| server.address.clone()).collect();
    let client = Client::builder().endpoints(endpoints).timeout(Duration::from_secs(20)).connect().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let data = tokio::spawn(use_rows(client, stop.clone()));
    for round in 0..4 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let server = &mut cluster.servers[round % 2];
        server.process().stop()?;
        server.start()?;
        cluster.wait_until_serving()?;
    }
    stop.store(true, Ordering::Relaxed);
    let done = data.await?.context("an operation failed although each server came back in time")?;
    assert!(done > 20, "only {done} operations ran");
    Ok(())
}

#[test]
fn a_frozen_server_goes_on_where_it_was() -> Result<()> {
    let mut cluster = Cluster::start(1, 2)?;
    let cli = cluster.cli();
    create_table(&cli);
    let _ = cli.run(&["set", "t", "a", "1"]).expect(exit::OK);
    for server in &mut cluster.servers {
        server.process().signal(Signal::Stop)?;
    }
    let state = || cli.list(&["server", "list"]).unwrap_or_default();
    let silent = || state().iter().all(|server| server["state"] == "suspect" || server["state"] == "down");
    eventually("the masters notice the silence", Duration::from_secs(8), silent)?;
    let _ = cli.run(&["get", "t", "a", "--timeout", "1s"]).expect(exit::UNAVAILABLE);
    for server in &mut cluster.servers {
        server.process().signal(Signal::Cont)?;
    }
    cluster.wait_until_serving()?;
    assert_eq!(cli.json(&["get", "t", "a"])["value"], "1");
    Ok(())
}

/// Starts a node that must refuse, and gives what it said.
fn refusal(mut node: Node) -> Result<String> {
    let status = node.start()?.wait(REFUSAL_MAX)?;
    anyhow::ensure!(!status.success(), "it ended as if all were well");
    Ok(node.process().log_text())
}

/// Rows that are gone with a part of the directory must not read as rows that never were.
#[test]
fn a_lost_part_of_a_data_directory_is_noticed() -> Result<()> {
    let mut cluster = Cluster::start(1, 1)?;
    let cli = cluster.cli();
    create_table(&cli);
    let _ = cli.run(&["set", "t", "a", "1"]).expect(exit::OK);
    let (address, masters) = (cluster.servers[0].address.clone(), cluster.master_endpoints());
    let data_dir = cluster.servers[0].data_dir.clone();
    for store in ["data", "oplog", "registry"] {
        cluster.servers[0].process().kill()?;
        let (there, away) = (data_dir.join(store), data_dir.join("away"));
        std::fs::rename(&there, &away)?;
        let node = Node::server(cluster.place.path(), store, &address, &masters).on_directory(&data_dir);
        let said = refusal(node)?;
        assert!(said.contains("missing"), "{said}");
        std::fs::remove_dir_all(&there).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        std::fs::rename(&away, &there)?;
        cluster.servers[0].start()?;
        cluster.wait_until_serving()?;
        assert_eq!(cli.json(&["get", "t", "a"])["value"], "1");
    }
    Ok(())
}

#[test]
fn a_directory_belongs_to_one_process_of_one_cluster() -> Result<()> {
    let mut cluster = Cluster::start(1, 1)?;
    let cli = cluster.cli();
    create_table(&cli);
    let _ = cli.run(&["set", "t", "a", "1"]).expect(exit::OK);
    let place = cluster.place.path().to_owned();
    let address = &free_addresses(1)[0];

    let server_dir = cluster.servers[0].data_dir.clone();
    let second =
        Node::server(&place, "second", address, &cluster.master_endpoints()).on_directory(&server_dir);
    let said = refusal(second)?;
    assert!(said.contains("in use"), "{said}");
    let master_dir = cluster.masters[0].data_dir.clone();
    let second = Node::master(&place, 1, address, &format!("1={address}")).on_directory(&master_dir);
    refusal(second)?;
    assert_eq!(cli.json(&["get", "t", "a"])["value"], "1");

    cluster.servers[0].process().stop()?;
    let other = Cluster::start(1, 1)?;
    let stranger =
        Node::server(&place, "stranger", address, &other.master_endpoints()).on_directory(&server_dir);
    let said = refusal(stranger)?;
    assert!(said.contains("cluster"), "{said}");
    assert_eq!(other.cli().list(&["server", "list"]).map(|list| list.len()), Some(1));
    cluster.servers[0].start()?;
    cluster.wait_until_serving()?;
    assert_eq!(cli.json(&["get", "t", "a"])["value"], "1");
    Ok(())
}

/// The files below `dir`, however deep.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files_below(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

#[test]
fn a_directory_of_a_newer_version_is_refused() -> Result<()> {
    let mut cluster = Cluster::start(1, 1)?;
    let identity = cluster.servers[0].data_dir.join("IDENTITY");
    cluster.servers[0].process().stop()?;
    let text = fs::read_to_string(&identity)?;
    let newer = text.replace("format = 2", "format = 99");
    assert_ne!(newer, text, "IDENTITY does not begin as expected: {text}");
    fs::write(&identity, newer)?;
    let status = cluster.servers[0].start()?.wait(REFUSAL_MAX)?;
    assert!(!status.success());
    let said = cluster.servers[0].process().log_text();
    assert!(said.contains("99") && said.contains("newer"), "{said}");
    fs::write(&identity, text)?;
    cluster.servers[0].start()?;
    cluster.wait_until_serving()
}

#[test]
fn damage_in_the_log_never_gives_a_wrong_row() -> Result<()> {
    let mut dev = Dev::start(&["--servers", "1"])?;
    let cli = dev.node.cli();
    create_table(&cli);
    let keys: Vec<_> = (0..60).map(|number| format!("{}-{number:02}", ["a", "h", "q"][number % 3])).collect();
    for key in &keys {
        let _ = cli.run(&["set", "t", key, &format!("value of {key}, {}", "x".repeat(300))]).expect(exit::OK);
    }
    dev.node.process().kill()?;
    let logs: Vec<_> = files_below(&dev.node.data_dir)?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "raftlog"))
        .filter(|path| fs::read(path).is_ok_and(|bytes| contains(&bytes, b"value of ")))
        .collect();
    assert!(!logs.is_empty(), "no log file holds the rows");
    for log in &logs {
        let mut bytes = fs::read(log)?;
        let rows: Vec<_> =
            bytes.windows(9).enumerate().filter(|(_, w)| *w == b"value of ").map(|(at, _)| at).collect();
        let middle = rows[rows.len() / 2];
        bytes[middle..middle + 40].iter_mut().for_each(|byte| *byte ^= 0x55);
        fs::write(log, bytes)?;
    }
    dev.node.start()?;
    // It may refuse to start, or start without the rows; it must not give out a wrong one.
    if dev.node.wait_for_ready_line().is_ok() {
        for key in &keys {
            let got = cli.run(&["get", "t", key, "--timeout", "1s", "-o", "json"]);
            if got.code == exit::OK {
                assert_eq!(got.json()["value"], format!("value of {key}, {}", "x".repeat(300)));
            }
        }
    }
    let said = dev.node.process().log_text().to_lowercase();
    assert!(said.contains("damaged") || said.contains("corrupt"), "nobody spoke of the damage:\n{said}");
    Ok(())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
