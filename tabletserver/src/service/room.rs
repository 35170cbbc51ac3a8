//! `RoomService`: subscribers and publishers, at any server.

use crate::limits;
use crate::rooms::{
    FRAME, Frames, Held, Joined, Mailbox, PARCEL_BYTES, Parcel, Publication, Publisher, Rooms, Subscriber,
};
use bytes::Bytes;
use ebla_kernel::room::check_name;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::room_service_server::RoomService;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// The service.
pub struct Room {
    /// What it is about.
    pub rooms: Arc<Rooms>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl RoomService for Room {
    type SubscribeStream = Answers<v1::SubscribeResponse>;
    type PublishStreamStream = Answers<v1::PublishStreamResponse>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        if self.rooms.node.draining.load(Ordering::Relaxed) {
            return Err(ApiError::new(Reason::Draining, "this server is stopping: use another one").into());
        }
        let subscriber = self.rooms.registry().subscriber();
        let frames = Frames::new(Arc::clone(&subscriber.mailbox), FRAME, subscribe_frame);
        tokio::spawn(serve(Arc::clone(&self.rooms), subscriber, request.into_inner()));
        Ok(Response::new(Box::pin(frames)))
    }

    async fn publish(
        &self,
        request: Request<v1::PublishRequest>,
    ) -> Result<Response<v1::PublishResponse>, Status> {
        Ok(Response::new(self.rooms.publish_once(request.into_inner()).await?))
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<v1::PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let mailbox = Mailbox::new(limits::ROOM_CALLS_BYTES_MAX);
        let frames =
            Frames::new(Arc::clone(&mailbox), FRAME, |answers| v1::PublishStreamResponse { answers });
        tokio::spawn(take_messages(Arc::clone(&self.rooms), Held::new(mailbox), request.into_inner()));
        Ok(Response::new(Box::pin(frames)))
    }

    async fn who(&self, request: Request<v1::WhoRequest>) -> Result<Response<v1::WhoResponse>, Status> {
        Ok(Response::new(self.rooms.who(request.into_inner().room).await?))
    }
}

fn subscribe_frame(parcels: Vec<Parcel>) -> v1::SubscribeResponse {
    let mut frame = v1::SubscribeResponse::default();
    for parcel in parcels {
        match parcel {
            Parcel::Answer(answer) => frame.answers.push(answer),
            Parcel::Message(message) => frame.messages.push(v1::RoomMessage {
                room: message.room,
                message: message.message,
                seq: message.seq,
            }),
        }
    }
    frame
}

/// Takes the requests of a subscriber until it is gone.
async fn serve(
    rooms: Arc<Rooms>,
    subscriber: Arc<Subscriber>,
    mut requests: Streaming<v1::SubscribeRequest>,
) {
    let mut joined = Joined::default();
    loop {
        let request = tokio::select! {
            request = requests.message() => request,
            () = subscriber.mailbox.ended() => break,
        };
        match request {
            Ok(Some(request)) => take_request(&rooms, &subscriber, &mut joined, &request),
            // It asks for nothing more and goes on listening.
            Ok(None) => {
                subscriber.mailbox.ended().await;
                break;
            }
            Err(_) => break,
        }
    }
    subscriber.mailbox.end(None);
    rooms.registry().gone(rooms.node.clock.tick(), &subscriber, joined);
}

fn take_request(
    rooms: &Rooms,
    subscriber: &Arc<Subscriber>,
    joined: &mut Joined,
    request: &v1::SubscribeRequest,
) {
    if let Err(error) = check_names(request) {
        let answer = v1::SubscribeAnswer { id: request.id, error: Some(error.into()) };
        subscriber.mailbox.put_or_end(Parcel::Answer(answer), PARCEL_BYTES);
        return;
    }
    rooms.registry().request(rooms.node.clock.tick(), subscriber, joined, request);
}

fn check_names(request: &v1::SubscribeRequest) -> Result<(), ApiError> {
    let names = request.join.len() + request.leave.len();
    if names > limits::ROOMS_PER_REQUEST_MAX {
        let hint = format!(
            "a request of {names} rooms is above the limit of {}: send several",
            limits::ROOMS_PER_REQUEST_MAX
        );
        return Err(ApiError::new(Reason::BadRequest, hint));
    }
    let check = |name: &Bytes| check_name(name);
    let checked = request.join.iter().chain(&request.leave).try_for_each(check);
    checked.map_err(|bad| ApiError::new(Reason::BadRequest, bad.to_string()))
}

/// Takes the messages of a publisher until it sends no more. The stream ends when all are answered.
async fn take_messages(
    rooms: Arc<Rooms>,
    mailbox: Arc<Held<v1::PublishAnswer>>,
    mut calls: Streaming<v1::PublishStreamRequest>,
) {
    let timeout = rooms.timeout(0);
    loop {
        let frame = tokio::select! {
            frame = calls.message() => frame,
            () = mailbox.ended() => return,
        };
        let Ok(Some(frame)) = frame else { break };
        let deadline = Instant::now() + timeout;
        for v1::PublishCall { id, room, message } in frame.calls {
            let publisher = Publisher::Stream(id, Arc::clone(&mailbox));
            rooms.publish(Publication { room, message, publisher, deadline });
        }
    }
}
