//! Merges: two neighbours retire, one tablet takes their place, and no row moves for it.
//!
//! ```text
//!   StartJob ──▶ gathering: copies of the one go to the servers of the other, then its leadership
//!                    │   ▲
//!    ChangeMerge:    │   │ Unseal: the attempt is aborted, both are opened again
//!            Seal    ▼   │
//!                 sealing: each leader seals for the same attempt and asks for the commit
//!                    │
//!                    └── CommitSplit with both halves ──▶ done
//! ```
//!
//! While copies gather both tablets serve and the job can end without a trace, but for copies
//! that have moved already. The intent to seal is taken only when the copies lie on the same
//! servers, are in sync on the same servers, and one process leads both; from then on no copy
//! comes or goes.

use super::apply::{Changes, Reply};
use super::job::{self, Job, JobKind, Origin};
use super::rejection::Rejection;
use super::replicas;
use super::state::{Duty, Replica, State, Tablet};
use super::succession::{Succession, abort, present};
use crate::ids::{Attempt, JobId, ReplicaId, ServerId, TabletId};
use crate::range::KeyRange;
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, BTreeSet};

/// Progress of a merge whose copies lie together, in thousandths.
const PROGRESS_GATHERED: u16 = 900;

/// A merge of two neighbours.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct MergeJob {
    /// The tablet of the lower keys.
    pub left: TabletId,
    /// The tablet of the higher keys.
    pub right: TabletId,
    /// The one of them whose copies go to the servers of the other.
    pub comes: TabletId,
    /// The tablet that is to take their place.
    pub child: TabletId,
    /// Its keys.
    pub range: KeyRange,
    /// How many copies had to move when it began.
    pub moves: u16,
    /// How often it was sealed in vain.
    pub tries: u8,
    /// What both are sealed for; none while copies gather.
    pub intent: Option<Succession>,
}

impl MergeJob {
    /// The one of them whose copies stay where they are.
    #[must_use]
    pub fn stays(&self) -> TabletId {
        if self.comes == self.left { self.right } else { self.left }
    }
}

/// A step of a merge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum MergeStep {
    /// The copies lie together: seal, for a new attempt.
    Seal,
    /// It takes too long: no commit of the attempt any more, the tablets serve again.
    Unseal,
}

/// Whether the two are neighbours.
pub(super) fn check_pair(state: &State, stays: TabletId, comes: TabletId) -> Result<(), Rejection> {
    if stays == comes {
        return Err(Rejection::SameTablet(stays));
    }
    let (one, other) = (present(state, stays)?, present(state, comes)?);
    if one.table != other.table {
        return Err(Rejection::OtherTable(stays, comes));
    }
    if joined(one, other).is_none() {
        return Err(Rejection::NotNeighbours(Box::new(one.clone()), Box::new(other.clone())));
    }
    Ok(())
}

/// Whether the copies of the two are there and can be brought together.
pub(super) fn check_copies(state: &State, stays: TabletId, comes: TabletId) -> Result<(), Rejection> {
    let (one, other) = (present(state, stays)?, present(state, comes)?);
    for tablet in [one, other] {
        if !is_whole(state, tablet) {
            return Err(Rejection::NotWhole(Box::new(tablet.clone())));
        }
    }
    if servers(one) != servers(other)
        && let (Some(server), Some(_)) = (not_serving(state, one), not_serving(state, other))
    {
        return Err(Rejection::ServerLeaves(server));
    }
    Ok(())
}

/// The two in key order and their keys, if one begins where the other ends.
fn joined(one: &Tablet, other: &Tablet) -> Option<(TabletId, TabletId, KeyRange)> {
    let rising = one.range.followed_by(&other.range).map(|range| (one.id, other.id, range));
    rising.or_else(|| Some((other.id, one.id, other.range.followed_by(&one.range)?)))
}

/// Whether it is led and has all of its copies in sync; one on its way in does not count.
fn is_whole(state: &State, tablet: &Tablet) -> bool {
    let comes = tablet.moving.map(|moving| moving.to).filter(|to| !tablet.in_sync.contains(to));
    let copies = || tablet.replicas.iter().filter(|copy| Some(copy.id) != comes);
    let is_good = |copy: &Replica| tablet.in_sync.contains(&copy.id) && state.holds_data(copy);
    let wanted = state.table(tablet.table).map_or(0, |table| usize::from(table.spec.replicas));
    let is_led = tablet.leader.is_some_and(|leader| state.is_current(&leader));
    is_led && copies().count() == wanted && copies().all(is_good)
}

/// A server of the tablet's copies that takes no others.
fn not_serving(state: &State, tablet: &Tablet) -> Option<ServerId> {
    let serves = |id: &ServerId| state.server(*id).is_some_and(|server| server.duty == Duty::Serves);
    servers(tablet).into_iter().find(|server| !serves(server))
}

/// Where the copies of a tablet lie.
pub(super) fn servers(tablet: &Tablet) -> BTreeSet<ServerId> {
    tablet.replicas.iter().map(|copy| copy.server).collect()
}

fn in_sync_servers(tablet: &Tablet) -> BTreeSet<ServerId> {
    tablet.in_sync_replicas().map(|copy| copy.server).collect()
}

/// Names the tablet to be. The copies of `comes` are to move, unless the servers of the others
/// take none.
pub(super) fn plan(state: &mut State, stays: TabletId, comes: TabletId) -> Result<JobKind, Rejection> {
    let (one, other) = (present(state, stays)?, present(state, comes)?);
    let Some((left, right, range)) = joined(one, other) else {
        return Err(Rejection::NotNeighbours(Box::new(one.clone()), Box::new(other.clone())));
    };
    let moves = u16::try_from(servers(one).difference(&servers(other)).count()).unwrap_or(u16::MAX);
    let comes = if moves > 0 && not_serving(state, one).is_some() { stays } else { comes };
    let child = state.next.tablet;
    state.next.tablet = child.next();
    let (tries, intent) = (0, None);
    Ok(JobKind::Merge(MergeJob { left, right, comes, child, range, moves, tries, intent }))
}

/// Whether the copies lie together: then the tablets can be sealed.
pub(super) fn is_gathered(state: &State, merge: &MergeJob) -> bool {
    let (Some(left), Some(right)) = (state.tablet(merge.left), state.tablet(merge.right)) else {
        return false;
    };
    let leader = |tablet: &Tablet| {
        let leader = tablet.leader.filter(|leader| !tablet.recovering && state.is_current(leader))?;
        Some((leader.server, leader.incarnation))
    };
    let is_at_rest = |tablet: &Tablet| {
        tablet.moving.is_none() && servers(tablet).len() == tablet.replicas.len() && leader(tablet).is_some()
    };
    let is_together = servers(left) == servers(right)
        && in_sync_servers(left) == in_sync_servers(right)
        && leader(left) == leader(right);
    is_together && is_at_rest(left) && is_at_rest(right)
}

/// Takes a merge a step further, or back.
pub(super) fn step(
    state: &mut State,
    id: JobId,
    attempt: Attempt,
    step: MergeStep,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let job = state.job(id).ok_or(Rejection::NoJob(id))?;
    if !job.is_running() {
        return Err(Rejection::JobEnded(Box::new(job.clone())));
    }
    let (JobKind::Merge(merge), true) = (&job.kind, job.attempt == attempt) else {
        return Err(Rejection::StaleAttempt(Box::new(job.clone())));
    };
    let mut merge = merge.clone();
    let next = match (step, merge.intent.take()) {
        (MergeStep::Seal, None) if is_gathered(state, &merge) => {
            merge.intent = Some(succession(state, &merge)?);
            let next = state.next.attempt;
            state.next.attempt = next.next();
            next
        }
        (MergeStep::Seal, None) => return Err(Rejection::NotGathered(Box::new(job.clone()))),
        (MergeStep::Unseal, Some(intent)) => {
            merge.tries = merge.tries.saturating_add(1);
            abort(state, &intent.parents, attempt, changes);
            attempt
        }
        (MergeStep::Seal, Some(_)) | (MergeStep::Unseal, None) => {
            return Err(Rejection::StaleAttempt(Box::new(job.clone())));
        }
    };
    let job = state.jobs.get_mut(&id).ok_or(Rejection::NoJob(id))?;
    (job.kind, job.attempt, job.progress) = (JobKind::Merge(merge), next, PROGRESS_GATHERED);
    changes.jobs.insert(id);
    Ok(Reply::Job(Box::new(job.clone())))
}

/// Names the copies of the tablet to be: one for the two on each server.
fn succession(state: &mut State, merge: &MergeJob) -> Result<Succession, Rejection> {
    let mut names: BTreeMap<ServerId, ReplicaId> = BTreeMap::new();
    let mut replicas = BTreeMap::new();
    for id in [merge.left, merge.right] {
        let copies: Vec<_> = present(state, id)?.replicas.iter().map(|copy| (copy.id, copy.server)).collect();
        for (copy, server) in copies {
            let next = &mut state.next.replica;
            let name = *names.entry(server).or_insert_with(|| {
                let name = *next;
                *next = name.next();
                name
            });
            replicas.insert(copy, vec![name]);
        }
    }
    let children = vec![(merge.child, merge.range.clone())];
    Ok(Succession { parents: vec![merge.left, merge.right], children, replicas })
}

/// A copy of one of the tablets has come, or is given up: notes how far the merge is.
pub(super) fn note_gathering(state: &mut State, id: JobId, changes: &mut Changes) {
    let Some(job) = state.jobs.get(&id) else { return };
    let JobKind::Merge(merge) = &job.kind else { return };
    let (Some(left), Some(right)) = (state.tablet(merge.left), state.tablet(merge.right)) else { return };
    let apart = servers(left).symmetric_difference(&servers(right)).count().div_ceil(2);
    let moves = usize::from(merge.moves).max(1);
    let done = moves.saturating_sub(apart) * usize::from(PROGRESS_GATHERED) / moves;
    let done = u16::try_from(done).unwrap_or(PROGRESS_GATHERED);
    if let Some(job) = state.jobs.get_mut(&id) {
        job.progress = job.progress.max(done);
        changes.jobs.insert(id);
    }
}

/// A merge has ended before its commit: the tablets stay as they are. A copy that is on its way
/// goes, one that has come takes the place of the other in a job of its own.
pub(super) fn give_up(
    state: &mut State,
    merge: &MergeJob,
    attempt: Attempt,
    time_ms: u64,
    changes: &mut Changes,
) {
    if let Some(intent) = &merge.intent {
        abort(state, &intent.parents, attempt, changes);
    }
    for id in [merge.left, merge.right] {
        let Some(copy) = replicas::on_its_way(state, id) else { continue };
        if replicas::give_up(state, &copy, changes).is_err() {
            let _ = job::register(state, JobKind::Move(copy), Origin::Automatic, time_ms, changes);
        }
    }
}

/// Whether the job may bring copies of its tablets elsewhere.
pub(super) fn gathers(job: &Job) -> bool {
    matches!(&job.kind, JobKind::Merge(merge) if merge.intent.is_none())
}
