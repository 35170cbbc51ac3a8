//! Raft messages to and from the other masters: one stream per peer.
//!
//! Raft sends again whatever is lost, so nothing here waits or retries a message: a full
//! queue drops, a broken stream is opened again for what comes next.

use super::node::{Input, Raft};
use crate::limits::{MASTER_MESSAGE_BYTES_MAX, PEER_CONNECT_TIMEOUT, PEER_QUEUE_MAX, PEER_RETRY, UP_SILENCE};
use ebla_proto::v1::SendRequest;
use ebla_proto::v1::meta_raft_service_client::MetaRaftServiceClient;
use protobuf::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// The queues to all peers.
#[derive(Clone, Default)]
pub(crate) struct Outbox {
    peers: Arc<BTreeMap<u64, Peer>>,
}

struct Peer {
    queue: Sender<Message>,
    connected: Arc<AtomicBool>,
}

impl Outbox {
    /// Puts a message into its peer's queue; false when it was dropped.
    pub fn send(&self, message: Message) -> bool {
        self.peers.get(&message.to).is_some_and(|peer| peer.queue.try_send(message).is_ok())
    }

    /// Whether the stream to a peer stands.
    pub fn is_connected(&self, peer: u64) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.connected.load(Ordering::Relaxed))
    }
}

/// Opens a stream to every peer; they end with the set.
pub(crate) fn connect(peers: &BTreeMap<u64, String>, own_id: u64, raft: &Raft) -> (Outbox, JoinSet<()>) {
    let mut tasks = JoinSet::new();
    let mut outbox = BTreeMap::new();
    for (id, address) in peers.iter().filter(|(id, _)| **id != own_id) {
        let (queue, messages) = channel(PEER_QUEUE_MAX);
        let connected = Arc::new(AtomicBool::new(false));
        let link = Link { peer: *id, raft: raft.clone(), connected: Arc::clone(&connected) };
        tasks.spawn(link.run(address.clone(), messages));
        outbox.insert(*id, Peer { queue, connected });
    }
    (Outbox { peers: Arc::new(outbox) }, tasks)
}

/// How masters reach each other.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint
        .connect_timeout(PEER_CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(UP_SILENCE)
        .keep_alive_timeout(UP_SILENCE)
        .keep_alive_while_idle(true))
}

/// A message out of its bytes.
pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
    let mut message = Message::default();
    message.merge_from_bytes(bytes).ok()?;
    // Reading an unknown kind panics inside the library: such a message is none.
    let known = MessageType::from_i32(message.msg_type).is_some()
        && message.entries.iter().all(|entry| EntryType::from_i32(entry.entry_type).is_some());
    known.then_some(message)
}

struct Link {
    peer: u64,
    raft: Raft,
    connected: Arc<AtomicBool>,
}

impl Link {
    async fn run(self, address: String, mut messages: Receiver<Message>) {
        let endpoint = match endpoint(&address) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                tracing::error!(peer = self.peer, address, %error, "the peer's address cannot be used");
                return;
            }
        };
        loop {
            if let Ok(channel) = endpoint.connect().await {
                self.stream(channel, &mut messages).await;
            }
            if self.connected.swap(false, Ordering::Relaxed) {
                tracing::warn!(peer = self.peer, address, "lost the connection to a master");
            }
            self.drop_waiting(&mut messages);
            tokio::time::sleep(PEER_RETRY).await;
        }
    }

    /// Sends until the stream breaks.
    async fn stream(&self, channel: Channel, messages: &mut Receiver<Message>) {
        let mut client =
            MetaRaftServiceClient::new(channel).max_decoding_message_size(MASTER_MESSAGE_BYTES_MAX);
        let (sink, requests) = channel_pair();
        let mut call = std::pin::pin!(client.send(ReceiverStream::new(requests)));
        self.connected.store(true, Ordering::Relaxed);
        loop {
            let message = tokio::select! {
                _ = &mut call => return,
                message = messages.recv() => message,
            };
            let Some(message) = message else { return };
            let snapshot = message.msg_type == MessageType::MsgSnapshot as i32;
            let Some(request) = self.request(&message) else { continue };
            let sent = tokio::select! {
                _ = &mut call => false,
                sent = sink.send(request) => sent.is_ok(),
            };
            if snapshot {
                self.tell(Input::SnapshotSent { peer: self.peer, ok: sent });
            }
            if !sent {
                return;
            }
        }
    }

    fn request(&self, message: &Message) -> Option<SendRequest> {
        let bytes = message.write_to_bytes().ok()?;
        let cluster_id = self.raft.view().state().cluster_id().map(|id| id.to_string());
        Some(SendRequest { message: bytes.into(), cluster_id: cluster_id.unwrap_or_default() })
    }

    /// What waited for a peer that is away is of no use when it is back.
    fn drop_waiting(&self, messages: &mut Receiver<Message>) {
        let mut dropped = false;
        while let Ok(message) = messages.try_recv() {
            dropped = true;
            if message.msg_type == MessageType::MsgSnapshot as i32 {
                self.tell(Input::SnapshotSent { peer: self.peer, ok: false });
            }
        }
        if dropped {
            self.tell(Input::Unreachable(self.peer));
        }
    }

    fn tell(&self, input: Input) {
        // A full inbox loses a hint that Raft would also find by itself.
        let _ = self.raft.send(input);
    }
}

fn channel_pair() -> (Sender<SendRequest>, Receiver<SendRequest>) {
    channel(PEER_QUEUE_MAX)
}
