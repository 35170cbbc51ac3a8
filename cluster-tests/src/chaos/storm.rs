//! The storm: everything at once, for a time, and nobody may notice.
//!
//! Three masters and four servers under load, while a script splits, merges, moves, hands over,
//! drains and activates at random, and kills servers and the leading master. One process is dead at
//! a time, and the next one dies only when the cluster is whole again: that is what a table with
//! three copies promises to stand. In the end nothing may be wrong: no call failed, counters are
//! exact, the table holds what was acknowledged, on each of its copies.

use crate::cli::{Cli, exit};
use crate::cluster::{Cluster, eventually};
use crate::load::{Known, Load, Shape, Summary};
use crate::observe::servers_in;
use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// The table that is used, and how many tablets it begins with.
const TABLE: &str = "storm";
const TABLETS_FIRST: u64 = 4;

/// Tablets above which nothing is split, and below which nothing is merged.
const TABLETS: Range<usize> = 4..16;

/// Pause between two orders, in milliseconds.
const PAUSE_MS: Range<u64> = 100..1_000;

/// How long a killed process stays dead, in milliseconds.
const DEAD_MS: Range<u64> = 0..3_000;

/// How long everybody must have been there before the next one dies: promises of the one that came
/// back count again, and what it lacked has come.
const WELL_FOR: Duration = Duration::from_millis(1_500);

/// Orders that are under way at the same time, at most.
const ORDERS_MAX: usize = 3;

/// The deadline of every call of a client.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long the cluster may take to become whole when the storm is over.
const CALM_MAX: Duration = Duration::from_secs(120);

/// What is wanted of a storm.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long.
    pub time: Duration,
    /// What the draw of orders and keys begins with.
    pub seed: u64,
    /// Clients, each with one call at a time.
    pub writers: u64,
}

/// What the script does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Order {
    Split,
    Merge,
    Move,
    HandOver,
    Drain,
    Activate,
    KillServer,
    KillMaster,
}

/// Every order as often as it should come up of all.
const ORDERS: [(Order, u32); 7] = [
    (Order::Split, 4),
    (Order::Merge, 4),
    (Order::Move, 5),
    (Order::HandOver, 5),
    (Order::Drain, 1),
    (Order::KillServer, 3),
    (Order::KillMaster, 2),
];

/// How an order ended.
struct Ended {
    order: Order,
    took: Duration,
    /// Why it was not done.
    refused: Option<String>,
}

/// How many orders of a kind ended how.
#[derive(Default)]
struct Tally {
    done: u32,
    refused: u32,
    longest: Duration,
    reasons: BTreeMap<String, u32>,
}

/// A process that is dead until then.
struct Dead {
    is_master: bool,
    at: usize,
    until: Instant,
}

/// A storm that rages.
struct Script<'a> {
    cluster: &'a mut Cluster,
    random: StdRng,
    can_merge: bool,
    ended: (Sender<Ended>, Receiver<Ended>),
    under_way: usize,
    drained: Option<u64>,
    dead: Option<Dead>,
    /// Since when nobody is dead and everybody has said so.
    well_since: Instant,
    tallies: BTreeMap<Order, Tally>,
}

/// Lets it rage, and checks everything afterwards. Prints what happened.
///
/// # Errors
/// When a client noticed anything, or something is wrong in the end.
pub fn run(plan: Plan) -> Result<()> {
    let mut cluster = Cluster::start_with(3, 4, &["--flush-interval", "2s"])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let client = runtime.block_on(cluster.connect(DEADLINE))?;
    let shape = shape(plan);
    create(&cluster, &shape)?;
    cluster.wait_until_whole(3, &[])?;
    let load = {
        let _runtime = runtime.enter();
        Load::start(&client, shape)
    };
    let mut script = Script::new(&mut cluster, plan.seed);
    let raged = script.rage(plan.time).and_then(|()| script.calm());
    let tallies = std::mem::take(&mut script.tallies);
    drop(script);
    let known = runtime.block_on(load.stop())?;
    let summary = known.summary();
    println!("{}", report(plan, &summary, &tallies));
    let judged = raged.and_then(|()| {
        let (errors, words) = (summary.errors, &summary.in_words);
        ensure!(errors == 0, "clients noticed {errors} times: {words:#?}");
        check(&cluster, |known| runtime.block_on(known.check(&client)), &known)
    });
    if judged.is_err() {
        println!("logs in {}", cluster.keep_logs(&format!("storm-{}", plan.seed))?.display());
    }
    judged
}

fn shape(plan: Plan) -> Shape {
    Shape {
        table: TABLE.to_owned(),
        rows: 10_000,
        counters: 100,
        writers: plan.writers,
        pause: Duration::from_millis(1),
        value_bytes: 100,
        seed: plan.seed,
    }
}

fn create(cluster: &Cluster, shape: &Shape) -> Result<()> {
    let mut create: Vec<String> = ["table", "create", TABLE, "--replicas", "3"].map(str::to_owned).into();
    for part in 1..TABLETS_FIRST {
        let at = shape.key(shape.rows * part / TABLETS_FIRST);
        create.extend(["--split-at".to_owned(), String::from_utf8_lossy(&at).into_owned()]);
    }
    let created = cluster.cli().run(&create.iter().map(String::as_str).collect::<Vec<_>>());
    ensure!(created.code == exit::OK, "{created}");
    Ok(())
}

/// Compares the table with what was acknowledged, with each copy leading once.
fn check(cluster: &Cluster, compare: impl Fn(&Known) -> Result<()>, known: &Known) -> Result<()> {
    compare(known).context("after the storm")?;
    let cli = cluster.cli();
    for server in cluster.ids()? {
        for tablet in cluster.tablets() {
            let has_copy = servers_in(&tablet, "replicas").contains(&server);
            if has_copy && tablet["leader"].as_u64() != Some(server) {
                let (id, to) = (tablet["id"].to_string(), server.to_string());
                let led = || cli.run(&["tablet", "transfer-leader", &id, "--to", &to]).code == exit::OK;
                eventually("a copy leads", CALM_MAX, led)?;
            }
        }
        compare(known).with_context(|| format!("with server {server} leading what it has"))?;
    }
    Ok(())
}

impl<'a> Script<'a> {
    fn new(cluster: &'a mut Cluster, seed: u64) -> Self {
        let can_merge = cluster.cli().run(&["tablet", "merge", "--help"]).code == exit::OK;
        Self {
            cluster,
            random: StdRng::seed_from_u64(seed),
            can_merge,
            ended: channel(),
            under_way: 0,
            drained: None,
            dead: None,
            well_since: Instant::now(),
            tallies: BTreeMap::new(),
        }
    }

    fn rage(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let pause = self.random.random_range(PAUSE_MS);
            thread::sleep(Duration::from_millis(pause));
            self.take_ended();
            self.raise_the_dead()?;
            let order = self.draw();
            match order {
                Order::KillServer | Order::KillMaster => self.kill(order)?,
                Order::Split
                | Order::Merge
                | Order::Move
                | Order::HandOver
                | Order::Drain
                | Order::Activate => self.give(order),
            }
        }
        Ok(())
    }

    fn draw(&mut self) -> Order {
        if self.drained.is_some() && self.random.random_bool(0.2) {
            return Order::Activate;
        }
        let all: u32 = ORDERS.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.random.random_range(0..all);
        let fits = |(_, weight): &&(Order, u32)| match drawn.checked_sub(*weight) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        };
        ORDERS.iter().find(fits).map_or(Order::HandOver, |(order, _)| *order)
    }

    /// Gives an order and does not wait for its end.
    fn give(&mut self, order: Order) {
        if self.under_way >= ORDERS_MAX {
            return;
        }
        let Some(words) = self.words(order) else { return };
        self.under_way += 1;
        let (cli, ended) = (self.cluster.cli(), self.ended.0.clone());
        thread::spawn(move || {
            // Nobody listens any more when the storm ended with an error.
            let _ = ended.send(obey(&cli, order, &words));
        });
    }

    /// The command of an order; none when it makes no sense now.
    fn words(&mut self, order: Order) -> Option<Vec<String>> {
        let tablets = self.cluster.tablets();
        let at = self.random.random_range(0..tablets.len().max(1));
        let (tablet, next) = (tablets.get(at)?, tablets.get(at + 1));
        let id = tablet["id"].to_string();
        let words: Vec<String> = match order {
            Order::Split if tablets.len() < TABLETS.end => {
                vec!["split".into(), id, "--parts".into(), "2".into()]
            }
            Order::Merge if self.can_merge && tablets.len() > TABLETS.start => {
                vec!["merge".into(), id, next?["id"].to_string()]
            }
            Order::Move => {
                let (from, to) = self.way(tablet)?;
                vec!["move".into(), id, "--from".into(), from, "--to".into(), to]
            }
            Order::HandOver => vec!["transfer-leader".into(), id, "--to".into(), self.any_copy(tablet)?],
            Order::Drain => return self.drain(),
            Order::Activate => return self.activate(),
            Order::Split | Order::Merge | Order::KillServer | Order::KillMaster => return None,
        };
        Some(
            ["tablet".to_owned()]
                .into_iter()
                .chain(words)
                .chain(["--timeout".into(), "60s".into()])
                .collect(),
        )
    }

    /// A server that has a copy of a tablet, and one that has none.
    fn way(&mut self, tablet: &Json) -> Option<(String, String)> {
        let holders = servers_in(tablet, "replicas");
        let ids = self.cluster.ids().ok()?;
        let free: Vec<u64> = ids.into_iter().filter(|id| !holders.contains(id)).collect();
        let from = holders.get(self.random.random_range(0..holders.len().max(1)))?;
        Some((from.to_string(), free.first()?.to_string()))
    }

    fn any_copy(&mut self, tablet: &Json) -> Option<String> {
        let holders = servers_in(tablet, "replicas");
        holders.get(self.random.random_range(0..holders.len().max(1))).map(u64::to_string)
    }

    /// One server at a time is drained.
    fn drain(&mut self) -> Option<Vec<String>> {
        let ids = self.cluster.ids().ok().filter(|_| self.drained.is_none())?;
        let server = ids[self.random.random_range(0..ids.len())];
        self.drained = Some(server);
        Some(["server", "drain", &server.to_string(), "--timeout", "60s"].map(str::to_owned).into())
    }

    fn activate(&mut self) -> Option<Vec<String>> {
        let server = self.drained.take()?.to_string();
        Some(["server", "activate", &server, "--timeout", "60s"].map(str::to_owned).into())
    }

    /// Kills a server or the leading master, if everybody is there and every copy is in sync.
    fn kill(&mut self, order: Order) -> Result<()> {
        let is_well = self.dead.is_none()
            && self.cluster.all_ready()
            && self.well_since.elapsed() > WELL_FOR
            && self.cluster.has_spare_copies(3);
        if !is_well {
            return Ok(());
        }
        let is_master = order == Order::KillMaster;
        let at = match is_master {
            true => self.cluster.leading_master(),
            false => Some(self.random.random_range(0..self.cluster.servers.len())),
        };
        let Some(at) = at else { return Ok(()) };
        let node = if is_master { &mut self.cluster.masters[at] } else { &mut self.cluster.servers[at] };
        node.process().kill()?;
        let dead_ms = self.random.random_range(DEAD_MS);
        self.dead = Some(Dead { is_master, at, until: Instant::now() + Duration::from_millis(dead_ms) });
        self.tallies.entry(order).or_default().done += 1;
        Ok(())
    }

    /// Starts who was killed again when its time has come; whoever died by itself is an error.
    fn raise_the_dead(&mut self) -> Result<()> {
        if let Some(Dead { is_master, at, .. }) = self.dead.take_if(|dead| dead.until <= Instant::now()) {
            let node = if is_master { &mut self.cluster.masters[at] } else { &mut self.cluster.servers[at] };
            node.start()?;
        }
        if self.dead.is_some() || !self.cluster.all_ready() {
            self.well_since = Instant::now();
        }
        if self.dead.is_none() {
            for node in self.cluster.nodes() {
                let status = node.process().exit_status()?;
                ensure!(status.is_none(), "ended with {status:?} by itself\n{}", node.process().log_tail());
            }
        }
        Ok(())
    }

    fn take_ended(&mut self) {
        let ended: Vec<Ended> = self.ended.1.try_iter().collect();
        ended.into_iter().for_each(|ended| self.note(ended));
    }

    fn note(&mut self, Ended { order, took, refused }: Ended) {
        self.under_way -= 1;
        let tally = self.tallies.entry(order).or_default();
        tally.longest = tally.longest.max(took);
        match refused {
            None => tally.done += 1,
            Some(reason) => {
                tally.refused += 1;
                *tally.reasons.entry(reason).or_default() += 1;
            }
        }
    }

    /// Lets everything come to its end.
    fn calm(&mut self) -> Result<()> {
        while self.under_way > 0 {
            let ended = self.ended.1.recv_timeout(CALM_MAX).context("an order does not end")?;
            self.note(ended);
        }
        if let Some(dead) = &mut self.dead {
            dead.until = Instant::now();
        }
        self.raise_the_dead()?;
        self.cluster.wait_until_serving()?;
        if let Some(words) = self.activate() {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let _ = self.cluster.cli().run(&words).expect(exit::OK);
        }
        let cli = self.cluster.cli();
        let no_jobs = || cli.list(&["job", "list", "--running"]).is_some_and(|jobs| jobs.is_empty());
        eventually("no job is under way", CALM_MAX, no_jobs)?;
        self.cluster.wait_until_whole(3, &[]).map(drop)
    }
}

/// Carries an order out.
fn obey(cli: &Cli, order: Order, words: &[String]) -> Ended {
    let began = Instant::now();
    let output = cli.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    // Numbers differ from one refusal to the next of the same kind.
    let reason =
        || output.stderr.lines().next_back().unwrap_or_default().replace(|c: char| c.is_ascii_digit(), "");
    let refused = (output.code != exit::OK).then(|| format!("exit {}: {}", output.code, reason()));
    Ended { order, took: began.elapsed(), refused }
}

fn report(plan: Plan, summary: &Summary, tallies: &BTreeMap<Order, Tally>) -> String {
    let mut text =
        format!("a storm of {:?} with seed {} and {} clients\n", plan.time, plan.seed, plan.writers);
    let _ = writeln!(text, "{:<12}{:>10}{:>12}{:>12}{:>12}", "calls", "count", "p50", "p99", "longest");
    for (name, calls) in [("get", &summary.reads), ("write", &summary.writes)] {
        let at = |quantile| format!("{:.1?}", Duration::from_micros(calls.value_at_quantile(quantile)));
        let _ = writeln!(text, "{name:<12}{:>10}{:>12}{:>12}{:>12}", calls.len(), at(0.5), at(0.99), at(1.0));
    }
    let (longest, what) = &summary.longest;
    let _ = writeln!(
        text,
        "longest: {what} took {longest:.1?}; errors: {}; taken back: {}",
        summary.errors, summary.reverted
    );
    for slow in &summary.slow {
        let _ = writeln!(text, "slow: {slow}");
    }
    let _ = writeln!(text, "{:<12}{:>10}{:>12}{:>12}", "orders", "done", "refused", "longest");
    for (order, tally) in tallies {
        let Tally { done, refused, longest, reasons } = tally;
        let _ = writeln!(
            text,
            "{:<12}{done:>10}{refused:>12}{:>12}",
            format!("{order:?}"),
            format!("{longest:.1?}")
        );
        for (reason, count) in reasons {
            let _ = writeln!(text, "{count:>16} x {reason}");
        }
    }
    text
}
