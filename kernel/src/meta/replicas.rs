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

use super::apply::{Changes, create_replica};
use super::command::ReplicaChange;
use super::rejection::Rejection;
use super::state::{Move, Replica, State, Tablet};
use crate::ids::{ReplicaId, ServerId, TabletId};

/// Applies one change.
pub(super) fn change_replica(
    state: &mut State,
    change: ReplicaChange,
    changes: &mut Changes,
) -> Result<Tablet, Rejection> {
    match change {
        ReplicaChange::Add { tablet, server, instead_of } => add(state, tablet, server, instead_of, changes),
        ReplicaChange::Remove { tablet, replica } => remove(state, tablet, replica, changes),
    }
}

fn add(
    state: &mut State,
    id: TabletId,
    server: ServerId,
    instead_of: Option<ReplicaId>,
    changes: &mut Changes,
) -> Result<Tablet, Rejection> {
    let tablet = check_add(state, id, server, instead_of)?;
    let mut tablet = tablet.clone();
    let kind = state.table(tablet.table).ok_or(Rejection::NoTablet(id))?.spec.kind;
    let new = create_replica(state, kind, server);
    let old = instead_of.and_then(|old| tablet.replica(old)).cloned();
    let goes_at_once = old.as_ref().filter(|old| old.server == server && !is_needed(&tablet, old.id));
    let from = match (goes_at_once, tablet.moving) {
        (Some(old), moving) => {
            tablet.replicas.retain(|replica| replica.id != old.id);
            moving.and_then(|moving| moving.from)
        }
        (None, _) => instead_of,
    };
    tablet.moving = Some(Move { to: new.id, from });
    tablet.replicas.push(new);
    changes.tablets.insert(id);
    state.replace_tablet(tablet.clone());
    Ok(tablet)
}

fn check_add(
    state: &State,
    id: TabletId,
    server: ServerId,
    instead_of: Option<ReplicaId>,
) -> Result<&Tablet, Rejection> {
    let tablet = state.tablet(id).ok_or(Rejection::NoTablet(id))?;
    let refuse = |why: fn(Box<Tablet>) -> Rejection| Err(why(Box::new(tablet.clone())));
    if state.server(server).is_none() {
        return Err(Rejection::NoServer(server));
    }
    let old = match instead_of.map(|old| tablet.replica(old)) {
        Some(None) => return refuse(Rejection::NoReplica),
        Some(Some(old)) => Some(old),
        None => None,
    };
    // A learner whose server lost it, or that is too far behind, begins anew.
    let is_renewed = |moving: Move| old.is_some_and(|old| old.id == moving.to && old.server == server);
    // The children's copies are named when a split begins.
    if tablet.moving.is_some_and(|moving| !is_renewed(moving)) || state.split_of(id).is_some() {
        return refuse(Rejection::ChangeUnderWay);
    }
    let wanted = state.table(tablet.table).map_or(0, |table| usize::from(table.spec.replicas));
    if old.is_none() && tablet.replicas.len() >= wanted {
        return refuse(Rejection::EnoughCopies);
    }
    for here in tablet.replicas.iter().filter(|replica| replica.server == server) {
        let is_replaced = old.is_some_and(|old| old.id == here.id);
        if !is_replaced {
            return refuse(Rejection::HasCopy);
        }
        if is_needed(tablet, here.id) && !here.lost {
            return refuse(Rejection::CopyIsNeeded);
        }
    }
    Ok(tablet)
}

/// Whether elections, acknowledgements or clients count on the copy.
fn is_needed(tablet: &Tablet, replica: ReplicaId) -> bool {
    tablet.in_sync.contains(&replica) || tablet.is_led_by(replica)
}

fn remove(
    state: &mut State,
    id: TabletId,
    replica: ReplicaId,
    changes: &mut Changes,
) -> Result<Tablet, Rejection> {
    let mut tablet = state.tablet(id).ok_or(Rejection::NoTablet(id))?.clone();
    let Some(gone) = tablet.replica(replica).cloned() else {
        return Err(Rejection::NoReplica(Box::new(tablet)));
    };
    if is_needed(&tablet, replica) {
        return Err(Rejection::CopyIsNeeded(Box::new(tablet)));
    }
    tablet.replicas.retain(|other| other.id != replica);
    tablet.moving = tablet.moving.filter(|moving| moving.to != replica && moving.from != Some(replica));
    changes.tablets.insert(id);
    note_removed(&tablet, &gone, changes);
    state.replace_tablet(tablet.clone());
    Ok(tablet)
}

/// The server is told, unless a successor lies there: that one's assignment says as much.
fn note_removed(tablet: &Tablet, gone: &Replica, changes: &mut Changes) {
    if tablet.replica_on(gone.server).is_none() {
        changes.removed_copies.insert((tablet.id, gone.server));
    }
}
