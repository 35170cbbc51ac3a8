//! Who is in a room now: every server with a bit that counts says how many it has.

use super::Rooms;
use super::link::CallFailed;
use super::publish::Leader;
use crate::limits;
use bytes::Bytes;
use ebla_kernel::ids::ServerId;
use ebla_kernel::room::check_name;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::room_call::Call;
use ebla_proto::v1::room_reply::Reply;
use futures::future::join_all;
use std::time::Instant;

/// What a server said.
enum Count {
    Of(u64),
    /// It is down: whoever was there is gone.
    Down,
    /// It may yet be there.
    NoAnswer,
}

impl Rooms {
    /// Counts who is in a room.
    ///
    /// # Errors
    /// `BAD_REQUEST`, `UNAVAILABLE` when nobody leads the room's row.
    pub async fn who(&self, room: Bytes) -> Result<v1::WhoResponse, ApiError> {
        check_name(&room).map_err(|bad| ApiError::new(Reason::BadRequest, bad.to_string()))?;
        let servers = self.find_servers(&room).await?;
        let counts = join_all(servers.iter().map(|server| self.count_at(ServerId(*server), &room))).await;
        let mut who = v1::WhoResponse::default();
        for (server, count) in servers.into_iter().zip(counts) {
            match count {
                Count::Of(0) | Count::Down => {}
                Count::Of(subscribers) => {
                    who.subscribers += subscribers;
                    who.server_ids.push(server);
                }
                Count::NoAnswer => who.partial = true,
            }
        }
        who.server_ids.sort_unstable();
        Ok(who)
    }

    /// Asks the leader of the room's row, whoever that is by now.
    async fn find_servers(&self, room: &Bytes) -> Result<Vec<u64>, ApiError> {
        let deadline = Instant::now() + self.timeout(0);
        loop {
            let found = match self.leader(room) {
                Ok(Leader::Here) => self.servers_of(room),
                Ok(Leader::At(server)) => self.servers_at(server, room).await,
                Err(error) => Err(error),
            };
            match found {
                Err(error) if is_passing(error.reason) && Instant::now() < deadline => {
                    tokio::time::sleep(limits::ROOM_LEADER_PAUSE).await;
                }
                found => return found,
            }
        }
    }

    async fn servers_at(&self, server: ServerId, room: &Bytes) -> Result<Vec<u64>, ApiError> {
        let call = Call::Who(v1::RoomWho { room: room.clone() });
        match self.links.ask(server, call).await {
            Ok(Reply::Who(servers)) => Ok(servers.server_ids),
            Ok(Reply::Error(error)) => Err(error.into()),
            Ok(_) => Err(ApiError::new(Reason::Internal, "a server answered something else")),
            Err(CallFailed::NotSent | CallFailed::Lost) => {
                let hint = format!("the leader of the room's row, {server}, does not answer: try again");
                Err(ApiError::new(Reason::Unavailable, hint))
            }
        }
    }

    async fn count_at(&self, server: ServerId, room: &Bytes) -> Count {
        if self.is_own(server) {
            return Count::Of(self.registry.count(room) as u64);
        }
        let asked = self.links.ask(server, Call::Count(v1::RoomCount { room: room.clone() }));
        match tokio::time::timeout(limits::ROOM_WHO_TIMEOUT, asked).await {
            Ok(Ok(Reply::Reached(count))) => Count::Of(count),
            Ok(Ok(_)) => Count::NoAnswer,
            Ok(Err(_)) | Err(_) if self.links.silence(server) >= limits::ROOM_SILENCE => Count::Down,
            Ok(Err(_)) | Err(_) => Count::NoAnswer,
        }
    }
}

/// Whether another try may find another leader.
fn is_passing(reason: Reason) -> bool {
    matches!(reason, Reason::NotLeader | Reason::StaleRoute | Reason::Unavailable)
}
