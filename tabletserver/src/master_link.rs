//! The link to the masters: one session with the one that leads, one watch of the map.
//!
//! A session begins with a registration. It is repeated whenever a session breaks, with the
//! same boot id, and gives the same incarnation as long as this process lives. Losing every
//! master changes nothing for data: the link just tries on.

use crate::error::Error;
use crate::identity::{DataDir, Registered};
use crate::limits;
use crate::node::Node;
use crate::pipeline::{Control, Fenced, Outward, SequencerHandle};
use crate::replica_set::{ReplicaSet, clock_floor};
use crate::replicas::Replicas;
use crate::store::Store;
use crate::succession::stage;
use ebla_kernel::ids::{
    Attempt, ConfigVersion, Epoch, Generation, Incarnation, ReplicaId, ServerId, TabletId,
};
use ebla_kernel::tablet::{FenceAnswer, PeerRun, Proposal, SplitProposal};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::split::{log_end_to_wire, seal_order};
use ebla_proto::v1;
use ebla_proto::v1::route_service_client::RouteServiceClient;
use ebla_proto::v1::server_control_service_client::ServerControlServiceClient;
use ebla_proto::v1::session_request::Message as Up;
use ebla_proto::v1::session_response::Message as Down;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info, warn};

/// Who this process is to the masters.
#[derive(Clone, Debug)]
pub struct Registration {
    /// HOST:PORT that clients are told.
    pub address: String,
    /// Failure domain.
    pub zone: String,
    /// Random, new at every start.
    pub boot_id: u64,
}

/// The masters this server knows of, the likely leader first.
pub struct Masters {
    known: Mutex<Vec<String>>,
}

impl Masters {
    /// Begins with the configured ones.
    #[must_use]
    pub fn new(configured: Vec<String>) -> Self {
        Self { known: Mutex::new(configured) }
    }

    /// The next one to try, which goes to the end of the line.
    fn next(&self) -> String {
        let mut known = self.known.lock().expect("no holder of this lock panics");
        known.rotate_left(1);
        known.last().cloned().unwrap_or_default()
    }

    /// Puts `address` at the head of the line.
    fn prefer(&self, address: &str) {
        let mut known = self.known.lock().expect("no holder of this lock panics");
        known.retain(|other| other != address);
        known.insert(0, address.to_owned());
    }
}

/// Connects to `address` within the time that a healthy master needs.
async fn connect(address: &str) -> Result<Channel, tonic::Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| tonic::Status::invalid_argument(format!("bad master address {address}: {error}")))?;
    let endpoint = endpoint
        .connect_timeout(limits::MASTER_CONNECT_TIMEOUT)
        .http2_keep_alive_interval(limits::MASTER_CONNECT_TIMEOUT)
        .keep_alive_timeout(limits::MASTER_CONNECT_TIMEOUT)
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|error| tonic::Status::unavailable(error.to_string()))
}

/// An open session.
pub struct Session {
    up: mpsc::Sender<v1::SessionRequest>,
    down: Streaming<v1::SessionResponse>,
    /// What the master answered.
    pub registered: v1::Registered,
}

/// Opens a session with whichever master leads, trying until one takes it.
///
/// # Errors
/// `Refused` when the masters turn this server away for good.
pub async fn open_session(
    masters: &Masters,
    registration: &Registration,
    dir: &Mutex<DataDir>,
) -> Result<Session, Error> {
    let mut quiet = 0_u32;
    loop {
        let address = masters.next();
        let register = register_message(registration, dir);
        match try_open(&address, register).await {
            Ok(session) => {
                masters.prefer(&address);
                remember(dir, &session.registered)?;
                return Ok(session);
            }
            Err(status) => {
                let error = ApiError::from_status(&status);
                match error.reason {
                    Reason::Superseded | Reason::WrongCluster | Reason::BadRequest => {
                        return Err(Error::Refused { message: error.message });
                    }
                    _ => {}
                }
                if let Some(leader) = error.metadata.get("leader").filter(|leader| !leader.is_empty()) {
                    masters.prefer(leader);
                }
                quiet += 1;
                if quiet.is_power_of_two() && quiet > 8 {
                    warn!(%address, reason = %error.message, "no master takes the registration yet");
                }
            }
        }
        tokio::time::sleep(limits::MASTER_RETRY_PAUSE).await;
    }
}

fn register_message(registration: &Registration, dir: &Mutex<DataDir>) -> v1::Register {
    let dir = dir.lock().expect("no holder of this lock panics");
    let identity = dir.identity();
    let registered = identity.registered.as_ref();
    v1::Register {
        cluster_id: registered.map(|registered| registered.cluster_id.clone()).unwrap_or_default(),
        server_id: registered.map_or(0, |registered| registered.server_id.0),
        disk_generation: identity.disk_generation.0,
        boot_id: registration.boot_id,
        starts: identity.starts,
        address: registration.address.clone(),
        zone: registration.zone.clone(),
        clean: false,
    }
}

async fn try_open(address: &str, register: v1::Register) -> Result<Session, tonic::Status> {
    let open = async {
        let mut client = ServerControlServiceClient::new(connect(address).await?)
            .max_decoding_message_size(limits::MASTER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MASTER_MESSAGE_BYTES_MAX);
        let (up, messages) = mpsc::channel(limits::SESSION_MESSAGES_WAITING);
        let first = v1::SessionRequest { message: Some(Up::Register(register)) };
        up.send(first).await.expect("the receiver is here");
        let mut down = client.session(ReceiverStream::new(messages)).await?.into_inner();
        match down.message().await?.and_then(|response| response.message) {
            Some(Down::Registered(registered)) => Ok(Session { up, down, registered }),
            Some(
                Down::Fences(_)
                | Down::Assignments(_)
                | Down::InSyncAnswers(_)
                | Down::Transfers(_)
                | Down::SealOrders(_)
                | Down::SplitRefusals(_),
            )
            | None => Err(tonic::Status::unavailable("the master ended the session at once")),
        }
    };
    tokio::time::timeout(limits::MASTER_CONNECT_TIMEOUT * 2, open)
        .await
        .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("the master does not answer")))
}

fn remember(dir: &Mutex<DataDir>, registered: &v1::Registered) -> Result<(), Error> {
    let mut dir = dir.lock().expect("no holder of this lock panics");
    if dir.identity().registered.is_none() {
        let server_id = ServerId(registered.server_id);
        info!(server = %server_id, cluster = %registered.cluster_id, "registered for the first time");
        dir.register(Registered { cluster_id: registered.cluster_id.clone(), server_id })?;
    }
    Ok(())
}

/// Everything that the session loop works with.
pub struct Link {
    /// The masters.
    pub masters: Arc<Masters>,
    /// Who we are.
    pub registration: Registration,
    /// The identity on disk.
    pub dir: Arc<Mutex<DataDir>>,
    /// The server.
    pub node: Arc<Node>,
    /// Its replicas.
    pub set: Arc<ReplicaSet>,
    /// The run that the first registration gave.
    pub incarnation: Incarnation,
    /// Answers to fences, and tablets that began or ceased to serve.
    pub reports: mpsc::UnboundedReceiver<Report>,
    /// What was last told of each tablet.
    pub told: HashMap<TabletId, v1::TabletReport>,
}

/// What the session tells a master besides heartbeats.
pub enum Report {
    /// Answers to fences.
    Fences(Vec<(TabletId, ReplicaId, FenceAnswer)>),
    /// Changes of in-sync sets that cores ask for.
    Proposals(Vec<(TabletId, Proposal)>),
    /// Commits of splits that cores ask for.
    Commits(Vec<(TabletId, SplitProposal)>),
    /// Tablets began or ceased to serve: tell at once.
    Serving,
}

impl Link {
    /// Follows whichever master leads until the server ends.
    ///
    /// # Errors
    /// When the masters turn the server away, or a store fails.
    pub async fn run(mut self, first: Session) -> Result<(), Error> {
        let mut session = first;
        loop {
            // A new leader knows nothing of our tablets.
            self.told.clear();
            let why = self.follow(session).await?;
            debug!(%why, "the session with the master ended");
            session = open_session(&self.masters, &self.registration, &self.dir).await?;
            if session.registered.incarnation != self.incarnation.0 {
                let message = "another run of this server is registered".to_owned();
                return Err(Error::Refused { message });
            }
        }
    }

    /// Lives one session; says why it ended.
    async fn follow(&mut self, mut session: Session) -> Result<String, Error> {
        let pace = match session.registered.heartbeat_ms {
            0 => limits::HEARTBEAT_DEFAULT,
            ms => Duration::from_millis(ms),
        };
        let mut heartbeat = tokio::time::interval(pace);
        let node = Arc::clone(&self.node);
        loop {
            let message = tokio::select! {
                down = session.down.message() => match down {
                    Ok(Some(response)) => {
                        self.take(response).await?;
                        continue;
                    }
                    Ok(None) => return Ok("the master closed it".to_owned()),
                    Err(status) => return self.ended(&status),
                },
                Some(report) = self.reports.recv() => match report {
                    Report::Fences(answers) => Up::FenceAnswers(self.fence_answers(answers)),
                    Report::Proposals(proposals) => Up::InSyncProposals(proposals_to_wire(&proposals)),
                    Report::Commits(commits) => Up::SplitCommits(self.commits(&commits)),
                    Report::Serving => Up::Heartbeat(self.heartbeat()),
                },
                // A leader that falls silent is reported at once.
                () = node.peers.silence_changed.notified() => Up::Heartbeat(self.heartbeat()),
                _ = heartbeat.tick() => Up::Heartbeat(self.heartbeat()),
            };
            if session.up.send(v1::SessionRequest { message: Some(message) }).await.is_err() {
                return Ok("the stream is closed".to_owned());
            }
        }
    }

    fn ended(&self, status: &tonic::Status) -> Result<String, Error> {
        let error = ApiError::from_status(status);
        if error.reason == Reason::Superseded {
            return Err(Error::Refused { message: error.message });
        }
        if let Some(leader) = error.metadata.get("leader").filter(|leader| !leader.is_empty()) {
            self.masters.prefer(leader);
        }
        Ok(error.message)
    }

    async fn take(&self, response: v1::SessionResponse) -> Result<(), Error> {
        match response.message {
            Some(Down::Fences(fences)) => {
                let fence = |fence: v1::Fence| Fenced {
                    tablet: TabletId(fence.tablet_id),
                    replica: ReplicaId(fence.replica_id),
                    epoch: Epoch(fence.epoch),
                    gone: Epoch(fence.gone_epoch),
                };
                let fences = fences.fences.into_iter().map(fence).collect();
                let _ = self.node.sequencer.control.send(Control::Fence(fences));
                Ok(())
            }
            Some(Down::Assignments(assignments)) => {
                if let Err(error) = self.node.clock.observe(clock_floor(&assignments)) {
                    warn!(?error, "the masters' clock is far ahead of this server's; it is not adopted");
                }
                self.set.assign(assignments).await
            }
            Some(Down::InSyncAnswers(answers)) => {
                // What was accepted comes as an assignment.
                let refused = answers.answers.iter().filter(|answer| !answer.accepted);
                let refused = refused.map(|answer| {
                    let version = ConfigVersion(answer.config_version);
                    (TabletId(answer.tablet_id), Epoch(answer.epoch), version)
                });
                let _ = self.node.sequencer.control.send(Control::ProposalsRefused(refused.collect()));
                Ok(())
            }
            Some(Down::Transfers(transfers)) => {
                let transfers = transfers.transfers.iter().map(|transfer| {
                    (TabletId(transfer.tablet_id), Epoch(transfer.epoch), ReplicaId(transfer.replica_id))
                });
                let _ = self.node.sequencer.control.send(Control::Transfer(transfers.collect()));
                Ok(())
            }
            Some(Down::SealOrders(orders)) => {
                let orders = orders.orders.into_iter().filter_map(|order| {
                    let read = seal_order(order);
                    read.inspect_err(|error| warn!(%error, "an order to seal is ignored")).ok()
                });
                let _ = self.node.sequencer.control.send(Control::Seal(orders.collect()));
                Ok(())
            }
            Some(Down::SplitRefusals(refusals)) => {
                let refused = refusals.refusals.iter().map(|refusal| {
                    (TabletId(refusal.tablet_id), Epoch(refusal.epoch), Attempt(refusal.attempt))
                });
                let _ = self.node.sequencer.control.send(Control::SplitRefused(refused.collect()));
                Ok(())
            }
            Some(Down::Registered(_)) | None => Ok(()),
        }
    }

    fn fence_answers(&self, answers: Vec<(TabletId, ReplicaId, FenceAnswer)>) -> v1::FenceAnswers {
        let generation = self.dir.lock().expect("no holder of this lock panics").identity().disk_generation;
        let wire = |(tablet, replica, answer): (TabletId, ReplicaId, FenceAnswer)| v1::FenceAnswer {
            tablet_id: tablet.0,
            replica_id: replica.0,
            epoch: answer.epoch.0,
            end_epoch: answer.end.pos.epoch.0,
            end_seq: answer.end.pos.seq.0,
            end_hash: answer.end.hash,
            ts_max: answer.end.ts.0,
            disk_generation: generation.0,
        };
        v1::FenceAnswers { answers: answers.into_iter().map(wire).collect() }
    }

    fn commits(&self, commits: &[(TabletId, SplitProposal)]) -> v1::SplitCommits {
        let own = self.dir.lock().expect("no holder of this lock panics").identity().disk_generation;
        let own = (self.incarnation, Generation::Disk(own));
        let copy = |(replica, run): &(ReplicaId, Option<PeerRun>)| {
            let (incarnation, generation) = run.map_or(own, |run| (run.server.incarnation, run.generation));
            let disk_generation = disk_number(generation);
            v1::ReadyCopy { replica_id: replica.0, incarnation: incarnation.0, disk_generation }
        };
        let commit = |(tablet, proposal): &(TabletId, SplitProposal)| v1::SplitCommit {
            tablet_id: tablet.0,
            epoch: proposal.epoch.0,
            attempt: proposal.attempt.0,
            seal: Some(log_end_to_wire(proposal.seal)),
            ready: proposal.ready.iter().map(copy).collect(),
        };
        v1::SplitCommits { commits: commits.iter().map(commit).collect() }
    }

    /// What changed since the last one.
    fn heartbeat(&mut self) -> v1::Heartbeat {
        let (disk_bytes, disk_bytes_free) = self.node.disk.get();
        let mut tablets = Vec::new();
        for tablet in self.node.directory.load().tablets() {
            let (rows_estimate, bytes) = tablet.size.get();
            let serving_epoch = tablet.serving().map_or(0, |epoch| epoch.0);
            let (gave_up, successor) = tablet.gave_up();
            // A server that stops wants nobody to lead here again: its next run is reason enough.
            let is_stopping = self.node.draining.load(Ordering::Relaxed) && successor.is_none();
            let gave_up_epoch = if is_stopping { 0 } else { gave_up.0 };
            let report = v1::TabletReport {
                tablet_id: tablet.id.0,
                serving_epoch,
                rows_estimate,
                bytes,
                gave_up_epoch,
                successor_replica_id: successor.map_or(0, |replica| replica.0),
                behind_replica_ids: tablet.behind().iter().map(|replica| replica.0).collect(),
                requests: tablet.load.get().requests(),
                diverged_replica_id: if tablet.is_replaceable() { tablet.replica.0 } else { 0 },
            };
            if self.told.get(&tablet.id) != Some(&report) && tablets.len() < limits::REPORTS_PER_MESSAGE {
                self.told.insert(tablet.id, report.clone());
                tablets.push(report);
            }
        }
        let draining = self.node.draining.load(Ordering::Relaxed);
        let silent = self.node.peers.silent_leaders().into_iter();
        let silent_leaders = silent
            .map(|run| v1::ServerRun { server_id: run.server.0, incarnation: run.incarnation.0 })
            .collect();
        let arrivals = self.set.received().into_iter();
        let arrivals = arrivals
            .map(|(replica, bytes, bytes_total)| v1::ArrivalReport {
                replica_id: replica.0,
                bytes,
                bytes_total,
            })
            .collect();
        v1::Heartbeat { draining, disk_bytes, disk_bytes_free, tablets, silent_leaders, arrivals }
    }
}

fn disk_number(generation: Generation) -> u64 {
    match generation {
        Generation::Disk(generation) => generation.0,
        Generation::Process(incarnation) => incarnation.0,
    }
}

fn proposals_to_wire(proposals: &[(TabletId, Proposal)]) -> v1::InSyncProposals {
    let wire = |(tablet, proposal): &(TabletId, Proposal)| {
        let disk = |run: PeerRun| disk_number(run.generation);
        v1::InSyncProposal {
            tablet_id: tablet.0,
            epoch: proposal.epoch.0,
            config_version: proposal.version.0,
            replica_ids: proposal.change.replicas.iter().map(|replica| replica.0).collect(),
            add: proposal.change.add,
            incarnation: proposal.run.map_or(0, |run| run.server.incarnation.0),
            disk_generation: proposal.run.map_or(0, disk),
        }
    };
    v1::InSyncProposals { proposals: proposals.iter().map(wire).collect() }
}

/// Does what cores ask of the rest of the server: promises to the registry, the rest to the
/// session. Ends with the sequencer.
pub async fn forward_outward(
    mut outward: mpsc::UnboundedReceiver<Outward>,
    replicas: Arc<Replicas>,
    store: Arc<dyn Store>,
    sequencer: SequencerHandle,
    reports: mpsc::UnboundedSender<Report>,
) -> Result<(), Error> {
    while let Some(message) = outward.recv().await {
        match message {
            Outward::FenceAnswers(answers) => drop(reports.send(Report::Fences(answers))),
            Outward::ServingChanged => drop(reports.send(Report::Serving)),
            Outward::Proposals(proposals) => drop(reports.send(Report::Proposals(proposals))),
            Outward::Commits(commits) => drop(reports.send(Report::Commits(commits))),
            Outward::Stage(stagings) => {
                let (replicas, store) = (Arc::clone(&replicas), Arc::clone(&store));
                let staged = tokio::task::spawn_blocking(move || stage(&replicas, &*store, stagings))
                    .await
                    .map_err(|error| Error::Fatal { what: format!("registry ({error})") })??;
                let _ = sequencer.control.send(Control::Staged(staged));
            }
            Outward::PersistPromises(promises) => {
                let replicas = Arc::clone(&replicas);
                let persist = move || replicas.promise(&promises).map(|()| promises);
                let promises = tokio::task::spawn_blocking(persist)
                    .await
                    .map_err(|error| Error::Fatal { what: format!("registry ({error})") })??;
                let _ = sequencer.control.send(Control::PromisePersisted(promises));
            }
        }
    }
    Ok(())
}

/// Keeps the cached map fresh from any master.
pub async fn watch_routes(masters: Arc<Masters>, node: Arc<Node>) {
    loop {
        let address = masters.next();
        if let Err(status) = follow_routes(&address, &node).await {
            debug!(%address, %status, "the watch of the map ended");
        }
        tokio::time::sleep(limits::MASTER_RETRY_PAUSE).await;
    }
}

async fn follow_routes(address: &str, node: &Node) -> Result<(), tonic::Status> {
    let mut client = RouteServiceClient::new(connect(address).await?)
        .max_decoding_message_size(limits::MASTER_MESSAGE_BYTES_MAX);
    let mut changes = client.watch_routes(v1::WatchRoutesRequest::default()).await?.into_inner();
    while let Some(change) = changes.message().await? {
        if !node.routes.take(change) {
            return Err(tonic::Status::unavailable("this master is behind"));
        }
    }
    Ok(())
}
