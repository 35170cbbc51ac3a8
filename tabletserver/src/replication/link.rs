//! One connection between two servers: frames out, frames in.

use super::entries::entries;
use super::peers::{Identity, Opened, Outgoing, Peer};
use crate::limits;
use crate::node::Node;
use crate::oplog::{Logged, Oplog, OplogError};
use crate::pipeline::{Control, PeerMessages};
use crate::tablets::TabletHandle;
use ebla_kernel::ids::{Incarnation, ReplicaId, Seq, ServerId, ServerRun, TabletId};
use ebla_kernel::tablet::Stream;
use ebla_proto::error::ApiError;
use ebla_proto::replication::{Envelope, append_to_wire, peer_input};
use ebla_proto::v1;
use ebla_proto::v1::replication_service_client::ReplicationServiceClient;
use ebla_proto::v1::{replicate_request as request, replicate_response as response};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info, warn};

/// What links work with.
#[derive(Clone)]
pub struct Links {
    /// The server.
    pub node: Arc<Node>,
    /// For entries that are not in memory any more.
    pub oplog: Arc<Oplog>,
    /// Room for entries that are taken and not durable yet, in bytes.
    pub room: Arc<Semaphore>,
}

/// Connects to a server at the address that the map gives.
///
/// # Errors
/// When the map does not know it, or it does not answer.
pub async fn connect_peer(node: &Node, server: ServerId) -> Result<Channel, Status> {
    endpoint(node, server)?.connect().await.map_err(|error| Status::unavailable(error.to_string()))
}

/// Where another server is, and how a connection to it is kept.
///
/// # Errors
/// When the map does not know it.
pub fn endpoint(node: &Node, server: ServerId) -> Result<Endpoint, Status> {
    let routes = node.routes.now();
    let known = routes.server(server.0).filter(|known| !known.address.is_empty());
    let address = known.map(|known| known.address.clone());
    let address =
        address.ok_or_else(|| Status::unavailable(format!("no address of server {} yet", server.0)))?;
    if let Some(peer) = node.peers.wanted().get(&server) {
        peer.met(Incarnation(known.map_or(0, |known| known.incarnation)));
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Status::invalid_argument(format!("bad server address {address}: {error}")))?;
    Ok(endpoint
        .connect_timeout(limits::PEER_CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(limits::PEER_CONNECT_TIMEOUT)
        .keep_alive_timeout(limits::PEER_CONNECT_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Keeps a connection to every server of a higher id that shares tablets; those of lower ids
/// connect by themselves.
pub async fn keep_connected(links: Links) {
    let mut dialling: HashMap<ServerId, tokio::task::JoinHandle<()>> = HashMap::new();
    loop {
        let changed = links.node.peers.wanted_changed.notified();
        if let Some(own) = links.node.peers.identity() {
            let wanted = links.node.peers.wanted();
            dialling.retain(|server, task| {
                let stays = wanted.contains_key(server);
                if !stays {
                    task.abort();
                }
                stays
            });
            for (server, peer) in wanted.iter().filter(|(server, _)| **server > own.run.server) {
                dialling
                    .entry(*server)
                    .or_insert_with(|| tokio::spawn(dial(links.clone(), own.clone(), Arc::clone(peer))));
            }
        }
        let _ = tokio::time::timeout(limits::PEER_CONNECT_TIMEOUT, changed).await;
    }
}

async fn dial(links: Links, own: Identity, peer: Arc<Peer>) {
    let mut failures = 0_u32;
    loop {
        match open(&links, &own, &peer).await {
            Ok(()) => failures = 0,
            Err(status) => {
                failures += 1;
                if failures.is_power_of_two() && failures > 16 {
                    warn!(server = %peer.server(), %status, "another server cannot be reached");
                } else {
                    debug!(server = %peer.server(), %status, "another server cannot be reached");
                }
            }
        }
        tokio::time::sleep(limits::PEER_RETRY_PAUSE).await;
    }
}

async fn open(links: &Links, own: &Identity, peer: &Arc<Peer>) -> Result<(), Status> {
    let channel = connect_peer(&links.node, peer.server()).await?;
    let mut client = ReplicationServiceClient::new(channel)
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
    let (frames, out) = mpsc::channel(limits::FRAMES_WAITING);
    let wrap = |message| v1::ReplicateRequest { message: Some(message) };
    let greeting = wrap(request::Message::Greeting(own.greeting(peer.server())));
    let out = ReceiverStream::new(out).map(move |frame| wrap(request::Message::Frame(frame)));
    let mut inbound = client.replicate(tokio_stream::once(greeting).chain(out)).await?.into_inner();
    let greeted = tokio::time::timeout(limits::PEER_CONNECT_TIMEOUT, inbound.message()).await;
    let greeted = greeted.map_err(|_| Status::deadline_exceeded("the server does not greet"))??;
    let Some(response::Message::Greeting(greeting)) = greeted.and_then(|response| response.message) else {
        return Err(Status::unavailable("the server did not greet"));
    };
    let run = links.node.peers.check_greeting(&greeting)?;
    if run.server != peer.server() {
        return Err(Status::failed_precondition(format!(
            "server {} answered for {}",
            run.server,
            peer.server()
        )));
    }
    let inbound = inbound.map(|response| match response?.message {
        Some(response::Message::Frame(frame)) => Ok(frame),
        Some(response::Message::Greeting(_)) | None => Err(not_a_frame()),
    });
    run_link(links, peer, run, frames, inbound).await
}

/// What is said to a server that sends anything but frames after its greeting.
pub(super) fn not_a_frame() -> Status {
    Status::invalid_argument(
        "after the greeting there are only frames: both servers must run versions that fit",
    )
}

/// Serves a connection until it breaks, from either side.
///
/// # Errors
/// Why it broke.
pub(super) async fn run_link(
    links: &Links,
    peer: &Arc<Peer>,
    run: ServerRun,
    frames: mpsc::Sender<v1::ReplicaFrame>,
    mut inbound: impl tokio_stream::Stream<Item = Result<v1::ReplicaFrame, Status>> + Send + Unpin,
) -> Result<(), Status> {
    let Opened { number, orders, waiting } = peer.open();
    info!(server = %run.server, incarnation = %run.incarnation, "connected to another server");
    peer.heard(&links.node.leases);
    let _ = links.node.sequencer.control.send(Control::Connected(run.server));
    let writing = Writing { links, orders, waiting: &waiting, unsent: Vec::new() };
    let reading = async {
        while let Some(frame) = inbound.next().await {
            peer.heard(&links.node.leases);
            take_frame(links, run, frame?).await?;
        }
        Ok(())
    };
    let result = tokio::select! {
        result = reading => result,
        () = writing.run(frames) => Ok(()),
    };
    peer.close(number);
    info!(server = %run.server, "the connection to another server ended");
    result
}

/// Hands a frame to the sequencer, once there is room for its entries.
async fn take_frame(links: &Links, run: ServerRun, frame: v1::ReplicaFrame) -> Result<(), Status> {
    let bytes: usize = frame.messages.iter().map(entry_bytes).sum();
    let counted = bytes.clamp(limits::FRAME_BYTES_COUNTED_MIN, limits::COPIES_BYTES_MAX);
    let permits = u32::try_from(counted).expect("the room of copies fits 32 bits");
    let room = Arc::clone(&links.room).acquire_many_owned(permits).await;
    let room = room.expect("the semaphore is never closed");
    let messages = frame.messages.into_iter().map(|message| peer_input(message, run));
    let messages = messages.collect::<Result<Vec<_>, ApiError>>()?;
    let _ = links.node.sequencer.control.send(Control::Peers(PeerMessages { messages, room }));
    Ok(())
}

fn entry_bytes(message: &v1::ReplicaMessage) -> usize {
    match &message.message {
        Some(v1::replica_message::Message::Append(append)) => {
            append.entries.iter().map(|entry| entry.len()).sum()
        }
        Some(_) | None => 0,
    }
}

/// The sending half.
struct Writing<'a> {
    links: &'a Links,
    orders: mpsc::UnboundedReceiver<Outgoing>,
    waiting: &'a AtomicUsize,
    /// Streams that are in no frame which was handed over.
    unsent: Vec<(TabletId, ReplicaId, Looked)>,
}

/// What became of the entries of a stream.
enum Looked {
    /// Up to here they are in the frame.
    UpTo(Seq),
    /// They could not be read.
    Failed,
    /// The log has them no longer.
    Purged,
}

impl Writing<'_> {
    /// Makes frames of whatever waits, for as long as the connection takes them.
    async fn run(mut self, frames: mpsc::Sender<v1::ReplicaFrame>) {
        while let Some(first) = self.orders.recv().await {
            let mut frame = v1::ReplicaFrame::default();
            let mut bytes = self.add(&mut frame, first).await;
            while bytes < limits::FRAME_BYTES && frame.messages.len() < limits::FRAME_MESSAGES_MAX {
                let Ok(more) = self.orders.try_recv() else { break };
                bytes += self.add(&mut frame, more).await;
            }
            if !frame.messages.is_empty() && frames.send(frame).await.is_err() {
                return;
            }
            self.tell();
        }
    }

    /// Tells the cores what left and what could not.
    fn tell(&mut self) {
        let (mut sent, mut failed, mut purged) = (Vec::new(), Vec::new(), Vec::new());
        for (tablet, to, looked) in self.unsent.drain(..) {
            match looked {
                Looked::UpTo(upto) => sent.push((tablet, to, upto)),
                Looked::Failed => failed.push((tablet, to)),
                Looked::Purged => purged.push((tablet, to)),
            }
        }
        let control = &self.links.node.sequencer.control;
        if !sent.is_empty() {
            let _ = control.send(Control::Sent(sent));
        }
        if !failed.is_empty() {
            let _ = control.send(Control::StreamFailed(failed));
        }
        if !purged.is_empty() {
            let _ = control.send(Control::Purged(purged));
        }
    }

    /// Adds one order to a frame; gives its bytes.
    async fn add(&mut self, frame: &mut v1::ReplicaFrame, outgoing: Outgoing) -> usize {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let (handle, stream) = match outgoing {
            Outgoing::Message(message) => {
                frame.messages.push(message);
                return limits::FRAME_BYTES / limits::FRAME_MESSAGES_MAX;
            }
            Outgoing::Entries(handle, stream) => (handle, stream),
        };
        let Some(own) = self.links.node.peers.identity() else { return 0 };
        let noted = (handle.id, stream.to);
        let entries = match self.entries(&handle, stream).await {
            Ok(entries) => entries,
            Err(looked) => {
                self.unsent.push((noted.0, noted.1, looked));
                return 0;
            }
        };
        let upto = entries.last().map_or(Seq(stream.from.0.saturating_sub(1)), |last| last.entry.seq());
        self.unsent.push((noted.0, noted.1, Looked::UpTo(upto)));
        let envelope = Envelope {
            tablet: handle.id,
            from: handle.replica,
            to: stream.to,
            generation: own.generation,
            epoch: stream.epoch,
        };
        let entries: Vec<_> = entries.iter().map(|logged| logged.bytes().clone()).collect();
        let bytes = entries.iter().map(|entry| entry.len()).sum::<usize>();
        frame.messages.push(append_to_wire(envelope, stream.prev, entries, stream.q));
        bytes
    }

    /// The entries of a stream, from memory or else from the log.
    async fn entries(&self, handle: &Arc<TabletHandle>, stream: Stream) -> Result<Vec<Arc<Logged>>, Looked> {
        let (tablet, window) = (handle.id, (stream.from, stream.upto));
        match entries(&self.links.oplog, handle, window, limits::FRAME_BYTES).await {
            Ok(entries) => Ok(entries),
            Err(error @ OplogError::Purged { .. }) => {
                info!(tablet = %tablet, to = %stream.to, %error, "a copy is too far behind to be caught up");
                Err(Looked::Purged)
            }
            Err(error) => {
                warn!(tablet = %tablet, to = %stream.to, %error, "entries for a copy cannot be read");
                Err(Looked::Failed)
            }
        }
    }
}

impl Drop for Writing<'_> {
    /// Whatever was not handed over has failed.
    fn drop(&mut self) {
        self.orders.close();
        let mut failed: Vec<_> = self.unsent.drain(..).map(|(tablet, to, _)| (tablet, to)).collect();
        while let Ok(outgoing) = self.orders.try_recv() {
            match outgoing {
                Outgoing::Entries(handle, stream) => failed.push((handle.id, stream.to)),
                Outgoing::Message(_) => {}
            }
        }
        if !failed.is_empty() {
            let _ = self.links.node.sequencer.control.send(Control::StreamFailed(failed));
        }
    }
}
