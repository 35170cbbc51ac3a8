//! Tablets whose place others take: the names of those others, and the commit point.
//!
//! The intent of a split or a merge is a [`Succession`]: it names the tablets to be and their
//! copies. From it until commit or abort only the parents serve. The commit is one command (m30)
//! with the guard of m27 for every parent; the abort is one too, and of both only one is ever
//! accepted for an attempt (m29).

use super::apply::{Changes, Reply};
use super::job::{Job, JobState, Origin};
use super::rejection::Rejection;
use super::state::{Leader, Parent, Replica, RetiredTablet, State, Tablet};
use crate::entry::LogEnd;
use crate::hlc::Hlc;
use crate::ids::{
    Attempt, ConfigVersion, Epoch, Generation, Incarnation, Lineage, ReplicaId, ServerId, TabletId,
};
use crate::mutated;
use crate::range::KeyRange;
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, BTreeSet};

/// Which tablets take the place of which. One parent and several children are a split, two
/// parents and one child a merge.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Succession {
    /// The tablets that are to be retired, in key order.
    pub parents: Vec<TabletId>,
    /// The tablets that are to take their place, in key order.
    pub children: Vec<(TabletId, KeyRange)>,
    /// The copies of the children, in the order of `children`, by each copy of a parent that
    /// they go on from. The copies of two parents on one server become the same.
    pub replicas: BTreeMap<ReplicaId, Vec<ReplicaId>>,
}

/// A tablet as the leader that sealed it wants it retired.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SplitCommit {
    /// The tablet that is to be retired.
    pub tablet: TabletId,
    /// The attempt that it is sealed for.
    pub attempt: Attempt,
    /// The epoch that the proposer leads.
    pub epoch: Epoch,
    /// The seal in its log.
    pub seal: LogEnd,
    /// The copies that have applied the seal and staged the children, and what their data
    /// lives and dies with (m28).
    pub ready: BTreeMap<ReplicaId, Generation>,
}

impl Succession {
    /// The copy of the child at `at` that goes on from `copy`.
    fn successor(&self, copy: ReplicaId, at: usize) -> Option<ReplicaId> {
        self.replicas.get(&copy).and_then(|ids| ids.get(at)).copied()
    }
}

impl State {
    /// The succession under way that is to retire a tablet.
    #[must_use]
    pub fn succession_of(&self, tablet: TabletId) -> Option<(&Job, &Succession)> {
        let job = self.job_of(tablet)?;
        Some((job, job.kind.succession()?))
    }
}

/// The tablet, or what became of it.
pub(super) fn present(state: &State, id: TabletId) -> Result<&Tablet, Rejection> {
    state.tablet(id).ok_or_else(|| match state.successors(id) {
        Some(successors) => Rejection::Retired(id, successors),
        None => Rejection::NoTablet(id),
    })
}

/// Notes on the parents that the attempt will never be committed.
pub(super) fn abort(state: &mut State, parents: &[TabletId], attempt: Attempt, changes: &mut Changes) {
    for id in parents {
        if let Some(tablet) = state.tablets.get_mut(id) {
            tablet.aborted = attempt.max(tablet.aborted);
            changes.tablets.insert(*id);
        }
    }
}

/// The commit point: retires the parents and creates the children, or changes nothing.
pub(super) fn commit(
    state: &mut State,
    proposer: (ServerId, Incarnation),
    commits: &[SplitCommit],
    time_ms: u64,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let (job, succession) = intent(state, commits)?;
    let (job, succession, origin) = (job.id, succession.clone(), job.origin);
    let guarded = if mutated!(MergeGuardsOneParent) { 1 } else { commits.len() };
    for commit in &commits[..guarded] {
        guard(state, proposer, commit)?;
    }
    let begin = Beginning::of(state, proposer, commits)?;
    let mut parents = Vec::with_capacity(commits.len());
    for commit in commits {
        parents.push(state.remove_tablet(commit.tablet).ok_or(Rejection::NoTablet(commit.tablet))?);
    }
    let lineage = lineage(state, &parents);
    for (at, (id, range)) in succession.children.iter().enumerate() {
        let mut child = begin.child(&parents, &succession, at, (*id, range.clone()), lineage);
        if at > 0 {
            child.drawn_by = origin;
        }
        state.insert_tablet(child);
        changes.tablets.insert(*id);
    }
    let successors: Vec<TabletId> = succession.children.iter().map(|(id, _)| *id).collect();
    for parent in parents {
        let servers = parent.replicas.iter().map(|replica| replica.server).collect();
        changes.removed_tablets.insert(parent.id, (parent.table, servers));
        let successors = successors.clone();
        state.retire(parent.id, RetiredTablet { table: parent.table, successors });
    }
    let job = state.finish_job(job, JobState::Done, None, time_ms, changes).ok_or(Rejection::NoJob(job))?;
    Ok(Reply::Job(Box::new(job)))
}

/// Positions go on where the one parent's end: what a session has seen is still in them. Two
/// parents have numbered apart, so a new history begins, which knows theirs by time.
fn lineage(state: &mut State, parents: &[Tablet]) -> Lineage {
    if let [parent] = parents {
        return parent.lineage;
    }
    let lineage = state.next.lineage;
    state.next.lineage = lineage.next();
    lineage
}

/// The job of the attempt, as long as it may be committed: every parent is named, once.
fn intent<'a>(state: &'a State, commits: &[SplitCommit]) -> Result<(&'a Job, &'a Succession), Rejection> {
    let Some(first) = commits.first() else { return Err(Rejection::NoTablet(TabletId(0))) };
    let Some((job, succession)) = state.succession_of(first.tablet) else {
        if let Some(job) = state.job_of(first.tablet) {
            return Err(Rejection::StaleAttempt(Box::new(job.clone())));
        }
        let is_meant = |job: &&Job| {
            let parents = job.kind.parents();
            parents.contains(&first.tablet) && job.attempt == first.attempt
        };
        return Err(match state.jobs().find(is_meant) {
            Some(job) => Rejection::JobEnded(Box::new(job.clone())),
            None => Rejection::NoTablet(first.tablet),
        });
    };
    let is_whole = commits.iter().map(|commit| commit.tablet).eq(succession.parents.iter().copied());
    let is_meant = |commit: &SplitCommit| commit.attempt == job.attempt || mutated!(CommitOfAnyAttempt);
    if is_whole && commits.iter().all(is_meant) {
        Ok((job, succession))
    } else {
        Err(Rejection::StaleAttempt(Box::new(job.clone())))
    }
}

/// The rule m27, for one parent.
fn guard(state: &State, proposer: (ServerId, Incarnation), commit: &SplitCommit) -> Result<(), Rejection> {
    let tablet = state.tablet(commit.tablet).ok_or(Rejection::NoTablet(commit.tablet))?;
    let refuse = |why: fn(Box<Tablet>) -> Rejection| Err(why(Box::new(tablet.clone())));
    if (tablet.epoch != commit.epoch || tablet.recovering) && !mutated!(CommitOfAnyEpoch) {
        return refuse(Rejection::StaleEpoch);
    }
    let Some(leader) = proposing(state, tablet, proposer) else {
        return refuse(Rejection::NotLeader);
    };
    let has_leader = commit.ready.contains_key(&leader) || mutated!(CommitWithoutLeader);
    let needed = state.table(tablet.table).map_or(usize::MAX, |table| usize::from(table.spec.min_in_sync));
    let is_enough = commit.ready.len() >= needed || mutated!(CommitTooFew);
    let is_sound = |(id, generation): (&ReplicaId, &Generation)| {
        let replica = tablet.in_sync_replicas().find(|replica| replica.id == *id);
        replica.is_some_and(|replica| {
            (replica.generation == *generation && state.holds_data(replica)) || mutated!(CommitOfAnyDisk)
        })
    };
    if has_leader && is_enough && commit.ready.iter().all(is_sound) {
        Ok(())
    } else {
        refuse(Rejection::NotReady)
    }
}

/// The copy with which the proposer leads the tablet.
fn proposing(state: &State, tablet: &Tablet, proposer: (ServerId, Incarnation)) -> Option<ReplicaId> {
    if mutated!(CommitOfAnyEpoch) {
        return tablet.replica_on(proposer.0).map(|replica| replica.id);
    }
    let proposes =
        |leader: &Leader| (leader.server, leader.incarnation) == proposer && state.is_current(leader);
    tablet.leader.filter(proposes).map(|leader| leader.replica)
}

/// What all children begin with.
struct Beginning {
    proposer: (ServerId, Incarnation),
    /// The copy with which it leads the first parent.
    leader: Option<ReplicaId>,
    /// The copies of the parents that are ready.
    ready: BTreeSet<ReplicaId>,
    parents: Vec<Parent>,
    epoch: Epoch,
    base: LogEnd,
}

impl Beginning {
    fn of(
        state: &State,
        proposer: (ServerId, Incarnation),
        commits: &[SplitCommit],
    ) -> Result<Self, Rejection> {
        let tablets = || commits.iter().filter_map(|commit| state.tablet(commit.tablet));
        let epoch = tablets().map(|tablet| tablet.epoch).max().unwrap_or_default().next();
        let parent = |commit: &SplitCommit| Parent {
            tablet: commit.tablet,
            attempt: commit.attempt,
            epoch,
            seal: commit.seal,
        };
        let ready = ready_everywhere(state, commits)?;
        let leader = tablets().next().and_then(|tablet| proposing(state, tablet, proposer));
        let parents: Vec<Parent> = commits.iter().map(parent).collect();
        let ends: Vec<LogEnd> = parents.iter().map(|parent| parent.seal).collect();
        Ok(Self { proposer, leader, ready, parents, epoch, base: LogEnd::joined(&ends) })
    }

    /// One child: the copies of its parents, those that were ready in sync, led by whoever led.
    fn child(
        &self,
        parents: &[Tablet],
        succession: &Succession,
        at: usize,
        (id, range): (TabletId, KeyRange),
        lineage: Lineage,
    ) -> Tablet {
        let mut replicas: Vec<Replica> = Vec::new();
        for copy in parents.iter().flat_map(|parent| &parent.replicas) {
            let Some(id) = succession.successor(copy.id, at) else { continue };
            match replicas.iter_mut().find(|known| known.id == id) {
                Some(known) => known.lost |= copy.lost,
                None => replicas.push(Replica { id, ..copy.clone() }),
            }
        }
        let in_sync = self.ready.iter().filter_map(|copy| succession.successor(*copy, at)).collect();
        let (server, incarnation) = self.proposer;
        let leader = self.leader.and_then(|copy| succession.successor(copy, at));
        let leader = leader.map(|replica| Leader { replica, server, incarnation });
        let joined_ts = match parents {
            [parent] => parent.joined_ts,
            _ => self.base.ts,
        };
        let appointed_ts = parents.iter().map(|parent| parent.appointed_ts).max().unwrap_or(Hlc::MIN);
        let leftmost = parents.iter().min_by_key(|parent| parent.range.start());
        Tablet {
            id,
            table: parents[0].table,
            range,
            drawn_by: leftmost.map_or(Origin::Operator, |parent| parent.drawn_by),
            epoch: self.epoch,
            leader,
            replicas,
            in_sync,
            config_version: ConfigVersion(1),
            lineage,
            joined_ts,
            recovering: false,
            appointed_ts: appointed_ts.max(self.base.ts),
            former: None,
            degraded: parents.iter().any(|parent| parent.degraded),
            parents: self.parents.clone(),
            aborted: Attempt(0),
            emptied: parents.iter().filter_map(|parent| parent.emptied).max_by_key(|it| it.time_ms),
            moving: None,
        }
    }
}

/// The copies that have staged the children, for all parents on the same servers: a copy that is
/// ready in one only would lack rows of the other (m28), and a leader would not count, for its
/// lease, a set that it has not named (m17).
fn ready_everywhere(state: &State, commits: &[SplitCommit]) -> Result<BTreeSet<ReplicaId>, Rejection> {
    let places = |commit: &SplitCommit| {
        let copies = state.tablet(commit.tablet).into_iter().flat_map(|tablet| &tablet.replicas);
        let ready = copies.filter(|copy| commit.ready.contains_key(&copy.id));
        ready.map(|copy| (copy.server, copy.id)).collect::<BTreeMap<ServerId, ReplicaId>>()
    };
    let ready: Vec<BTreeMap<ServerId, ReplicaId>> = commits.iter().map(places).collect();
    if mutated!(MergeReadyOfOneParent) {
        return Ok(ready.into_iter().take(1).flatten().map(|(_, copy)| copy).collect());
    }
    let is_everywhere = |server: &ServerId| ready.iter().all(|places| places.contains_key(server));
    let are_apart = ready.iter().flat_map(BTreeMap::keys).any(|server| !is_everywhere(server));
    if are_apart && !mutated!(MergeReadyIntersects) {
        return Err(Rejection::ReadyApart(commits.iter().map(|commit| commit.tablet).collect()));
    }
    let counted = ready.iter().flatten().filter(|(server, _)| is_everywhere(server));
    Ok(counted.map(|(_, copy)| *copy).collect())
}
