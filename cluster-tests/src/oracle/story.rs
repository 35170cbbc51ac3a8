//! The logs of one tablet as they became durable, copy by copy: a tree, and who has which of it.

use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::ids::{Epoch, Pos, Seq};
use ebla_kernel::op::Token;
use std::collections::BTreeMap;
use std::rc::Rc;

/// One tablet's entries, and who has which.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// Every entry that was durable anywhere.
    pub entries: BTreeMap<Pos, Rc<Entry>>,
    /// The servers that ever had it durable, a bit for each.
    pub held: BTreeMap<Pos, u64>,
    /// What stands before the first entry of each epoch.
    pub starts: BTreeMap<Epoch, Pos>,
    /// The durable log of every copy, by server: position by index, nothing purged.
    pub copies: BTreeMap<usize, Vec<Pos>>,
    /// What stands before the first entry; nobody wrote it.
    pub base: Pos,
    /// What stands before an entry in truth that names a base: the seal of a parent.
    bridges: BTreeMap<Pos, Pos>,
}

impl Story {
    /// A story that begins behind a base that nobody wrote.
    pub(super) fn behind_base(base: Pos) -> Self {
        Self { base, ..Self::default() }
    }

    /// Whether the lineage of `end` contains `pos`.
    #[must_use]
    pub fn contains(&self, end: Pos, pos: Pos) -> bool {
        let is_inside = self.limit(end, pos.epoch).is_some_and(|limit| pos.seq <= limit);
        is_inside || pos == Pos::ZERO || pos == self.base
    }

    /// Up to which index the lineage of `end` holds entries of `epoch`; none at all if it has
    /// no part of it.
    #[must_use]
    pub fn limit(&self, end: Pos, epoch: Epoch) -> Option<Seq> {
        let mut end = end;
        while end.epoch > epoch {
            end = *self.starts.get(&end.epoch)?;
        }
        (end.epoch == epoch && end.seq > Seq(0)).then_some(end.seq)
    }

    /// The last durable position of `epoch`, or what stands before it.
    #[must_use]
    pub fn last_of(&self, epoch: Epoch) -> Pos {
        let range = Pos::new(epoch, Seq(0))..=Pos::new(epoch, Seq(u64::MAX));
        let last = self.entries.range(range).next_back().map(|(pos, _)| *pos);
        last.or_else(|| self.starts.get(&epoch).copied()).unwrap_or(Pos::new(epoch, Seq(0)))
    }

    /// The entries of a lineage, oldest first.
    #[must_use]
    pub fn lineage(&self, end: Pos) -> Vec<&Entry> {
        let mut log = Vec::new();
        let mut at = end;
        while let Some(entry) = self.entries.get(&at) {
            log.push(&**entry);
            at = self.bridges.get(&entry.prev).copied().unwrap_or(entry.prev);
        }
        log.reverse();
        log
    }

    /// The entry at `pos`, if it is the write of `token`.
    #[must_use]
    pub fn write(&self, pos: Pos, token: Token) -> Option<&Rc<Entry>> {
        let is_it = |entry: &&Rc<Entry>| matches!(&entry.payload, Payload::Write(write) if write.token == Some(token));
        self.entries.get(&pos).filter(is_it)
    }

    /// Whether the copy on `server` has `pos` now.
    #[must_use]
    pub fn has(&self, server: usize, pos: Pos) -> bool {
        let log = self.copies.get(&server);
        let index = self.length(pos).and_then(|length| length.checked_sub(1));
        match index {
            Some(index) => log.and_then(|log| log.get(index)) == Some(&pos),
            None => log.is_some() && pos == self.base,
        }
    }

    /// How many entries a log has that ends at `end`.
    pub(super) fn length(&self, end: Pos) -> Option<usize> {
        usize::try_from(end.seq.0.checked_sub(self.base.seq.0)?).ok()
    }

    /// The durable end of the copy on `server`.
    #[must_use]
    pub fn end_of(&self, server: usize) -> Pos {
        self.copies.get(&server).and_then(|log| log.last()).copied().unwrap_or(self.base)
    }

    /// Which epoch began where in the log of the copy on `server`.
    #[must_use]
    pub fn epochs_of(&self, server: usize) -> Vec<(Epoch, Seq)> {
        let base = (self.base > Pos::ZERO).then_some((self.base.epoch, self.base.seq));
        let mut epochs: Vec<(Epoch, Seq)> = base.into_iter().collect();
        for pos in self.copies.get(&server).into_iter().flatten() {
            if epochs.last().is_none_or(|(epoch, _)| *epoch != pos.epoch) {
                epochs.push((pos.epoch, pos.seq));
            }
        }
        epochs
    }

    /// How many servers of `among` ever had `pos` durable.
    #[must_use]
    pub fn held_by(&self, pos: Pos, among: impl IntoIterator<Item = usize>) -> usize {
        let mask = self.held.get(&pos).copied().unwrap_or_default();
        among.into_iter().filter(|server| mask & bit(*server) != 0).count()
    }

    pub(super) fn durable(&mut self, server: usize, entry: &Rc<Entry>) {
        self.note(server, entry);
        self.copies.entry(server).or_default().push(entry.pos);
    }

    pub(super) fn note(&mut self, server: usize, entry: &Rc<Entry>) {
        self.entries.entry(entry.pos).or_insert_with(|| Rc::clone(entry));
        *self.held.entry(entry.pos).or_default() |= bit(server);
        self.begins(entry);
    }

    /// The log of a copy, up to a position that it holds.
    pub(super) fn prefix(&self, server: usize, upto: Pos) -> Option<Vec<Pos>> {
        let length = self.length(upto)?;
        let log = self.copies.get(&server).filter(|_| self.has(server, upto))?;
        Some(log[..length].to_vec())
    }

    /// A server has everything of a lineage, however it came there.
    pub(super) fn built(&mut self, server: usize, end: Pos) {
        let log: Vec<Pos> = self.lineage(end).iter().map(|entry| entry.pos).collect();
        for pos in &log {
            *self.held.entry(*pos).or_default() |= bit(server);
        }
        self.copies.insert(server, log);
    }

    /// What happened to the keys of one parent of a merged tablet, whose own story this is: what
    /// happened there up to the seal, then this.
    pub(super) fn behind(&self, older: &Self, seal: Pos) -> Self {
        let mut whole = older.clone();
        let start = |at: Pos| if at == self.base { seal } else { at };
        whole.entries.extend(self.entries.iter().map(|(pos, entry)| (*pos, Rc::clone(entry))));
        whole.held.extend(&self.held);
        whole.starts.extend(self.starts.iter().map(|(epoch, at)| (*epoch, start(*at))));
        whole.bridges.insert(self.base, seal);
        whole.copies.clone_from(&self.copies);
        whole
    }

    pub(super) fn begins(&mut self, entry: &Entry) {
        if let Payload::EpochStart { .. } = entry.payload {
            self.starts.insert(entry.pos.epoch, entry.prev);
        }
    }
}

/// The bit of a server.
pub(super) fn bit(server: usize) -> u64 {
    1 << server
}
