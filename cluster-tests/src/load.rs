//! Writers and readers that know what a table must hold, for tests that break things meanwhile.
//!
//! Half of the calls read, half write, as YCSB's workload A has it; some keys are far more popular
//! than others. All writers share all keys: of two writes of a key the one with the later timestamp
//! stands, so what was acknowledged says what must be there, whoever wrote it. A read must not be
//! older than what was acknowledged before it began. Beside that, each writer adds to
//! counters, which must be exact in the end: every add carries a token.
//!
//! All writes ask for the level `copies(2)`, so that a failover loses none of them.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use ebla_client::{AckLevel, Batch, Client, Hlc, Outcome, Scan, Ticket, Value, WriteOptions};
use futures::TryStreamExt as _;
use hdrhistogram::Histogram;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinHandle;

/// How much more popular the first keys are, as in YCSB.
const SKEW: f64 = 0.99;

/// Every so many writes one is an add to a counter.
const ADD_EVERY: u64 = 4;

/// How long an outcome that nobody knew in time is asked for, so that the model stays exact.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// Errors that are kept in words; the others are only counted.
const ERRORS_TOLD_MAX: usize = 20;

/// Calls that take longer are told one by one, up to so many.
const SLOW: Duration = Duration::from_secs(3);
const SLOW_TOLD_MAX: usize = 20;

/// Longest latency that is told apart.
const LATENCY_MAX: Duration = Duration::from_secs(600);

/// What is done to a table.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The table.
    pub table: String,
    /// Keys that are read and set, `0000000..`.
    pub rows: u64,
    /// Counters that are added to, beside the rows.
    pub counters: u64,
    /// Tasks, each with one call at a time.
    pub writers: u64,
    /// Pause of each task after each call.
    pub pause: Duration,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// What the draw of keys begins with.
    pub seed: u64,
}

impl Shape {
    /// The key of a row.
    #[must_use]
    pub fn key(&self, row: u64) -> Bytes {
        format!("{row:07}").into()
    }

    /// The key of a counter, which lies between the rows.
    #[must_use]
    pub fn counter(&self, number: u64) -> Bytes {
        format!("{:07}-counter", number * self.rows / self.counters.max(1)).into()
    }

    fn value(&self, writer: u64, turn: u64) -> Bytes {
        let mut value = format!("{writer}.{turn}.");
        while value.len() < self.value_bytes {
            let _ = write!(value, "{:08x}", (turn ^ value.len() as u64).wrapping_mul(0x9e37_79b9));
        }
        value.into()
    }
}

/// What clients were told, and how it went.
pub struct Known {
    shape: Shape,
    /// Shares of the rows up to each, rising to one.
    popularity: Vec<f64>,
    told: Mutex<Told>,
    stop: AtomicBool,
}

struct Told {
    rows: BTreeMap<Bytes, (Hlc, Bytes)>,
    counters: BTreeMap<Bytes, i64>,
    reads: Histogram<u64>,
    writes: Histogram<u64>,
    longest: (Duration, String),
    slow: Vec<String>,
    reverted: u64,
    errors: u64,
    in_words: Vec<String>,
}

/// A load that runs.
pub struct Load {
    known: Arc<Known>,
    tasks: Vec<JoinHandle<()>>,
}

/// How the calls went.
pub struct Summary {
    /// Reads that were answered.
    pub reads: Histogram<u64>,
    /// Writes that were acknowledged.
    pub writes: Histogram<u64>,
    /// The call that took longest.
    pub longest: (Duration, String),
    /// The first calls that were slow, and when they ended.
    pub slow: Vec<String>,
    /// Writes that were taken back, and whose clients were told so: an outcome, not an error.
    pub reverted: u64,
    /// Calls that failed, and writes of unknown outcome.
    pub errors: u64,
    /// The first of them.
    pub in_words: Vec<String>,
}

impl Load {
    /// Starts it with `client`, whose deadline every call has.
    #[must_use]
    pub fn start(client: &Client, shape: Shape) -> Self {
        let known = Arc::new(Known::new(shape));
        let task = |writer| tokio::spawn(Arc::clone(&known).work(client.clone(), writer));
        let tasks = (0..known.shape.writers).map(task).collect();
        Self { known, tasks }
    }

    /// What clients were told so far.
    #[must_use]
    pub fn known(&self) -> &Arc<Known> {
        &self.known
    }

    /// Lets every call end that is under way.
    ///
    /// # Errors
    /// When a task panicked.
    pub async fn stop(self) -> Result<Arc<Known>> {
        self.known.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.context("a task of the load")?;
        }
        Ok(self.known)
    }
}

impl Known {
    fn new(shape: Shape) -> Self {
        let weight = |row: u64| 1.0 / ((row + 1) as f64).powf(SKEW);
        let all: f64 = (0..shape.rows).map(weight).sum();
        let mut sum = 0.0;
        let mut share = |row| {
            sum += weight(row) / all;
            sum
        };
        let popularity = (0..shape.rows).map(&mut share).collect();
        let latencies = || {
            let highest = u64::try_from(LATENCY_MAX.as_micros()).unwrap_or(u64::MAX);
            Histogram::new_with_bounds(1, highest, 3).expect("the bounds are in order")
        };
        let told = Told {
            rows: BTreeMap::new(),
            counters: BTreeMap::new(),
            reads: latencies(),
            writes: latencies(),
            longest: (Duration::ZERO, String::new()),
            slow: Vec::new(),
            reverted: 0,
            errors: 0,
            in_words: Vec::new(),
        };
        Self { shape, popularity, told: Mutex::new(told), stop: AtomicBool::new(false) }
    }

    async fn work(self: Arc<Self>, client: Client, writer: u64) {
        let mut random = StdRng::seed_from_u64(self.shape.seed.wrapping_mul(1_000).wrapping_add(writer));
        let mut turn = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let key = self.any_key(&mut random);
            if random.random_bool(0.5) {
                self.read(&client, key).await;
            } else {
                turn += 1;
                if turn % ADD_EVERY == 0 {
                    let counter = self.shape.counter(random.random_range(0..self.shape.counters));
                    self.add(&client, counter).await;
                } else {
                    self.set(&client, key, self.shape.value(writer, turn)).await;
                }
            }
            tokio::time::sleep(self.shape.pause).await;
        }
    }

    /// A row, the popular ones more often; which those are is spread over the table.
    fn any_key(&self, random: &mut StdRng) -> Bytes {
        let drawn = random.random::<f64>();
        let rank = self.popularity.partition_point(|share| *share < drawn) as u64;
        self.shape.key(rank.wrapping_mul(7_919) % self.shape.rows)
    }

    async fn read(&self, client: &Client, key: Bytes) {
        let wanted = self.told().rows.get(&key).map(|(ts, _)| *ts);
        let began = Instant::now();
        let found = client.get(&self.shape.table, key.clone()).await;
        let took = began.elapsed();
        let mut told = self.told();
        let _ = told.reads.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        told.note_longest(took, || format!("get {key:?}"));
        match found {
            Ok(found) => {
                let ts = found.map(|cell| cell.ts);
                if ts < wanted {
                    told.note_error(format!("read {key:?} as of {ts:?}, {wanted:?} was acknowledged before"));
                }
            }
            Err(error) => told.note_error(format!("get {key:?} after {took:?}: {error}")),
        }
    }

    async fn set(&self, client: &Client, key: Bytes, value: Bytes) {
        let batch = Batch::new().set(key.clone(), value.clone());
        if let Some(ts) = self.write(client, batch, &key).await {
            let mut told = self.told();
            if told.rows.get(&key).is_none_or(|(known, _)| *known < ts) {
                told.rows.insert(key, (ts, value));
            }
        }
    }

    async fn add(&self, client: &Client, counter: Bytes) {
        let batch = Batch::new().add(counter.clone(), 1);
        if self.write(client, batch, &counter).await.is_some() {
            *self.told().counters.entry(counter).or_default() += 1;
        }
    }

    /// Writes; gives the timestamp when it stands.
    async fn write(&self, client: &Client, batch: Batch, key: &Bytes) -> Option<Hlc> {
        let options = WriteOptions { ack: Some(AckLevel::Copies(2)) };
        let began = Instant::now();
        let outcome = client.write(&self.shape.table, batch, options).await;
        let took = began.elapsed();
        let ticket = {
            let mut told = self.told();
            let _ = told.writes.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            told.note_longest(took, || format!("write {key:?}"));
            match outcome {
                Ok(Outcome::Committed(committed)) => return Some(committed.ts),
                Ok(Outcome::Unknown(ticket)) => {
                    told.note_error(format!("the outcome of a write of {key:?} is unknown after {took:?}"));
                    ticket
                }
                Ok(Outcome::Reverted) => {
                    told.reverted += 1;
                    return None;
                }
                Err(error) => {
                    told.note_error(format!("write {key:?} after {took:?}: {error}"));
                    return None;
                }
            }
        };
        self.settle(client, &ticket).await
    }

    async fn settle(&self, client: &Client, ticket: &Ticket) -> Option<Hlc> {
        let until = Instant::now() + SETTLE_MAX;
        while Instant::now() < until {
            match client.outcome(ticket).await {
                Ok(Outcome::Committed(committed)) => return Some(committed.ts),
                Ok(Outcome::Reverted) => return None,
                Ok(Outcome::Unknown(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
        self.told().note_error(format!("nobody can tell the outcome of {ticket}"));
        None
    }

    /// Compares the whole table with what was acknowledged; no load may run.
    ///
    /// # Errors
    /// When they differ, with the first rows that do.
    pub async fn check(&self, client: &Client) -> Result<()> {
        let mut found = BTreeMap::new();
        let mut rows = client.scan(&self.shape.table, Scan::all())?;
        let mut last = Bytes::new();
        while let Some(row) = rows.try_next().await.context("the scan of the whole table")? {
            ensure!(row.key > last, "{:?} comes after {last:?} in the scan", row.key);
            last = row.key.clone();
            found.insert(row.key, row.value);
        }
        let told = self.told();
        let rows = told.rows.iter().map(|(key, (_, value))| (key, Value::Bytes(value.clone())));
        let counters = told.counters.iter().map(|(key, sum)| (key, Value::Counter(*sum)));
        let wanted: BTreeMap<&Bytes, Value> = rows.chain(counters).collect();
        let mut differs = Vec::new();
        for (key, value) in &wanted {
            if found.get(*key) != Some(value) {
                differs.push(format!("{key:?} is {:?} instead of {value:?}", found.get(*key)));
            }
        }
        let more = found.keys().filter(|key| !wanted.contains_key(key));
        differs.extend(more.map(|key| format!("{key:?} was never acknowledged and is there")));
        let (count, first) = (differs.len(), differs.iter().take(5).cloned().collect::<Vec<_>>().join("; "));
        ensure!(count == 0, "{count} of {} rows differ: {first}", wanted.len());
        Ok(())
    }

    /// How the calls went so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let told = self.told();
        Summary {
            reads: told.reads.clone(),
            writes: told.writes.clone(),
            longest: told.longest.clone(),
            slow: told.slow.clone(),
            reverted: told.reverted,
            errors: told.errors,
            in_words: told.in_words.clone(),
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("no holder of this lock panics")
    }
}

impl Told {
    fn note_longest(&mut self, took: Duration, what: impl Fn() -> String) {
        if took > SLOW && self.slow.len() < SLOW_TOLD_MAX {
            self.slow.push(format!("{} {} took {took:.1?}", time_of_day(), what()));
        }
        if took > self.longest.0 {
            self.longest = (took, what());
        }
    }

    fn note_error(&mut self, what: String) {
        self.errors += 1;
        if self.in_words.len() < ERRORS_TOLD_MAX {
            self.in_words.push(format!("{} {what}", time_of_day()));
        }
    }
}

/// As the logs of servers have it, to find the place there.
fn time_of_day() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let s = now.as_secs();
    format!("{:02}:{:02}:{:02}.{:03}", s / 3_600 % 24, s / 60 % 60, s % 60, now.subsec_millis())
}
