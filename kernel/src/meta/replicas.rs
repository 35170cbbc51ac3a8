//! The coming and going of copies.
//!
//! A new copy gets a new id and begins as a learner: it is known, and counts for nothing before
//! its leader has taken it into the in-sync set. Its server promises the tablet's epoch of now
//! before anything else (m23), so no older leader ever attaches it. A copy goes when it neither
//! leads nor is in the in-sync set; its server then owes a tombstone: it clears the rows when it
//! learns that it holds the copy no longer, at the latest from its next full assignment.
//!
//! ```text
//!   Add ──▶ learner ──AlterInSync──▶ in sync ──▶ the other leads no longer, leaves the set
//!              │                                              │
//!              └── Remove: given up                        Remove: the move is over
//! ```
//!
//! Each is a job, an operator's or one of the cluster itself, so a tablet has at most one.

use super::apply::{Changes, create_replica};
use super::command::ReplicaChange;
use super::in_sync::is_at_its_least;
use super::job::{self, JobKind, JobState, MoveJob, Origin};
use super::merge;
use super::rejection::Rejection;
use super::spec::Policy;
use super::state::{Duty, Move, Replica, State, Tablet};
use super::succession::present;
use crate::ids::{ReplicaId, ServerId, TabletId};

/// A copy that is to begin.
#[derive(Clone, Copy)]
struct NewCopy {
    tablet: TabletId,
    server: ServerId,
    instead_of: Option<ReplicaId>,
}

/// Applies one change that the cluster itself wants.
pub(super) fn change_replica(
    state: &mut State,
    change: ReplicaChange,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<Tablet, Rejection> {
    match change {
        ReplicaChange::Add { tablet, server, instead_of } => {
            add(state, NewCopy { tablet, server, instead_of }, time_ms, changes)
        }
        ReplicaChange::Remove { tablet, replica } => remove(state, tablet, replica, time_ms, changes),
        ReplicaChange::Shed { tablet, replica } => shed(state, tablet, replica, time_ms, changes),
        ReplicaChange::Forsake { tablet, replica } => forsake(state, tablet, replica, changes),
        ReplicaChange::Settle { tablet } => settle(state, tablet, time_ms, changes),
    }
}

/// Whether an operator's move makes sense.
pub(super) fn check_move(
    state: &State,
    tablet: TabletId,
    from: ServerId,
    to: ServerId,
) -> Result<(), Rejection> {
    if let Some(job) = state.job_of(tablet).filter(|job| job.origin == Origin::Operator) {
        return Err(Rejection::JobRuns(Box::new(job.clone())));
    }
    let new = wanted_by_operator(state, tablet, from, to)?;
    check_copy(state, new)
}

/// Begins an operator's move.
pub(super) fn plan_move(
    state: &mut State,
    tablet: TabletId,
    from: ServerId,
    to: ServerId,
    changes: &mut Changes,
) -> Result<JobKind, Rejection> {
    let new = wanted_by_operator(state, tablet, from, to)?;
    check_copy(state, new)?;
    insert_copy(state, new, changes).map(JobKind::Move)
}

fn wanted_by_operator(
    state: &State,
    id: TabletId,
    from: ServerId,
    to: ServerId,
) -> Result<NewCopy, Rejection> {
    let tablet = present(state, id)?;
    for server in [from, to] {
        if state.server(server).is_none() {
            return Err(Rejection::NoServer(server));
        }
    }
    let copy = tablet.replica_on(from).ok_or(Rejection::NoCopy(id, from))?;
    Ok(NewCopy { tablet: id, server: to, instead_of: Some(copy.id) })
}

/// A copy that the cluster itself wants; one that renews a learner goes on with its job.
fn add(state: &mut State, new: NewCopy, time_ms: u64, changes: &mut Changes) -> Result<Tablet, Rejection> {
    let tablet = present(state, new.tablet)?;
    let is_renewed = tablet.moving.is_some_and(|moving| {
        let here = tablet.replica(moving.to).is_some_and(|copy| copy.server == new.server);
        here && new.instead_of == Some(moving.to)
    });
    let is_free = tablet.moving.is_none();
    match state.job_of(new.tablet) {
        Some(job) if is_renewed || (is_free && merge::gathers(job)) => {}
        Some(job) => return Err(Rejection::JobRuns(Box::new(job.clone()))),
        None => job::check_room(state)?,
    }
    check_copy(state, new)?;
    let copy = insert_copy(state, new, changes)?;
    match state.index.jobs.get(&new.tablet).copied() {
        Some(id) => {
            if let Some(job) = state.jobs.get_mut(&id) {
                if let JobKind::Move(known) = &mut job.kind {
                    *known = copy;
                }
                changes.jobs.insert(id);
            }
        }
        None => drop(job::register(state, JobKind::Move(copy), Origin::Automatic, time_ms, changes)),
    }
    state.tablet(new.tablet).cloned().ok_or(Rejection::NoTablet(new.tablet))
}

fn check_copy(state: &State, new: NewCopy) -> Result<(), Rejection> {
    let NewCopy { tablet: id, server, instead_of } = new;
    let tablet = present(state, id)?;
    let refuse = |why: fn(Box<Tablet>) -> Rejection| Err(why(Box::new(tablet.clone())));
    let known = state.server(server).ok_or(Rejection::NoServer(server))?;
    let old = match instead_of.map(|old| tablet.replica(old)) {
        Some(None) => return refuse(Rejection::NoReplica),
        Some(Some(old)) => Some(old),
        None => None,
    };
    let wanted = state.table(tablet.table).map_or(0, |table| usize::from(table.spec.replicas));
    if old.is_none() && tablet.replicas.len() >= wanted {
        return refuse(Rejection::EnoughCopies);
    }
    for here in tablet.replicas.iter().filter(|replica| replica.server == server) {
        let is_replaced = old.is_some_and(|old| old.id == here.id);
        // Data that is lost is in nobody's way: a directory may be lost twice.
        let stays = !here.lost && (!is_replaced || is_needed(tablet, here.id));
        if stays {
            return Err(Rejection::HasCopy(id, server));
        }
    }
    match known.duty {
        Duty::Serves => Ok(()),
        // A copy that is there already may begin anew.
        Duty::Drained if old.is_some_and(|old| old.server == server) => Ok(()),
        Duty::Drained | Duty::Leaves => Err(Rejection::ServerLeaves(server)),
    }
}

/// Adds a copy that was checked. One on the same server that nobody counts on goes at once.
fn insert_copy(state: &mut State, new: NewCopy, changes: &mut Changes) -> Result<MoveJob, Rejection> {
    let NewCopy { tablet: id, server, instead_of } = new;
    let mut tablet = state.tablet(id).ok_or(Rejection::NoTablet(id))?.clone();
    let kind = state.table(tablet.table).ok_or(Rejection::NoTablet(id))?.spec.kind;
    let copy = create_replica(state, kind, server);
    let old = instead_of.and_then(|old| tablet.replica(old)).cloned();
    let goes_at_once = old.as_ref().filter(|old| old.server == server && !is_needed(&tablet, old.id));
    let from = match goes_at_once {
        Some(old) => {
            tablet.replicas.retain(|replica| replica.id != old.id);
            tablet.moving.filter(|moving| moving.to == old.id).and_then(|moving| moving.from)
        }
        None => instead_of,
    };
    let from_server = from.and_then(|from| tablet.replica(from)).map(|from| from.server);
    let from_server = from_server.or(goes_at_once.map(|old| old.server));
    let moved = MoveJob { tablet: id, to: copy.id, to_server: server, from_server };
    tablet.moving = Some(Move { to: copy.id, from });
    tablet.replicas.push(copy);
    changes.tablets.insert(id);
    state.replace_tablet(tablet);
    Ok(moved)
}

/// Whether elections, acknowledgements or clients count on the copy.
fn is_needed(tablet: &Tablet, replica: ReplicaId) -> bool {
    tablet.in_sync.contains(&replica) || tablet.is_led_by(replica)
}

/// The copy of a tablet that is on its way in, or whose predecessor has not gone yet.
pub(super) fn on_its_way(state: &State, id: TabletId) -> Option<MoveJob> {
    let tablet = state.tablet(id)?;
    let moving = tablet.moving?;
    let to_server = tablet.replica(moving.to)?.server;
    let from_server = moving.from.and_then(|from| tablet.replica(from)).map(|from| from.server);
    Some(MoveJob { tablet: id, to: moving.to, to_server, from_server })
}

/// Takes a copy on its way in back, before the commit point of its job.
pub(super) fn give_up(state: &mut State, copy: &MoveJob, changes: &mut Changes) -> Result<(), Rejection> {
    let Some(tablet) = state.tablet(copy.tablet) else { return Ok(()) };
    if tablet.in_sync.contains(&copy.to) {
        let job = state.job_of(copy.tablet).cloned();
        return Err(
            job.map_or(Rejection::NoTablet(copy.tablet), |job| Rejection::JobCommitted(Box::new(job)))
        );
    }
    take_out(state, copy.tablet, copy.to, changes);
    Ok(())
}

fn remove(
    state: &mut State,
    id: TabletId,
    replica: ReplicaId,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<Tablet, Rejection> {
    let tablet = present(state, id)?;
    let refuse = |why: fn(Box<Tablet>) -> Rejection| Err(why(Box::new(tablet.clone())));
    if tablet.replica(replica).is_none() {
        return refuse(Rejection::NoReplica);
    }
    if is_needed(tablet, replica) {
        return refuse(Rejection::CopyIsNeeded);
    }
    let moving = tablet.moving;
    if moving.is_none()
        && let Some(job) = state.job_of(id)
    {
        return Err(Rejection::JobRuns(Box::new(job.clone())));
    }
    let end = match moving {
        Some(moving) if moving.from == Some(replica) => Some((JobState::Done, None)),
        Some(moving) if moving.to == replica => {
            let error = "the server of the new copy went away".to_owned();
            Some((JobState::Failed, Some(error)))
        }
        Some(_) | None => None,
    };
    take_out(state, id, replica, changes);
    if let Some((to, error)) = end {
        end_job(state, id, to, error, time_ms, changes);
    }
    state.tablet(id).cloned().ok_or(Rejection::NoTablet(id))
}

/// Lets a copy go without a successor, for a table that wants fewer: as if another copy that is in
/// sync had come in its stead.
fn shed(
    state: &mut State,
    id: TabletId,
    replica: ReplicaId,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<Tablet, Rejection> {
    let tablet = present(state, id)?;
    let refuse = |why: fn(Box<Tablet>) -> Rejection| Err(why(Box::new(tablet.clone())));
    if let Some(job) = state.job_of(id) {
        return Err(Rejection::JobRuns(Box::new(job.clone())));
    }
    let Some(goes) = tablet.replica(replica) else { return refuse(Rejection::NoReplica) };
    let wanted = state.table(tablet.table).map_or(usize::MAX, |table| usize::from(table.spec.replicas));
    let heir = tablet.in_sync_replicas().find(|copy| copy.id != replica && state.holds_data(copy));
    let Some(heir) = heir.filter(|_| tablet.moving.is_none() && tablet.replicas.len() > wanted) else {
        return refuse(Rejection::CopyIsNeeded);
    };
    let moved = MoveJob { tablet: id, to: heir.id, to_server: heir.server, from_server: Some(goes.server) };
    job::check_room(state)?;
    let mut tablet = tablet.clone();
    tablet.moving = Some(Move { to: heir.id, from: Some(replica) });
    changes.tablets.insert(id);
    state.replace_tablet(tablet.clone());
    job::register(state, JobKind::Move(moved), Origin::Automatic, time_ms, changes);
    Ok(tablet)
}

/// What a copy holds is another history than its leader's: too few answered when that was elected.
/// It counts as lost, so it leads and votes nevermore, and a copy is built anew in its stead. In a
/// strict table this cannot come from an election: people are to look at it before anything goes.
fn forsake(
    state: &mut State,
    id: TabletId,
    replica: ReplicaId,
    changes: &mut Changes,
) -> Result<Tablet, Rejection> {
    let tablet = present(state, id)?;
    let refuse = |why: fn(Box<Tablet>) -> Rejection| Err(why(Box::new(tablet.clone())));
    let Some(copy) = tablet.replica(replica) else { return refuse(Rejection::NoReplica) };
    if copy.lost {
        return refuse(Rejection::NothingToChange);
    }
    if tablet.leader.is_none() || tablet.is_led_by(replica) || !may_diverge(state, tablet) {
        return refuse(Rejection::CopyIsNeeded);
    }
    let mut tablet = tablet.clone();
    tablet.replicas.iter_mut().filter(|copy| copy.id == replica).for_each(|copy| copy.lost = true);
    changes.tablets.insert(id);
    state.replace_tablet(tablet.clone());
    Ok(tablet)
}

/// Whether elections of the tablet may choose a leader that lacks what was safe.
pub(super) fn may_diverge(state: &State, tablet: &Tablet) -> bool {
    state.table(tablet.table).is_some_and(|table| table.spec.policy == Policy::Degraded)
}

/// A copy has come that takes nobody's place, or cannot: the old one is needed.
fn settle(state: &mut State, id: TabletId, time_ms: u64, changes: &mut Changes) -> Result<Tablet, Rejection> {
    let mut tablet = state.tablet(id).ok_or(Rejection::NoTablet(id))?.clone();
    let nothing = || Err(Rejection::NothingToChange(Box::new(tablet.clone())));
    let Some(moving) = tablet.moving.filter(|moving| tablet.in_sync.contains(&moving.to)) else {
        return nothing();
    };
    let (to, error) = match moving.from {
        None => (JobState::Done, None),
        Some(from) if needs_all(state, &tablet) && tablet.in_sync.contains(&from) => {
            let error = "another copy was lost meanwhile: the new copy takes its place and the old one stays; \
                         move it again";
            (JobState::Failed, Some(error.to_owned()))
        }
        Some(_) => return nothing(),
    };
    tablet.moving = None;
    changes.tablets.insert(id);
    state.replace_tablet(tablet.clone());
    end_job(state, id, to, error, time_ms, changes);
    Ok(tablet)
}

/// Whether every copy is in sync and none of them may leave.
fn needs_all(state: &State, tablet: &Tablet) -> bool {
    tablet.replicas.iter().all(|copy| tablet.in_sync.contains(&copy.id)) && is_at_its_least(state, tablet)
}

fn end_job(
    state: &mut State,
    tablet: TabletId,
    to: JobState,
    error: Option<String>,
    time_ms: u64,
    changes: &mut Changes,
) {
    let Some(job) = state.job_of(tablet) else { return };
    let id = job.id;
    match job.kind {
        JobKind::Move(_) => drop(state.finish_job(id, to, error, time_ms, changes)),
        JobKind::Merge(_) => merge::note_gathering(state, id, changes),
        JobKind::Split(_) | JobKind::Backup(_) | JobKind::Restore(_) | JobKind::Transfer(_) => {}
    }
}

/// Takes a copy out of a tablet's record.
fn take_out(state: &mut State, id: TabletId, replica: ReplicaId, changes: &mut Changes) {
    let Some(mut tablet) = state.tablet(id).cloned() else { return };
    let Some(gone) = tablet.replica(replica).cloned() else { return };
    tablet.replicas.retain(|other| other.id != replica);
    tablet.moving = tablet.moving.filter(|moving| moving.to != replica && moving.from != Some(replica));
    changes.tablets.insert(id);
    note_removed(&tablet, &gone, changes);
    state.replace_tablet(tablet);
}

/// The server is told, unless a successor lies there: that one's assignment says as much.
fn note_removed(tablet: &Tablet, gone: &Replica, changes: &mut Changes) {
    if tablet.replica_on(gone.server).is_none() {
        changes.removed_copies.insert((tablet.id, gone.server));
    }
}
