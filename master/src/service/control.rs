//! Sessions of tablet servers: registration first, then heartbeats and answers up, fences and
//! assignments down. Only the leading master has sessions.

use super::{Answers, Shared, stopped};
use crate::clock;
use crate::controller::{Event, Events, superseded};
use crate::limits::{HEARTBEAT_MS, REGISTER_TIMEOUT, SESSION_QUEUE_MAX, SUSPECT_SILENCE};
use ebla_kernel::ids::{DiskGeneration, Incarnation, ServerId, TabletId};
use ebla_kernel::meta::{ClusterId, Command, InSyncChange, RegisterServer, Registered, Reply, SplitCommit};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::meta::{behind, diverged, fence_answer, gave_up, in_sync_change, server_run};
use ebla_proto::split::split_commit;
use ebla_proto::v1::server_control_service_server::ServerControlService;
use ebla_proto::v1::session_request::Message as Up;
use ebla_proto::v1::session_response::Message as Down;
use ebla_proto::v1::{self, Heartbeat, SessionRequest, SessionResponse};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The service.
pub(crate) struct ServerControl {
    pub shared: Shared,
    pub events: Events,
    /// Numbers sessions, so that the end of an old one is not taken for that of a new one.
    pub sessions: AtomicU64,
}

#[tonic::async_trait]
impl ServerControlService for ServerControl {
    type SessionStream = Answers<SessionResponse>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if !self.shared.role().leading {
            return Err(self.shared.not_leader().into());
        }
        let mut inbound = request.into_inner();
        let register = first_message(&mut inbound).await?;
        let registered = self.register(register).await?;
        let (outbox, answers) = mpsc::channel(SESSION_QUEUE_MAX);
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        // The queue is new and empty: the first message has its place.
        let _ = outbox.try_send(Ok(registered_to_wire(&registered)));
        let server = registered.server.id;
        let (accepted, answer) = oneshot::channel();
        let incarnation = registered.server.incarnation;
        let (ends, ended) = oneshot::channel();
        // The controller alone holds the ways to the server: when it lets go of them the stream ends.
        let opened = Event::Opened { server, incarnation, number, outbox, ends, accepted };
        self.events.send(opened).await.map_err(|_| self.shared.not_leader())?;
        match answer.await {
            Ok(true) => {}
            Ok(false) if self.shared.role().leading => return Err(superseded(server).into()),
            Ok(false) | Err(_) => return Err(self.shared.not_leader().into()),
        }
        tracing::info!(%server, %incarnation, address = registered.server.address, "tablet server connected");
        let session = Session {
            shared: self.shared.clone(),
            events: self.events.clone(),
            server,
            number,
            ended,
            silent: BTreeSet::new(),
        };
        tokio::spawn(session.run(inbound));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

impl ServerControl {
    async fn register(&self, register: v1::Register) -> Result<Registered, ApiError> {
        let command = Command::RegisterServer(register_command(register)?);
        match self.shared.raft.propose(command).await.map_err(|why| self.shared.no_answer(why))? {
            Reply::Registered(registered) => Ok(registered),
            Reply::Rejected(rejection) => {
                tracing::warn!(%rejection, "a tablet server was refused");
                Err(rejection.into())
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// An answer of another command: a bug.
pub(crate) fn unexpected(reply: &Reply) -> ApiError {
    tracing::error!(?reply, "a command was answered by another's reply");
    ApiError::new(Reason::Internal, "the metadata answered something else: report this as a bug")
}

async fn first_message(inbound: &mut Streaming<SessionRequest>) -> Result<v1::Register, Status> {
    let first = timeout(REGISTER_TIMEOUT, inbound.message()).await;
    let hint = "a session begins with a registration";
    match first.map_err(|_| ApiError::new(Reason::TimedOut, hint))?? {
        Some(SessionRequest { message: Some(Up::Register(register)) }) => Ok(register),
        Some(_) | None => Err(ApiError::new(Reason::BadRequest, hint).into()),
    }
}

fn register_command(register: v1::Register) -> Result<RegisterServer, ApiError> {
    let bad = |hint: &str| ApiError::new(Reason::BadRequest, hint);
    let cluster_id = match register.cluster_id.as_str() {
        "" => None,
        text => {
            Some(ClusterId::parse(text).ok_or_else(|| bad("the cluster id is not 32 hexadecimal digits"))?)
        }
    };
    if register.disk_generation == 0 || register.boot_id == 0 {
        return Err(bad("disk generation and boot id are random numbers above zero"));
    }
    if register.starts == 0 {
        return Err(bad("the first start of a data directory is start 1"));
    }
    if register.address.is_empty() {
        return Err(bad("the server names no address: give --listen HOST:PORT"));
    }
    Ok(RegisterServer {
        cluster_id,
        server_id: (register.server_id != 0).then_some(ServerId(register.server_id)),
        disk_generation: DiskGeneration(register.disk_generation),
        boot_id: register.boot_id,
        starts: register.starts,
        address: register.address,
        zone: register.zone,
        time_ms: clock::wall_ms(),
    })
}

fn registered_to_wire(registered: &Registered) -> SessionResponse {
    let message = Down::Registered(v1::Registered {
        cluster_id: registered.cluster_id.to_string(),
        server_id: registered.server.id.0,
        incarnation: registered.server.incarnation.0,
        ordinal: registered.server.ordinal.0,
        heartbeat_ms: HEARTBEAT_MS,
    });
    SessionResponse { message: Some(message) }
}

struct Session {
    shared: Shared,
    events: Events,
    server: ServerId,
    number: u64,
    /// Resolves when the controller has ended the session.
    ended: oneshot::Receiver<Infallible>,
    /// Whom the server has not heard of, as the controller knows.
    silent: BTreeSet<(ServerId, Incarnation)>,
}

impl Session {
    /// Reads until the server goes, falls silent, or its session is ended from here.
    async fn run(mut self, mut inbound: Streaming<SessionRequest>) {
        let mut stop = std::pin::pin!(stopped(self.shared.stopping.clone()));
        loop {
            let next = tokio::select! {
                () = &mut stop => break,
                _ = &mut self.ended => break,
                next = timeout(SUSPECT_SILENCE, inbound.message()) => next,
            };
            match next {
                Ok(Ok(Some(request))) => self.take(request).await,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    tracing::debug!(server = %self.server, %error, "a session broke");
                    break;
                }
                Err(_) => {
                    tracing::warn!(server = %self.server, "a tablet server fell silent: its session ends");
                    break;
                }
            }
        }
        tracing::info!(server = %self.server, "tablet server disconnected");
        // Without a controller there are no sessions left to close.
        let _ = self.events.send(Event::Closed { server: self.server, number: self.number }).await;
    }

    fn note(&self, heartbeat: &Heartbeat) {
        let state = self.shared.raft.view().state();
        self.shared.liveness.heartbeat(&state, self.server, heartbeat);
    }

    async fn take(&mut self, request: SessionRequest) {
        let (server, number) = (self.server, self.number);
        match request.message {
            Some(Up::Heartbeat(heartbeat)) => self.heartbeat(&heartbeat).await,
            Some(Up::FenceAnswers(answers)) => {
                let answers = answers.answers.iter().map(fence_answer).collect();
                self.tell(Event::Answers { server, number, answers }).await;
            }
            Some(Up::InSyncProposals(proposals)) => {
                let changes = self.changes(&proposals.proposals);
                self.tell(Event::Proposals { server, number, changes }).await;
            }
            Some(Up::SplitCommits(asked)) => {
                let commits = self.commits(&asked.commits);
                self.tell(Event::Commits { server, number, commits }).await;
            }
            Some(Up::Register(_)) | None => {
                tracing::debug!(%server, "a message without a place in a session");
            }
        }
    }

    async fn heartbeat(&mut self, heartbeat: &Heartbeat) {
        self.note(heartbeat);
        let (server, number) = (self.server, self.number);
        let epochs = gave_up(&heartbeat.tablets);
        if !epochs.is_empty() {
            self.tell(Event::GaveUp { server, number, epochs }).await;
        }
        let copies = behind(&heartbeat.tablets);
        if !copies.is_empty() {
            self.tell(Event::Behind { server, number, copies }).await;
        }
        let copies = diverged(&heartbeat.tablets);
        if !copies.is_empty() {
            self.tell(Event::Diverged { server, number, copies }).await;
        }
        let leaders: BTreeSet<_> = heartbeat.silent_leaders.iter().copied().map(server_run).collect();
        if leaders != self.silent {
            self.silent.clone_from(&leaders);
            self.tell(Event::Silent { server, number, leaders }).await;
        }
    }

    /// What a leader asks for; tablets that are gone need no answer.
    fn changes(&self, proposals: &[v1::InSyncProposal]) -> Vec<InSyncChange> {
        let state = self.shared.raft.view().state();
        let change = |proposal: &v1::InSyncProposal| {
            let tablet = state.tablet(TabletId(proposal.tablet_id))?;
            let table = state.table(tablet.table)?;
            Some(in_sync_change(proposal, table.spec.kind))
        };
        proposals.iter().filter_map(change).collect()
    }

    /// The commits that a leader asks for; of a tablet that is gone it hears by assignment.
    fn commits(&self, asked: &[v1::SplitCommit]) -> Vec<SplitCommit> {
        let state = self.shared.raft.view().state();
        let commit = |commit: &v1::SplitCommit| {
            let tablet = state.tablet(TabletId(commit.tablet_id))?;
            let table = state.table(tablet.table)?;
            Some(split_commit(commit, table.spec.kind))
        };
        asked.iter().filter_map(commit).collect()
    }

    /// A controller that is gone ends the session by itself.
    async fn tell(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}
