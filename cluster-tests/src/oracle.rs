//! What truly happened: every log as it became durable, copy by copy, and the history of what
//! clients asked and were told.
//!
//! The oracle sees what no node sees, and decides nothing: `invariants` judge by it. A tablet's
//! entries form a tree, because a failover may drop the end of a log; a *lineage* is the way
//! from its root to one position:
//!
//! ```text
//! e1:1 ─ e1:2 ─ e1:3 ─ e1:4        dropped when e2 began behind e1:3
//!                 └─── e2:4 ─ e2:5 ─ e2:6
//!                                └── e3:6 ─ e3:7      the lineage that survives
//! ```
//!
//! The tree of a tablet that was split off another begins as a copy of that one's: what its own
//! log goes on from is in its lineage. A tablet that was merged begins a tree of its own, because
//! its parents have numbered apart; what came before it is a [`Past`] for the keys of each parent.

mod losses;
mod story;

pub use story::Story;

use crate::sim::disk::{Rows, fold};
use bytes::Bytes;
use ebla_kernel::ancestry::Ancestry;
use ebla_kernel::entry::{Entry, LogEnd, Payload};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Pos, ReplicaId, Seq, TabletId};
use ebla_kernel::op::{AckLevel, Action, Change, Committed, Op, Token, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::sequence::Reject;
use ebla_kernel::watch::Place;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use story::bit;

/// What a client remembers of its own writes, to read them on any copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    /// The tablet that said so.
    pub tablet: TabletId,
    /// Its last committed write.
    pub pos: Pos,
    /// The timestamp of that.
    pub ts: Hlc,
}

/// What a client asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// An atomic batch.
    Write {
        /// Its operations.
        ops: Vec<Op>,
        /// Its name.
        token: Token,
        /// How many copies to wait for.
        level: AckLevel,
    },
    /// The newest version of a row.
    Get {
        /// The row.
        key: Bytes,
    },
    /// A row at a timestamp that the leader picks.
    Snapshot {
        /// The row.
        key: Bytes,
    },
    /// A row at a timestamp that any copy picks, not older than a bound.
    Bounded {
        /// The row.
        key: Bytes,
        /// The bound in milliseconds.
        stale_ms: u64,
    },
    /// A row from any copy that has what this session wrote.
    InSession {
        /// The row.
        key: Bytes,
        /// What it wrote last.
        session: Session,
    },
}

impl Asked {
    /// A row that says which tablet is meant.
    ///
    /// # Panics
    /// For a batch without operations, which nobody invents.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Get { key }
            | Self::Snapshot { key }
            | Self::Bounded { key, .. }
            | Self::InSession { key, .. } => key,
            Self::Write { ops, .. } => match &ops.first().expect("a batch has operations").action {
                Action::DeleteRange { from, .. } => from,
                Action::Set { key, .. }
                | Action::Delete { key, .. }
                | Action::Add { key, .. }
                | Action::Room { key, .. } => key,
            },
        }
    }
}

impl Asked {
    /// Whether it is about a row of `range`.
    #[must_use]
    pub fn touches(&self, range: &KeyRange) -> bool {
        let about = |op: &Op| match &op.action {
            Action::Set { key, .. }
            | Action::Delete { key, .. }
            | Action::Add { key, .. }
            | Action::Room { key, .. } => range.contains(key),
            Action::DeleteRange { from, to } => {
                KeyRange::new(from.clone(), to.clone()).is_ok_and(|asked| asked.overlaps(range))
            }
        };
        match self {
            Self::Write { ops, .. } => ops.iter().any(about),
            Self::Get { .. } | Self::Snapshot { .. } | Self::Bounded { .. } | Self::InSession { .. } => {
                range.contains(self.key())
            }
        }
    }
}

/// What a client was told in the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The write stands.
    Committed(Committed),
    /// The write never ran, or was taken back, and never will.
    Reverted,
    /// A condition failed, or an add was impossible.
    Rejected(Reject),
    /// Nobody said.
    Unknown,
    /// The token is older than what is remembered: nobody can say any more.
    TokenTooOld,
    /// What the session wrote last was dropped by a failover.
    WriteLost,
    /// A row.
    Row {
        /// Its version, a tombstone included; none where there never was one.
        version: Option<Version>,
        /// The timestamp of the snapshot; none for the newest.
        at: Option<Hlc>,
    },
}

/// One operation of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Who asked.
    pub client: usize,
    /// When, in microseconds of simulated time.
    pub invoked_us: u64,
    /// The tablet that was meant, and in the end the one that answered.
    pub tablet: TabletId,
    /// What was asked.
    pub asked: Asked,
    /// When the client was told, and what; none while it waits.
    pub ended: Option<(u64, Outcome)>,
    /// The epoch whose leader answered; none for a copy that did not lead.
    pub epoch: Option<Epoch>,
    /// Copies of the request that reached, or will reach, a server.
    pub copies: usize,
}

impl Operation {
    /// What the client was told.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.ended.as_ref().map(|(_, outcome)| outcome)
    }
}

/// What clients asked and were told, in the order of asking.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Every operation.
    pub operations: Vec<Operation>,
    /// What the watch of all keys was told.
    pub seen: Vec<Seen>,
    /// Backups that were made.
    pub backups: Vec<Archived>,
    /// Keys of which every copy was lost, and when that was known, in microseconds.
    pub losses: Vec<(KeyRange, u64)>,
}

/// A backup.
#[derive(Clone, Debug)]
pub struct Archived {
    /// T.
    pub ts: Hlc,
    /// The backup that it adds to.
    pub parent: Option<usize>,
    /// When somebody asked for it.
    pub asked_us: u64,
    /// Whether no wall clock is wrong by more than clocks may be.
    pub clocks_agree: bool,
    /// What lies at the target, in key order.
    pub parts: Vec<ArchivedPart>,
    /// What another cluster has of it and those that it adds to, if it was brought back there.
    pub restored: Option<Rows>,
}

/// A range of a backup.
#[derive(Clone, Debug)]
pub struct ArchivedPart {
    /// Its keys.
    pub range: KeyRange,
    /// Versions above this are in it.
    pub since: Hlc,
    /// Where garbage collection stood when it was read.
    pub floor: Hlc,
    /// The versions.
    pub rows: Rows,
}

/// What a collection of garbage up to `floor` leaves of a row: everything above, and of what is
/// below the newest version, if it is to be seen there.
#[must_use]
pub fn collected(versions: &BTreeMap<Hlc, Version>, floor: Hlc) -> BTreeMap<Hlc, Version> {
    let mut kept = versions.clone();
    let mut above = kept.split_off(&floor.next());
    above.extend(kept.pop_last().filter(|(_, version)| version.is_live(floor)));
    above
}

/// Something that a watch was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// A row has a new version.
    Change {
        /// The row.
        key: Bytes,
        /// Its version.
        version: Version,
    },
    /// What was told of a range counts no more; its rows as of a time follow.
    Break {
        /// The range.
        range: KeyRange,
        /// The time.
        at: Hlc,
        /// The tablet that said so.
        by: TabletId,
        /// Up to where everything was told before.
        seen: Place,
    },
    /// Nothing at or below a timestamp follows.
    Resolved {
        /// Of this range.
        range: KeyRange,
        /// The timestamp.
        ts: Hlc,
    },
}

impl Seen {
    /// What a change written at `ts` says; ranges stay small here.
    #[must_use]
    pub fn change(change: &Change, ts: Hlc) -> Option<Self> {
        match change {
            Change::Put { key, body, expires_ms } => {
                let version = Version { ts, body: body.clone(), expires_ms: *expires_ms };
                Some(Self::Change { key: key.clone(), version })
            }
            Change::RangeTombstone { .. } => None,
        }
    }

    /// Whether it is about a row of `range`.
    #[must_use]
    pub fn is_in(&self, range: &KeyRange) -> bool {
        matches!(self, Self::Change { key, .. } if range.contains(key))
    }
}

impl History {
    /// A client asks; gives the operation's number.
    pub fn invoke(&mut self, client: usize, now_us: u64, tablet: TabletId, asked: Asked) -> usize {
        let operation =
            Operation { client, invoked_us: now_us, tablet, asked, ended: None, epoch: None, copies: 0 };
        self.operations.push(operation);
        self.operations.len() - 1
    }

    /// A backup and what it adds to, the full one first.
    #[must_use]
    pub fn chain(&self, number: usize) -> Vec<&Archived> {
        let parent = |backup: &&Archived| backup.parent.map(|parent| &self.backups[parent]);
        let mut chain: Vec<&Archived> = std::iter::successors(Some(&self.backups[number]), parent).collect();
        chain.reverse();
        chain
    }

    /// The network takes copies of a request.
    pub fn sent(&mut self, op: usize, copies: usize) {
        self.operations[op].copies += copies;
    }

    /// A client is told, by the leader of an epoch of a tablet or by another copy.
    pub fn end(
        &mut self,
        op: usize,
        now_us: u64,
        outcome: Outcome,
        (tablet, epoch): (TabletId, Option<Epoch>),
    ) {
        let operation = &mut self.operations[op];
        operation.ended = Some((now_us, outcome));
        (operation.tablet, operation.epoch) = (tablet, epoch);
    }
}

/// Which acknowledgements a tablet still owes, after what was done to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Trust {
    /// More disks were lost than the table bears: nothing but the truth of what is said.
    Nothing,
    /// A degraded election: only what every in-sync copy had.
    InSync,
    /// Everything above level `leader`.
    Copies,
}

/// What stands before the first entry of a tablet that was made of these.
fn joined(parents: &[(TabletId, LogEnd)]) -> Pos {
    let ends: Vec<LogEnd> = parents.iter().map(|(_, seal)| *seal).collect();
    LogEnd::joined(&ends).pos
}

/// The copies of a tablet, by the metadata.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// All of them, and their servers.
    pub all: BTreeMap<ReplicaId, usize>,
    /// Those in sync, and their servers.
    pub copies: BTreeMap<ReplicaId, usize>,
    /// How many of them a table can lose without losing what it acknowledged.
    pub spare: usize,
}

/// A tablet as the metadata shows it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Which.
    pub id: TabletId,
    /// Its keys.
    pub range: KeyRange,
    /// Its in-sync copies.
    pub members: Members,
    /// Whether an election has had too few answers.
    pub is_degraded: bool,
    /// The tablets whose logs its own goes on from, and the seals there, in key order.
    pub parents: Vec<(TabletId, LogEnd)>,
    /// What its history goes back to.
    pub history: Ancestry,
    /// How often it has lost every copy and begun anew.
    pub losses: u64,
}

/// Every log of every tablet, nothing purged, and what was done to the disks.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    /// By tablet.
    pub stories: BTreeMap<TabletId, Story>,
    /// The keys of every tablet that there ever was.
    pub ranges: BTreeMap<TabletId, KeyRange>,
    /// What tablets were made of: the parents in key order, and the seals in their logs.
    pub parents: BTreeMap<TabletId, Vec<(TabletId, Pos)>>,
    /// Every tablet that was made of a tablet, and of those.
    descendants: BTreeMap<TabletId, BTreeSet<TabletId>>,
    /// The history of every tablet, and when it began if others were joined in it.
    histories: BTreeMap<TabletId, Ancestry>,
    /// How often tablets have lost every copy and begun anew.
    losses: BTreeMap<TabletId, u64>,
    /// Tablets that were led by fewer answers than the quota.
    degraded: BTreeSet<TabletId>,
    members: BTreeMap<TabletId, Members>,
    /// Copies whose data is gone.
    gone: BTreeSet<ReplicaId>,
    /// Tablets that lost more than they bear.
    hopeless: BTreeSet<TabletId>,
    /// Whether copies that are lost are built anew.
    pub rebuilds: bool,
    empty: Story,
}

impl Oracle {
    /// What is known of a tablet's log.
    #[must_use]
    pub fn story(&self, tablet: TabletId) -> &Story {
        self.stories.get(&tablet).unwrap_or(&self.empty)
    }

    /// A tablet and those that it was made of, youngest first.
    #[must_use]
    pub fn family(&self, tablet: TabletId) -> Vec<TabletId> {
        let (mut family, mut open) = (Vec::new(), BTreeSet::from([tablet]));
        // Ids rise from parents to children.
        while let Some(id) = open.pop_last() {
            family.push(id);
            open.extend(self.parents_of(id).iter().map(|(parent, _)| *parent));
        }
        family
    }

    /// What a tablet was made of, and the seals there.
    #[must_use]
    pub fn parents_of(&self, tablet: TabletId) -> &[(TabletId, Pos)] {
        self.parents.get(&tablet).map_or(&[], Vec::as_slice)
    }

    /// The tablets that were made of a tablet, and of those, itself left out.
    pub fn descendants(&self, tablet: TabletId) -> impl Iterator<Item = TabletId> {
        self.descendants.get(&tablet).into_iter().flatten().copied()
    }

    /// Whether a tablet is `older`, or was made of it.
    #[must_use]
    pub fn is_of(&self, tablet: TabletId, older: TabletId) -> bool {
        tablet == older || self.descendants.get(&older).is_some_and(|heirs| heirs.contains(&tablet))
    }

    /// What the history of a tablet goes back to.
    #[must_use]
    pub fn history(&self, tablet: TabletId) -> Ancestry {
        self.histories.get(&tablet).copied().unwrap_or_default()
    }

    /// Whether positions of two tablets mean the same.
    #[must_use]
    pub fn share_history(&self, one: TabletId, other: TabletId) -> bool {
        one == other || self.history(one).lineage == self.history(other).lineage
    }

    /// A tablet and those that it was split off, youngest first; the last was created or merged.
    fn line(&self, tablet: TabletId) -> Vec<TabletId> {
        let parent = |id: &TabletId| match self.parents_of(*id) {
            [(parent, _)] => Some(*parent),
            _ => None,
        };
        std::iter::successors(Some(tablet), parent).collect()
    }

    /// What was merged where the history of a tablet began.
    #[must_use]
    pub fn merged(&self, tablet: TabletId) -> &[(TabletId, Pos)] {
        self.line(tablet).last().map_or(&[], |first| self.parents_of(*first))
    }

    /// Whether the log of a tablet up to `end` goes on from all that says `pos` of a tablet that
    /// it was made of.
    #[must_use]
    pub fn goes_on_from(&self, (tablet, end): (TabletId, Pos), (older, pos): (TabletId, Pos)) -> bool {
        if self.share_history(tablet, older) {
            return self.story(tablet).contains(end, pos);
        }
        let mut heirs =
            self.merged(tablet).iter().filter(|(parent, _)| self.is_of(*parent, older)).peekable();
        // One that has begun anew goes on from nothing.
        heirs.peek().is_some() && heirs.all(|parent| self.goes_on_from(*parent, (older, pos)))
    }

    /// Whether a position was a parent's already when the history of a tablet began.
    #[must_use]
    pub fn is_inherited(&self, tablet: TabletId, pos: Pos) -> bool {
        pos.epoch <= self.story(tablet).base.epoch && pos > Pos::ZERO
    }

    /// The entries that a tablet's log up to `end` goes on from, and its own.
    #[must_use]
    pub fn everything(&self, tablet: TabletId, end: Pos) -> Vec<&Entry> {
        let older = self.merged(tablet).iter().flat_map(|(parent, seal)| self.everything(*parent, *seal));
        older.chain(self.story(tablet).lineage(end)).collect()
    }

    /// What happened to the keys of a tablet: one story for each part that another tablet of a
    /// merge has brought.
    #[must_use]
    pub fn pasts(&self, tablet: TabletId) -> Vec<Past<'_>> {
        let (own, story, line) = (self.range(tablet), self.story(tablet), self.line(tablet));
        let merged = self.merged(tablet);
        if merged.is_empty() {
            return vec![Past { range: own, story: Cow::Borrowed(story), tablets: line }];
        }
        let behind = |older: Past<'_>, seal: Pos| {
            let tablets = line.iter().copied().chain(older.tablets).collect();
            let story = Cow::Owned(story.behind(&older.story, seal));
            Some(Past { range: older.range.intersect(&own)?, story, tablets })
        };
        let mut pasts = Vec::new();
        for (parent, seal) in merged {
            let is_inside = |older: &Past<'_>| older.range.overlaps(&own);
            let older = self.pasts(*parent).into_iter().filter(is_inside);
            pasts.extend(older.filter_map(|older| behind(older, *seal)));
        }
        pasts
    }

    /// The keys of a tablet.
    #[must_use]
    pub fn range(&self, tablet: TabletId) -> KeyRange {
        self.ranges.get(&tablet).cloned().unwrap_or_else(KeyRange::all)
    }

    /// The keys of the tablet in whose log an entry of this history stands.
    #[must_use]
    pub fn range_at(&self, tablet: TabletId, seq: Seq) -> KeyRange {
        let line = self.line(tablet);
        let split = line.iter().rev().skip(1).flat_map(|id| self.parents_of(*id));
        let older = split.into_iter().find(|(_, seal)| seq <= seal.seq);
        self.range(older.map_or(tablet, |(parent, _)| *parent))
    }

    /// Whether two tablets were made of the same one.
    #[must_use]
    pub fn are_related(&self, one: TabletId, other: TabletId) -> bool {
        let family = self.family(other);
        self.family(one).iter().any(|older| family.contains(older))
    }

    /// Whether the data of a copy is gone.
    #[must_use]
    pub fn is_gone(&self, copy: ReplicaId) -> bool {
        self.gone.contains(&copy)
    }

    /// What a tablet still owes.
    #[must_use]
    pub fn trust(&self, tablet: TabletId) -> Trust {
        match (self.hopeless.contains(&tablet), self.degraded.contains(&tablet)) {
            (true, _) => Trust::Nothing,
            (false, true) => Trust::InSync,
            (false, false) => Trust::Copies,
        }
    }

    /// Whether a tablet that lost these of its in-sync copies, too, serves again by itself.
    #[must_use]
    pub fn bears(&self, tablet: TabletId, more: Option<usize>) -> bool {
        let Some(members) = self.members.get(&tablet) else { return true };
        let is_lost = |(id, server): &(&ReplicaId, &usize)| self.gone.contains(id) || Some(**server) == more;
        let bears = |copies: &BTreeMap<ReplicaId, usize>| {
            let lost = copies.iter().filter(is_lost).count();
            lost == 0 || lost <= members.spare.min(copies.len().saturating_sub(members.spare + 1))
        };
        let is_alive = !self.hopeless.contains(&tablet) && bears(&members.copies);
        // What is not built anew stays lost.
        is_alive && (self.rebuilds || bears(&members.all))
    }

    /// The metadata shows a tablet.
    pub fn shown(&mut self, shown: Shown) {
        let Shown { id, range, members, is_degraded, parents, history, losses } = shown;
        self.histories.insert(id, history);
        if losses > 0 && self.losses.insert(id, losses) != Some(losses) {
            self.begins_anew(id);
        }
        if is_degraded {
            self.degraded.insert(id);
        }
        if self.ranges.insert(id, range).is_none() && !parents.is_empty() {
            self.born(id, &parents, &members);
        }
        self.members.insert(id, members);
        self.look_at(id);
    }

    /// A tablet goes on from the logs of others, on the copies that were ready for it.
    fn born(&mut self, id: TabletId, parents: &[(TabletId, LogEnd)], members: &Members) {
        let mut story = match parents {
            [(parent, _)] => self.story(*parent).clone(),
            _ => Story::behind_base(joined(parents)),
        };
        let own = |server: &usize| Some((*server, self.inherited(*server, parents)?));
        story.copies = members.copies.values().filter_map(own).collect();
        self.stories.insert(id, story);
        let older = parents.iter().filter_map(|(parent, _)| self.members.get(parent));
        let older = older.flat_map(|older| &older.all);
        let lost: BTreeSet<usize> =
            older.filter(|(copy, _)| self.gone.contains(copy)).map(|(_, server)| *server).collect();
        let heirs = members.all.iter().filter(|(_, server)| lost.contains(server)).map(|(copy, _)| *copy);
        self.gone.extend(heirs);
        self.parents.insert(id, parents.iter().map(|(parent, seal)| (*parent, seal.pos)).collect());
        for older in self.family(id).into_iter().skip(1) {
            self.descendants.entry(older).or_default().insert(id);
        }
        if parents.iter().any(|(parent, _)| self.hopeless.contains(parent)) {
            self.hopeless.insert(id);
        }
    }

    /// What a server has in its own log of a tablet that was made of others, if it has all of
    /// them up to their seals.
    fn inherited(&self, server: usize, parents: &[(TabletId, LogEnd)]) -> Option<Vec<Pos>> {
        let prefix = |(parent, seal): &(TabletId, LogEnd)| self.story(*parent).prefix(server, seal.pos);
        let mut logs: Vec<Vec<Pos>> = parents.iter().map(prefix).collect::<Option<_>>()?;
        if logs.len() == 1 { logs.pop() } else { Some(Vec::new()) }
    }

    fn look_at(&mut self, id: TabletId) {
        let Some(members) = self.members.get(&id) else { return };
        if members.copies.keys().filter(|copy| self.gone.contains(copy)).count() > members.spare {
            self.hopeless.insert(id);
        }
    }

    /// The children of tablets have taken their place on a server.
    pub fn switched(&mut self, server: usize, parents: &[(TabletId, LogEnd)], children: &[TabletId]) {
        let Some(log) = self.inherited(server, parents) else { return };
        let base = if parents.len() == 1 { Pos::ZERO } else { joined(parents) };
        for child in children {
            let story = self.stories.entry(*child).or_default();
            // A copy that metadata names later than its server switches begins here.
            story.base = story.base.max(base);
            for pos in &log {
                *story.held.entry(*pos).or_default() |= bit(server);
            }
            story.copies.entry(server).or_insert_with(|| log.clone());
        }
    }

    /// A copy was built out of rows.
    pub fn built(&mut self, tablet: TabletId, server: usize, end: Pos) {
        self.stories.entry(tablet).or_default().built(server, end);
    }

    /// A server has let a copy go for good, or begins it anew.
    pub fn removed(&mut self, tablet: TabletId, server: usize) {
        if let Some(story) = self.stories.get_mut(&tablet) {
            story.copies.remove(&server);
        }
    }

    /// A leader has begun an epoch, durable or not.
    pub fn appended(&mut self, tablet: TabletId, entry: &Entry) {
        if let Payload::EpochStart { .. } = entry.payload {
            self.stories.entry(tablet).or_default().begins(entry);
        }
    }

    /// An entry is durable on a server.
    pub fn durable(&mut self, tablet: TabletId, server: usize, entry: &Rc<Entry>) {
        self.stories.entry(tablet).or_default().durable(server, entry);
        // A copy that comes late with what its children know already, or never will.
        let heirs = self.descendants(tablet).filter(|heir| self.share_history(tablet, *heir));
        for child in heirs.collect::<Vec<_>>() {
            self.stories.entry(child).or_default().note(server, entry);
        }
    }

    /// A copy's log ends after `keep` now.
    pub fn cut(&mut self, tablet: TabletId, server: usize, keep: Seq) {
        let story = self.stories.entry(tablet).or_default();
        let length = keep.0.saturating_sub(story.base.seq.0);
        if let Some(log) = story.copies.get_mut(&server) {
            log.truncate(usize::try_from(length).expect("a log of a simulation is short"));
        }
    }

    /// A disk is gone, with everything on it.
    pub fn wiped(&mut self, server: usize) {
        for story in self.stories.values_mut() {
            story.copies.remove(&server);
        }
        let members = self.members.values().flat_map(|members| &members.all);
        self.gone.extend(members.filter(|(_, place)| **place == server).map(|(copy, _)| *copy));
        let ids: Vec<TabletId> = self.members.keys().copied().collect();
        ids.into_iter().for_each(|id| self.look_at(id));
    }

    /// Every write and every fence of a token, in whatever lineage.
    #[must_use]
    pub fn writes(&self) -> BTreeMap<Token, Vec<(TabletId, &Entry)>> {
        let mut writes: BTreeMap<Token, Vec<(TabletId, &Entry)>> = BTreeMap::new();
        for (tablet, story) in &self.stories {
            for entry in story.entries.values() {
                if let Payload::Write(write) = &entry.payload
                    && let Some(token) = write.token
                {
                    writes.entry(token).or_default().push((*tablet, entry));
                }
            }
        }
        writes
    }
}

/// How a tablet came out of it.
#[derive(Clone, Debug)]
pub struct Fate {
    /// Which tablet.
    pub tablet: TabletId,
    /// Its keys.
    pub range: KeyRange,
    /// The end of the log that survived: that of the last leader.
    pub end: Pos,
    /// Servers with a copy that was not lost.
    pub copies: Vec<usize>,
    /// What it still owes.
    pub trust: Trust,
}

/// What happened to some keys of a tablet, in one line.
#[derive(Clone, Debug)]
pub struct Past<'a> {
    /// The keys.
    pub range: KeyRange,
    /// Everything that is known of the logs in which they were.
    pub story: Cow<'a, Story>,
    /// The tablets that they were in.
    pub tablets: Vec<TabletId>,
}

/// The log that survived, and what follows from it, for the keys that have one past.
#[derive(Clone, Debug)]
pub struct Truth<'a> {
    /// How the tablet came out of it; its keys are those of the past.
    pub fate: &'a Fate,
    /// Everything that is known of its log.
    pub story: &'a Story,
    /// Entries of the surviving log, oldest first.
    pub log: Vec<&'a Entry>,
    /// Writes that it takes back.
    pub reverted: BTreeSet<Pos>,
    /// All versions of all rows that it gives.
    pub rows: Rows,
    past: &'a Past<'a>,
}

impl<'a> Truth<'a> {
    /// What follows from the log of a tablet that ends where `fate` says.
    #[must_use]
    pub fn new(fate: &'a Fate, past: &'a Past<'a>) -> Self {
        let story = &*past.story;
        let log = story.lineage(fate.end);
        let (reverted, rows) = (reverted(&log), rows(&log, &fate.range));
        Self { fate, story, log, reverted, rows, past }
    }

    /// Whether the keys were ever in a tablet.
    #[must_use]
    pub fn was_in(&self, tablet: TabletId) -> bool {
        self.past.tablets.contains(&tablet)
    }

    /// Whether the write at `pos` survived and was not taken back.
    #[must_use]
    pub fn stands(&self, pos: Pos) -> bool {
        self.story.contains(self.fate.end, pos) && !self.reverted.contains(&pos)
    }
}

/// Writes that a log takes back.
#[must_use]
pub fn reverted(log: &[&Entry]) -> BTreeSet<Pos> {
    log.iter().flat_map(|entry| entry.reverts()).map(|target| target.pos).collect()
}

/// What a log leaves in the rows of a range: all versions, those taken back excepted.
#[must_use]
pub fn rows(log: &[&Entry], range: &KeyRange) -> Rows {
    let mut rows = Rows::new();
    log.iter().for_each(|entry| fold(&mut rows, entry, range));
    rows
}
