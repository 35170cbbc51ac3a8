//! Changes of in-sync sets: the leader proposes, this decides, the leader learns.
//!
//! What the leader alone can know (who has which entries: m9, m10) it has checked. Here stands
//! what metadata alone can know: that it still leads, that the set is the one it means, that
//! a copy which comes in is the one it knows (m15), and that the set stays large enough.

use super::apply::Changes;
use super::command::InSyncChange;
use super::job::JobKind;
use super::rejection::Rejection;
use super::state::{State, Tablet};
use crate::ids::{Incarnation, ServerId};
use crate::mutated;

/// Progress of a move, in thousandths, whose copy is in sync: what is left takes moments.
pub const PROGRESS_IN_SYNC: u16 = 900;

/// Applies one change.
pub(super) fn alter(
    state: &mut State,
    proposer: (ServerId, Incarnation),
    change: &InSyncChange,
    changes: &mut Changes,
) -> Result<Tablet, Rejection> {
    check(state, proposer, change)?;
    let tablet = state.tablets.get_mut(&change.tablet).ok_or(Rejection::NoTablet(change.tablet))?;
    if change.add {
        tablet.in_sync.extend(&change.replicas);
        // It has everything of this epoch, so what it had besides is in its loss ledger.
        tablet.former = tablet.former.filter(|former| !change.replicas.contains(&former.leader.replica));
    } else {
        tablet.in_sync.retain(|replica| !change.replicas.contains(replica));
    }
    tablet.config_version = tablet.config_version.next();
    changes.tablets.insert(change.tablet);
    let altered = tablet.clone();
    note_arrival(state, change, changes);
    Ok(altered)
}

/// A copy on its way in has come: its job is past its commit point.
fn note_arrival(state: &mut State, change: &InSyncChange, changes: &mut Changes) {
    let Some(id) = state.index.jobs.get(&change.tablet).copied() else { return };
    if let Some(job) = state.jobs.get_mut(&id)
        && let JobKind::Move(copy) = &job.kind
        && change.replicas.contains(&copy.to)
        && change.add
    {
        job.progress = PROGRESS_IN_SYNC;
        changes.jobs.insert(id);
    }
}

fn check(state: &State, proposer: (ServerId, Incarnation), change: &InSyncChange) -> Result<(), Rejection> {
    let tablet = state.tablet(change.tablet).ok_or(Rejection::NoTablet(change.tablet))?;
    let refuse = |why: fn(Box<Tablet>) -> Rejection| Err(why(Box::new(tablet.clone())));
    if tablet.epoch != change.epoch {
        return refuse(Rejection::StaleEpoch);
    }
    let leads = |leader: &super::state::Leader| {
        (leader.server, leader.incarnation) == proposer && state.is_current(leader)
    };
    if tablet.recovering || !tablet.leader.as_ref().is_some_and(leads) {
        return refuse(Rejection::NotLeader);
    }
    if tablet.config_version != change.config_version {
        return refuse(Rejection::StaleConfig);
    }
    if change.add { check_add(state, tablet, change) } else { check_remove(state, tablet, change) }
}

/// A copy comes in only as the one that the leader knows: same process, same data (m15).
fn check_add(state: &State, tablet: &Tablet, change: &InSyncChange) -> Result<(), Rejection> {
    let refuse = |why: fn(Box<Tablet>) -> Rejection| Err(why(Box::new(tablet.clone())));
    let mut coming = change.replicas.iter();
    let (Some(coming), None) = (coming.next(), coming.next()) else {
        return refuse(Rejection::NothingToChange);
    };
    let Some(replica) = tablet.replica(*coming) else {
        return refuse(Rejection::NoReplica);
    };
    if tablet.in_sync.contains(&replica.id) || tablet.leaving() == Some(replica.id) {
        return refuse(Rejection::NothingToChange);
    }
    let is_run = state.server(replica.server).is_some_and(|server| server.incarnation == change.incarnation);
    let is_meant = is_run && replica.generation == change.generation && state.holds_data(replica);
    if is_meant || mutated!(AnyGenerationCounts) { Ok(()) } else { refuse(Rejection::StaleCopy) }
}

fn check_remove(state: &State, tablet: &Tablet, change: &InSyncChange) -> Result<(), Rejection> {
    let refuse = |why: fn(Box<Tablet>) -> Rejection| Err(why(Box::new(tablet.clone())));
    let going = &change.replicas;
    if going.iter().any(|replica| tablet.replica(*replica).is_none()) {
        return refuse(Rejection::NoReplica);
    }
    let leads = tablet.leader.is_some_and(|leader| going.contains(&leader.replica));
    if leads || going.is_empty() || !going.is_subset(&tablet.in_sync) {
        return refuse(Rejection::NothingToChange);
    }
    let is_large = tablet.in_sync.len() - going.len() >= least(state, tablet);
    if is_large { Ok(()) } else { refuse(Rejection::TooFewInSync) }
}

/// Whether the in-sync set may lose no member.
pub(super) fn is_at_its_least(state: &State, tablet: &Tablet) -> bool {
    tablet.in_sync.len() <= least(state, tablet)
}

/// How many members the in-sync set never has less than.
fn least(state: &State, tablet: &Tablet) -> usize {
    match state.table(tablet.table) {
        Some(_) if mutated!(StrictShrinksBelowD) => 1,
        Some(table) => table.spec.in_sync_min(),
        None => tablet.in_sync.len(),
    }
}
