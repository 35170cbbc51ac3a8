//! What metadata says of a server's copies, made so: copies begin, lead, are divided and go.
//!
//! Production hears assignments in the order in which they were sent, on one stream; one that is
//! lost ends the stream, and the next begins with all of them. Here messages get lost and
//! overtake each other one by one, so they carry numbers: of those that come late only the
//! appointments are looked at.

use super::disk::{CopyState, RegistryChange, Replica};
use super::env::Env;
use super::network::{Assignment, Assignments};
use super::server::{Copy, Server, Timed};
use crate::invariants::Observation;
use ebla_kernel::entry::{Entry, LogEnd};
use ebla_kernel::ids::{Attempt, Epoch, ReplicaId, Seq, TabletId};
use ebla_kernel::lease::LeaseTerms;
use ebla_kernel::meta;
use ebla_kernel::mutated;
use ebla_kernel::range::KeyRange;
use ebla_kernel::tablet::token::TokenTable;
use ebla_kernel::tablet::{Input, Recovered, Seals, Tablet};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

impl Server {
    /// Takes what metadata says of copies here.
    pub(super) fn assignments(&mut self, env: &mut Env, message: Assignments) {
        let generation = self.generation(env);
        let Some(run) = self.run.as_mut().filter(|run| run.identity.is_some()) else { return };
        let (own, meant) = (run.identity, (message.run.server, message.run.incarnation));
        let is_late = message.number < run.heard || own != Some(meant);
        if !is_late {
            run.heard = message.number;
        }
        let Assignments { full, assignments, removed, .. } = message;
        // What was said of an earlier disk, or process, is over (m15, m16).
        let is_ours =
            |assignment: &Assignment| assignment.generation == generation || mutated!(LostCopyAnswers);
        let assignments: Vec<Assignment> = assignments.into_iter().filter(is_ours).collect();
        if !is_late {
            for assignment in &assignments {
                self.switch_committed(env, &assignment.parents);
            }
            self.let_go(env, full, &assignments, &removed);
        }
        for assignment in assignments {
            self.assigned(env, assignment, is_late);
        }
        self.create_wanted(env);
    }

    /// Copies that are no longer wanted here.
    fn let_go(&mut self, env: &mut Env, full: bool, assigned: &[Assignment], removed: &[TabletId]) {
        let wanted: BTreeMap<TabletId, ReplicaId> =
            assigned.iter().map(|assignment| (assignment.tablet, assignment.replica)).collect();
        let is_gone = |id: &TabletId, replica: ReplicaId| match wanted.get(id) {
            Some(wanted) => *wanted != replica,
            None => full || removed.contains(id),
        };
        let known = self.disk.registry.replicas.iter().map(|(id, replica)| (*id, replica.id));
        let gone: Vec<TabletId> =
            known.filter(|(id, replica)| is_gone(id, *replica)).map(|(id, _)| id).collect();
        if let Some(run) = &mut self.run {
            run.wanted.retain(|id, assignment| !is_gone(id, assignment.replica));
        }
        gone.into_iter().for_each(|id| self.remove(env, id));
    }

    /// What metadata says of one copy.
    pub(super) fn assigned(&mut self, env: &mut Env, assignment: Assignment, is_late: bool) {
        let name = self.server_run();
        let Some(run) = &mut self.run else { return };
        let id = assignment.tablet;
        let Some(copy) = run.copies.get_mut(&id) else {
            if !is_late {
                run.wanted.insert(id, assignment);
            }
            return;
        };
        if copy.core.replica() != assignment.replica {
            return;
        }
        copy.assignment = Some(assignment.clone());
        let Some((leader, leads)) = assignment.leader else { return };
        let own = leader == assignment.replica && Some(leads) == name;
        if own && copy.core.leading() == Some(assignment.epoch) {
            let (epoch, attempt) = (assignment.epoch, assignment.aborted);
            self.step(env, id, Input::InSync { epoch, membership: assignment.membership });
            self.step(env, id, Input::SplitAborted { attempt });
        } else if (own || mutated!(AnyIncarnationLeads)) && leader == assignment.replica && !run.is_stopping {
            self.timed(env, Timed::Appoint(assignment));
        }
    }

    /// Begins the copies that are wanted and not here, where nothing is in the way: a copy that
    /// holds some of their keys has to go first.
    pub(super) fn create_wanted(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let known = &self.disk.registry.replicas;
        let is_free = |assignment: &&Assignment| {
            let id = assignment.tablet;
            let is_under_way = run.coming.contains_key(&id)
                || run.building.contains_key(&id)
                || run.removing.contains(&id)
                || known.get(&id).is_some_and(|known| known.state == CopyState::Active);
            let range = &assignment.range;
            let held = known.iter().map(|(other, held)| (other, &held.range)).chain(&run.coming);
            let is_held = held.into_iter().any(|(other, held)| *other != id && held.overlaps(range));
            // Of two that were heard of the older one is no more.
            let is_old = run.wanted.values().any(|other| other.tablet > id && other.range.overlaps(range));
            !is_under_way && !is_held && !is_old
        };
        let new: Vec<Assignment> = run.wanted.values().filter(is_free).cloned().collect();
        new.into_iter().for_each(|assignment| self.create(env, &assignment));
    }

    /// A copy that is new here: its record first. One that others have had entries of is built
    /// from their rows.
    fn create(&mut self, env: &mut Env, assignment: &Assignment) {
        let id = assignment.tablet;
        // Never used twice on this server: nothing of an earlier try is taken for one of this.
        self.builds += 1;
        let attempt = self.builds;
        let before = self.disk.registry.replicas.get(&id);
        let tried = before.filter(|before| before.id == assignment.replica);
        let promised = tried.map_or(assignment.epoch, |tried| tried.promised.max(assignment.epoch));
        let is_empty = assignment.is_in_sync && assignment.parents.is_empty();
        let replica = Replica {
            id: assignment.replica,
            range: assignment.range.clone(),
            state: if is_empty { CopyState::Active } else { CopyState::Building(attempt) },
            base: LogEnd::default(),
            parents: Vec::new(),
            promised: if mutated!(NewCopyPromisesNothing) { Epoch(0) } else { promised },
            flushed: Seq(0),
            // Tokens of before every copy was lost are forgotten.
            token_floor_ms: match assignment.emptied_ms {
                0 => 0,
                emptied_ms => emptied_ms + 1,
            },
            truncating: None,
        };
        let Some(run) = &mut self.run else { return };
        run.coming.insert(id, replica.range.clone());
        self.write_registry(env, RegistryChange::Replica(id, replica));
    }

    /// The record of a copy is durable.
    pub(super) fn recorded(&mut self, env: &mut Env, id: TabletId) {
        let Some(run) = &mut self.run else { return };
        run.coming.remove(&id);
        // It was let go while its record was on its way.
        if run.removing.contains(&id) {
            return;
        }
        match self.disk.registry.replicas.get(&id).map(|replica| replica.state) {
            Some(CopyState::Active) => self.open(env, id, None),
            Some(CopyState::Building(attempt)) => self.begin_copying(env, id, attempt),
            Some(CopyState::Tombstoned) | None => {}
        }
    }

    /// Gives a copy its core, as registry and log say. One that was built knows tokens that
    /// its log does not hold.
    pub(super) fn open(&mut self, env: &mut Env, id: TabletId, tokens: Option<TokenTable>) {
        let Some(run) = &self.run else { return };
        let Some((_, incarnation)) = run.identity else { return };
        let Some(replica) = self.disk.registry.replicas.get(&id).cloned() else { return };
        let is_over = run.removing.contains(&id) || run.leaving.contains_key(&id);
        if replica.state != CopyState::Active || is_over {
            return;
        }
        self.replay(env, id, &replica);
        let base = self.disk.log.tablet(id).map(|log| log.base.pos).unwrap_or_default();
        assert!(base.seq <= replica.flushed, "the log of {id} begins after what was flushed");
        let mut seals = Seals::default();
        self.log_upto(id, Seq(u64::MAX)).for_each(|entry| seals.note(entry));
        let tokens = tokens.unwrap_or_else(|| self.tokens(id, &replica));
        let staged = self.disk.registry.staged.get(&id);
        if let Some((seal, end)) = staged.filter(|_| seals == Seals::default()) {
            // The seal itself may be purged; what is staged names it.
            seals = Seals::staged(seal.clone(), *end);
        }
        let applied = staged.filter(|_| !mutated!(StagedNotReplayed)).map(|(_, end)| end.pos.seq);
        let core = Tablet::new(Recovered {
            id,
            replica: replica.id,
            incarnation,
            range: replica.range.clone(),
            promised: replica.promised,
            epochs: env.watch.oracle.story(id).epochs_of(self.index),
            end: self.disk.log.end(id),
            applied: applied.unwrap_or_default().max(replica.flushed),
            tokens,
            base: replica.base,
            seals,
            staged: staged.map_or(Attempt(0), |(seal, _)| seal.attempt),
        });
        self.install(env, core);
    }

    /// Entries of a tablet's log here, up to an index.
    fn log_upto(&self, id: TabletId, upto: Seq) -> impl Iterator<Item = &Rc<Entry>> {
        let log = self.disk.log.tablet(id);
        log.into_iter().flat_map(|log| &log.entries).take_while(move |entry| entry.seq() <= upto)
    }

    /// What the log of a copy, and those that it goes on from, say of tokens.
    fn tokens(&self, id: TabletId, replica: &Replica) -> TokenTable {
        let of = |id: TabletId, upto: Seq| {
            let mut tokens = TokenTable::default();
            self.log_upto(id, upto).for_each(|entry| tokens.note_entry(entry));
            tokens
        };
        let older = self.disk.registry.ancestors(replica);
        let older = older.iter().map(|older| of(older.id, older.retired.seal.pos.seq));
        let all = older.chain([of(id, Seq(u64::MAX))]);
        all.fold(TokenTable::complete_from(replica.token_floor_ms), TokenTable::join)
    }

    /// Puts rows again that no flush may have made durable, and that are safe: those of the logs
    /// that a copy goes on from, each as far as its keys came by way of that tablet.
    fn replay(&mut self, env: &mut Env, id: TabletId, replica: &Replica) {
        let mut again: Vec<(TabletId, Rc<Entry>, Vec<KeyRange>)> = Vec::new();
        let due = |id: TabletId, flushed: Seq, upto: Seq, ranges: Vec<KeyRange>| {
            let log: Vec<Rc<Entry>> = self.log_upto(id, upto).cloned().collect();
            let taken: Vec<_> =
                log.iter().flat_map(|entry| entry.reverts()).map(|target| target.pos).collect();
            let is_due = move |entry: &Rc<Entry>| entry.seq() > flushed && !taken.contains(&entry.pos);
            log.into_iter().filter(is_due).map(move |entry| (id, entry, ranges.clone()))
        };
        for older in self.disk.registry.ancestors(replica) {
            let retired = older.retired;
            again.extend(due(older.id, retired.flushed, retired.seal.pos.seq, older.ranges));
        }
        if mutated!(RetiredNotReplayed) {
            again.clear();
        }
        if let Some((_, end)) = self.disk.registry.staged.get(&id).filter(|_| !mutated!(StagedNotReplayed)) {
            // The seal is safe: whoever takes the tablet's place finds the rows here.
            again.extend(due(id, replica.flushed, end.pos.seq, vec![replica.range.clone()]));
        }
        let index = self.index;
        env.say(|| format!("server {index} {id} puts {} entries again", again.len()));
        for (tablet, entry, ranges) in &again {
            env.observe(&Observation::Applied { tablet: *tablet, server: self.index, entry });
            ranges.iter().for_each(|range| self.disk.store.apply(entry, range));
        }
    }

    /// A core begins.
    pub(super) fn install(&mut self, env: &mut Env, core: Tablet) {
        let (tablet, replica, promised) = (core.id(), core.replica(), core.promised());
        let (server, generation) = (self.index, self.generation(env));
        env.observe(&Observation::Opened { tablet, server, replica, generation, promised });
        let settled = core.applied_seq();
        let copy = Copy {
            core,
            generation,
            terms: LeaseTerms::default(),
            settled,
            tail: VecDeque::new(),
            by: Epoch(0),
            cuts: 0,
            assignment: None,
        };
        let Some(run) = &mut self.run else { return };
        run.clock.raise(copy.core.end().ts);
        run.copies.insert(tablet, copy);
        if let Some(assignment) = run.wanted.remove(&tablet) {
            self.assigned(env, assignment, false);
        }
    }

    pub(super) fn fences(&mut self, env: &mut Env, fences: &[meta::Fence]) {
        for fence in fences {
            let known = self.run.as_ref().and_then(|run| run.copies.get(&fence.tablet));
            if known.is_some_and(|copy| copy.core.replica() == fence.replica) {
                self.step(env, fence.tablet, Input::Fence { epoch: fence.epoch, gone: fence.gone });
            }
        }
    }
}
