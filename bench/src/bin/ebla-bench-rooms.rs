//! `ebla-bench-rooms`: what rooms cost and how fast they are, with NATS core and Redis pub/sub beside
//! them in the same run.
//!
//! - one to one: messages to many subjects with one subscriber each;
//! - one to many: messages to one subject with many subscribers;
//! - the same with some subscribers that do not read: what the others notice;
//! - many rooms with one subscriber each: time to join them, memory of an idle one, messages per
//!   second to them (rooms only).
//!
//! Publishers wait while too much is under way, so that latencies are of a system that keeps up.

use anyhow::{Context as _, Result};
use clap::Parser;
use ebla_bench::brokers::{Broker, Subscriber};
use ebla_bench::closed_loop::new_histogram;
use ebla_bench::dev::{Dev, scratch};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Bytes of each message.
const MESSAGE_BYTES: usize = 100;

/// Deliveries that may be under way before publishers wait.
const UNDER_WAY_MAX: u64 = 4_000;

#[derive(Parser)]
#[command(about = "Measures rooms beside NATS core and Redis pub/sub and prints markdown tables")]
struct Args {
    /// The `ebla` binary, built with --release
    #[arg(long, default_value = "target/release/ebla")]
    ebla: PathBuf,
    /// Rooms with one subscriber each; 0 for no such measurement
    #[arg(long, default_value_t = 1_000_000)]
    rooms: u64,
    /// Subscribers of one subject in the comparison
    #[arg(long, default_value_t = 500)]
    subscribers: usize,
    /// Subscribers of one room; 0 for no such measurement
    #[arg(long, default_value_t = 10_000)]
    many: usize,
    /// Messages to many subjects
    #[arg(long, default_value_t = 300_000)]
    messages: u64,
    /// Where to put the temporary directory
    #[arg(long, default_value = "target")]
    dir: PathBuf,
}

/// What was measured.
struct Measured {
    deliveries: u64,
    took: Duration,
    latency_us: Histogram<u64>,
}

impl Measured {
    fn per_s(&self) -> f64 {
        self.deliveries as f64 / self.took.as_secs_f64()
    }

    fn p99_ms(&self) -> f64 {
        self.latency_us.value_at_quantile(0.99) as f64 / 1_000.0
    }
}

/// Who is subscribed to what, and what is published.
struct Plan {
    /// Subjects of each subscriber.
    subscribers: Vec<Vec<String>>,
    /// Subscribers beside these that never read.
    stalled: Vec<Vec<String>>,
    publishers: usize,
    messages: u64,
    subjects: Vec<String>,
    /// Subscribers of each subject that read.
    fan_out: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let place = scratch(&args.dir)?;
    let dev = Dev::start(&args.ebla, &place.path().join("cluster")).await.context("the cluster")?;
    let mut brokers = vec![Broker::ebla(&dev.address, args.subscribers).await?];
    for (name, broker) in [("nats-server", Broker::nats().await?), ("redis-server", Broker::redis().await?)] {
        match broker {
            Some(broker) => brokers.push(broker),
            None => eprintln!("{name} is not installed: left out"),
        }
    }
    compare("One to one, 10,000 subjects", &brokers, &one_to_one(&args)).await?;
    let shared = one_to_many(args.subscribers, 0);
    compare(&format!("One to {}", args.subscribers), &brokers, &shared).await?;
    let stalled = one_to_many(args.subscribers, (args.subscribers / 100).max(1));
    compare(&format!("One to {}, 1 % more that do not read", args.subscribers), &brokers, &stalled).await?;
    if args.many > 0 {
        many_subscribers(&dev.address, args.many).await?;
    }
    if args.rooms > 0 {
        many_rooms(&dev, args.rooms).await?;
    }
    Ok(())
}

fn one_to_one(args: &Args) -> Plan {
    let subjects: Vec<String> = (0..10_000).map(|n| format!("subject.{n}")).collect();
    let subscribers = subjects.chunks(1_000).map(<[String]>::to_vec).collect();
    let messages = args.messages;
    Plan { subscribers, stalled: Vec::new(), publishers: 4, messages, subjects, fan_out: 1 }
}

fn one_to_many(subscribers: usize, stalled: usize) -> Plan {
    let subjects = vec!["everybody".to_owned()];
    Plan {
        subscribers: vec![subjects.clone(); subscribers],
        stalled: vec![subjects.clone(); stalled],
        publishers: 1,
        messages: 400_000 / subscribers as u64,
        subjects,
        fan_out: subscribers as u64,
    }
}

async fn compare(title: &str, brokers: &[Broker], plan: &Plan) -> Result<()> {
    println!("\n{title}: {} messages of {MESSAGE_BYTES} bytes\n", plan.messages);
    println!("| | deliveries/s | p50 ms | p99 ms | ebla is |");
    println!("|---|---|---|---|---|");
    let mut own = None;
    for broker in brokers {
        let measured = run(broker, plan).await.with_context(|| broker.name())?;
        let own = *own.get_or_insert(measured.per_s());
        println!(
            "| {} | {:.0} | {:.2} | {:.2} | {:.2} times |",
            broker.name(),
            measured.per_s(),
            measured.latency_us.value_at_quantile(0.5) as f64 / 1_000.0,
            measured.p99_ms(),
            own / measured.per_s(),
        );
    }
    Ok(())
}

/// Carries a plan out with one broker.
async fn run(broker: &Broker, plan: &Plan) -> Result<Measured> {
    let (begun, heard) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let done = Arc::new(AtomicBool::new(false));
    let mut stalled = Vec::new();
    for subjects in &plan.stalled {
        stalled.push(broker.subscribe(subjects).await?);
    }
    let mut listening = JoinSet::new();
    for subjects in &plan.subscribers {
        let subscriber = broker.subscribe(subjects).await?;
        listening.spawn(listen(subscriber, begun, Arc::clone(&heard), Arc::clone(&done)));
    }
    let since = Instant::now();
    publish(broker, plan, begun, &heard).await?;
    let wanted = plan.messages * plan.fan_out;
    while heard.load(Ordering::Relaxed) < wanted && since.elapsed() < Duration::from_secs(120) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (took, deliveries) = (since.elapsed(), heard.load(Ordering::Relaxed));
    done.store(true, Ordering::Relaxed);
    let mut latency_us = new_histogram();
    while let Some(listened) = listening.join_next().await {
        latency_us.add(listened?)?;
    }
    Ok(Measured { deliveries, took, latency_us })
}

async fn publish(broker: &Broker, plan: &Plan, begun: Instant, heard: &AtomicU64) -> Result<()> {
    let (mut feeds, mut publishing) = (Vec::new(), JoinSet::new());
    for _ in 0..plan.publishers {
        let (feed, messages) = mpsc::channel(256);
        publishing.spawn(broker.publisher().await?.publish_all(messages));
        feeds.push(feed);
    }
    let mut chance = SmallRng::seed_from_u64(1);
    for number in 0..plan.messages {
        let mut message = vec![b'x'; MESSAGE_BYTES];
        let subject = plan.subjects[chance.random_range(0..plan.subjects.len())].clone();
        while number * plan.fan_out > heard.load(Ordering::Relaxed) + UNDER_WAY_MAX.max(2 * plan.fan_out) {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        let sent_us = u64::try_from(begun.elapsed().as_micros())?;
        message[..8].copy_from_slice(&sent_us.to_be_bytes());
        let feed = usize::try_from(number)? % feeds.len();
        feeds[feed].send((subject, message)).await.context("a publisher ended")?;
    }
    drop(feeds);
    while let Some(done) = publishing.join_next().await {
        done??;
    }
    Ok(())
}

/// Hears until everything was heard by everybody.
async fn listen(
    mut subscriber: Subscriber,
    begun: Instant,
    heard: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
) -> Histogram<u64> {
    let mut latency_us = new_histogram();
    while !done.load(Ordering::Relaxed) {
        let next = tokio::time::timeout(Duration::from_millis(200), subscriber.next()).await;
        let Ok(next) = next else { continue };
        let Ok(message) = next else { break };
        let Some(sent) = message.first_chunk::<8>() else { break };
        let took = begun.elapsed().saturating_sub(Duration::from_micros(u64::from_be_bytes(*sent)));
        latency_us.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        heard.fetch_add(1, Ordering::Relaxed);
    }
    latency_us
}

/// One room with very many subscribers, a hundred streams to a connection.
async fn many_subscribers(address: &str, subscribers: usize) -> Result<()> {
    let broker = Broker::ebla(address, subscribers.div_ceil(100)).await?;
    let measured = run(&broker, &one_to_many(subscribers, 0)).await?;
    let noticed = run(&broker, &one_to_many(subscribers, subscribers / 100)).await?;
    println!("\nOne room with {subscribers} subscribers\n");
    println!("| | deliveries/s | p99 ms |");
    println!("|---|---|---|");
    for (what, measured) in [("all read", &measured), ("1 % more do not read", &noticed)] {
        println!("| {what} | {:.0} | {:.1} |", measured.per_s(), measured.p99_ms());
    }
    Ok(())
}

/// Rooms with one subscriber each.
async fn many_rooms(dev: &Dev, rooms: u64) -> Result<()> {
    let names: Vec<String> = (0..rooms).map(|n| format!("room-{n:08}")).collect();
    let (before, since) = (dev.resident_bytes()?, Instant::now());
    let mut joining = JoinSet::new();
    for some in names.chunks(names.len().div_ceil(12)) {
        let (client, some) = (dev.client.clone(), some.to_vec());
        joining.spawn(async move {
            let mut subscriber = client.subscriber().await?;
            subscriber.join(some).await?;
            anyhow::Ok(subscriber)
        });
    }
    let (mut subscribers, mut messages) = (Vec::new(), 0_u64);
    while let Some(joined) = joining.join_next().await {
        subscribers.push(joined??);
    }
    let joined = since.elapsed();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let bytes = dev.resident_bytes()?.saturating_sub(before) / rooms;
    let publisher = dev.client.publisher().await?;
    let (mut publishing, mut chance) = (JoinSet::new(), SmallRng::seed_from_u64(2));
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(10) {
        while publishing.len() < 1_000 {
            let (publisher, room) = (publisher.clone(), names[chance.random_range(0..names.len())].clone());
            publishing.spawn(async move { publisher.publish(room, vec![b'x'; MESSAGE_BYTES]).await });
        }
        if let Some(done) = publishing.join_next().await {
            messages += done??.delivered;
        }
    }
    println!("\n{rooms} rooms with one subscriber each\n");
    println!("| joined in s | bytes of memory per room (three rows, one subscriber) | delivered/s |");
    println!("|---|---|---|");
    println!(
        "| {:.1} | {bytes} | {:.0} |",
        joined.as_secs_f64(),
        messages as f64 / since.elapsed().as_secs_f64()
    );
    drop(subscribers);
    Ok(())
}
