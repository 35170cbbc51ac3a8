//! The gRPC services of a master. Each checks its input, asks the group, and answers; what to
//! decide is in the kernel.

pub(crate) mod admin;
mod backup;
mod balancer;
pub(crate) mod control;
mod job;
mod merge;
pub(crate) mod meta_raft;
mod moves;
pub(crate) mod route;
mod split;
pub(crate) mod suggest;
mod summary;
mod transfer;

use crate::backup::Backups;
use crate::balancer::Balancer;
use crate::controller::not_leader;
use crate::limits::SETTLE_POLL;
use crate::liveness::Liveness;
use crate::placement::Candidate;
use crate::raft::NoAnswer;
use crate::raft::node::Raft;
use crate::raft::transport::Outbox;
use crate::raft::view::Role;
use ebla_kernel::meta::{Duty, Server};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::Status;

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What every service needs.
#[derive(Clone)]
pub(crate) struct Shared {
    pub id: u64,
    pub peers: Arc<BTreeMap<u64, String>>,
    pub raft: Raft,
    pub outbox: Outbox,
    pub liveness: Arc<Liveness>,
    pub balancer: Arc<Balancer>,
    pub backups: Arc<Backups>,
    /// Turns true when the master stops: streams end.
    pub stopping: watch::Receiver<bool>,
}

impl Shared {
    /// The masters for the wire.
    pub fn masters(&self) -> Vec<v1::Master> {
        let leader = self.raft.view().role().leader;
        let master = |(id, address): (&u64, &String)| v1::Master {
            id: *id,
            address: address.clone(),
            leader: leader == Some(*id),
        };
        self.peers.iter().map(master).collect()
    }

    pub fn not_leader(&self) -> ApiError {
        let leader = self.raft.view().role().leader.filter(|leader| *leader != self.id);
        not_leader(leader.and_then(|leader| self.peers.get(&leader)).map(String::as_str))
    }

    /// The answer to a call that the group did not answer.
    pub fn no_answer(&self, why: NoAnswer) -> ApiError {
        match why {
            NoAnswer::NotLeader => self.not_leader(),
            NoAnswer::Overloaded => ApiError::new(Reason::Overloaded, format!("{why}: try again")),
            NoAnswer::Lost => ApiError::new(
                Reason::Unavailable,
                format!("{why}: look whether it took effect, then try again"),
            ),
            NoAnswer::Stopped => ApiError::new(Reason::Draining, format!("{why}: ask another one")),
        }
    }

    /// Waits until this master is known to lead and its state is up to date.
    pub async fn confirm_leading(&self) -> Result<(), ApiError> {
        if !self.role().leading {
            return Err(self.not_leader());
        }
        self.raft.read().await.map_err(|why| self.no_answer(why))
    }

    /// Waits until every server that should be here is connected, or was silent for so long that
    /// it counts as down: a new leader knows only those that have come to it.
    pub async fn settle(&self) {
        while self.is_settling() {
            tokio::time::sleep(SETTLE_POLL).await;
        }
    }

    fn is_settling(&self) -> bool {
        let state = self.raft.view().state();
        state.servers().filter(|server| server.duty == Duty::Serves).any(|server| {
            let health = self.liveness.health(server.id);
            health.state == v1::ServerState::Up && !health.connected
        })
    }

    /// Servers that are up and not stopping.
    pub fn candidates(&self) -> Vec<Candidate> {
        let state = self.raft.view().state();
        let up = state.servers().filter(|server| {
            let health = self.liveness.health(server.id);
            health.connected && health.state == v1::ServerState::Up && server.duty == Duty::Serves
        });
        let candidate = |server: &Server| Candidate {
            id: server.id,
            zone: server.zone.clone(),
            tablets: state.tablet_count_on(server.id),
        };
        up.map(candidate).collect()
    }

    /// Who leads, as far as this master knows.
    pub fn role(&self) -> Role {
        self.raft.view().role()
    }
}

/// Resolves when the master stops.
pub(crate) async fn stopped(mut stopping: watch::Receiver<bool>) {
    // A master that is gone has stopped, too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
