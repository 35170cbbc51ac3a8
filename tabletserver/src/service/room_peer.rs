//! `RoomPeerService`: what other servers ask about rooms.

use crate::limits;
use crate::rooms::{
    FRAME, Frames, Mailbox, Message, PARCEL_BYTES, Publication, Publisher, Rooms, Unpublished,
};
use ebla_kernel::ids::Incarnation;
use ebla_kernel::room::{Stamp, SubSeq};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::room_call::Call;
use ebla_proto::v1::room_peer_service_server::RoomPeerService;
use ebla_proto::v1::room_reply::Reply;
use prost::Message as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// The service.
pub struct RoomPeer {
    /// What it is about.
    pub rooms: Arc<Rooms>,
}

type Replies = Arc<Mailbox<v1::RoomReply>>;

#[tonic::async_trait]
impl RoomPeerService for RoomPeer {
    type TalkStream = Pin<Box<dyn Stream<Item = Result<v1::TalkResponse, Status>> + Send>>;

    async fn talk(
        &self,
        request: Request<Streaming<v1::TalkRequest>>,
    ) -> Result<Response<Self::TalkStream>, Status> {
        let mut calls = request.into_inner();
        let first = calls.message().await?.and_then(|frame| frame.greeting);
        let greeting =
            first.ok_or_else(|| Status::invalid_argument("a connection begins with a greeting"))?;
        let run = self.rooms.node.peers.check_address(&greeting)?;
        self.rooms.heard_of(run.server);
        let own =
            self.rooms.node.peers.identity().ok_or_else(|| Status::unavailable("not registered yet"))?;
        let greeting = v1::TalkResponse { greeting: Some(own.greeting(run.server)), replies: Vec::new() };
        let mailbox = Mailbox::new(limits::ROOM_CALLS_BYTES_MAX);
        let frames =
            Frames::new(Arc::clone(&mailbox), FRAME, |replies| v1::TalkResponse { greeting: None, replies });
        tokio::spawn(take_calls(Arc::clone(&self.rooms), mailbox, calls));
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(greeting)).chain(frames))))
    }
}

async fn take_calls(rooms: Arc<Rooms>, replies: Replies, mut calls: Streaming<v1::TalkRequest>) {
    loop {
        let frame = tokio::select! {
            frame = calls.message() => frame,
            () = replies.ended() => return,
        };
        let Ok(Some(frame)) = frame else { break };
        if frame.calls.is_empty() {
            replies.nudge();
        }
        for v1::RoomCall { id, call } in frame.calls {
            take_call(&rooms, &replies, id, call);
        }
    }
    replies.end(None);
}

fn take_call(rooms: &Arc<Rooms>, replies: &Replies, id: u64, call: Option<Call>) {
    match call {
        Some(Call::Deliver(deliver)) => {
            let stamp =
                Stamp { incarnation: Incarnation(deliver.incarnation), sub_seq: SubSeq(deliver.sub_seq) };
            let message = Message { room: deliver.room, message: deliver.message, seq: deliver.seq };
            answer(replies, id, Reply::Reached(rooms.deliver(&message, stamp)));
        }
        Some(Call::Publish(v1::RoomPublish { room, message })) => {
            let publisher = Publisher::Peer(id, Arc::clone(replies));
            // Whoever asked tries again, perhaps elsewhere.
            let publication = Publication { room, message, publisher, deadline: Instant::now() };
            if let Err(unpublished) = rooms.publish_here(publication) {
                let Unpublished { publication, error } = *unpublished;
                publication.answer(Err(error));
            }
        }
        Some(Call::Count(v1::RoomCount { room })) => {
            answer(replies, id, Reply::Reached(rooms.registry().count(&room) as u64));
        }
        Some(Call::Who(v1::RoomWho { room })) => {
            let reply = match rooms.servers_of(&room) {
                Ok(server_ids) => Reply::Who(v1::RoomServers { server_ids }),
                Err(error) => Reply::Error(error.into()),
            };
            answer(replies, id, reply);
        }
        Some(Call::Bits(bits)) => {
            let (rooms, replies) = (Arc::clone(rooms), Arc::clone(replies));
            tokio::spawn(async move { answer(&replies, id, Reply::Bits(rooms.change_bits(bits).await)) });
        }
        None => {
            let error = ApiError::new(Reason::BadRequest, "the call is of a newer version than this server");
            answer(replies, id, Reply::Error(error.into()));
        }
    }
}

/// An answer that finds no room ends the connection: its caller must not wait for ever.
fn answer(replies: &Replies, id: u64, reply: Reply) {
    let reply = v1::RoomReply { id, reply: Some(reply) };
    let bytes = reply.encoded_len() + PARCEL_BYTES;
    replies.put_or_end(reply, bytes);
}
