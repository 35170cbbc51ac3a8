//! Watches on real processes: every committed write is shown, in order, whatever becomes of its
//! tablet; a watch goes on with its token after everything was killed; who is too slow or asks
//! for what is gone is told what to do.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use ebla_client::{
    AckLevel, Batch, Client, Committed, Hlc, Outcome, Reason, Since, Value, Watch, WatchChange, WatchEvent,
    WatchToken, WriteOptions, v1,
};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::Cluster;
use ebla_cluster_tests::observe::servers_in;
use ebla_kernel::op::Action;
use futures::StreamExt as _;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// The deadline of every call.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a watch may take until it has shown what is committed, after the worst.
const PATIENCE: Duration = Duration::from_secs(60);

/// A row and when it was written.
type Written = BTreeMap<(Bytes, Hlc), Bytes>;

/// Sets rows all over the table until told to stop; every value is another one.
async fn write(client: Client, writer: u64, stop: Arc<AtomicBool>) -> Result<Written> {
    let options = WriteOptions { ack: Some(AckLevel::Copies(2)) };
    let mut written = Written::new();
    let mut turn = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let key = Bytes::from(format!("{:03}-{writer}", (turn * 37 + writer * 11) % 100));
        let value = Bytes::from(format!("{writer}.{turn}"));
        let batch = Batch::new().set(key.clone(), value.clone());
        match client.write("t", batch, options).await? {
            Outcome::Committed(committed) => drop(written.insert((key, committed.ts), value)),
            Outcome::Reverted => {}
            Outcome::Unknown(ticket) => anyhow::bail!("the outcome of {ticket} is unknown"),
        }
    }
    Ok(written)
}

struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<Written>>>,
}

impl Writers {
    fn start(client: &Client, count: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |writer| tokio::spawn(write(client.clone(), writer, Arc::clone(&stop)));
        Self { tasks: (0..count).map(start).collect(), stop }
    }

    async fn end(self) -> Result<Written> {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = Written::new();
        for task in self.tasks {
            written.extend(task.await??);
        }
        Ok(written)
    }
}

/// Everything that a watch showed so far.
#[derive(Default)]
struct Seen {
    events: Vec<WatchEvent>,
    resolved: Hlc,
}

impl Seen {
    /// Takes what comes until everything up to `ts` is resolved.
    async fn until(
        &mut self,
        events: &mut (impl futures::Stream<Item = Result<WatchEvent, ebla_client::Error>> + Unpin),
        ts: Hlc,
    ) -> Result<()> {
        let waiting = async {
            while self.resolved < ts {
                let event = events.next().await.context("the watch ended")??;
                if let WatchChange::Resolved { ts } = event.change {
                    ensure!(ts > self.resolved, "resolved went back from {} to {ts}", self.resolved);
                    self.resolved = ts;
                } else if let Some(ts) = ts_of(&event.change) {
                    ensure!(ts > self.resolved, "{event:?} came after {} was resolved", self.resolved);
                }
                self.events.push(event);
            }
            Ok(())
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.with_context(|| format!("resolved up to {}, wanted {ts}", self.resolved))?
    }

    fn sets(&self) -> Written {
        let set = |event: &WatchEvent| match &event.change {
            WatchChange::Set { key, value: Value::Bytes(value), ts } => {
                Some(((key.clone(), *ts), value.clone()))
            }
            _ => None,
        };
        self.events.iter().filter_map(set).collect()
    }

    /// Each key's changes come in their order.
    fn check_order(&self) -> Result<()> {
        let mut last: BTreeMap<&Bytes, Hlc> = BTreeMap::new();
        for event in &self.events {
            if let WatchChange::Set { key, ts, .. } | WatchChange::Delete { key, ts, .. } = &event.change {
                let before = last.insert(key, *ts).unwrap_or_default();
                ensure!(*ts >= before, "{event:?} came after {before}");
            }
        }
        Ok(())
    }

    fn token(&self) -> Option<WatchToken> {
        self.events.last().map(|event| event.token.clone())
    }
}

fn ts_of(change: &WatchChange) -> Option<Hlc> {
    match change {
        WatchChange::Set { ts, .. }
        | WatchChange::Delete { ts, .. }
        | WatchChange::Expire { ts, .. }
        | WatchChange::DeleteRange { ts, .. } => Some(*ts),
        WatchChange::Resolved { .. } | WatchChange::Break { .. } => None,
    }
}

/// Nothing is missing, nothing is there that nobody wrote.
fn check_all(seen: &Written, written: &Written) -> Result<()> {
    let missing: Vec<_> = written.iter().filter(|(at, value)| seen.get(*at) != Some(value)).take(3).collect();
    ensure!(missing.is_empty(), "not shown: {missing:?}");
    let more: Vec<_> = seen.keys().filter(|at| !written.contains_key(*at)).take(3).collect();
    ensure!(more.is_empty(), "shown and not written: {more:?}");
    Ok(())
}

fn newest(written: &Written) -> Hlc {
    written.keys().map(|(_, ts)| *ts).max().unwrap_or_default()
}

fn create(cli: &Cli, more: &[&str]) {
    let _ = cli.run(&[&["table", "create", "t"], more].concat()).expect(exit::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_shown_whatever_becomes_of_its_tablet() -> Result<()> {
    let mut cluster = Cluster::start(3, 4)?;
    create(&cluster.cli(), &["--replicas", "3", "--split-at", "050"]);
    let client = cluster.connect(TIMEOUT).await?;
    let mut events = client.watch("t", Watch::all())?;
    let mut seen = Seen::default();
    seen.until(&mut events, Hlc(1)).await?;
    let writers = Writers::start(&client, 4);
    let from = seen.resolved;
    let admin = client.admin();
    let tablets = tokio::task::block_in_place(|| cluster.tablet_ids());
    let split =
        admin.split_tablet(tablets[0], vec![Bytes::from_static(b"020"), Bytes::from_static(b"035")]).await?;
    let children = split.child_tablet_ids;
    tokio::task::block_in_place(|| cluster.wait_until_whole(3, &[]))?;
    for server in 1..=4_u64 {
        // Whoever holds no copy of it cannot lead it: the next one may.
        let _ = cluster.cli().run(&[
            "tablet",
            "transfer-leader",
            &children[0].to_string(),
            "--to",
            &server.to_string(),
        ]);
    }
    let merge = admin.merge_tablets(children[1], children[2]).await?;
    let job = admin.wait_for_job(merge.job_id, PATIENCE).await?;
    ensure!(job.state() == v1::JobState::Done, "{job:?}");
    for server in 0..2 {
        cluster.servers[server].process().kill()?;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        cluster.servers[server].start()?;
        tokio::task::block_in_place(|| cluster.wait_until_whole(3, &[]))?;
    }
    let written = writers.end().await?;
    seen.until(&mut events, newest(&written)).await?;
    println!("{} writes, {} events", written.len(), seen.events.len());
    seen.check_order()?;
    check_all(&seen.sets(), &written)?;
    // From the time at which it began, everything comes again.
    let mut again = client.watch("t", Watch::all().since(Since::Ts(from)))?;
    let mut seen_again = Seen::default();
    seen_again.until(&mut again, newest(&written)).await?;
    check_all(&seen_again.sets(), &written)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_after_everything_was_killed() -> Result<()> {
    let mut cluster = Cluster::start(1, 3)?;
    create(&cluster.cli(), &["--replicas", "3", "--split-at", "050"]);
    let client = cluster.connect(TIMEOUT).await?;
    let mut events = client.watch("t", Watch::all())?;
    let mut first = Seen::default();
    first.until(&mut events, Hlc(1)).await?;
    let writers = Writers::start(&client, 2);
    tokio::time::sleep(Duration::from_millis(800)).await;
    let now = first.resolved.ms() + 500;
    first.until(&mut events, Hlc::new(now, 0)).await?;
    drop(events);
    let token = first.token().context("there were events")?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let written = writers.end().await?;
    let tablets = tokio::task::block_in_place(|| cluster.tablet_ids());
    client.admin().split_tablet(tablets[0], vec![Bytes::from_static(b"020")]).await?;
    tokio::task::block_in_place(|| cluster.wait_until_whole(3, &[]))?;
    cluster.kill_all()?;
    cluster.start_all()?;
    tokio::task::block_in_place(|| cluster.wait_until_whole(3, &[]))?;
    let client = cluster.connect(TIMEOUT).await?;
    let mut events = client.watch("t", Watch::all().since(Since::Token(token.clone())))?;
    let mut second = Seen::default();
    second.until(&mut events, newest(&written)).await?;
    second.check_order()?;
    let mut shown = first.sets();
    shown.extend(second.sets());
    check_all(&shown, &written)?;
    let breaks =
        second.events.iter().filter(|event| matches!(event.change, WatchChange::Break { .. })).count();
    ensure!(breaks == 0, "nothing was lost, and yet {breaks} breaks");
    // The token is good for what it was given for, and for nothing else.
    let error = client.watch("t", Watch::key("049").since(Since::Token(token)));
    ensure!(error.is_ok(), "a part of what was watched may be watched from there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_consumer_is_cut_off_with_its_token_and_others_do_not_notice() -> Result<()> {
    let cluster = Cluster::start(1, 1)?;
    create(&cluster.cli(), &["--replicas", "1"]);
    let client = cluster.connect(TIMEOUT).await?;
    let mut slow = client.watch("t", Watch::all())?;
    let mut seen = Seen::default();
    seen.until(&mut slow, Hlc(1)).await?;
    let other = cluster.connect(TIMEOUT).await?;
    let mut quick = other.watch("t", Watch::key("last"))?;
    let mut quick_seen = Seen::default();
    quick_seen.until(&mut quick, Hlc(1)).await?;
    // Far more than what waits anywhere on the way.
    let value = Bytes::from(vec![b'x'; 1 << 20]);
    let mut written = BTreeSet::new();
    for row in 0..64 {
        let key = format!("{row:02}");
        client.set("t", key.clone(), value.clone()).await?.committed()?;
        written.insert(key);
    }
    let began = Instant::now();
    let last = client.set("t", "last", "v").await?.committed()?;
    quick_seen.until(&mut quick, last.ts).await?;
    ensure!(quick_seen.sets().len() == 1, "{:?}", quick_seen.events);
    ensure!(began.elapsed() < Duration::from_secs(5), "others noticed: {:?}", began.elapsed());
    tokio::time::sleep(Duration::from_secs(13)).await;
    let mut shown = BTreeSet::new();
    let mut take = |event: WatchEvent| match event.change {
        WatchChange::Set { key, .. } => shown.insert(String::from_utf8_lossy(&key).into_owned()),
        _ => false,
    };
    let error = loop {
        match slow.next().await.context("the watch ended in silence")? {
            Ok(event) => {
                take(event);
            }
            Err(error) => break error,
        }
    };
    ensure!(error.reason() == Reason::WatchTooSlow, "{error:?}");
    let token: WatchToken = error.fact("token").context("no token")?.parse()?;
    ensure!(error.message().contains(&token.to_string()), "{error}");
    let mut rest = client.watch("t", Watch::all().since(Since::Token(token)))?;
    let mut rest_seen = Seen::default();
    rest_seen.until(&mut rest, last.ts).await?;
    for event in rest_seen.events {
        take(event);
    }
    ensure!(written.iter().all(|key| shown.contains(key)), "{} of {} rows", shown.len(), written.len());
    Ok(())
}

/// The types and keys of events that `ebla watch` printed, but for those that say nothing new.
fn printed(lines: &[Json]) -> Vec<String> {
    let told = lines.iter().filter(|line| line["type"] != "resolved");
    let text = |line: &Json| {
        let key = line["key"].as_str().map(str::to_owned);
        let range =
            || format!("{}..{}", line["from"].as_str().unwrap_or("?"), line["to"].as_str().unwrap_or("?"));
        format!("{} {}", line["type"].as_str().unwrap_or("?"), key.unwrap_or_else(range))
    };
    told.map(text).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_come_first_then_changes_deletions_and_expiries() -> Result<()> {
    let cluster = Cluster::start(1, 1)?;
    let cli = cluster.cli();
    create(&cli, &["--replicas", "1", "--split-at", "m"]);
    let client = cluster.connect(TIMEOUT).await?;
    for key in ["a", "b", "z"] {
        client.set("t", key, "old").await?.committed()?;
    }
    let mut events = client.watch("t", Watch::all().since(Since::Snapshot))?;
    let mut seen = Seen::default();
    seen.until(&mut events, Hlc(1)).await?;
    let names = |seen: &Seen| -> Vec<String> {
        let name = |event: &WatchEvent| match &event.change {
            WatchChange::Set { key, .. } => format!("set {}", key.escape_ascii()),
            WatchChange::Delete { key, .. } => format!("delete {}", key.escape_ascii()),
            WatchChange::Expire { key, .. } => format!("expire {}", key.escape_ascii()),
            WatchChange::DeleteRange { from, to, .. } => {
                format!("delete_range {}..{}", from.escape_ascii(), to.escape_ascii())
            }
            WatchChange::Resolved { .. } => "resolved".to_owned(),
            WatchChange::Break { .. } => "break".to_owned(),
        };
        seen.events.iter().map(name).collect()
    };
    let rows: BTreeSet<String> = names(&seen).into_iter().collect();
    ensure!(rows == ["resolved", "set a", "set b", "set z"].map(str::to_owned).into(), "{rows:?}");
    ensure!(names(&seen).last().is_some_and(|last| last == "resolved"), "{:?}", names(&seen));
    let mut batch = Batch::new();
    for row in 0..1_100 {
        batch = batch.set(format!("r{row:04}"), "v");
        if row % 500 == 499 {
            client.write("t", std::mem::take(&mut batch), WriteOptions::default()).await?.committed()?;
        }
    }
    client.write("t", batch, WriteOptions::default()).await?.committed()?;
    client.delete("t", "a").await?.committed()?;
    let range = Action::DeleteRange { from: Bytes::from_static(b"r"), to: Some(Bytes::from_static(b"s")) };
    let many = Batch::new().op(None, range);
    let many = client.write("t", many, WriteOptions::default()).await?.committed()?;
    seen.events.clear();
    seen.until(&mut events, many.ts).await?;
    let changes: Vec<String> =
        names(&seen).into_iter().filter(|name| !name.starts_with("set r") && name != "resolved").collect();
    ensure!(changes.iter().filter(|name| *name == "delete a").count() == 1, "{changes:?}");
    ensure!(changes.contains(&"delete_range r..s".to_owned()), "{changes:?}");
    // A row whose time is over.
    let set = cli.run(&["set", "t", "brief", "v", "--ttl", "1s", "-o", "json"]).expect(exit::OK).json();
    let ts = Hlc(set["ts"].as_str().context("a ts")?.parse()?);
    let expired = Instant::now();
    while !names(&seen).contains(&"expire brief".to_owned()) {
        ensure!(expired.elapsed() < Duration::from_secs(40), "no expiry: {:?}", names(&seen));
        let wanted = seen.resolved.max(ts).next();
        seen.until(&mut events, wanted).await?;
    }
    Ok(())
}

#[test]
fn what_makes_no_sense_or_is_gone_is_said() -> Result<()> {
    let cluster = Cluster::start(1, 1)?;
    let cli = cluster.cli();
    create(&cli, &["--replicas", "1", "--retention", "1s"]);
    let _ = cli.run(&["watch", "nosuch"]).expect(exit::NOT_FOUND).saying(&["nosuch"]);
    let _ = cli.run(&["watch", "t", "--since", "w00"]).expect(exit::USAGE).saying(&["token"]);
    let _ = cli.run(&["watch", "t", "--since", "soon"]).expect(exit::USAGE).saying(&["timestamp", "token"]);
    let _ = cli.run(&["watch", "t", "k", "--prefix", "p"]).expect(exit::USAGE);
    let _ = cli.run(&["watch", "t", ""]).expect(exit::USAGE);
    let _ = cli.run(&["watch", "t", "--from", "b", "--to", "a"]).expect(exit::USAGE);
    let _ = cli.run(&["watch", "t", "--since", "-1h", "--snapshot"]).expect(exit::USAGE);
    let error = cli.run(&["watch", "t", "--since", "-1h", "-o", "jsonl"]).expect(exit::FAILED).error();
    ensure!(error["reason"] == "WATCH_TOO_OLD", "{error}");
    ensure!(error["message"].as_str().is_some_and(|text| text.contains("--snapshot")), "{error}");
    let _ =
        cli.run(&["watch", "t", "--since", "2100-01-01T00:00:00Z"]).expect(exit::FAILED).saying(&["future"]);
    Ok(())
}

#[test]
fn the_command_prints_what_programs_can_read() -> Result<()> {
    let cluster = Cluster::start(1, 1)?;
    let cli = cluster.cli();
    create(&cli, &["--replicas", "1"]);
    let _ = cli.run(&["set", "t", "k1", "v1"]).expect(exit::OK);
    let watching = cli.spawn(&["watch", "t", "--snapshot", "-o", "jsonl"])?;
    watching.wait_for_lines(2)?;
    let _ = cli.run(&["set", "t", "k2", "v2"]).expect(exit::OK);
    let _ = cli.run(&["delete", "t", "k1"]).expect(exit::OK);
    let _ = cli.run(&["add", "t", "n", "5"]).expect(exit::OK);
    watching.wait_until(|lines| printed(lines).len() == 4)?;
    let lines = watching.end()?;
    assert_eq!(printed(&lines), ["set k1", "set k2", "delete k1", "set n"]);
    assert_eq!((&lines[0]["value"], &lines[1]["type"]), (&"v1".into(), &"resolved".into()));
    let second = lines.iter().find(|line| line["key"] == "k2").context("k2")?;
    ensure!(second["ts"].is_string() && second["token"].is_string(), "{second}");
    // The rest again, from the token of the second.
    let token = second["token"].as_str().context("a token")?;
    let watching = cli.spawn(&["watch", "t", "--since", token, "-o", "jsonl"])?;
    watching.wait_until(|lines| printed(lines).len() == 2)?;
    assert_eq!(printed(&watching.end()?), ["delete k1", "set n"]);
    // One key, whose range is deleted.
    let watching = cli.spawn(&["watch", "t", "k2", "-o", "jsonl"])?;
    watching.wait_for_lines(1)?;
    let _ = cli.run(&["delete-range", "t", "", "", "--yes"]).expect(exit::OK);
    watching.wait_until(|lines| printed(lines).len() == 1)?;
    assert_eq!(printed(&watching.end()?), ["delete k2"]);
    Ok(())
}

/// Rows of a kilobyte, a batch of a hundred at a time; gives the keys.
async fn fill(client: &Client, table: &str, beginning: &str) -> Result<BTreeSet<Bytes>> {
    let mut keys = BTreeSet::new();
    for part in 0..10 {
        let names: Vec<_> = (0..100).map(|row| Bytes::from(format!("{beginning}{part}{row:02}"))).collect();
        let value = Bytes::from(vec![b'x'; 1_000]);
        let batch = names.iter().fold(Batch::new(), |batch, key| batch.set(key.clone(), value.clone()));
        client.write(table, batch, WriteOptions::default()).await?.committed()?;
        keys.extend(names);
    }
    Ok(keys)
}

/// What a watch since a token says first: an event or why there is none.
async fn first_since(client: &Client, table: &str, token: &WatchToken) -> Result<Option<ebla_client::Error>> {
    let mut events = client.watch(table, Watch::all().since(Since::Token(token.clone())))?;
    Ok(events.next().await.context("the watch ended in silence")?.err())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_ends_with_the_log_and_the_versions() -> Result<()> {
    // A log that is purged at once, above the token window.
    let cluster = Cluster::start_with(1, 1, &["--log-max", "64KiB", "--flush-interval", "200ms"])?;
    let cli = cluster.cli();
    let client = cluster.connect(TIMEOUT).await?;
    let mut tokens = Vec::new();
    for (table, retention) in [("brief", "1s"), ("long", "1h")] {
        let _ = cli.run(&["table", "create", table, "--retention", retention]).expect(exit::OK);
        fill(&client, table, "a").await?;
        let mut events = client.watch(table, Watch::all())?;
        let mut seen = Seen::default();
        seen.until(&mut events, Hlc(1)).await?;
        tokens.push(seen.token().context("there was an event")?);
    }
    let [brief, long] = &tokens[..] else { anyhow::bail!("two tokens") };
    let mut later = BTreeSet::new();
    let began = Instant::now();
    let error = loop {
        ensure!(began.elapsed() < PATIENCE, "the token is good for ever");
        // Both logs go, and of one table the versions, too: rows are replaced.
        fill(&client, "brief", "a").await?;
        later = fill(&client, "long", "b").await?.into_iter().chain(later).collect();
        match first_since(&client, "brief", brief).await? {
            Some(error) => break error,
            None => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    };
    ensure!(error.reason() == Reason::WatchTooOld, "{error:?}");
    let token = brief.to_string();
    let too_old = cli.run(&["watch", "brief", "--since", &token, "-o", "jsonl"]).expect(exit::FAILED);
    let told = too_old.error();
    ensure!(told["reason"] == "WATCH_TOO_OLD", "{told}");
    ensure!(told["message"].as_str().is_some_and(|text| text.contains("--snapshot")), "{told}");
    // The way that it tells of: all rows, then what changes.
    let watching = cli.spawn(&["watch", "brief", "--snapshot", "-o", "jsonl"])?;
    watching.wait_until(|lines| printed(lines).len() == 1_000)?;
    let _ = cli.run(&["delete", "brief", "a000"]).expect(exit::OK);
    watching.wait_until(|lines| printed(lines).last().is_some_and(|last| last == "delete a000"))?;
    // Where the versions are left, the same log is not missed.
    let mut events = client.watch("long", Watch::all().since(Since::Token(long.clone())))?;
    let mut seen = Seen::default();
    let last = client.set("long", "last", "v").await?.committed()?;
    seen.until(&mut events, last.ts).await?;
    later.insert(Bytes::from_static(b"last"));
    let shown: BTreeSet<Bytes> = seen.sets().into_keys().map(|(key, _)| key).collect();
    ensure!(shown == later, "{} of {} rows", shown.len(), later.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_follows_its_tablet_from_server_to_server() -> Result<()> {
    let cluster = Cluster::start(1, 4)?;
    let cli = cluster.cli();
    let _ = cli.run(&["balancer", "pause"]).expect(exit::OK);
    create(&cli, &["--replicas", "3"]);
    let client = cluster.connect(TIMEOUT).await?;
    let mut events = client.watch("t", Watch::all())?;
    let mut seen = Seen::default();
    seen.until(&mut events, Hlc(1)).await?;
    let writers = Writers::start(&client, 4);
    let (mut moves, mut handed) = (0, 0);
    for _ in 0..3 {
        let tablet = tokio::task::block_in_place(|| cluster.first_tablet())?;
        let (id, held) = (tablet["id"].to_string(), servers_in(&tablet, "replicas"));
        let leader = tablet["leader"].as_u64().context("it is led")?;
        let free = (1..=4).find(|server| !held.contains(server)).context("a server has no copy")?;
        // The copy that the watch hangs on goes, and then leadership to one that has stayed.
        let (from, to) = (leader.to_string(), free.to_string());
        let _ = cli.run(&["tablet", "move", &id, "--from", &from, "--to", &to]).expect(exit::OK);
        moves += 1;
        tokio::task::block_in_place(|| cluster.wait_until_whole(3, &[leader]))?;
        let leads = tokio::task::block_in_place(|| cluster.first_tablet())?["leader"].as_u64();
        let heir = held.iter().find(|server| **server != leader && Some(**server) != leads);
        let heir = heir.context("a copy stayed that does not lead")?.to_string();
        let _ = cli.run(&["tablet", "transfer-leader", &id, "--to", &heir]).expect(exit::OK);
        handed += 1;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let written = writers.end().await?;
    seen.until(&mut events, newest(&written)).await?;
    println!("{moves} moves, {handed} leaders, {} writes, {} events", written.len(), seen.events.len());
    let breaks = seen.events.iter().filter(|event| matches!(event.change, WatchChange::Break { .. })).count();
    ensure!(breaks == 0, "nothing was lost, and yet {breaks} breaks");
    seen.check_order()?;
    check_all(&seen.sets(), &written)
}

/// Sets a row as soon as its table takes it: one that came back empty refuses tokens that it may
/// have known before.
async fn set_when_taken(client: &Client, key: &'static str) -> Result<Committed> {
    let began = Instant::now();
    loop {
        match client.set("t", key, "v").await {
            Err(error) if error.reason() == Reason::TokenTooOld && began.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            set => return Ok(set?.committed()?),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_in_memory_that_came_back_empty_is_a_break() -> Result<()> {
    let mut cluster = Cluster::start(1, 1)?;
    create(&cluster.cli(), &["--replicas", "1", "--kind", "memory"]);
    let client = cluster.connect(TIMEOUT).await?;
    let mut events = client.watch("t", Watch::all())?;
    let mut seen = Seen::default();
    seen.until(&mut events, Hlc(1)).await?;
    let lost = client.set("t", "lost", "v").await?.committed()?;
    seen.until(&mut events, lost.ts).await?;
    let token = seen.token().context("there were events")?;
    cluster.servers[0].kill_and_restart()?;
    tokio::task::block_in_place(|| cluster.wait_until_whole(1, &[]))?;
    let kept = set_when_taken(&client, "kept").await?;
    // The watch that was open, and one that comes with its token.
    let mut again = client.watch("t", Watch::all().since(Since::Token(token)))?;
    for events in [&mut events, &mut again] {
        let mut seen = Seen::default();
        seen.until(events, kept.ts).await?;
        let is_break = |event: &WatchEvent| matches!(event.change, WatchChange::Break { .. });
        let at =
            seen.events.iter().position(is_break).with_context(|| format!("no break: {:?}", seen.events))?;
        let after = Seen { events: seen.events.split_off(at), resolved: Hlc::MIN };
        let rows: BTreeSet<Bytes> = after.sets().into_keys().map(|(key, _)| key).collect();
        ensure!(rows == BTreeSet::from([Bytes::from_static(b"kept")]), "{rows:?}");
    }
    Ok(())
}
