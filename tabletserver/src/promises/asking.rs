//! The side of the leaders: asks for promises, and notices silence.
//!
//! A server whose disk hangs asks nobody: its leases end, and others take over.

use crate::disk::SyncWatch;
use crate::front_door;
use crate::limits;
use crate::node::Node;
use crate::pipeline::Control;
use crate::replication::{Peer, endpoint};
use ebla_kernel::ids::{Epoch, Incarnation, ServerId, ServerRun, TabletId, Tick};
use ebla_kernel::limits::{IN_SYNC_LAG_MS, LEADER_SILENCE_MS, LEASE_HEARTBEAT_MS};
use ebla_proto::v1;
use ebla_proto::v1::promise_request::Message;
use ebla_proto::v1::promise_service_client::PromiseServiceClient;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::debug;

/// What the thread works with.
pub struct Asking {
    /// The server.
    pub node: Arc<Node>,
    /// Whether the disk answers.
    pub syncs: Arc<SyncWatch>,
    /// Set when the server stops.
    pub stop: Arc<AtomicBool>,
}

impl Asking {
    /// Until the server stops: keeps one task per server that shares tablets, and looks for
    /// silence.
    pub(super) async fn run(self) {
        let mut tasks: HashMap<ServerId, JoinHandle<()>> = HashMap::new();
        let mut silence = Silence::default();
        while !self.stop.load(Ordering::Relaxed) {
            let changed = self.node.peers.wanted_changed.notified();
            let _ = tokio::time::timeout(limits::SILENCE_LOOK_EVERY, changed).await;
            let Some(own) = self.node.peers.identity() else { continue };
            let wanted = self.node.peers.wanted();
            tasks.retain(|server, task| {
                let stays = wanted.contains_key(server) && !task.is_finished();
                if !stays {
                    task.abort();
                }
                stays
            });
            for (server, peer) in wanted.iter() {
                tasks.entry(*server).or_insert_with(|| {
                    let asker = Asker {
                        node: Arc::clone(&self.node),
                        syncs: Arc::clone(&self.syncs),
                        peer: Arc::clone(peer),
                        greeting: own.greeting(*server),
                    };
                    tokio::spawn(asker.run())
                });
            }
            let leases = &self.node.leases;
            leases.retain(|run| {
                wanted.get(&run.server).is_some_and(|peer| peer.incarnation() == run.incarnation)
            });
            silence.look(&self.node);
        }
    }
}

/// Asks one server.
struct Asker {
    node: Arc<Node>,
    syncs: Arc<SyncWatch>,
    peer: Arc<Peer>,
    greeting: v1::Greeting,
}

impl Asker {
    async fn run(self) {
        loop {
            if let Err(status) = self.session().await {
                debug!(server = %self.peer.server(), %status, "promises cannot be asked for");
            }
            tokio::time::sleep(limits::PEER_RETRY_PAUSE).await;
        }
    }

    async fn session(&self) -> Result<(), Status> {
        let channel = front_door::connect_for_promises(&endpoint(&self.node, self.peer.server())?).await?;
        let (questions, waiting) = mpsc::channel(limits::FRAMES_WAITING);
        let greeting = v1::PromiseRequest { message: Some(Message::Greeting(self.greeting.clone())) };
        questions.send(greeting).await.map_err(|_| closed())?;
        let mut client = PromiseServiceClient::new(channel);
        let mut answers = client.promise(ReceiverStream::new(waiting)).await?.into_inner();
        let mut beat = tokio::time::interval(Duration::from_millis(LEASE_HEARTBEAT_MS));
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut given_up = Vec::new();
        loop {
            tokio::select! {
                answer = answers.message() => {
                    let answer = answer?.ok_or_else(closed)?;
                    self.peer.heard(&self.node.leases);
                    given_up = self.take(answer).await?;
                }
                _ = beat.tick() => {
                    if !self.syncs.hangs() {
                        self.ask(&questions, std::mem::take(&mut given_up))?;
                    }
                }
            }
        }
    }

    fn ask(
        &self,
        questions: &mpsc::Sender<v1::PromiseRequest>,
        given_up: Vec<(TabletId, Epoch)>,
    ) -> Result<(), Status> {
        let number = self.node.leases.ask(self.run_asked());
        let given_up = given_up.into_iter().map(exception_to_wire).collect();
        let asked = Message::Asked(v1::PromiseAsked { number, given_up });
        match questions.try_send(v1::PromiseRequest { message: Some(asked) }) {
            // A stream that is full is not answered either: the next beat tries again.
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(closed()),
        }
    }

    /// Acts on an answer; gives the exceptions that were acted on.
    async fn take(&self, answer: v1::PromiseResponse) -> Result<Vec<(TabletId, Epoch)>, Status> {
        let of = ServerRun { incarnation: Incarnation(answer.incarnation), ..self.run_asked() };
        if of != self.run_asked() {
            // Asked of an earlier run, answered by this one: only the next answer counts.
            self.peer.met(of.incarnation);
            return Ok(Vec::new());
        }
        let exceptions: Vec<_> =
            answer.exceptions.iter().map(|e| (TabletId(e.tablet_id), Epoch(e.epoch))).collect();
        if !exceptions.is_empty() {
            // m20: the epochs are given up before the promise counts.
            let (done, acted_on) = oneshot::channel();
            let told = self.node.sequencer.control.send(Control::Superseded(exceptions.clone(), done));
            if told.is_err() || acted_on.await.is_err() {
                return Err(closed());
            }
        }
        self.node.leases.promised(of, answer.number, answer.lease_ms);
        Ok(exceptions)
    }

    fn run_asked(&self) -> ServerRun {
        ServerRun { server: self.peer.server(), incarnation: self.peer.incarnation() }
    }
}

fn exception_to_wire((tablet, epoch): (TabletId, Epoch)) -> v1::PromiseException {
    v1::PromiseException { tablet_id: tablet.0, epoch: epoch.0 }
}

fn closed() -> Status {
    Status::unavailable("the stream of promises is closed")
}

/// Who is silent, as last told.
#[derive(Default)]
struct Silence {
    told: BTreeSet<ServerId>,
    /// What the runs that lead tablets of ours were read from: the map and the replicas.
    seen: (u64, usize),
    leaders: BTreeSet<ServerRun>,
    /// When silence was last looked for.
    looked: Tick,
}

impl Silence {
    fn look(&mut self, node: &Node) {
        let silent_ms = |peer: &Peer| peer.silent_ms(&node.leases);
        let wanted = node.peers.wanted();
        let now = node.leases.holder_now();
        if now.ms_since(std::mem::replace(&mut self.looked, now)) >= LEADER_SILENCE_MS {
            // It was this process that stood still: what the others said is yet to be heard.
            wanted.values().for_each(|peer| peer.heard(&node.leases));
        }
        for (server, peer) in wanted.iter() {
            if silent_ms(peer) < IN_SYNC_LAG_MS {
                self.told.remove(server);
            } else if self.told.insert(*server) {
                let _ = node.sequencer.control.send(Control::Silent(*server));
            }
        }
        self.find_leaders(node);
        let is_silent = |run: &&ServerRun| {
            wanted.get(&run.server).is_some_and(|peer| silent_ms(peer) >= LEADER_SILENCE_MS)
        };
        node.peers.tell_silent_leaders(self.leaders.iter().filter(is_silent).copied().collect());
    }

    /// The runs that lead tablets of which copies are here, read anew when something changed.
    fn find_leaders(&mut self, node: &Node) {
        let (routes, directory) = (node.routes.now(), node.directory.load());
        let seen = (routes.version, Arc::as_ptr(&directory) as usize);
        if seen == self.seen {
            return;
        }
        self.seen = seen;
        let own = node.peers.identity().map(|own| own.run.server);
        let leader_of = |id: TabletId| {
            let tablet = routes.tablet(id)?;
            let server = ServerId(tablet.leader_server_id);
            let run = ServerRun { server, incarnation: Incarnation(tablet.leader_incarnation) };
            (server.0 > 0 && Some(server) != own).then_some(run)
        };
        self.leaders = directory.tablets().filter_map(|handle| leader_of(handle.id)).collect();
    }
}
