//! The shell of the plan: what the cluster does by itself.
//!
//! One task looks every few seconds while its master leads. It takes a picture, lets the plan
//! decide, and begins what was decided by the ways that operators use: jobs of automatic
//! origin, and orders to hand leadership over. Everything here is memory of the leading
//! master; whether it is paused is metadata.

use crate::clock;
use crate::controller::Event;
use crate::limits::{
    BALANCE_LASTS_ROUNDS, BALANCE_REST_TIMES, DECISIONS_KEPT_MAX, DISK_FREE_BYTES, DISK_FREE_SHARE,
};
use crate::liveness::{Counted, Liveness};
use crate::raft::node::Raft;
use crate::service::suggest::suggest_split;
use ebla_kernel::ids::{ServerId, TabletId, Tick};
use ebla_kernel::meta::{Command, Origin, Reply, State, Tablet, Wish};
use ebla_kernel::plan::{
    Action, Decision, Measure, Neighbours, Observed, Picture, PlanSettings, Planner, Refusal, Room, Size,
};
use ebla_proto::v1::{self, ServerState, SplitFinding, SuggestSplitResponse};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Begins the outcome of a decision that came to nothing.
const NOT_BEGUN: &str = "not begun: ";

/// Names a decision among those that are remembered.
type DecisionId = u64;

/// What the leading master remembers.
struct Memory {
    /// The term that it led in.
    term: Option<u64>,
    planner: Planner,
    /// What was counted in the last round, and when.
    counted: BTreeMap<TabletId, Counted>,
    counted_at: Instant,
    decisions: VecDeque<(DecisionId, v1::BalancerDecision)>,
    /// Keys that keep busy tablets from being split.
    hot_keys: BTreeMap<TabletId, v1::HotKey>,
    next: DecisionId,
    rounds: u64,
    round: Duration,
}

/// Why something was not begun: for the plan and for people.
struct NotBegun {
    refusal: Refusal,
    why: String,
}

impl From<String> for NotBegun {
    fn from(why: String) -> Self {
        Self { refusal: Refusal::Failed, why }
    }
}

/// What the cluster does by itself.
pub(crate) struct Balancer {
    raft: Raft,
    liveness: Arc<Liveness>,
    /// Weak, so that the controller ends with the services.
    events: mpsc::WeakSender<Event>,
    interval: Option<Duration>,
    start: Instant,
    memory: Mutex<Memory>,
}

impl Balancer {
    pub fn new(
        raft: Raft,
        liveness: Arc<Liveness>,
        events: mpsc::WeakSender<Event>,
        interval: Option<Duration>,
    ) -> Self {
        let lasts = interval.unwrap_or_default().saturating_mul(BALANCE_LASTS_ROUNDS);
        let settings = PlanSettings { lasts_ms: u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX) };
        let memory = Memory {
            term: None,
            planner: Planner::new(settings),
            counted: BTreeMap::new(),
            counted_at: Instant::now(),
            decisions: VecDeque::new(),
            hot_keys: BTreeMap::new(),
            next: 0,
            rounds: 0,
            round: Duration::ZERO,
        };
        Self { raft, liveness, events, interval, start: Instant::now(), memory: Mutex::new(memory) }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Tick {
        clock::tick_since(self.start)
    }

    /// Looks again and again, for ever.
    pub async fn run(self: Arc<Self>) {
        let Some(interval) = self.interval else { return };
        let mut rounds = tokio::time::interval(interval);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            let (begun, this) = (Instant::now(), Arc::clone(&self));
            // Of a very large cluster a round takes a second: nobody else's work waits for it.
            let Ok(decisions) = tokio::task::spawn_blocking(move || this.round()).await else { return };
            for (id, decision) in decisions {
                tokio::spawn(Arc::clone(&self).carry_out(id, decision));
            }
            tokio::time::sleep(begun.elapsed() * BALANCE_REST_TIMES).await;
        }
    }

    /// One look. Gives what is to be done.
    fn round(&self) -> Vec<(DecisionId, Decision)> {
        let role = self.raft.view().role();
        let term = role.leading.then_some(role.term);
        let mut memory = self.memory();
        if memory.term != term {
            memory.forget(term);
        }
        if term.is_none() {
            return Vec::new();
        }
        let begun = Instant::now();
        let observed = self.observe(&mut memory);
        let (mut picture, paused) = {
            let state = self.raft.view().state();
            let up = |server| self.room(server).map(|room| (server, room));
            let up = state.servers().filter_map(|server| up(server.id)).collect();
            (Picture::of(&state, &Observed { up, sizes: observed }), state.balancer_paused())
        };
        let decisions = if paused {
            memory.planner.look(self.now(), &mut picture);
            Vec::new()
        } else {
            memory.planner.step(self.now(), &mut picture)
        };
        let Memory { hot_keys, planner, .. } = &mut *memory;
        hot_keys.retain(|tablet, _| planner.is_too_busy(*tablet));
        (memory.rounds, memory.round) = (memory.rounds + 1, begun.elapsed());
        decisions.into_iter().map(|decision| (memory.remember(&decision), decision)).collect()
    }

    /// Sizes and rates of all tablets that were reported.
    fn observe(&self, memory: &mut Memory) -> BTreeMap<TabletId, Size> {
        let counted = self.liveness.counted();
        let passed = memory.counted_at.elapsed().as_secs_f64().max(0.001);
        let size = |(id, now): (&TabletId, &Counted)| {
            let before = memory.counted.get(id).filter(|before| before.server == now.server);
            let requests = before.map_or(0, |before| now.requests.saturating_sub(before.requests));
            (*id, Size { bytes: now.bytes, requests: (requests as f64 / passed) as u64 })
        };
        let sizes = counted.iter().map(size).collect();
        (memory.counted, memory.counted_at) = (counted, Instant::now());
        sizes
    }

    /// How a server stands; none for one that is not up.
    fn room(&self, server: ServerId) -> Option<Room> {
        let health = self.liveness.health(server);
        let is_up = health.connected && health.state == ServerState::Up;
        let wanted = (health.disk_bytes / DISK_FREE_SHARE).min(DISK_FREE_BYTES);
        let takes_copies = health.disk_bytes_free >= wanted;
        is_up.then_some(Room { takes_copies })
    }

    /// Begins what was decided, and remembers what became of it.
    async fn carry_out(self: Arc<Self>, id: DecisionId, decision: Decision) {
        let tablet = decision.tablet;
        let begun = match decision.action {
            Action::Split { parts, by } => self.split(tablet, parts, by).await,
            Action::Merge { right } => self.merge(tablet, right).await,
            Action::Move { from, to } => {
                self.start(Wish::Move { tablet, from, to }).await.map_err(NotBegun::from)
            }
            Action::HandOver { to, .. } => self.hand_over(tablet, to).await.map_err(NotBegun::from),
        };
        let outcome = match begun {
            Ok(begun) => {
                tracing::info!(%tablet, action = %decision.action, reason = %decision.reason, %begun, "the cluster acts by itself");
                begun
            }
            Err(NotBegun { refusal, why }) => {
                tracing::info!(%tablet, action = %decision.action, %why, "what the cluster wanted was not begun");
                self.memory().planner.not_begun(self.now(), &decision, refusal);
                format!("{NOT_BEGUN}{why}")
            }
        };
        self.memory().note(id, outcome);
    }

    async fn split(&self, tablet: TabletId, parts: u32, by: Measure) -> Result<String, NotBegun> {
        let (address, table) = {
            let state = self.raft.view().state();
            let known = state.tablet(tablet).ok_or_else(|| "it is gone".to_owned())?;
            let server = known.leader.and_then(|leader| state.server(leader.server));
            let address = server.ok_or_else(|| "nobody leads it".to_owned())?.address.clone();
            (address, state.table(known.table).map(|table| table.name.clone()).unwrap_or_default())
        };
        let found = suggest_split(&address, tablet, parts, by).await?;
        let refuse = |refusal, why: &str| Err(NotBegun { refusal, why: why.to_owned() });
        match found.finding() {
            SplitFinding::Cut => Ok(self.start(Wish::Split { tablet, at: found.split_keys }).await?),
            SplitFinding::HotKey => {
                let hot = hot_key(tablet, table, &found);
                let why = format!("the key {} has {} % of its requests", shown(&hot.key), hot.percent);
                self.memory().hot_keys.insert(tablet, hot);
                Err(NotBegun { refusal: Refusal::HotKey, why })
            }
            SplitFinding::Wandering => refuse(Refusal::Wandering, "its requests go along its keys"),
            SplitFinding::TooFewSamples => {
                refuse(Refusal::TooEarly, "too few of its requests were sampled yet")
            }
            SplitFinding::TooFewRows | SplitFinding::Unspecified => {
                refuse(Refusal::Failed, "it has too few rows to be split by size")
            }
        }
    }

    /// The smaller one goes where the larger one is.
    async fn merge(&self, left: TabletId, right: TabletId) -> Result<String, NotBegun> {
        Ok(self.start(self.liveness.merge_of(left, right)).await?)
    }

    async fn start(&self, wish: Wish) -> Result<String, String> {
        let command = Command::StartJob { wish, origin: Origin::Automatic, time_ms: clock::wall_ms() };
        match self.raft.propose(command).await {
            Ok(Reply::Job(job)) => Ok(format!("job {}", job.id.0)),
            Ok(Reply::Rejected(why)) => Err(why.to_string()),
            Ok(other) => Err(format!("an answer of another kind: {other:?}")),
            Err(why) => Err(why.to_string()),
        }
    }

    async fn hand_over(&self, tablet: TabletId, server: ServerId) -> Result<String, String> {
        let gone = || "this master ends".to_owned();
        let (answer, answered) = oneshot::channel();
        let event = Event::Transfer { tablet, server, answer };
        self.events.upgrade().ok_or_else(gone)?.send(event).await.map_err(|_| gone())?;
        let ordered = answered.await.map_err(|_| gone())?;
        ordered.map(|()| "ordered".to_owned()).map_err(|why| why.to_string())
    }

    /// What people are told of it.
    pub fn status(&self) -> v1::GetBalancerResponse {
        let paused = self.raft.view().state().balancer_paused();
        let memory = self.memory();
        v1::GetBalancerResponse {
            paused,
            interval_ms: self.interval.map_or(0, |interval| whole(interval.as_millis())),
            rounds: memory.rounds,
            round_us: whole(memory.round.as_micros()),
            decisions: memory.decisions.iter().map(|(_, decision)| decision.clone()).collect(),
            hot_keys: memory.hot_keys.values().cloned().collect(),
            planned: Vec::new(),
        }
    }

    /// What it would begin now.
    pub fn dry_run(&self) -> Vec<v1::BalancerDecision> {
        let picture = self.picture(&self.raft.view().state());
        let decisions = self.memory().planner.dry_run(self.now(), picture);
        decisions.iter().map(decision_to_wire).collect()
    }

    /// What there is; rates are what the plan remembers.
    fn picture(&self, state: &State) -> Picture {
        let counted = self.liveness.counted();
        let size = |one: &Counted| Size { bytes: one.bytes, requests: 0 };
        let sizes = counted.iter().map(|(id, one)| (*id, size(one))).collect();
        let up = state.servers().filter_map(|one| Some((one.id, self.room(one.id)?))).collect();
        Picture::of(state, &Observed { up, sizes })
    }

    /// Why a tablet is where it is.
    pub fn explain(&self, tablet: TabletId) -> v1::ExplainTabletResponse {
        let (picture, next, paused) = {
            let state = self.raft.view().state();
            (self.picture(&state), neighbours(&state, tablet), state.balancer_paused())
        };
        let memory = self.memory();
        let mut findings = Vec::new();
        if paused {
            findings.push("the balancer is paused: `ebla balancer resume` lets it go on".to_owned());
        }
        if self.interval.is_none() {
            findings.push("the leading master was started with --balance-interval off".to_owned());
        }
        findings.extend(memory.planner.why(self.now(), picture, tablet, next));
        if let Some(hot) = memory.hot_keys.get(&tablet) {
            findings.push(format!(
                "the key {} has {} % of its requests: no split can take them apart, so spread them over more keys",
                shown(&hot.key),
                hot.percent
            ));
        }
        let of_it = memory.decisions.iter().filter(|(_, decision)| decision.tablet_id == tablet.0);
        v1::ExplainTabletResponse { findings, decisions: of_it.map(|(_, one)| one.clone()).collect() }
    }
}

impl Memory {
    fn forget(&mut self, term: Option<u64>) {
        self.term = term;
        self.planner.reset();
        self.counted.clear();
        self.decisions.clear();
        self.hot_keys.clear();
        self.rounds = 0;
    }

    fn remember(&mut self, decision: &Decision) -> DecisionId {
        let id = self.next;
        self.next += 1;
        let wire = decision_to_wire(decision);
        // What is tried again and again is told once.
        let is_same = |other: &v1::BalancerDecision| {
            (other.tablet_id, &other.kind) == (wire.tablet_id, &wire.kind) && is_not_begun(&other.outcome)
        };
        self.decisions.retain(|(_, other)| !is_same(other));
        self.decisions.push_back((id, wire));
        if self.decisions.len() > DECISIONS_KEPT_MAX {
            self.decisions.pop_front();
        }
        id
    }

    fn note(&mut self, id: DecisionId, outcome: String) {
        if let Some((_, decision)) = self.decisions.iter_mut().find(|(known, _)| *known == id) {
            decision.outcome = outcome;
        }
    }
}

fn decision_to_wire(decision: &Decision) -> v1::BalancerDecision {
    v1::BalancerDecision {
        time_ms: clock::wall_ms(),
        tablet_id: decision.tablet.0,
        kind: decision.action.name().to_owned(),
        action: decision.action.to_string(),
        reason: decision.reason.to_string(),
        outcome: String::new(),
    }
}

fn is_not_begun(outcome: &str) -> bool {
    outcome.starts_with(NOT_BEGUN)
}

fn neighbours(state: &State, tablet: TabletId) -> Neighbours {
    let tablet = state.tablet(tablet);
    let id = |tablet: &Tablet| tablet.id;
    Neighbours {
        before: tablet.and_then(|tablet| state.tablet_before(tablet)).map(id),
        after: tablet.and_then(|tablet| state.tablet_after(tablet)).map(id),
    }
}

fn hot_key(tablet: TabletId, table: String, found: &SuggestSplitResponse) -> v1::HotKey {
    v1::HotKey {
        tablet_id: tablet.0,
        table,
        key: found.hot_key.clone(),
        percent: found.hot_key_percent,
        time_ms: clock::wall_ms(),
    }
}

/// A key as people can read it.
fn shown(key: &[u8]) -> String {
    format!("\"{}\"", key.escape_ascii())
}

fn whole(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
