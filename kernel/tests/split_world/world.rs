//! The world: what is on its way, what happens next, and what becomes of it.

use super::meta::{Assigned, Down, Metadata};
use super::server::{Core, Record, Server, View};
use bytes::Bytes;
use ebla_kernel::entry::{Entry, LogEnd, SealRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, ReplicaId, RequestId, Seq, ServerId, ServerRun, TabletId, Tick};
use ebla_kernel::limits::SEAL_CONTACT_MS;
use ebla_kernel::meta::{self, ClusterId, Command, GaveUp, JobKind, JobState, NewTablet, TableSpec};
use ebla_kernel::op::{AckLevel, Action, Committed, Op, Token};
use ebla_kernel::range::KeyRange;
use ebla_kernel::sequence::Evidence;
use ebla_kernel::tablet::{Answer, Appointment, Effect, Input, PeerInput, PeerMessage, WriteRequest};
use std::collections::{BTreeMap, BTreeSet};

const SERVERS: usize = 3;
const TURNS: usize = 2_500;
const HEAL_TURNS: usize = 40_000;
const WALL_MS: u64 = 1_000_000;

/// Keys of rows; splits are wished for at them.
pub const KEYS: [&str; 6] = ["a", "c", "e", "g", "i", "k"];

/// A generator of chances (splitmix64).
pub struct Chance(u64);

impl Chance {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.draw() % n.max(1) as u64).expect("below n")
    }

    pub fn per_mille(&mut self, n: u64) -> bool {
        self.draw() % 1_000 < n
    }
}

/// What a client asked for.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: &'static str,
    pub level: AckLevel,
    /// The strongest promise that it was given.
    pub committed: Option<AckLevel>,
    pub reverted: bool,
}

/// Everything.
pub struct World {
    pub servers: Vec<Server>,
    pub meta: Metadata,
    pub now: Tick,
    pub chance: Chance,
    pub is_faulty: bool,
    pub boot: u64,
    pub writes: BTreeMap<Token, Write>,
    pub violation: Option<String>,
    narrates: bool,
    mail: Vec<(usize, TabletId, ReplicaId, PeerInput)>,
    promises: Vec<(usize, ServerRun, ServerRun, u64, u64)>,
    places: BTreeMap<ReplicaId, usize>,
    requests: BTreeMap<RequestId, Token>,
    next_request: RequestId,
    last_ts: Hlc,
    /// Pairs of servers that do not hear each other.
    cut: BTreeSet<(usize, usize)>,
    /// Servers that do not hear the masters.
    deaf: BTreeSet<usize>,
    crashes: u64,
    splits: u64,
    deposes: u64,
    cuts: u64,
    /// Epochs are raised all the time.
    storms: bool,
}

impl World {
    pub fn new(seed: u64, narrates: bool) -> Self {
        let mut chance = Chance(seed.wrapping_mul(0x1234_5678_9ABC_DEF1));
        // Some worlds crash, some split, all the time.
        let (crashes, splits) = (chance.draw() % 8, 5 + chance.draw() % 60);
        let (deposes, cuts) = (1 + chance.draw() % 9, [0, 0, 4, 11][chance.below(4)]);
        Self {
            servers: (1..=SERVERS as u64).map(Server::new).collect(),
            meta: Metadata::default(),
            now: Tick(10_000),
            chance,
            is_faulty: true,
            boot: 0,
            writes: BTreeMap::new(),
            violation: None,
            narrates,
            mail: Vec::new(),
            promises: Vec::new(),
            places: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_request: RequestId(0),
            last_ts: Hlc::new(WALL_MS, 0),
            cut: BTreeSet::new(),
            deaf: BTreeSet::new(),
            crashes,
            splits,
            deposes,
            cuts,
            storms: seed.is_multiple_of(4),
        }
    }

    /// Runs to the end; the first violation, if there is one.
    pub fn run(&mut self) -> Result<(), String> {
        self.begin();
        for _ in 0..TURNS {
            self.turn();
            self.look()?;
        }
        self.heal();
        for turn in 0..HEAL_TURNS {
            self.turn();
            self.look()?;
            if turn % 200 == 0 && self.is_healed() {
                return self.check_end();
            }
        }
        Err(format!("it does not heal: {}", self.picture()))
    }

    pub fn say(&self, text: impl FnOnce() -> String) {
        if self.narrates {
            println!("{} {}", self.now, text());
        }
    }

    fn begin(&mut self) {
        let masters = BTreeMap::from([(1, 11)]);
        self.control(meta::Input::BecameLeader { cluster_id: ClusterId(7), masters: masters.clone() });
        self.meta.proposed.clear();
        let _ = self.apply(Command::InitCluster { cluster_id: ClusterId(7), masters });
        (0..SERVERS).for_each(|at| self.register(at));
        let spec = TableSpec { replicas: 3, min_in_sync: 2, ..TableSpec::default() };
        let servers: Vec<ServerId> = (1..=SERVERS as u64).map(ServerId).collect();
        // Half of the worlds begin with something to merge.
        let cuts = if self.chance.per_mille(500) { &KEYS[..0] } else { &KEYS[2..4] };
        let cuts: Vec<Bytes> = cuts.iter().map(|key| Bytes::from_static(key.as_bytes())).collect();
        let ranges = KeyRange::cut_at(&cuts).expect("rising keys").into_iter();
        let tablets = ranges.map(|range| NewTablet { range, servers: servers.clone() }).collect();
        let _ = self.apply(Command::CreateTable { name: "t".to_owned(), spec, tablets, time_ms: 0 });
    }

    /// One thing happens.
    fn turn(&mut self) {
        match self.chance.below(200) {
            0..40 => self.deliver(),
            40..60 => self.persist(),
            60..75 => self.finish(),
            75..90 => self.hear_meta(),
            90..105 => self.commit_one(),
            105..120 => self.tick(),
            120..135 => self.ask_for_promise(),
            135..150 => self.be_promised(),
            150..158 => self.write(),
            158..161 => self.bootstrap(),
            161..164 => self.restart(),
            164..180 => self.fault(),
            180..200 => self.finish(),
            _ => {}
        }
    }

    fn fault(&mut self) {
        if !self.is_faulty {
            return;
        }
        let at = self.chance.below(SERVERS);
        if self.storms && self.chance.per_mille(400) {
            return self.depose();
        }
        match self.chance.below(100) {
            n if (n as u64) < self.crashes && self.servers[at].is_up => self.crash(at),
            10..30 if self.chance.per_mille(self.splits * 10) => self.wish_split(),
            30..50 if self.chance.per_mille(self.splits * 10) => self.wish_merge(),
            50..53 => self.cancel(),
            n @ 53..63 if n as u64 - 53 < self.deposes => self.depose(),
            63..67 => self.break_way(at),
            n @ 70..82 if n as u64 - 70 < self.cuts => self.cut_way(at),
            82..88 => {
                self.cut.clear();
                self.deaf.clear();
            }
            n @ 88..98 if n as u64 - 88 < self.cuts => drop(self.deaf.insert(at)),
            67..70 if self.servers[at].is_up => {
                let server = ServerId(self.servers[at].number);
                self.servers[at].is_connected = false;
                self.control(meta::Input::SessionClosed { server });
                self.connect(at);
            }
            _ => {}
        }
    }

    fn crash(&mut self, at: usize) {
        self.say(|| format!("server {} crashes", at + 1));
        let server = ServerId(self.servers[at].number);
        self.servers[at].crash();
        self.mail.retain(|(to, ..)| *to != at);
        self.control(meta::Input::SessionClosed { server });
    }

    fn restart(&mut self) {
        let at = self.chance.below(SERVERS);
        if !self.servers[at].is_up {
            self.say(|| format!("server {} starts", at + 1));
            self.register(at);
            self.ways_open(at);
        }
    }

    /// Everything on the way to a server and from it is lost.
    fn break_way(&mut self, at: usize) {
        let own = ServerId(self.servers[at].number);
        self.mail.retain(|(to, _, _, input)| *to != at && input.run.server.server != own);
        self.ways_open(at);
    }

    /// Two servers do not hear each other until the way is open again.
    fn cut_way(&mut self, at: usize) {
        let other = (at + 1 + self.chance.below(SERVERS - 1)) % SERVERS;
        self.cut.insert((at.min(other), at.max(other)));
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn ways_open(&mut self, at: usize) {
        for other in (0..SERVERS).filter(|other| *other != at) {
            for (here, there) in [(at, other), (other, at)] {
                let server = ServerId(self.servers[there].number);
                self.step_all(here, || Input::Connected { server });
            }
        }
    }

    fn tick(&mut self) {
        let ms = 1 + self.chance.draw() % 40;
        self.now = self.now.plus_ms(ms);
        for at in 0..SERVERS {
            let now = self.now;
            let due = |core: &&Core| core.tablet.next_deadline().is_some_and(|deadline| deadline <= now);
            let due: Vec<TabletId> =
                self.servers[at].cores.values().filter(due).map(|core| core.tablet.id()).collect();
            due.into_iter().for_each(|id| self.step(at, id, Input::Tick));
        }
        self.control(meta::Input::Tick { wall: Hlc::new(WALL_MS + self.now.0, 0) });
    }

    fn deliver(&mut self) {
        if self.mail.is_empty() {
            return;
        }
        let at = self.chance.below(self.mail.len().min(8));
        let (to, id, replica, input) = self.mail.remove(at);
        let from = usize::try_from(input.run.server.server.0).expect("small") - 1;
        let is_lost = self.is_cut(from, to) || (self.is_faulty && self.chance.per_mille(20));
        let known = self.servers[to].cores.get(&id).is_some_and(|core| core.tablet.replica() == replica);
        if known && !is_lost {
            self.step(to, id, Input::Peer(input));
        }
    }

    /// Some core, by chance.
    fn some_core(&mut self, wanted: impl Fn(&Core) -> bool) -> Option<(usize, TabletId)> {
        let all: Vec<(usize, TabletId)> = (0..SERVERS)
            .flat_map(|at| self.servers[at].cores.iter().map(move |(id, core)| (at, *id, core)))
            .filter(|(_, _, core)| wanted(core))
            .map(|(at, id, _)| (at, id))
            .collect();
        let at = self.chance.below(all.len());
        all.get(at).copied()
    }

    fn persist(&mut self) {
        let Some((at, id)) = self.some_core(|core| !core.queued.is_empty()) else { return };
        let server = &mut self.servers[at];
        let core = server.cores.get_mut(&id).expect("it was chosen");
        let count = 1 + self.chance.below(core.queued.len());
        let synced: Vec<Entry> = core.queued.drain(..count).collect();
        let upto = synced.last().expect("at least one").seq();
        core.to_apply = Some(upto);
        let record = server.record(id);
        assert_eq!(record.end().pos.seq.next(), synced[0].seq(), "a log has no gap");
        record.log.extend(synced);
        self.step(at, id, Input::Persisted { upto });
    }

    /// Something that a core asked for is done.
    fn finish(&mut self) {
        let is_open = |core: &Core| {
            core.to_apply.is_some()
                || core.settling.is_some()
                || core.promising.is_some()
                || core.staging.is_some()
                || core.cutting.is_some()
        };
        let Some((at, id)) = self.some_core(is_open) else { return };
        let server = &mut self.servers[at];
        let core = server.cores.get_mut(&id).expect("it was chosen");
        let input = if let Some(epoch) = core.promising.take() {
            server.record(id).promised = epoch;
            Input::PromisePersisted { epoch }
        } else if let Some(staged) = core.staging.take() {
            let attempt = staged.as_ref().map(|(seal, _)| seal.attempt);
            match staged {
                Some(staged) => drop(server.staged.insert(id, staged)),
                None => drop(server.staged.remove(&id)),
            }
            Input::Staged { attempt }
        } else if let Some(keep) = core.cutting.take() {
            let applied = server.cut(id, keep);
            Input::Truncated { end: keep, applied }
        } else if let Some(upto) = core.to_apply.take() {
            Input::Applied { upto }
        } else {
            let upto = core.settling.take().expect("something is open");
            Input::Settled { upto }
        };
        self.step(at, id, input);
    }

    fn ask_for_promise(&mut self) {
        let (at, of) = (self.chance.below(SERVERS), self.chance.below(SERVERS));
        if at == of || self.is_cut(at, of) || !self.servers[at].is_up || !self.servers[of].is_up {
            return;
        }
        let (asker, promiser) = (self.servers[at].run(), self.servers[of].run());
        let given_up: Vec<(TabletId, Epoch)> =
            self.servers[at].given_up.iter().map(|(tablet, epoch)| (*tablet, *epoch)).collect();
        let number = self.servers[at].holder.ask(self.now, promiser);
        let now = self.now;
        let server = &mut self.servers[of];
        server.has_promised = true;
        let promised = server.promiser.as_mut().expect("it is up").promise(now, asker, &given_up);
        let Some(promised) = promised else { return };
        for (tablet, epoch) in promised.exceptions {
            self.step(at, tablet, Input::Superseded { epoch });
            let known = self.servers[at].given_up.entry(tablet).or_default();
            *known = epoch.max(*known);
        }
        self.promises.push((at, asker, promiser, number, promised.lease_ms));
    }

    fn be_promised(&mut self) {
        if self.promises.is_empty() {
            return;
        }
        let open = self.promises.len();
        let (at, asker, of, number, lease_ms) = self.promises.remove(self.chance.below(open));
        if self.servers[at].is_up && self.servers[at].run() == asker {
            self.servers[at].holder.promised(of, number, lease_ms);
        }
    }

    /// A new write, an old one again, or a question for one.
    fn write(&mut self) {
        // Too much to do would keep a healed world from ever coming to rest.
        if !self.is_faulty && self.chance.per_mille(950) {
            return;
        }
        let is_new = self.writes.is_empty() || self.chance.per_mille(700);
        let token = if is_new {
            let seq = self.writes.len() as u64 + 1;
            let token = Token { issued_ms: WALL_MS, client: 1, seq };
            let level = if self.chance.per_mille(600) { AckLevel::Copies(2) } else { AckLevel::Leader };
            let key = KEYS[self.chance.below(KEYS.len())];
            self.writes.insert(token, Write { key, level, committed: None, reverted: false });
            token
        } else {
            let at = self.writes.len() - 1 - self.chance.below(self.writes.len().min(12));
            *self.writes.keys().nth(at).expect("there are so many")
        };
        let Write { key, level, .. } = self.writes[&token].clone();
        let leads =
            |core: &Core| core.tablet.leading().is_some() && core.tablet.range().contains(key.as_bytes());
        let Some((at, id)) = self.some_core(leads) else { return };
        self.next_request = self.next_request.next();
        let (request, deadline, ts) = (self.next_request, self.now.plus_ms(1_500), self.fresh_ts());
        self.requests.insert(request, token);
        let input = if !is_new && self.chance.per_mille(150) {
            Input::GetOutcome { request, token, wall_ms: WALL_MS, ts, deadline }
        } else {
            let value = Bytes::from(token.seq.to_string());
            let action = Action::Set { key: Bytes::from_static(key.as_bytes()), value, ttl_ms: None };
            let ops = vec![Op { condition: None, action }];
            let (evidence, token, wall_ms) = (Evidence::default(), Some(token), WALL_MS);
            Input::Write(WriteRequest { request, ops, level, token, evidence, ts, wall_ms, deadline })
        };
        self.step(at, id, input);
    }

    pub fn fresh_ts(&mut self) -> Hlc {
        self.last_ts = self.last_ts.next().max(Hlc::new(WALL_MS + self.now.0, 0));
        self.last_ts
    }

    /// A copy that no log brings up gets its leader's.
    fn bootstrap(&mut self) {
        let is_behind = |core: &Core| core.tablet.end().pos.seq == Seq(0);
        let Some((at, id)) = self.some_core(is_behind) else { return };
        let leads = |server: &&Server| {
            server.cores.get(&id).is_some_and(|core| {
                core.tablet.serving().is_some()
                    && core.tablet.sealed().is_none()
                    && core.tablet.safe() > Seq(0)
            })
        };
        let Some(source) = self.servers.iter().find(leads) else { return };
        let safe = source.cores[&id].tablet.safe();
        let mut copy = source.records[&id].clone();
        copy.log.retain(|entry| entry.seq() <= safe);
        let known = self.meta.state.tablet(id).and_then(|tablet| {
            let replica = self.servers[at].records[&id].replica;
            tablet.replica(replica).map(|copy| !tablet.in_sync.contains(&copy.id))
        });
        if known == Some(true) {
            let record = self.servers[at].record(id);
            let (replica, promised) = (record.replica, record.promised);
            *record = Record { replica, promised, ..copy };
            self.servers[at].open(id);
            self.say(|| format!("server {} {id} is built anew", at + 1));
        }
    }

    fn hear_meta(&mut self) {
        let at = self.chance.below(SERVERS);
        if !self.servers[at].is_connected || self.deaf.contains(&at) {
            return;
        }
        let Some(message) = self.servers[at].inbox.pop_front() else { return };
        match message {
            Down::Fences(fences) => {
                for fence in fences {
                    let core = self.servers[at].cores.get(&fence.tablet);
                    if core.is_some_and(|core| core.tablet.replica() == fence.replica) {
                        let (epoch, gone) = (fence.epoch, fence.gone);
                        self.step(at, fence.tablet, Input::Fence { epoch, gone });
                    }
                }
            }
            Down::Seal(order) => {
                let (id, epoch, until) = (order.tablet, order.epoch, self.now.plus_ms(SEAL_CONTACT_MS));
                self.step(at, id, Input::Seal { epoch, seal: order.seal(), until });
            }
            Down::Transfer(id, epoch, to) => {
                let until = self.now.plus_ms(1_000);
                self.step(at, id, Input::Transfer { epoch, to, until });
            }
            Down::InSyncRefused(id, epoch, version) => {
                self.step(at, id, Input::ProposalRefused { epoch, version });
            }
            Down::SplitRefused(id, epoch, attempt) => {
                self.step(at, id, Input::SplitRefused { epoch, attempt });
            }
            Down::Assign { full, assigned, removed } => self.assign(at, full, assigned, &removed),
        }
    }

    fn assign(&mut self, at: usize, full: bool, assigned: Vec<Assigned>, removed: &[TabletId]) {
        for child in &assigned {
            self.switch(at, &child.parents);
        }
        let wanted: BTreeMap<TabletId, ReplicaId> = assigned.iter().map(|a| (a.tablet, a.replica)).collect();
        let server = &mut self.servers[at];
        let is_gone = |(id, record): (&TabletId, &Record)| match wanted.get(id) {
            Some(replica) => *replica != record.replica,
            None => full || removed.contains(id),
        };
        let gone: Vec<TabletId> =
            server.records.iter().filter(|(id, record)| is_gone((id, record))).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| server.remove(id));
        for assigned in assigned {
            self.take_assignment(at, assigned);
        }
    }

    fn take_assignment(&mut self, at: usize, assigned: Assigned) {
        let Assigned { tablet, range, replica, epoch, leader, membership, .. } = assigned;
        let server = &mut self.servers[at];
        let is_new = !server.records.contains_key(&tablet);
        if is_new {
            let _ = server.records.insert(tablet, Record::new(replica, range, epoch));
            server.open(tablet);
        }
        self.places.insert(replica, at);
        if leader != Some((replica, self.servers[at].run())) {
            return;
        }
        let ts = self.fresh_ts().max(assigned.appointed_ts);
        let appointment = Appointment {
            epoch,
            replica,
            incarnation: self.servers[at].incarnation,
            membership: membership.clone(),
            min_in_sync: assigned.min_in_sync,
            shrink_floor: assigned.min_in_sync,
            ts,
        };
        self.step(at, tablet, Input::Appoint(appointment));
        self.step(at, tablet, Input::InSync { epoch, membership });
        self.step(at, tablet, Input::SplitAborted { attempt: assigned.aborted });
    }

    /// Children take the place of sealed tablets, for exactly the attempt that is staged.
    fn switch(&mut self, at: usize, parents: &[meta::Parent]) {
        let server = &mut self.servers[at];
        let is_staged = |parent: &meta::Parent| {
            let is_meant =
                |(seal, end): &(SealRecord, LogEnd)| (seal.attempt, *end) == (parent.attempt, parent.seal);
            server.staged.get(&parent.tablet).is_some_and(is_meant)
                && server.cores.contains_key(&parent.tablet)
        };
        if parents.is_empty() || !parents.iter().all(is_staged) {
            return;
        }
        let mut retired = Vec::new();
        for parent in parents {
            self.step(at, parent.tablet, Input::Retire);
            let server = &mut self.servers[at];
            let core = server.cores.remove(&parent.tablet).expect("it was there");
            let mut record = server.records.remove(&parent.tablet).expect("a core has a record");
            let (staged, end) = server.staged.remove(&parent.tablet).expect("it was there");
            record.log.retain(|entry| entry.seq() <= end.pos.seq);
            retired.push((parent.tablet, core.tablet, record, staged, end));
        }
        let cores: Vec<_> = retired.iter().map(|(_, core, _, _, end)| (core, *end)).collect();
        let (_, _, first, staged, _) = &retired[0];
        for child in &staged.children {
            let Some(replica) = child.replicas.get(&first.replica).copied() else { continue };
            let epoch = parents[0].epoch;
            let tablet = ebla_kernel::tablet::Tablet::successor(&cores, child, epoch, replica);
            let mut record = Record::new(replica, child.range.clone(), epoch);
            (record.base, record.epochs) = (tablet.durable_end(), tablet.epochs().to_vec());
            for (id, _, parent, ..) in &retired {
                record.past.extend(parent.past.clone());
                record.past.insert(*id, parent.log.clone());
            }
            let server = &mut self.servers[at];
            server.records.insert(child.tablet, record);
            server.cores.insert(child.tablet, Core::new(tablet));
            self.places.insert(replica, at);
        }
        let ids: Vec<TabletId> = parents.iter().map(|parent| parent.tablet).collect();
        self.say(|| format!("server {} switches to what takes the place of {ids:?}", at + 1));
    }

    fn step_all(&mut self, at: usize, input: impl Fn() -> Input) {
        let ids: Vec<TabletId> = self.servers[at].cores.keys().copied().collect();
        ids.into_iter().for_each(|id| self.step(at, id, input()));
    }

    /// Lets a core take one step, and what gathered for others leave after it.
    pub fn step(&mut self, at: usize, id: TabletId, input: Input) {
        self.step_once(at, id, input);
        self.step_once(at, id, Input::Flush);
    }

    fn step_once(&mut self, at: usize, id: TabletId, input: Input) {
        let now = self.now;
        let server = &mut self.servers[at];
        let Some(promiser) = &server.promiser else { return };
        let Some(core) = server.cores.get_mut(&id) else { return };
        let mut effects = Vec::new();
        let text = self.narrates.then(|| format!("{input:?}"));
        core.tablet.step(now, &View(&server.holder, promiser, now), input, &mut effects);
        if let Some(text) = text.filter(|text| text != "Flush" || !effects.is_empty()) {
            println!("{now} server {} {id}: {text} -> {effects:?}", at + 1);
        }
        effects.into_iter().for_each(|effect| self.carry_out(at, id, effect));
    }

    fn carry_out(&mut self, at: usize, id: TabletId, effect: Effect) {
        let Some(core) = self.servers[at].cores.get_mut(&id) else { return };
        match effect {
            Effect::Except { tablet, to, epoch } => {
                let promiser = self.servers[at].promiser.as_mut().expect("it is up");
                promiser.except(to, tablet, epoch);
            }
            Effect::PersistPromise { epoch } => core.promising = Some(epoch),
            Effect::AnswerFence(answer) => self.answer_fence(at, id, answer),
            Effect::Append { entry, .. } => core.queued.push_back(entry),
            Effect::AppendCopies { entries } => core.queued.extend(entries),
            Effect::Apply { upto } => core.settling = Some(upto),
            Effect::Stream(stream) => {
                let is_asked = |entry: &Entry| (stream.from..=stream.upto).contains(&entry.seq());
                let entries = self.servers[at].whole_log(id).into_iter().filter(is_asked).collect();
                let message = PeerMessage::Append { prev: stream.prev, entries, q: stream.q };
                self.post(at, id, stream.to, stream.epoch, message);
                self.step(at, id, Input::Sent { to: stream.to, upto: stream.upto });
            }
            Effect::Send { to, epoch, message } => self.post(at, id, to, epoch, message),
            Effect::Locate { seq } => {
                let record = &self.servers[at].records[&id];
                let end = record.log.iter().find(|entry| entry.seq() == seq).map(Entry::end);
                self.step(at, id, Input::Located { end: end.unwrap_or(record.base) });
            }
            Effect::Truncate { keep } => core.cutting = Some(keep),
            Effect::Diverged { at: pos, .. } => {
                self.violation = Some(format!("{id} on server {} would cut {pos}, which was safe", at + 1));
            }
            Effect::ProposeInSync(proposal) => self.propose_in_sync(at, id, proposal),
            Effect::Stage { seal, end } => core.staging = Some(Some((seal, end))),
            Effect::Unstage => core.staging = Some(None),
            Effect::ProposeSplit(proposal) => self.propose_split(at, id, proposal),
            Effect::Lease(terms) => core.terms = terms,
            Effect::Serve { .. } => core.gave_up = None,
            Effect::StopServing { epoch, successor } => {
                core.gave_up = Some((epoch, successor));
                core.terms = Default::default();
                if self.servers[at].is_connected {
                    let server = ServerId(self.servers[at].number);
                    let epochs = vec![GaveUp { tablet: id, epoch, successor }];
                    self.control(meta::Input::GaveUp { server, epochs });
                }
            }
            Effect::Reply { request, answer } => self.told(request, answer),
        }
    }

    fn post(&mut self, at: usize, id: TabletId, to: ReplicaId, epoch: Epoch, message: PeerMessage) {
        let server = &self.servers[at];
        let (from, run) = (server.records[&id].replica, server.peer_run());
        if let Some(place) = self.places.get(&to).copied() {
            self.mail.push((place, id, to, PeerInput { from, run, epoch, message }));
        }
    }

    fn answer_fence(&mut self, at: usize, id: TabletId, answer: ebla_kernel::tablet::FenceAnswer) {
        let server = &self.servers[at];
        if !server.is_connected {
            return;
        }
        let answer = meta::FenceAnswer {
            tablet: id,
            replica: server.records[&id].replica,
            epoch: answer.epoch,
            end: answer.end.pos,
            ts_max: answer.end.ts,
            disk_generation: ebla_kernel::ids::DiskGeneration(100 * server.number),
        };
        let server = ServerId(server.number);
        self.control(meta::Input::FenceAnswered { server, answers: vec![answer] });
    }

    fn told(&mut self, request: RequestId, answer: Answer) {
        let Some(write) = self.requests.remove(&request).and_then(|token| self.writes.get_mut(&token)) else {
            return;
        };
        match answer {
            Answer::Committed(Committed { level, .. }) => {
                let stronger = write.committed != Some(AckLevel::Copies(2));
                write.committed = Some(if stronger { level } else { AckLevel::Copies(2) });
            }
            Answer::Reverted => write.reverted = true,
            Answer::Unknown | Answer::Reached | Answer::Refused(_) => {}
        }
        if write.reverted && write.committed == Some(AckLevel::Copies(2)) {
            self.violation = Some(format!("{request} was told to stand and to be taken back"));
        }
    }

    fn heal(&mut self) {
        self.is_faulty = false;
        self.cut.clear();
        self.deaf.clear();
        self.say(|| "all faults are healed".to_owned());
        self.mail.clear();
        for at in 0..SERVERS {
            if self.servers[at].is_up {
                self.connect(at);
            } else {
                self.register(at);
            }
        }
        (0..SERVERS).for_each(|at| self.ways_open(at));
    }

    /// Splits and merges that were committed.
    pub fn commits(&self) -> (usize, usize) {
        let done = || self.meta.state.jobs().filter(|job| job.state == JobState::Done);
        let merges = done().filter(|job| matches!(job.kind, JobKind::Merge(_))).count();
        (done().count() - merges, merges)
    }

    pub fn aborts(&self) -> usize {
        let is_aborted = |state| matches!(state, JobState::Failed | JobState::Cancelled);
        self.meta.state.jobs().filter(|job| is_aborted(job.state)).count()
    }

    pub fn acknowledged(&self) -> usize {
        self.writes.values().filter(|write| write.committed.is_some()).count()
    }

    fn picture(&self) -> String {
        let mut lines = Vec::new();
        for tablet in self.meta.state.tablets() {
            lines.push(format!(
                "{} {} {} {} led by {:?} in sync {:?} recovering {}",
                tablet.id,
                tablet.range,
                tablet.epoch,
                tablet.config_version,
                tablet.leader,
                tablet.in_sync,
                tablet.recovering
            ));
        }
        for server in &self.servers {
            for (id, core) in &server.cores {
                let tablet = &core.tablet;
                lines.push(format!(
                    "server {} {id} promised {} end {} applied {} safe {} leads {:?} serves {:?} sealed {:?} staged {}",
                    server.number,
                    tablet.promised(),
                    tablet.end().pos,
                    tablet.applied_seq(),
                    tablet.safe(),
                    tablet.leading(),
                    tablet.serving(),
                    tablet.sealed().map(|(seal, end)| (seal.attempt, end.pos)),
                    tablet.staged()
                ));
            }
        }
        lines.join("\n")
    }
}
