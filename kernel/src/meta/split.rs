//! Splits: one tablet retires, several take its place, and no row moves.
//!
//! The intent names the children and their copies. From it until commit or abort only the
//! parent serves. The commit is one command (m30) with the guard of m27; the abort is one
//! too, and of both only one is ever accepted for an attempt (m29).

use super::apply::{Changes, Reply};
use super::job::{Job, JobKind, JobState, SplitJob};
use super::rejection::Rejection;
use super::state::{Leader, Parent, Replica, RetiredTablet, State, Tablet};
use crate::entry::LogEnd;
use crate::ids::{Attempt, ConfigVersion, Epoch, Generation, Incarnation, ReplicaId, ServerId, TabletId};
use crate::limits::{KEY_BYTES_MAX, SPLIT_CHILDREN_MAX, TABLETS_MAX};
use crate::mutated;
use crate::range::KeyRange;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// What the leader of a sealed tablet asks for.
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

/// Checks that `keys` cut `range` into parts that all hold a key.
#[must_use]
pub fn check_split_keys(range: &KeyRange, keys: &[Bytes]) -> bool {
    let is_inside = |key: &Bytes| range.contains(key) && key != range.start() && key.len() <= KEY_BYTES_MAX;
    keys.iter().all(is_inside) && keys.windows(2).all(|pair| pair[0] < pair[1])
}

/// Whether a split of the tablet makes sense.
pub(super) fn check(state: &State, id: TabletId, at: &[Bytes]) -> Result<(), Rejection> {
    let tablet = present(state, id)?;
    if at.is_empty() || at.len() >= SPLIT_CHILDREN_MAX {
        return Err(Rejection::BadSplitCount);
    }
    if !check_split_keys(&tablet.range, at) {
        return Err(Rejection::BadSplitPoint(Box::new(tablet.clone())));
    }
    if state.tablets.len() + at.len() > TABLETS_MAX {
        return Err(Rejection::LimitReached("tablets"));
    }
    Ok(())
}

/// The tablet, or what became of it.
fn present(state: &State, id: TabletId) -> Result<&Tablet, Rejection> {
    state.tablet(id).ok_or_else(|| match state.retired(id) {
        Some(retired) => Rejection::Retired(id, retired.successors.clone()),
        None => Rejection::NoTablet(id),
    })
}

/// Names the children and their copies.
pub(super) fn plan(state: &mut State, id: TabletId, at: &[Bytes]) -> Result<JobKind, Rejection> {
    let tablet = present(state, id)?;
    let copies: Vec<ReplicaId> = tablet.replicas.iter().map(|replica| replica.id).collect();
    let cut = KeyRange::cut_at(at).map_err(|_| Rejection::BadSplitPoint(Box::new(tablet.clone())))?;
    let ranges: Vec<KeyRange> = cut.iter().filter_map(|part| part.intersect(&tablet.range)).collect();
    let mut children = Vec::with_capacity(ranges.len());
    for range in ranges {
        children.push((state.next.tablet, range));
        state.next.tablet = state.next.tablet.next();
    }
    let mut replicas: BTreeMap<ReplicaId, Vec<ReplicaId>> = BTreeMap::new();
    for copy in copies {
        for _ in &children {
            replicas.entry(copy).or_default().push(state.next.replica);
            state.next.replica = state.next.replica.next();
        }
    }
    Ok(JobKind::Split(SplitJob { tablet: id, children, replicas }))
}

/// Notes on the tablet that the attempt will never be committed.
pub(super) fn abort(state: &mut State, id: TabletId, attempt: Attempt, changes: &mut Changes) {
    if let Some(tablet) = state.tablets.get_mut(&id) {
        tablet.aborted = attempt.max(tablet.aborted);
        changes.tablets.insert(id);
    }
}

/// The commit point: retires the parent and creates the children, or changes nothing.
pub(super) fn commit(
    state: &mut State,
    proposer: (ServerId, Incarnation),
    commit: SplitCommit,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let (job, split) = intent(state, &commit)?;
    let (job, split, origin) = (job.id, split.clone(), job.origin);
    let leader = guard(state, proposer, &commit)?;
    let parent = state.remove_tablet(commit.tablet).ok_or(Rejection::NoTablet(commit.tablet))?;
    for (at, (id, range)) in split.children.iter().enumerate() {
        let mut child = child(&parent, &split, at, (*id, range.clone()), &commit, leader);
        if at > 0 {
            child.drawn_by = origin;
        }
        state.insert_tablet(child);
        changes.tablets.insert(*id);
    }
    let servers = parent.replicas.iter().map(|replica| replica.server).collect();
    changes.removed_tablets.insert(parent.id, (parent.table, servers));
    let successors = split.children.iter().map(|(id, _)| *id).collect();
    state.retire(parent.id, RetiredTablet { table: parent.table, successors });
    let job = state.finish_job(job, JobState::Done, None, time_ms, changes).ok_or(Rejection::NoJob(job))?;
    Ok(Reply::Job(Box::new(job)))
}

/// The job of the attempt, as long as it may be committed.
fn intent<'a>(state: &'a State, commit: &SplitCommit) -> Result<(&'a Job, &'a SplitJob), Rejection> {
    let is_meant = |job: &&Job| match &job.kind {
        JobKind::Split(split) => split.tablet == commit.tablet && job.attempt == commit.attempt,
        JobKind::Move(_) => false,
    };
    match state.split_of(commit.tablet) {
        Some((job, split)) if job.attempt == commit.attempt || mutated!(CommitOfAnyAttempt) => {
            Ok((job, split))
        }
        Some((job, _)) => Err(Rejection::StaleAttempt(Box::new(job.clone()))),
        None => Err(match state.jobs().find(is_meant) {
            Some(job) => Rejection::JobEnded(Box::new(job.clone())),
            None => Rejection::NoTablet(commit.tablet),
        }),
    }
}

/// The rule m27.
fn guard(
    state: &State,
    proposer: (ServerId, Incarnation),
    commit: &SplitCommit,
) -> Result<Leader, Rejection> {
    let tablet = state.tablet(commit.tablet).ok_or(Rejection::NoTablet(commit.tablet))?;
    let refuse = |why: fn(Box<Tablet>) -> Rejection| Err(why(Box::new(tablet.clone())));
    if (tablet.epoch != commit.epoch || tablet.recovering) && !mutated!(CommitOfAnyEpoch) {
        return refuse(Rejection::StaleEpoch);
    }
    let proposes =
        |leader: &Leader| (leader.server, leader.incarnation) == proposer && state.is_current(leader);
    let by_anybody = || {
        let replica = tablet.replica_on(proposer.0)?;
        Some(Leader { replica: replica.id, server: proposer.0, incarnation: proposer.1 })
    };
    let leader = match mutated!(CommitOfAnyEpoch) {
        true => by_anybody(),
        false => tablet.leader.filter(|leader| proposes(leader)),
    };
    let Some(leader) = leader else {
        return refuse(Rejection::NotLeader);
    };
    let has_leader = commit.ready.contains_key(&leader.replica) || mutated!(CommitWithoutLeader);
    let needed = state.table(tablet.table).map_or(usize::MAX, |table| usize::from(table.spec.min_in_sync));
    let is_enough = commit.ready.len() >= needed || mutated!(CommitTooFew);
    let is_sound = |(id, generation): (&ReplicaId, &Generation)| {
        let replica = tablet.in_sync_replicas().find(|replica| replica.id == *id);
        replica.is_some_and(|replica| {
            (replica.generation == *generation && state.holds_data(replica)) || mutated!(CommitOfAnyDisk)
        })
    };
    if has_leader && is_enough && commit.ready.iter().all(is_sound) {
        Ok(leader)
    } else {
        refuse(Rejection::NotReady)
    }
}

/// One child: the copies of its parent, those that were ready in sync, led by whoever led.
fn child(
    parent: &Tablet,
    split: &SplitJob,
    at: usize,
    (id, range): (TabletId, KeyRange),
    commit: &SplitCommit,
    leader: Leader,
) -> Tablet {
    let name = |copy: ReplicaId| split.replicas.get(&copy).and_then(|ids| ids.get(at)).copied();
    let replicas: Vec<Replica> = parent
        .replicas
        .iter()
        .filter_map(|replica| Some(Replica { id: name(replica.id)?, ..replica.clone() }))
        .collect();
    let in_sync: BTreeSet<ReplicaId> = commit.ready.keys().filter_map(|copy| name(*copy)).collect();
    let leader = name(leader.replica).map(|replica| Leader { replica, ..leader });
    let epoch = parent.epoch.next();
    Tablet {
        id,
        table: parent.table,
        range,
        drawn_by: parent.drawn_by,
        epoch,
        leader,
        replicas,
        in_sync,
        config_version: ConfigVersion(1),
        // Positions go on where the parent's end: what a session has seen is still in them.
        lineage: parent.lineage,
        recovering: false,
        appointed_ts: parent.appointed_ts.max(commit.seal.ts),
        former: None,
        degraded: parent.degraded,
        parent: Some(Parent { tablet: parent.id, attempt: commit.attempt, epoch, seal: commit.seal }),
        aborted: Attempt(0),
        moving: None,
    }
}
