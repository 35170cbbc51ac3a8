//! A cluster of the smallest kind, in this process: one sorted map behind several gRPC
//! servers that obey the routes, know tokens, and fail on request.

use bytes::Bytes;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use ebla_proto::v1::kv_service_server::{KvService, KvServiceServer};
use ebla_proto::v1::lost_service_server::{LostService, LostServiceServer};
use ebla_proto::v1::route_service_server::{RouteService, RouteServiceServer};
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, WatchStream};
use tonic::{Request, Response, Status, Streaming, async_trait};

/// Rows of one page of a scan.
const PAGE_ROWS: usize = 3;

/// What goes wrong next, and how often.
#[derive(Default, Clone, Debug)]
pub struct Faults {
    /// Refuse calls for overload.
    pub overloads: u32,
    /// Run a write, then end the stream instead of answering.
    pub lost_answers: u32,
    /// End a scan with an error after one page.
    pub broken_scans: u32,
    /// Do not answer writes at all.
    pub mute: bool,
    /// Copies that do not lead are too old for any read.
    pub behind: bool,
}

#[derive(Default)]
pub struct State {
    rows: BTreeMap<Bytes, Vec<(u64, Option<Bytes>)>>,
    counters: BTreeMap<Bytes, i64>,
    clock: u64,
    tokens: HashMap<(Bytes, u64), v1::WriteResponse>,
    pub faults: Faults,
    /// Writes that were run, retries of the same token not counted.
    pub runs: u32,
    /// Write calls that arrived.
    pub arrivals: u32,
    /// Timestamps that scans asked for.
    pub scanned_at: Vec<u64>,
    /// Reads that copies answered which do not lead.
    pub copy_reads: u32,
}

/// A cluster with one table, `t`.
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    pub routes: watch::Sender<v1::RouteMap>,
    pub addresses: Vec<String>,
    /// One per server, so that a server and all its connections can end at once.
    runtimes: Vec<Option<Runtime>>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        (1..=self.runtimes.len()).for_each(|server_id| self.kill(server_id));
    }
}

impl Fake {
    /// Starts `servers` servers and a table cut at `cuts`, its tablets led in turn.
    pub fn start(servers: u64, cuts: &[&'static str]) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..servers {
            listeners.push(TcpListener::bind("127.0.0.1:0").unwrap());
        }
        let addresses: Vec<_> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        let state = Arc::new(Mutex::new(State { clock: 100, ..State::default() }));
        let routes = watch::Sender::new(route_map(&addresses, cuts));
        let runtimes = (1..).zip(listeners).map(|(id, listener)| {
            let server = Server { id, state: state.clone(), routes: routes.clone() };
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.spawn(serve(server, listener));
            Some(runtime)
        });
        let runtimes = runtimes.collect();
        Self { state, routes, addresses, runtimes }
    }

    /// Lets another server lead a tablet, as a failover does.
    pub fn lead(&self, tablet: usize, server_id: u64) {
        self.routes.send_modify(|map| {
            map.version += 1;
            map.tablets[tablet].leader_server_id = server_id;
            map.tablets[tablet].epoch += 1;
        });
    }

    pub fn faults(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    /// Ends a server at once; its connections break.
    pub fn kill(&mut self, server_id: usize) {
        if let Some(runtime) = self.runtimes[server_id - 1].take() {
            runtime.shutdown_background();
        }
    }
}

fn route_map(addresses: &[String], cuts: &[&'static str]) -> v1::RouteMap {
    let bounds: Vec<_> = [""].into_iter().chain(cuts.iter().copied()).chain([""]).collect();
    let tablets = (1..).zip(bounds.windows(2)).map(|(id, bounds)| v1::Tablet {
        id,
        table_id: 1,
        start: Bytes::from_static(bounds[0].as_bytes()),
        end: Bytes::from_static(bounds[1].as_bytes()),
        epoch: 1,
        leader_server_id: (id - 1) % addresses.len() as u64 + 1,
        replicas: (1..=addresses.len() as u64).map(copy).collect(),
        ..Default::default()
    });
    let servers = (1..).zip(addresses).map(|(id, address)| v1::Server {
        id,
        address: address.clone(),
        ..Default::default()
    });
    let spec = v1::TableSpec { replicas: 3, min_in_sync: 2, ..Default::default() };
    v1::RouteMap {
        version: 1,
        cluster_id: "fake".to_owned(),
        tables: vec![v1::Table { id: 1, name: "t".to_owned(), spec: Some(spec), ..v1::Table::default() }],
        tablets: tablets.collect(),
        servers: servers.collect(),
        masters: (1..)
            .zip(addresses)
            .map(|(id, address)| v1::Master {
                id,
                address: address.clone(),
                leader: id == addresses.len() as u64,
            })
            .collect(),
        ..v1::RouteMap::default()
    }
}

fn copy(server_id: u64) -> v1::Replica {
    v1::Replica { replica_id: server_id, server_id, in_sync: true, lost: false, leaving: false }
}

async fn serve(server: Server, listener: TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tonic::transport::Server::builder()
        .add_service(KvServiceServer::new(server.clone()))
        .add_service(RouteServiceServer::new(server.clone()))
        .add_service(LostServiceServer::new(server.clone()))
        .add_service(AdminServiceServer::new(server))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
        .unwrap();
}

#[derive(Clone)]
struct Server {
    id: u64,
    state: Arc<Mutex<State>>,
    routes: watch::Sender<v1::RouteMap>,
}

impl Server {
    /// The tablet of a key, if this server leads it.
    fn tablet(&self, table: &str, fits: impl Fn(&v1::Tablet) -> bool) -> Result<v1::Tablet, ApiError> {
        if table != "t" {
            return Err(ApiError::new(Reason::TableNotFound, format!("there is no table {table:?}")));
        }
        let map = self.routes.borrow();
        let tablet = map.tablets.iter().find(|tablet| fits(tablet)).expect("tablets cover every key");
        if tablet.leader_server_id == self.id {
            return Ok(tablet.clone());
        }
        let leader = map.servers.iter().find(|server| server.id == tablet.leader_server_id);
        let error = ApiError::new(Reason::NotLeader, "another server leads");
        Err(leader.map_or(error.clone(), |leader| error.with("leader", &leader.address)))
    }

    fn check(&self, table: &str, key: &Bytes) -> Result<(), ApiError> {
        self.tablet(table, |tablet| tablet.start <= *key && (tablet.end.is_empty() || *key < tablet.end))?;
        let mut state = self.state.lock().unwrap();
        if state.faults.overloads > 0 {
            state.faults.overloads -= 1;
            return Err(ApiError::new(Reason::Overloaded, "full"));
        }
        Ok(())
    }

    fn read(&self, request: &v1::GetRequest) -> Result<v1::GetResponse, ApiError> {
        let may_follow = matches!(request.consistency(), v1::Consistency::Bounded | v1::Consistency::Session);
        match self.check(&request.table, &request.key) {
            Err(error) if may_follow && error.reason == Reason::NotLeader => self.follow(request)?,
            checked => checked?,
        }
        let state = self.state.lock().unwrap();
        Ok(match state.version(&request.key, request.at_ts) {
            Some((ts, value)) => v1::GetResponse { found: true, value, ts, counter: false, at_ts: 0 },
            None => v1::GetResponse::default(),
        })
    }

    /// Whether a copy that does not lead may answer.
    fn follow(&self, request: &v1::GetRequest) -> Result<(), ApiError> {
        let mut state = self.state.lock().unwrap();
        if request.session.is_some_and(|session| session.lineage != 1) {
            return Err(ApiError::new(Reason::WriteLost, "a failover dropped it"));
        }
        if state.faults.behind {
            return Err(ApiError::new(Reason::CopyBehind, "ask the leader"));
        }
        state.copy_reads += 1;
        Ok(())
    }

    fn run(&self, request: &v1::WriteRequest) -> Result<v1::WriteResponse, ApiError> {
        use v1::write_op::Op;
        let key = match request.ops[0].op.as_ref().unwrap() {
            Op::Set(set) => &set.key,
            Op::Delete(delete) => &delete.key,
            Op::Add(add) => &add.key,
            Op::DeleteRange(range) => &range.from,
        };
        self.check(&request.table, key)?;
        let token = request.token.clone().expect("every write of the client has a token");
        let mut state = self.state.lock().unwrap();
        state.arrivals += 1;
        if let Some(known) = state.tokens.get(&(token.client_id.clone(), token.seq)) {
            return Ok(known.clone());
        }
        let response = state.apply(&request.ops)?;
        state.tokens.insert((token.client_id, token.seq), response.clone());
        Ok(response)
    }

    fn answer(&self, call: v1::PipeCall) -> Option<v1::PipeAnswer> {
        use v1::pipe_answer::Answer;
        use v1::pipe_call::Call;
        let answer = match call.call.unwrap() {
            Call::Get(get) => self.read(&get).map(Answer::Get),
            Call::Write(_) if self.state.lock().unwrap().faults.mute => return None,
            Call::Write(write) => self.run(&write).map(Answer::Write),
        };
        Some(v1::PipeAnswer {
            id: call.id,
            answer: Some(answer.unwrap_or_else(|error| Answer::Error(error.into()))),
        })
    }

    /// Whether to end the stream instead of answering a write.
    fn loses_answer(&self, frame: &v1::PipeResponse) -> bool {
        let is_write =
            |answer: &v1::PipeAnswer| matches!(answer.answer, Some(v1::pipe_answer::Answer::Write(_)));
        let mut state = self.state.lock().unwrap();
        let loses = state.faults.lost_answers > 0 && frame.answers.iter().any(is_write);
        state.faults.lost_answers -= u32::from(loses);
        loses
    }

    fn pages(&self, request: &v1::ScanRequest) -> Result<Vec<Result<v1::ScanResponse, Status>>, ApiError> {
        let reverse = request.reverse;
        let tablet = self.tablet(&request.table, |tablet| {
            let key = if reverse { &request.to } else { &request.from };
            if reverse {
                tablet.end.is_empty() || (!key.is_empty() && *key <= tablet.end)
            } else {
                tablet.end.is_empty() || *key < tablet.end
            }
        })?;
        let mut state = self.state.lock().unwrap();
        state.scanned_at.push(request.at_ts);
        let ts = if request.at_ts == 0 { state.clock } else { request.at_ts };
        let inside = |key: &Bytes| {
            let resumed = |key: &Bytes| {
                request.resume.is_empty()
                    || if reverse { *key < request.resume } else { *key > request.resume }
            };
            *key >= request.from.clone().max(tablet.start.clone())
                && (request.to.is_empty() || *key < request.to)
                && (tablet.end.is_empty() || *key < tablet.end)
                && resumed(key)
        };
        let mut keys: Vec<_> = state.rows.keys().filter(|key| inside(key)).cloned().collect();
        if reverse {
            keys.reverse();
        }
        let rows = keys.iter().filter_map(|key| {
            let (ts, value) = state.version(key, ts)?;
            Some(v1::Row { key: key.clone(), value, ts, counter: false, expires_ms: 0 })
        });
        let mut rows: Vec<_> = rows.collect();
        if request.limit > 0 {
            rows.truncate(request.limit as usize);
        }
        let mut pages: Vec<Result<v1::ScanResponse, Status>> = Vec::new();
        for chunk in rows.chunks(PAGE_ROWS) {
            let count = chunk.len() as u64;
            let resume = chunk.last().unwrap().key.clone();
            let rows = if request.count_only { Vec::new() } else { chunk.to_vec() };
            pages.push(Ok(v1::ScanResponse { rows, resume, count, ts, tablet_done: false }));
        }
        pages.push(Ok(v1::ScanResponse { ts, tablet_done: true, ..Default::default() }));
        if state.faults.broken_scans > 0 {
            state.faults.broken_scans -= 1;
            pages.truncate(1);
            pages.push(Err(Status::unavailable("cut")));
        }
        Ok(pages)
    }
}

impl State {
    /// Puts a row, not by way of a client.
    pub fn put(&mut self, key: &str, value: &str) {
        self.clock += 1;
        let version = (self.clock, Some(Bytes::copy_from_slice(value.as_bytes())));
        self.rows.entry(Bytes::copy_from_slice(key.as_bytes())).or_default().push(version);
    }

    fn version(&self, key: &Bytes, at: u64) -> Option<(u64, Bytes)> {
        let versions = self.rows.get(key)?;
        let (ts, value) = versions.iter().rev().find(|(ts, _)| at == 0 || *ts <= at)?;
        value.clone().map(|value| (*ts, value))
    }

    fn apply(&mut self, ops: &[v1::WriteOp]) -> Result<v1::WriteResponse, ApiError> {
        use v1::write_op::{Condition, Op};
        for op in ops {
            if let (Some(Condition::Absent(true)), Some(Op::Set(set))) = (&op.condition, &op.op)
                && self.version(&set.key, 0).is_some()
            {
                return Err(ApiError::new(Reason::ConditionFailed, "the row is there"));
            }
        }
        self.clock += 1;
        self.runs += 1;
        let ts = self.clock;
        let mut results = Vec::new();
        for op in ops {
            let mut result = v1::WriteResult::default();
            match op.op.clone().unwrap() {
                Op::Set(set) => self.rows.entry(set.key).or_default().push((ts, Some(set.value))),
                Op::Delete(delete) => self.rows.entry(delete.key).or_default().push((ts, None)),
                Op::Add(add) => {
                    let counter = self.counters.entry(add.key).or_default();
                    *counter += add.delta;
                    result.counter = Some(*counter);
                }
                Op::DeleteRange(range) => {
                    for (_, versions) in self
                        .rows
                        .range_mut(range.from..)
                        .take_while(|(key, _)| range.to.is_empty() || **key < range.to)
                    {
                        versions.push((ts, None));
                    }
                }
            }
            results.push(result);
        }
        let level = Some(v1::AckLevel { kind: v1::AckKind::Leader as i32, copies: 0 });
        Ok(v1::WriteResponse {
            outcome: v1::WriteOutcome::Committed as i32,
            ts,
            epoch: 1,
            seq: ts,
            level,
            results,
            token: None,
            session: Some(v1::SessionToken { lineage: 1, epoch: 1, seq: ts, ts }),
            tablet_id: 0,
        })
    }
}

#[async_trait]
impl KvService for Server {
    type ScanStream = BoxStream<'static, Result<v1::ScanResponse, Status>>;
    type PipeStream = ReceiverStream<Result<v1::PipeResponse, Status>>;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Ok(Response::new(self.read(request.get_ref())?))
    }

    async fn write(&self, request: Request<v1::WriteRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        Ok(Response::new(self.run(request.get_ref())?))
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        Ok(Response::new(stream::iter(self.pages(request.get_ref())?).boxed()))
    }

    async fn pipe(
        &self,
        request: Request<Streaming<v1::PipeRequest>>,
    ) -> Result<Response<Self::PipeStream>, Status> {
        let mut frames = request.into_inner();
        let (answers, out) = mpsc::channel(4);
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                let frame = v1::PipeResponse {
                    answers: frame.calls.into_iter().filter_map(|call| server.answer(call)).collect(),
                };
                let end = server.loses_answer(&frame);
                let message = if end { Err(Status::unavailable("cut")) } else { Ok(frame) };
                if answers.send(message).await.is_err() || end {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(out)))
    }

    async fn get_outcome(
        &self,
        request: Request<v1::GetOutcomeRequest>,
    ) -> Result<Response<v1::GetOutcomeResponse>, Status> {
        let request = request.into_inner();
        self.check(&request.table, &request.key)?;
        let token = request.token.unwrap();
        let state = self.state.lock().unwrap();
        Ok(Response::new(match state.tokens.get(&(token.client_id, token.seq)) {
            Some(known) => {
                v1::GetOutcomeResponse { outcome: known.outcome, ts: known.ts, ..Default::default() }
            }
            None => {
                v1::GetOutcomeResponse { outcome: v1::WriteOutcome::Reverted as i32, ..Default::default() }
            }
        }))
    }
}

#[async_trait]
impl RouteService for Server {
    type WatchRoutesStream = BoxStream<'static, Result<v1::WatchRoutesResponse, Status>>;

    async fn get_routes(
        &self,
        request: Request<v1::GetRoutesRequest>,
    ) -> Result<Response<v1::GetRoutesResponse>, Status> {
        let table = request.into_inner().table;
        if !table.is_empty() && table != "t" {
            return Err(ApiError::new(Reason::TableNotFound, format!("there is no table {table:?}")).into());
        }
        Ok(Response::new(v1::GetRoutesResponse { routes: Some(self.routes.borrow().clone()) }))
    }

    async fn watch_routes(
        &self,
        _: Request<v1::WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let pushes = WatchStream::new(self.routes.subscribe())
            .map(|map| Ok(v1::WatchRoutesResponse { full: true, routes: Some(map), ..Default::default() }));
        Ok(Response::new(pushes.boxed()))
    }
}

/// Each server has one record, whose entries are as many as its id says.
#[async_trait]
impl LostService for Server {
    type ShowLostStream = BoxStream<'static, Result<v1::ShowLostResponse, Status>>;

    async fn list_lost(
        &self,
        request: Request<v1::ListLostRequest>,
    ) -> Result<Response<v1::ListLostResponse>, Status> {
        if self.id == 1 && !request.get_ref().table.is_empty() {
            return Err(ApiError::new(Reason::TableNotFound, "there is no copy of it here").into());
        }
        let record = v1::LostRecord { id: 7, server_id: self.id, writes: self.id, ..Default::default() };
        Ok(Response::new(v1::ListLostResponse { records: vec![record] }))
    }

    async fn show_lost(
        &self,
        request: Request<v1::ShowLostRequest>,
    ) -> Result<Response<Self::ShowLostStream>, Status> {
        if request.get_ref().id != 7 {
            return Err(ApiError::new(Reason::RecordNotFound, "there is no such record").into());
        }
        let page = |seq| v1::ShowLostResponse { entries: vec![v1::LostEntry { seq, ..Default::default() }] };
        Ok(Response::new(stream::iter((1..=self.id).map(move |seq| Ok(page(seq)))).boxed()))
    }
}

/// Only the last server answers as a master; the others point at it.
#[async_trait]
impl AdminService for Server {
    async fn list_tables(
        &self,
        _: Request<v1::ListTablesRequest>,
    ) -> Result<Response<v1::ListTablesResponse>, Status> {
        let leader = self.routes.borrow().masters.last().cloned().unwrap();
        if leader.id != self.id {
            return Err(ApiError::new(Reason::NotLeader, "another master leads")
                .with("leader", leader.address)
                .into());
        }
        let table = Some(v1::Table { id: 1, name: "t".to_owned(), ..v1::Table::default() });
        Ok(Response::new(v1::ListTablesResponse {
            tables: vec![v1::TableSummary { table, ..Default::default() }],
        }))
    }

    async fn create_table(
        &self,
        _: Request<v1::CreateTableRequest>,
    ) -> Result<Response<v1::CreateTableResponse>, Status> {
        Err(ApiError::new(Reason::TableExists, "there is such a table").into())
    }

    async fn describe_table(
        &self,
        request: Request<v1::DescribeTableRequest>,
    ) -> Result<Response<v1::DescribeTableResponse>, Status> {
        if request.get_ref().name == "t" {
            return Ok(Response::new(v1::DescribeTableResponse::default()));
        }
        Err(ApiError::new(Reason::TableNotFound, "there is no such table").into())
    }

    async fn drop_table(
        &self,
        _: Request<v1::DropTableRequest>,
    ) -> Result<Response<v1::DropTableResponse>, Status> {
        Err(ApiError::new(Reason::TableNotFound, "there is no such table").into())
    }

    async fn split_tablet(
        &self,
        _: Request<v1::SplitTabletRequest>,
    ) -> Result<Response<v1::SplitTabletResponse>, Status> {
        Err(ApiError::new(Reason::TabletNotFound, "there is no such tablet").into())
    }

    async fn list_jobs(
        &self,
        _: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        Ok(Response::new(v1::ListJobsResponse::default()))
    }

    async fn describe_job(
        &self,
        _: Request<v1::DescribeJobRequest>,
    ) -> Result<Response<v1::DescribeJobResponse>, Status> {
        Err(ApiError::new(Reason::JobNotFound, "there is no such job").into())
    }

    async fn merge_tablets(
        &self,
        _: Request<v1::MergeTabletsRequest>,
    ) -> Result<Response<v1::MergeTabletsResponse>, Status> {
        Err(Status::internal("the fake merges nothing"))
    }

    async fn move_tablet(
        &self,
        _: Request<v1::MoveTabletRequest>,
    ) -> Result<Response<v1::MoveTabletResponse>, Status> {
        Err(Status::internal("the fake moves nothing"))
    }

    async fn change_table(
        &self,
        _: Request<v1::ChangeTableRequest>,
    ) -> Result<Response<v1::ChangeTableResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn set_server_duty(
        &self,
        _: Request<v1::SetServerDutyRequest>,
    ) -> Result<Response<v1::SetServerDutyResponse>, Status> {
        Err(Status::internal("the fake drains nothing"))
    }

    async fn forget_server(
        &self,
        _: Request<v1::ForgetServerRequest>,
    ) -> Result<Response<v1::ForgetServerResponse>, Status> {
        Err(Status::internal("the fake forgets nothing"))
    }

    async fn cancel_job(
        &self,
        _: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        Err(ApiError::new(Reason::JobNotFound, "there is no such job").into())
    }

    async fn create_backup(
        &self,
        _: Request<v1::CreateBackupRequest>,
    ) -> Result<Response<v1::CreateBackupResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn restore_backup(
        &self,
        _: Request<v1::RestoreBackupRequest>,
    ) -> Result<Response<v1::RestoreBackupResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn list_backup_attempts(
        &self,
        _: Request<v1::ListBackupAttemptsRequest>,
    ) -> Result<Response<v1::ListBackupAttemptsResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn set_backup_schedule(
        &self,
        _: Request<v1::SetBackupScheduleRequest>,
    ) -> Result<Response<v1::SetBackupScheduleResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn remove_backup_schedule(
        &self,
        _: Request<v1::RemoveBackupScheduleRequest>,
    ) -> Result<Response<v1::RemoveBackupScheduleResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn list_backup_schedules(
        &self,
        _: Request<v1::ListBackupSchedulesRequest>,
    ) -> Result<Response<v1::ListBackupSchedulesResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn get_balancer(
        &self,
        _: Request<v1::GetBalancerRequest>,
    ) -> Result<Response<v1::GetBalancerResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn pause_balancer(
        &self,
        _: Request<v1::PauseBalancerRequest>,
    ) -> Result<Response<v1::PauseBalancerResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn explain_tablet(
        &self,
        _: Request<v1::ExplainTabletRequest>,
    ) -> Result<Response<v1::ExplainTabletResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn list_tablets(
        &self,
        _: Request<v1::ListTabletsRequest>,
    ) -> Result<Response<v1::ListTabletsResponse>, Status> {
        Err(Status::unimplemented("is no master"))
    }

    async fn describe_tablet(
        &self,
        _: Request<v1::DescribeTabletRequest>,
    ) -> Result<Response<v1::DescribeTabletResponse>, Status> {
        Err(ApiError::new(Reason::TabletNotFound, "there is no such tablet").into())
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let v1::TransferLeaderRequest { tablet_id, server_id } = *request.get_ref();
        if tablet_id == 1 && server_id == 2 {
            let tablet = v1::Tablet { id: 1, leader_server_id: 2, ..Default::default() };
            let tablet = Some(v1::TabletSummary { tablet: Some(tablet), ..Default::default() });
            return Ok(Response::new(v1::TransferLeaderResponse { tablet, job_id: 7 }));
        }
        if tablet_id == 1 && server_id == 3 {
            return Err(ApiError::new(Reason::TimedOut, "it did not take over").into());
        }
        if tablet_id == 1 {
            return Err(ApiError::new(Reason::NotTransferable, "that copy is not in sync").into());
        }
        Err(ApiError::new(Reason::TabletNotFound, "there is no such tablet").into())
    }

    async fn list_servers(
        &self,
        _: Request<v1::ListServersRequest>,
    ) -> Result<Response<v1::ListServersResponse>, Status> {
        let servers = self.routes.borrow().servers.clone();
        let summary = |server| v1::ServerSummary { server: Some(server), ..Default::default() };
        Ok(Response::new(v1::ListServersResponse { servers: servers.into_iter().map(summary).collect() }))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Err(Status::unimplemented("is no master"))
    }
}
