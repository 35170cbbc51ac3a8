//! Transfers of leadership: an operator names a server, the leader is told to hand over.
//!
//! Nothing is decided here but whether the wish makes sense now. The leader waits until the
//! copy has everything, gives its epoch up and names it as successor; the election that
//! follows prefers it among equals. Whoever fails on the way, the ordinary rules hold.

use super::control::{Control, Effect};
use super::job::Origin;
use super::state::{Duty, State};
use crate::ids::{JobId, ReplicaId, ServerId, TabletId};
use std::fmt;

/// Why leadership is not handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransferRefusal {
    /// No such tablet.
    NoTablet(TabletId),
    /// No such server.
    UnknownServer(ServerId),
    /// The server has no copy of the tablet.
    NoCopy(TabletId, ServerId),
    /// The server's copy leads.
    AlreadyLeads(TabletId, ServerId),
    /// The server's copy is not in step, or its data is lost.
    NotInSync(TabletId, ServerId),
    /// The server is drained or leaves: it would hand over at once.
    Leaves(ServerId),
    /// The server that is to lead is not connected.
    NotConnected(ServerId),
    /// Nobody leads who could hand over.
    NoLeader(TabletId),
    /// A job that an operator began may need the leader where it is.
    JobRuns(TabletId, JobId),
}

impl fmt::Display for TransferRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTablet(tablet) => {
                write!(f, "there is no tablet {}: `ebla tablet list` shows them", tablet.0)
            }
            Self::UnknownServer(server) => {
                write!(f, "there is no server {}: `ebla server list` shows them", server.0)
            }
            Self::NoCopy(tablet, server) => write!(
                f,
                "server {} has no copy of tablet {}: choose one that `ebla tablet describe {}` names as in sync",
                server.0, tablet.0, tablet.0
            ),
            Self::AlreadyLeads(tablet, server) => {
                write!(f, "server {} leads tablet {} already: nothing was changed", server.0, tablet.0)
            }
            Self::NotInSync(tablet, server) => write!(
                f,
                "the copy of tablet {} on server {} is not in sync, so it must not lead: choose another or wait until `ebla tablet describe {}` names it as in sync",
                tablet.0, server.0, tablet.0
            ),
            Self::Leaves(server) => write!(
                f,
                "server {} is drained or leaves and leads nothing: choose another, or run `ebla server activate {}` first",
                server.0, server.0
            ),
            Self::NotConnected(server) => {
                write!(f, "server {} is not connected: see `ebla server list`", server.0)
            }
            Self::NoLeader(tablet) => write!(
                f,
                "tablet {} has no leader now that could hand over: wait until `ebla tablet describe {}` shows one",
                tablet.0, tablet.0
            ),
            Self::JobRuns(tablet, job) => write!(
                f,
                "job {} of tablet {} is under way: wait with `ebla job wait {}` or end it with `ebla job cancel {}`",
                job.0, tablet.0, job.0, job.0
            ),
        }
    }
}

impl std::error::Error for TransferRefusal {}

impl Control {
    /// The copy on `server` that could take the leadership of `tablet` over now and may keep it.
    ///
    /// # Errors
    /// Why it could not.
    pub fn transfer_target(
        &self,
        state: &State,
        id: TabletId,
        server: ServerId,
    ) -> Result<ReplicaId, TransferRefusal> {
        let heir = self.heir(state, id, server)?;
        match state.server(server).map(|server| server.duty) {
            Some(Duty::Serves) => {}
            Some(Duty::Drained | Duty::Leaves) | None => return Err(TransferRefusal::Leaves(server)),
        }
        match state.job_of(id) {
            Some(job) if job.origin == Origin::Operator => Err(TransferRefusal::JobRuns(id, job.id)),
            Some(_) | None => Ok(heir),
        }
    }

    /// The copy on `server` that could take the leadership of `tablet` over now.
    pub(super) fn heir(
        &self,
        state: &State,
        id: TabletId,
        server: ServerId,
    ) -> Result<ReplicaId, TransferRefusal> {
        let tablet = state.tablet(id).ok_or(TransferRefusal::NoTablet(id))?;
        if state.server(server).is_none() {
            return Err(TransferRefusal::UnknownServer(server));
        }
        let replica = tablet.replica_on(server).ok_or(TransferRefusal::NoCopy(id, server))?;
        let leader = tablet.leader.filter(|leader| state.is_current(leader));
        if leader.is_some_and(|leader| leader.replica == replica.id) {
            return Err(TransferRefusal::AlreadyLeads(id, server));
        }
        if !tablet.in_sync.contains(&replica.id) || !state.holds_data(replica) {
            return Err(TransferRefusal::NotInSync(id, server));
        }
        if !self.sessions.contains_key(&server) {
            return Err(TransferRefusal::NotConnected(server));
        }
        match leader.filter(|leader| self.sessions.contains_key(&leader.server)) {
            Some(_) => Ok(replica.id),
            None => Err(TransferRefusal::NoLeader(id)),
        }
    }

    /// Sends the order, if the wish still makes sense; who wished learns why not from
    /// [`Self::transfer_target`].
    pub(super) fn on_transfer(
        &self,
        state: &State,
        id: TabletId,
        replica: ReplicaId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(tablet) = state.tablet(id) else { return };
        let Some(server) = tablet.replica(replica).map(|replica| replica.server) else { return };
        if self.transfer_target(state, id, server) == Ok(replica)
            && let Some(leader) = tablet.leader
        {
            let (server, epoch) = (leader.server, tablet.epoch);
            effects.push(Effect::SendTransfer { server, tablet: id, epoch, replica });
        }
    }
}
