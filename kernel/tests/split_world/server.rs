//! A server of the world: a disk that keeps what was synced, and the cores of a process.

use ebla_kernel::entry::{Entry, LogEnd, Payload, SealRecord};
use ebla_kernel::ids::{
    Attempt, DiskGeneration, Epoch, Generation, Incarnation, ReplicaId, Seq, ServerId, ServerRun, TabletId,
    Tick,
};
use ebla_kernel::lease::{Holder, LeaseTerms, Promiser, Promises};
use ebla_kernel::limits::LEASE_MS;
use ebla_kernel::range::KeyRange;
use ebla_kernel::tablet::token::TokenTable;
use ebla_kernel::tablet::truncate::Cut;
use ebla_kernel::tablet::{PeerRun, Recovered, Seals, Tablet};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the disk knows of one copy.
#[derive(Clone, Debug)]
pub struct Record {
    pub replica: ReplicaId,
    pub range: KeyRange,
    pub promised: Epoch,
    /// The logs of all tablets that this one goes on from, up to their seals.
    pub past: BTreeMap<TabletId, Vec<Entry>>,
    /// Which epoch began where up to the base.
    pub epochs: Vec<(Epoch, Seq)>,
    pub base: LogEnd,
    /// Everything above the base that is durable.
    pub log: Vec<Entry>,
}

impl Record {
    pub fn new(replica: ReplicaId, range: KeyRange, promised: Epoch) -> Self {
        let (past, epochs, base, log) = Default::default();
        Self { replica, range, promised, past, epochs, base, log }
    }

    pub fn end(&self) -> LogEnd {
        self.log.last().map_or(self.base, Entry::end)
    }

    fn tokens(&self) -> TokenTable {
        let of = |log: &Vec<Entry>| {
            let mut tokens = TokenTable::default();
            log.iter().for_each(|entry| tokens.note_entry(entry));
            tokens
        };
        let mut tokens = self.past.values().map(of).fold(TokenTable::default(), TokenTable::join);
        self.log.iter().for_each(|entry| tokens.note_entry(entry));
        tokens
    }
}

/// A server.
#[derive(Default)]
pub struct Server {
    pub number: u64,
    pub incarnation: Incarnation,
    pub is_up: bool,
    pub is_connected: bool,
    pub records: BTreeMap<TabletId, Record>,
    pub staged: BTreeMap<TabletId, (SealRecord, LogEnd)>,
    pub has_promised: bool,
    pub cores: BTreeMap<TabletId, Core>,
    pub promiser: Option<Promiser>,
    pub holder: Holder,
    /// Epochs that were given up at another's word.
    pub given_up: BTreeMap<TabletId, Epoch>,
    pub inbox: VecDeque<super::meta::Down>,
}

/// A copy in a process.
pub struct Core {
    pub tablet: Tablet,
    /// Appended and not durable.
    pub queued: VecDeque<Entry>,
    /// Up to where rows of level `leader` can be applied.
    pub to_apply: Option<Seq>,
    pub settling: Option<Seq>,
    pub promising: Option<Epoch>,
    pub staging: Option<Option<(SealRecord, LogEnd)>>,
    pub cutting: Option<LogEnd>,
    pub terms: LeaseTerms,
    pub gave_up: Option<(Epoch, Option<ReplicaId>)>,
}

/// The promises of a server as its cores see them.
pub struct View<'a>(pub &'a Holder, pub &'a Promiser, pub Tick);

impl Promises for View<'_> {
    fn counted_until(&self, run: ServerRun) -> Tick {
        self.0.counted_until(run)
    }

    fn promiser_now(&self) -> Tick {
        self.2
    }

    fn given_until(&self, run: ServerRun) -> Tick {
        self.1.given_until(run)
    }

    fn boot_until(&self) -> Tick {
        self.1.boot_until()
    }
}

impl Core {
    pub fn new(tablet: Tablet) -> Self {
        Self {
            tablet,
            queued: VecDeque::new(),
            to_apply: None,
            settling: None,
            promising: None,
            staging: None,
            cutting: None,
            terms: LeaseTerms::default(),
            gave_up: None,
        }
    }
}

impl Server {
    pub fn new(number: u64) -> Self {
        Self { number, ..Self::default() }
    }

    pub fn run(&self) -> ServerRun {
        ServerRun { server: ServerId(self.number), incarnation: self.incarnation }
    }

    pub fn peer_run(&self) -> PeerRun {
        let generation = Generation::Disk(DiskGeneration(100 * self.number));
        PeerRun { server: self.run(), generation }
    }

    /// Starts a process that was registered as `incarnation`.
    pub fn start(&mut self, now: Tick, incarnation: Incarnation) {
        self.incarnation = incarnation;
        self.is_up = true;
        let longest = if self.has_promised { LEASE_MS } else { 0 };
        self.promiser = Some(Promiser::new(now, longest));
        self.holder = Holder::default();
        let ids: Vec<TabletId> = self.records.keys().copied().collect();
        ids.into_iter().for_each(|id| self.open(id));
    }

    pub fn crash(&mut self) {
        (self.is_up, self.is_connected) = (false, false);
        self.cores.clear();
        self.given_up.clear();
        self.inbox.clear();
    }

    /// Gives a copy its core, as the disk says.
    pub fn open(&mut self, id: TabletId) {
        let record = &self.records[&id];
        let (mut seals, mut epochs) = (Seals::default(), record.epochs.clone());
        for entry in &record.log {
            seals.note(entry);
            if let Payload::EpochStart { .. } = entry.payload {
                epochs.push((entry.pos.epoch, entry.seq()));
            }
        }
        let tablet = Tablet::new(Recovered {
            id,
            replica: record.replica,
            incarnation: self.incarnation,
            range: record.range.clone(),
            promised: record.promised,
            epochs,
            end: record.end(),
            applied: record.base.pos.seq,
            tokens: record.tokens(),
            base: record.base,
            seals,
            staged: self.staged.get(&id).map_or(Attempt(0), |(seal, _)| seal.attempt),
        });
        self.cores.insert(id, Core::new(tablet));
    }

    pub fn record(&mut self, id: TabletId) -> &mut Record {
        self.records.get_mut(&id).expect("a core has a record")
    }

    /// Removes a copy for good.
    pub fn remove(&mut self, id: TabletId) {
        self.cores.remove(&id);
        self.records.remove(&id);
        self.staged.remove(&id);
    }

    /// The end of a log and what counts as applied after it was cut.
    pub fn cut(&mut self, id: TabletId, keep: LogEnd) -> Seq {
        let record = self.record(id);
        let at = record.log.partition_point(|entry| entry.seq() <= keep.pos.seq);
        let tail = record.log.split_off(at);
        Cut::of(&tail).applied_max.min(keep.pos.seq)
    }

    /// Keys of tablets that it serves and may answer for.
    pub fn leases(&self, now: Tick) -> Vec<(TabletId, Epoch, KeyRange)> {
        let Some(promiser) = self.promiser.as_ref().filter(|_| self.is_up) else { return Vec::new() };
        let view = View(&self.holder, promiser, now);
        let held = |core: &&Core| core.tablet.serving().is_some() && core.terms.hold(now, &view);
        let lease = |core: &Core| {
            let epoch = core.tablet.serving().expect("it was asked just now");
            (core.tablet.id(), epoch, core.tablet.range().clone())
        };
        self.cores.values().filter(held).map(lease).collect()
    }

    /// The logs that make the history of a copy, its own last.
    pub fn history(&self, id: TabletId) -> Vec<Vec<Entry>> {
        let past = self.records[&id].past.values().cloned();
        past.chain(std::iter::once(self.whole_log(id))).collect()
    }

    /// The log of a copy above its base, as its process knows it.
    pub fn whole_log(&self, id: TabletId) -> Vec<Entry> {
        let queued = self.cores.get(&id).into_iter().flat_map(|core| core.queued.iter().cloned());
        self.records[&id].log.iter().cloned().chain(queued).collect()
    }
}

/// Tokens of a log, those that were taken back left out, in order.
pub fn standing(log: &[Entry]) -> Vec<(ebla_kernel::op::Token, Vec<bytes::Bytes>)> {
    let reverted: BTreeSet<Seq> = log.iter().flat_map(Entry::reverts).map(|target| target.pos.seq).collect();
    let write = |entry: &Entry| match &entry.payload {
        Payload::Write(write) if !reverted.contains(&entry.seq()) => {
            let key = |change: &ebla_kernel::op::Change| match change {
                ebla_kernel::op::Change::Put { key, .. } => key.clone(),
                ebla_kernel::op::Change::RangeTombstone { from, .. } => from.clone(),
            };
            Some((write.token?, write.changes.iter().map(key).collect()))
        }
        _ => None,
    };
    log.iter().filter_map(write).collect()
}
