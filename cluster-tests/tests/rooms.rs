//! Rooms on real processes: subscribe here, publish there; servers that die and come back; splits
//! under use; what is refused.

use anyhow::{Context as _, Result, ensure};
use ebla_client::{Client, Reason, RoomEvent, RoomMessage, RoomSubscriber};
use ebla_cluster_tests::binary;
use ebla_cluster_tests::cli::{Running, exit};
use ebla_cluster_tests::cluster::{Cluster, Dev, eventually};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// How long a message may take on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// A client of one server of a cluster, which it prefers.
fn at(runtime: &Runtime, cluster: &Cluster, server: usize) -> Result<Client> {
    let endpoints = [cluster.servers[server].address.clone(), cluster.master_endpoints()];
    Ok(runtime.block_on(Client::builder().endpoints(endpoints).connect())?)
}

/// The next message.
async fn hear(subscriber: &mut RoomSubscriber) -> Result<RoomMessage> {
    loop {
        match timeout(SOON, subscriber.next()).await.context("no message came")?? {
            RoomEvent::Message(message) => return Ok(message),
            RoomEvent::Rejoined(_) => {}
        }
    }
}

fn who(cluster: &Cluster, server: usize, room: &str) -> serde_json::Value {
    cluster.servers[server].cli().json(&["room", "who", room])
}

#[test]
fn subscribers_hear_what_is_published_at_any_server() -> Result<()> {
    let (cluster, runtime) = (Cluster::start(1, 3)?, Runtime::new()?);
    let mut first = runtime.block_on(at(&runtime, &cluster, 0)?.subscriber())?;
    let mut second = runtime.block_on(at(&runtime, &cluster, 1)?.subscriber())?;
    runtime.block_on(first.join(["a", "b"]))?;
    runtime.block_on(second.join(["b"]))?;
    assert_eq!(first.address(), Some(&*cluster.servers[0].address), "the given server is preferred");
    for server in 0..3 {
        let published =
            cluster.servers[server].cli().json(&["room", "publish", "b", &format!("from {server}")]);
        assert_eq!(published["delivered"], 2);
        for subscriber in [&mut first, &mut second] {
            let heard = runtime.block_on(hear(subscriber))?;
            assert_eq!((&heard.room[..], heard.message), (&b"b"[..], format!("from {server}").into()));
        }
    }
    let seen = who(&cluster, 2, "b");
    assert_eq!((&seen["subscribers"], seen["servers"].as_array().map(Vec::len)), (&2.into(), Some(2)));
    assert_eq!(seen.get("partial"), None);
    runtime.block_on(second.leave(["b"]))?;
    assert_eq!(cluster.cli().json(&["room", "publish", "b", "later"])["delivered"], 1);
    let heard = runtime.block_on(hear(&mut first))?;
    assert_eq!(heard.seq & 0xff_ffff_ffff, 4, "numbers have no gap: {heard:?}");
    Ok(())
}

#[test]
fn the_command_line_subscribes_lists_and_forgets() -> Result<()> {
    let (dev, runtime) = (Dev::start(&[])?, Runtime::new()?);
    let cli = dev.node.cli();
    eventually("the table of rooms is there", SOON, || {
        let tables = cli.list(&["table", "list", "--system"]).unwrap_or_default();
        tables.iter().any(|table| table["name"] == "ebla.rooms" && table["replicas"] == 3)
    })?;
    assert_eq!(cli.list(&["table", "list"]).map(|tables| tables.len()), Some(0), "it is the system's own");
    let client = runtime.block_on(Client::builder().endpoints([&dev.node.address]).connect())?;
    let mut subscriber = runtime.block_on(client.subscriber())?;
    runtime.block_on(subscriber.join(["news", "news/art", "other"]))?;
    let listed = cli.list(&["room", "list", "--prefix", "news"]).context("rooms are listed")?;
    let names: Vec<_> = listed.iter().map(|room| room["room"].as_str().unwrap_or("")).collect();
    assert_eq!(names, ["news", "news/art"]);
    assert_eq!(cli.json(&["room", "publish", "nobody", "hello"])["delivered"], 0);
    runtime.block_on(subscriber.leave(["news", "other"]))?;
    drop(subscriber);
    let left = Instant::now();
    eventually("the bits are cleared", Duration::from_secs(15), || {
        cli.list(&["room", "list"]).is_some_and(|rooms| rooms.is_empty())
    })?;
    ensure!(left.elapsed() > Duration::from_secs(4), "bits stay for five seconds, not {:?}", left.elapsed());
    eventually("no row is left", SOON, || cli.json(&["range", "ebla.rooms", "--count"])["count"] == 0)?;
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_clearly() -> Result<()> {
    let cluster = Cluster::start_with(1, 1, &["--subscriptions-per-stream", "3"])?;
    let (cli, runtime) = (cluster.cli(), Runtime::new()?);
    let (long, large) = ("r".repeat(1025), "m".repeat(120_000));
    for args in [["room", "publish", &long, "x"], ["room", "publish", "", "x"]] {
        let _ = cli.run(&args).expect(exit::USAGE).saying(&["room"]);
    }
    let _ = cli.run(&["room", "who", &long]).expect(exit::USAGE).saying(&["1024"]);
    let _ = cli.run(&["room", "subscribe", &long]).expect(exit::USAGE).saying(&["1024"]);
    assert_eq!(cli.json(&["room", "publish", "r", &large])["delivered"], 0);
    let from_stdin = ["room", "publish", "r", "--file", "-"];
    let _ = cli.run_with_input(&from_stdin, &vec![0; 1024 * 1024]).expect(exit::OK);
    let too_large = cli.run_with_input(&from_stdin, &vec![0; 1024 * 1024 + 1]);
    let _ = too_large.expect(exit::USAGE).saying(&["1048576"]);
    let range = ["delete-range", "ebla.rooms", "a", "b", "--yes"];
    assert!(!cli.run(&range).expect(exit::USAGE).stderr.contains("run it again"));
    let _ = cli.run(&["set", "ebla.rooms", "k", "v"]).expect(exit::USAGE).saying(&["belongs to the system"]);
    let _ = cli.run(&["table", "drop", "ebla.rooms", "--yes"]).expect(exit::USAGE).saying(&["system"]);
    let _ = cli.run(&["table", "create", "ebla.mine"]).expect(exit::USAGE).saying(&["ebla."]);
    let client = at(&runtime, &cluster, 0)?;
    let too_large = runtime.block_on(client.publish("r", vec![0; 1024 * 1024 + 1])).unwrap_err();
    assert_eq!(too_large.reason(), Reason::BadRequest);
    let mut subscriber = runtime.block_on(client.subscriber())?;
    runtime.block_on(subscriber.join(["1", "2", "3"]))?;
    let one_more = runtime.block_on(subscriber.join(["4"])).unwrap_err();
    assert_eq!(one_more.reason(), Reason::LimitReached);
    assert_eq!(runtime.block_on(client.publish("3", "still there"))?.delivered, 1);
    Ok(())
}

#[test]
fn a_server_that_dies_takes_only_its_own_subscribers_away() -> Result<()> {
    let (mut cluster, runtime) = (Cluster::start(1, 3)?, Runtime::new()?);
    let mut subscribers = Vec::new();
    for server in 0..3 {
        let mut subscriber = runtime.block_on(at(&runtime, &cluster, server)?.subscriber())?;
        runtime.block_on(subscriber.join(["r"]))?;
        subscribers.push(subscriber);
    }
    assert_eq!(who(&cluster, 1, "r")["subscribers"], 3);
    for round in 0..2 {
        let dead = round;
        // Its client must not go elsewhere and be counted there.
        drop(subscribers.remove(0));
        cluster.servers[dead].process().kill()?;
        let others = subscribers.len();
        eventually("who is right", SOON, || {
            let seen = who(&cluster, 2, "r");
            seen["subscribers"] == others && seen.get("partial").is_none()
        })?;
        let client = at(&runtime, &cluster, 2)?;
        let published = runtime.block_on(client.publish("r", format!("round {round}")))?;
        assert_eq!(published.delivered, others as u64);
        for subscriber in &mut subscribers {
            assert_eq!(runtime.block_on(hear(subscriber))?.message, format!("round {round}"));
        }
        // The same directory, the same ordinal, another run: the old bit must not count.
        cluster.servers[dead].start()?;
        cluster.wait_until_serving()?;
        assert_eq!(who(&cluster, dead, "r")["subscribers"], others);
        let mut again = runtime.block_on(at(&runtime, &cluster, dead)?.subscriber())?;
        runtime.block_on(again.join(["r"]))?;
        assert_eq!(runtime.block_on(client.publish("r", "all"))?.delivered, others as u64 + 1);
        subscribers.push(again);
        for subscriber in &mut subscribers {
            assert_eq!(runtime.block_on(hear(subscriber))?.message, "all");
        }
    }
    Ok(())
}

#[test]
fn rooms_split_with_their_range_while_they_are_used() -> Result<()> {
    let (cluster, runtime) = (Cluster::start(1, 3)?, Runtime::new()?);
    let rooms: Vec<String> = (0..2_000).map(|n| format!("room-{n:04}")).collect();
    let mut subscriber = runtime.block_on(at(&runtime, &cluster, 0)?.subscriber())?;
    runtime.block_on(subscriber.join(rooms.clone()))?;
    let client = at(&runtime, &cluster, 1)?;
    let published = rooms.clone();
    let publishing = runtime.spawn(async move {
        for _ in 0..3 {
            for room in &published {
                let done = client.publish(room.clone(), "x").await?;
                ensure!(done.delivered == 1, "{room} reached {} subscribers", done.delivered);
            }
        }
        Ok(())
    });
    let cli = cluster.cli();
    let tablets =
        |cli: &ebla_cluster_tests::cli::Cli| cli.list(&["tablet", "list", "ebla.rooms"]).unwrap_or_default();
    for key in ["room-0700", "room-1400"] {
        let ids: Vec<String> = tablets(&cli).iter().map(|tablet| tablet["id"].to_string()).collect();
        let last = ids.last().context("there is a tablet")?;
        let _ = cli.run(&["tablet", "split", last, "--at", key]).expect(exit::OK);
    }
    assert_eq!(tablets(&cli).len(), 3);
    let mut numbers: BTreeMap<bytes::Bytes, BTreeSet<u64>> = BTreeMap::new();
    runtime.block_on(async {
        for _ in 0..3 * rooms.len() {
            let heard = hear(&mut subscriber).await?;
            ensure!(numbers.entry(heard.room).or_default().insert(heard.seq), "a message came twice");
        }
        Ok(())
    })?;
    runtime.block_on(publishing)??;
    assert!(numbers.len() == rooms.len() && numbers.values().all(|numbers| numbers.len() == 3));
    Ok(())
}

#[test]
fn changes_of_a_table_are_messages() -> Result<()> {
    let (cluster, runtime) = (Cluster::start(1, 3)?, Runtime::new()?);
    let cli = cluster.cli();
    let created = cli.json(&["table", "create", "towns", "--publish-changes"]);
    assert_eq!(created["publish_changes"], true);
    let _ = cli.run(&["table", "create", "silent"]).expect(exit::OK);
    let mut subscriber = runtime.block_on(at(&runtime, &cluster, 0)?.subscriber())?;
    runtime.block_on(subscriber.join(["towns/ebla", "silent/ebla"]))?;
    let mut next = || -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&runtime.block_on(hear(&mut subscriber))?.message)?)
    };
    let _ = cli.run(&["set", "silent", "ebla", "unheard"]).expect(exit::OK);
    let _ = cli.run(&["set", "towns", "mari", "another room"]).expect(exit::OK);
    let written = cli.json(&["set", "towns", "ebla", "3500 BC"]);
    let heard = next()?;
    assert_eq!(
        (&heard["type"], &heard["key"], &heard["value"]),
        (&"set".into(), &"ebla".into(), &"3500 BC".into())
    );
    assert_eq!(heard["ts"], written["ts"]);
    let _ = cli.run(&["delete", "towns", "ebla"]).expect(exit::OK);
    assert_eq!(next()?["type"], "delete");
    let turned = cli.json(&["table", "set", "towns", "--publish-changes", "off"]);
    assert_eq!(turned["publish_changes"], false);
    let turned = cli.json(&["table", "set", "silent", "--publish-changes", "on"]);
    assert_eq!(turned["publish_changes"], true);
    // The servers hear of it in their own time.
    let told = eventually("the change is heard", SOON, || {
        let _ = cli.run(&["set", "silent", "ebla", "heard"]).expect(exit::OK);
        next().is_ok_and(|heard| heard["value"] == "heard")
    });
    told.map(drop)
}

#[test]
fn a_subscriber_that_does_not_read_is_cut_off_alone() -> Result<()> {
    let (cluster, runtime) = (Cluster::start(1, 1)?, Runtime::new()?);
    let client = at(&runtime, &cluster, 0)?;
    let mut stalled = runtime.block_on(at(&runtime, &cluster, 0)?.subscriber())?;
    let mut reader = runtime.block_on(at(&runtime, &cluster, 0)?.subscriber())?;
    runtime.block_on(async {
        stalled.join(["r"]).await?;
        reader.join(["r"]).await?;
        let message = vec![b'x'; 512 * 1024];
        let mut reached = BTreeSet::new();
        for _ in 0..100 {
            reached.insert(client.publish("r", message.clone()).await?.delivered);
            assert_eq!(hear(&mut reader).await?.message.len(), message.len());
        }
        assert_eq!(reached, BTreeSet::from([1, 2]), "the other one is cut off, and nobody waits for it");
        let error = loop {
            match timeout(SOON, stalled.next()).await? {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), Reason::SubscriberTooSlow);
        assert!(matches!(stalled.next().await?, RoomEvent::Rejoined(_)), "it can come back");
        assert_eq!(client.publish("r", "again").await?.delivered, 2);
        Ok(())
    })
}

#[test]
fn three_processes_chat() -> Result<()> {
    let (cluster, names) = (Cluster::start(1, 3)?, ["ann", "bob", "eve"]);
    let chat = binary::example("chat");
    let mut chatters = Vec::new();
    // Each at a server of its own, as far as it goes: the first endpoint is preferred.
    for (at, name) in names.into_iter().enumerate() {
        let chatter = cluster.servers[at].cli().spawn_program(&chat, &[name])?;
        chatter.wait_until(|lines| says(lines, &format!("{name} is in, with {at} others")) == 1)?;
        chatters.push(chatter);
    }
    for (chatter, name) in chatters.iter_mut().zip(names) {
        chatter.say(&format!("hello from {name}"))?;
    }
    let heard = |chatter: &Running, of: &str| {
        chatter.wait_until(|lines| says(lines, &format!("{of}: hello from {of}")) == 1)
    };
    for (chatter, name) in chatters.iter().zip(names) {
        names.into_iter().filter(|of| *of != name).try_for_each(|of| heard(chatter, of))?;
    }
    // Who leaves hears no more, and the others go on.
    let eve = chatters.pop().context("eve is the last")?.end()?;
    assert_eq!(says(&eve, "eve: "), 0, "nobody hears himself: {eve:?}");
    chatters[0].say("is she gone?")?;
    chatters[1].wait_until(|lines| says(lines, "ann: is she gone?") == 1)
}

/// How many lines begin like this.
fn says(lines: &[serde_json::Value], beginning: &str) -> usize {
    lines.iter().filter(|line| line.as_str().is_some_and(|line| line.starts_with(beginning))).count()
}
