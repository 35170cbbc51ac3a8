//! Registration: which server a process is, which run of it, and on which disk.
//!
//! A server is bound to its data directory, never to its address. Each process run is a new
//! incarnation; the same run asking again is not. The directory counts its starts, so that a run
//! is refused once a later one is known, however late it is heard of, and though it never was
//! before: what it holds has ended, and to take it for a newer run would end the living one's
//! leases.

use super::apply::{Changes, Registered, Reply};
use super::command::RegisterServer;
use super::rejection::Rejection;
use super::state::{ClusterId, Duty, Server, State};
use crate::ids::{Incarnation, TabletId};
use crate::limits::{SERVER_TEXT_BYTES_MAX, SERVERS_MAX};
use crate::mutated;

/// Registers a server process.
pub(super) fn register_server(
    state: &mut State,
    register: RegisterServer,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let cluster_id = check_registration(state, &register)?;
    let known = match register.server_id {
        Some(id) => Some(state.server(id).ok_or(Rejection::UnknownServer(id))?),
        None => {
            let id = state.index.generations.get(&register.disk_generation);
            id.and_then(|id| state.server(*id))
        }
    };
    let server = match known.cloned() {
        Some(server) if server.boot_id == register.boot_id => server,
        Some(server) if register.starts <= server.starts && !mutated!(StartsUnchecked) => {
            return Err(Rejection::Superseded(Box::new(server)));
        }
        Some(server) => restarted(state, server, register, changes),
        None => new_server(state, register)?,
    };
    if state.server(server.id) != Some(&server) {
        changes.servers.insert(server.id);
        state.insert_server(server.clone());
    }
    Ok(Reply::Registered(Registered { cluster_id, server }))
}

fn check_registration(state: &State, register: &RegisterServer) -> Result<ClusterId, Rejection> {
    let ours = state.cluster_id.ok_or(Rejection::NotFormed)?;
    match register.cluster_id {
        Some(theirs) if theirs != ours => return Err(Rejection::WrongCluster { ours, theirs }),
        Some(_) | None => {}
    }
    if register.address.len().max(register.zone.len()) > SERVER_TEXT_BYTES_MAX {
        return Err(Rejection::TextTooLong);
    }
    Ok(ours)
}

/// A known server in a new run, perhaps on another disk.
fn restarted(state: &mut State, server: Server, register: RegisterServer, changes: &mut Changes) -> Server {
    if server.disk_generation != register.disk_generation {
        state.index.generations.remove(&server.disk_generation);
    }
    let restarted = Server {
        id: server.id,
        address: register.address,
        zone: register.zone,
        ordinal: server.ordinal,
        incarnation: server.incarnation.next(),
        disk_generation: register.disk_generation,
        boot_id: register.boot_id,
        starts: register.starts,
        registered_ms: register.time_ms,
        duty: server.duty,
    };
    mark_lost(state, &restarted, changes);
    restarted
}

/// Copies on a disk, or in a process, that is gone answer no poll and never lead; they stay in
/// the in-sync set for the quota (m14, m16).
fn mark_lost(state: &mut State, server: &Server, changes: &mut Changes) {
    let ids: Vec<TabletId> = state.tablets_on(server.id).map(|tablet| tablet.id).collect();
    for id in ids {
        let Some(tablet) = state.tablets.get_mut(&id) else { continue };
        for replica in tablet.replicas.iter_mut().filter(|replica| replica.server == server.id) {
            if !server.has(replica.generation) && !replica.lost {
                replica.lost = true;
                changes.tablets.insert(id);
            }
        }
    }
}

fn new_server(state: &mut State, register: RegisterServer) -> Result<Server, Rejection> {
    if state.servers.len() >= SERVERS_MAX {
        return Err(Rejection::LimitReached("servers"));
    }
    let id = state.next.server;
    let ordinal = state.next.ordinal;
    state.next.server = id.next();
    state.next.ordinal = ordinal.next();
    Ok(Server {
        id,
        address: register.address,
        zone: register.zone,
        ordinal,
        incarnation: Incarnation(1),
        disk_generation: register.disk_generation,
        boot_id: register.boot_id,
        starts: register.starts,
        registered_ms: register.time_ms,
        duty: Duty::Serves,
    })
}
