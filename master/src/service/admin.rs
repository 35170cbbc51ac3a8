//! What operators ask. Only the leading master answers; the others say who leads.

use super::backup;
use super::balancer;
use super::control::unexpected;
use super::job;
use super::merge;
use super::moves;
use super::route::no_table;
use super::split::split_tablet;
use super::transfer::transfer_leader;
use super::{Shared, summary};
use crate::clock;
use crate::controller::Events;
use crate::limits::{
    ADMIN_TIMEOUT, BACKUP_REQUEST_TIMEOUT, CREATE_POLL, CREATE_TABLETS_PER_SECOND_MIN, CREATE_TIMEOUT_MAX,
    SPLIT_TIMEOUT, TRANSFER_LEADER_TIMEOUT,
};
use crate::placement::place;
use ebla_kernel::ids::{ServerId, TableId, TabletId};
use ebla_kernel::limits::REPLICAS_DEFAULT;
use ebla_kernel::meta::{
    Command, NewTablet, Rejection, Reply, State, Table, TableSpec, check_table_name, cut_ranges,
    is_system_name,
};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::meta::{table_change, table_spec, table_to_wire};
use ebla_proto::v1::admin_service_server::AdminService;
use ebla_proto::v1::{
    CancelJobRequest, CancelJobResponse, ChangeTableRequest, ChangeTableResponse, CreateBackupRequest,
    CreateBackupResponse, CreateTableRequest, CreateTableResponse, DescribeJobRequest, DescribeJobResponse,
    DescribeTableRequest, DescribeTableResponse, DescribeTabletRequest, DescribeTabletResponse,
    DropTableRequest, DropTableResponse, ExplainTabletRequest, ExplainTabletResponse, ForgetServerRequest,
    ForgetServerResponse, GetBalancerRequest, GetBalancerResponse, GetStatusRequest, GetStatusResponse,
    ListBackupAttemptsRequest, ListBackupAttemptsResponse, ListBackupSchedulesRequest,
    ListBackupSchedulesResponse, ListJobsRequest, ListJobsResponse, ListServersRequest, ListServersResponse,
    ListTablesRequest, ListTablesResponse, ListTabletsRequest, ListTabletsResponse, MergeTabletsRequest,
    MergeTabletsResponse, MoveTabletRequest, MoveTabletResponse, PauseBalancerRequest, PauseBalancerResponse,
    RemoveBackupScheduleRequest, RemoveBackupScheduleResponse, RestoreBackupRequest, RestoreBackupResponse,
    SetBackupScheduleRequest, SetBackupScheduleResponse, SetServerDutyRequest, SetServerDutyResponse,
    SplitTabletRequest, SplitTabletResponse, TransferLeaderRequest, TransferLeaderResponse,
};
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

/// The service.
pub(crate) struct Admin {
    pub shared: Shared,
    pub events: Events,
}

/// Bounds a call.
async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<Response<T>, Status> {
    match timeout(limit, work).await {
        Ok(done) => Ok(Response::new(done?)),
        Err(_) => {
            let hint = format!("the masters did not answer within {limit:?}: try again");
            Err(ApiError::new(Reason::TimedOut, hint).into())
        }
    }
}

impl Admin {
    async fn create_table(&self, request: CreateTableRequest) -> Result<CreateTableResponse, ApiError> {
        check_table_name(&request.name)?;
        // What no number of servers would allow is told before anybody is asked.
        table_spec(request.spec.as_ref(), usize::from(REPLICAS_DEFAULT))?;
        let ranges = cut_ranges(&request.split_keys)?;
        self.shared.confirm_leading().await?;
        self.shared.settle().await;
        let spec = table_spec(request.spec.as_ref(), self.shared.candidates().len())?;
        if self.shared.raft.view().state().table_named(&request.name).is_some() {
            return Err(table_exists(&request.name));
        }
        let placed = self.place(&request.name, &spec, ranges.len())?;
        let tablets = ranges.into_iter().zip(placed);
        let tablets = tablets.map(|(range, servers)| NewTablet { range, servers }).collect();
        let (table, tablets) = self.propose_table(request.name, spec, tablets).await?;
        self.wait_until_served(&table, &tablets).await?;
        Ok(CreateTableResponse { table: Some(table_to_wire(&table)) })
    }

    async fn propose_table(
        &self,
        name: String,
        spec: TableSpec,
        tablets: Vec<NewTablet>,
    ) -> Result<(Table, Vec<TabletId>), ApiError> {
        let command = Command::CreateTable { name, spec, tablets, time_ms: clock::wall_ms() };
        match self.shared.raft.propose(command).await.map_err(|why| self.shared.no_answer(why))? {
            Reply::Created(table, tablets) => Ok((table, tablets)),
            Reply::Rejected(rejection) => Err(rejection.into()),
            other => Err(unexpected(&other)),
        }
    }

    /// Servers for each of `tablets` tablets.
    fn place(&self, table: &str, spec: &TableSpec, tablets: usize) -> Result<Vec<Vec<ServerId>>, ApiError> {
        let candidates = self.shared.candidates();
        place(table, tablets, usize::from(spec.replicas), &candidates).ok_or_else(|| {
            let (up, needed) = (candidates.len(), spec.replicas);
            let hint = format!(
                "{up} tablet servers are up and {needed} are needed, one for each copy, so nothing was created: start more with `ebla tabletserver` or give --replicas {}, see `ebla server list`",
                up.max(1)
            );
            // The first servers may be starting; of more nobody knows whether they ever come.
            let reason = if up == 0 { Reason::Unavailable } else { Reason::TooFewServers };
            ApiError::new(reason, hint)
        })
    }

    /// Waits until the leader of every tablet says that it serves.
    async fn wait_until_served(&self, table: &Table, tablets: &[TabletId]) -> Result<(), ApiError> {
        let limit = create_timeout(tablets.len());
        let start = Instant::now();
        loop {
            let serving = {
                let state = self.shared.raft.view().state();
                let tablets = tablets.iter().filter_map(|id| state.tablet(*id));
                self.shared.liveness.count_reported(tablets)
            };
            if serving == tablets.len() {
                return Ok(());
            }
            self.still_waiting(table.id)?;
            if start.elapsed() > limit {
                let hint = format!(
                    "table {} is created, but only {serving} of its {} tablets serve: follow `ebla table describe {}`",
                    table.name,
                    tablets.len(),
                    table.name
                );
                return Err(ApiError::new(Reason::TimedOut, hint));
            }
            tokio::time::sleep(CREATE_POLL).await;
        }
    }

    fn still_waiting(&self, table: TableId) -> Result<(), ApiError> {
        if !self.shared.role().leading {
            let hint =
                "leadership moved while the table was brought up: it is created; follow `ebla table list`";
            return Err(ApiError::new(Reason::Unavailable, hint));
        }
        if self.shared.raft.view().state().table(table).is_none() {
            return Err(ApiError::new(
                Reason::TableNotFound,
                "the table was dropped while it was brought up",
            ));
        }
        Ok(())
    }

    async fn change_table(&self, request: ChangeTableRequest) -> Result<ChangeTableResponse, ApiError> {
        refuse_system_table(&request.name)?;
        let change = table_change(&request)?;
        self.shared.confirm_leading().await?;
        let table = self.shared.raft.view().state().table_named(&request.name).map(|table| table.id);
        let table = table.ok_or_else(|| no_table(&request.name))?;
        let command = Command::ChangeTable { table, change };
        match self.shared.raft.propose(command).await.map_err(|why| self.shared.no_answer(why))? {
            Reply::Changed(table) => Ok(ChangeTableResponse { table: Some(table_to_wire(&table)) }),
            Reply::Rejected(Rejection::NoTable(_)) => Err(no_table(&request.name)),
            Reply::Rejected(why) => Err(why.into()),
            other => Err(unexpected(&other)),
        }
    }

    async fn drop_table(&self, name: &str) -> Result<DropTableResponse, ApiError> {
        refuse_system_table(name)?;
        self.shared.confirm_leading().await?;
        let table = self.shared.raft.view().state().table_named(name).map(|table| table.id);
        let table = table.ok_or_else(|| no_table(name))?;
        let command = Command::DropTable { table, time_ms: clock::wall_ms() };
        match self.shared.raft.propose(command).await.map_err(|why| self.shared.no_answer(why))? {
            Reply::Dropped(_) => Ok(DropTableResponse {}),
            Reply::Rejected(Rejection::NoTable(_)) => Err(no_table(name)),
            Reply::Rejected(rejection) => Err(rejection.into()),
            other => Err(unexpected(&other)),
        }
    }

    async fn list_tablets(&self, name: &str) -> Result<ListTabletsResponse, ApiError> {
        self.shared.confirm_leading().await?;
        let state = self.shared.raft.view().state();
        let mut tables: Vec<&Table> = match name {
            "" => state.tables().filter(|table| !is_system_name(&table.name)).collect(),
            name => vec![state.table_named(name).ok_or_else(|| no_table(name))?],
        };
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        let tablets = tables.iter().flat_map(|table| state.tablets_of(table.id));
        let tablets = tablets.map(|tablet| summary::tablet(&self.shared, &state, tablet)).collect();
        Ok(ListTabletsResponse { tablets })
    }

    async fn describe_table(&self, name: &str) -> Result<DescribeTableResponse, ApiError> {
        self.shared.confirm_leading().await?;
        let state = self.shared.raft.view().state();
        let table = state.table_named(name).ok_or_else(|| no_table(name))?;
        Ok(DescribeTableResponse {
            table: Some(summary::table(&self.shared, &state, table)),
            failures_tolerated: table.spec.failures_tolerated(),
        })
    }

    async fn describe_tablet(&self, id: u64) -> Result<DescribeTabletResponse, ApiError> {
        self.shared.confirm_leading().await?;
        let state = self.shared.raft.view().state();
        let tablet = state.tablet(TabletId(id)).ok_or_else(|| no_tablet(&state, TabletId(id)))?;
        Ok(DescribeTabletResponse { tablet: Some(summary::tablet(&self.shared, &state, tablet)) })
    }

    async fn list_tables(&self, request: &ListTablesRequest) -> Result<ListTablesResponse, ApiError> {
        self.shared.confirm_leading().await?;
        let state = self.shared.raft.view().state();
        let wanted = |table: &&Table| request.system || !is_system_name(&table.name);
        let mut tables: Vec<&Table> = state.tables().filter(wanted).collect();
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        let tables = tables.into_iter().map(|table| summary::table(&self.shared, &state, table)).collect();
        Ok(ListTablesResponse { tables })
    }

    async fn list_servers(&self) -> Result<ListServersResponse, ApiError> {
        self.shared.confirm_leading().await?;
        let state = self.shared.raft.view().state();
        Ok(ListServersResponse { servers: summary::servers(&self.shared, &state) })
    }

    async fn get_status(&self) -> Result<GetStatusResponse, ApiError> {
        self.shared.confirm_leading().await?;
        let state = self.shared.raft.view().state();
        Ok(summary::status(&self.shared, &state))
    }
}

/// The answer when there is no such tablet, or no longer.
pub(super) fn no_tablet(state: &State, id: TabletId) -> ApiError {
    if let Some(successors) = state.successors(id) {
        return Rejection::Retired(id, successors).into();
    }
    let hint = format!("there is no tablet {}: `ebla tablet list` shows them", id.0);
    ApiError::new(Reason::TabletNotFound, hint)
}

fn refuse_system_table(name: &str) -> Result<(), ApiError> {
    if !is_system_name(name) {
        return Ok(());
    }
    let hint = format!("table {name} belongs to the system, which keeps it by itself: name a table of yours");
    Err(ApiError::new(Reason::BadRequest, hint))
}

fn table_exists(name: &str) -> ApiError {
    let hint = format!("table {name} exists already: drop it first or choose another name");
    ApiError::new(Reason::TableExists, hint)
}

/// How long the tablets of a new table may take until they serve.
fn create_timeout(tablets: usize) -> Duration {
    let seconds = tablets as u64 / CREATE_TABLETS_PER_SECOND_MIN;
    (ADMIN_TIMEOUT + Duration::from_secs(seconds)).min(CREATE_TIMEOUT_MAX)
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn create_table(
        &self,
        request: Request<CreateTableRequest>,
    ) -> Result<Response<CreateTableResponse>, Status> {
        let request = request.into_inner();
        // The wait for serving has its own limit with its own message; this one is above it.
        let limit = create_timeout(request.split_keys.len()) + ADMIN_TIMEOUT;
        within(limit, self.create_table(request)).await
    }

    async fn list_tables(
        &self,
        request: Request<ListTablesRequest>,
    ) -> Result<Response<ListTablesResponse>, Status> {
        within(ADMIN_TIMEOUT, self.list_tables(request.get_ref())).await
    }

    async fn describe_table(
        &self,
        request: Request<DescribeTableRequest>,
    ) -> Result<Response<DescribeTableResponse>, Status> {
        within(ADMIN_TIMEOUT, self.describe_table(&request.into_inner().name)).await
    }

    async fn change_table(
        &self,
        request: Request<ChangeTableRequest>,
    ) -> Result<Response<ChangeTableResponse>, Status> {
        within(ADMIN_TIMEOUT, self.change_table(request.into_inner())).await
    }

    async fn drop_table(
        &self,
        request: Request<DropTableRequest>,
    ) -> Result<Response<DropTableResponse>, Status> {
        within(ADMIN_TIMEOUT, self.drop_table(&request.into_inner().name)).await
    }

    async fn list_tablets(
        &self,
        request: Request<ListTabletsRequest>,
    ) -> Result<Response<ListTabletsResponse>, Status> {
        within(ADMIN_TIMEOUT, self.list_tablets(&request.into_inner().table)).await
    }

    async fn describe_tablet(
        &self,
        request: Request<DescribeTabletRequest>,
    ) -> Result<Response<DescribeTabletResponse>, Status> {
        within(ADMIN_TIMEOUT, self.describe_tablet(request.into_inner().id)).await
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let limit = TRANSFER_LEADER_TIMEOUT + ADMIN_TIMEOUT;
        within(limit, transfer_leader(&self.shared, &self.events, request.into_inner())).await
    }

    async fn split_tablet(
        &self,
        request: Request<SplitTabletRequest>,
    ) -> Result<Response<SplitTabletResponse>, Status> {
        let limit = SPLIT_TIMEOUT + ADMIN_TIMEOUT;
        within(limit, split_tablet(&self.shared, request.into_inner())).await
    }

    async fn merge_tablets(
        &self,
        request: Request<MergeTabletsRequest>,
    ) -> Result<Response<MergeTabletsResponse>, Status> {
        within(ADMIN_TIMEOUT, merge::merge_tablets(&self.shared, request.into_inner())).await
    }

    async fn move_tablet(
        &self,
        request: Request<MoveTabletRequest>,
    ) -> Result<Response<MoveTabletResponse>, Status> {
        within(ADMIN_TIMEOUT, moves::move_tablet(&self.shared, request.into_inner())).await
    }

    async fn set_server_duty(
        &self,
        request: Request<SetServerDutyRequest>,
    ) -> Result<Response<SetServerDutyResponse>, Status> {
        within(ADMIN_TIMEOUT, moves::set_duty(&self.shared, request.into_inner())).await
    }

    async fn forget_server(
        &self,
        request: Request<ForgetServerRequest>,
    ) -> Result<Response<ForgetServerResponse>, Status> {
        within(ADMIN_TIMEOUT, moves::forget(&self.shared, request.into_inner())).await
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        within(ADMIN_TIMEOUT, job::list(&self.shared, request.into_inner())).await
    }

    async fn describe_job(
        &self,
        request: Request<DescribeJobRequest>,
    ) -> Result<Response<DescribeJobResponse>, Status> {
        within(ADMIN_TIMEOUT, job::describe(&self.shared, request.into_inner())).await
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        within(ADMIN_TIMEOUT, job::cancel(&self.shared, request.into_inner())).await
    }

    async fn get_balancer(
        &self,
        request: Request<GetBalancerRequest>,
    ) -> Result<Response<GetBalancerResponse>, Status> {
        within(ADMIN_TIMEOUT, balancer::status(&self.shared, request.into_inner())).await
    }

    async fn pause_balancer(
        &self,
        request: Request<PauseBalancerRequest>,
    ) -> Result<Response<PauseBalancerResponse>, Status> {
        within(ADMIN_TIMEOUT, balancer::pause(&self.shared, request.into_inner())).await
    }

    async fn explain_tablet(
        &self,
        request: Request<ExplainTabletRequest>,
    ) -> Result<Response<ExplainTabletResponse>, Status> {
        within(ADMIN_TIMEOUT, balancer::explain(&self.shared, request.into_inner())).await
    }

    async fn create_backup(
        &self,
        request: Request<CreateBackupRequest>,
    ) -> Result<Response<CreateBackupResponse>, Status> {
        within(BACKUP_REQUEST_TIMEOUT, backup::create(&self.shared, request.into_inner())).await
    }

    async fn restore_backup(
        &self,
        request: Request<RestoreBackupRequest>,
    ) -> Result<Response<RestoreBackupResponse>, Status> {
        within(BACKUP_REQUEST_TIMEOUT, backup::restore(&self.shared, request.into_inner())).await
    }

    async fn list_backup_attempts(
        &self,
        _: Request<ListBackupAttemptsRequest>,
    ) -> Result<Response<ListBackupAttemptsResponse>, Status> {
        within(ADMIN_TIMEOUT, backup::attempts(&self.shared)).await
    }

    async fn set_backup_schedule(
        &self,
        request: Request<SetBackupScheduleRequest>,
    ) -> Result<Response<SetBackupScheduleResponse>, Status> {
        within(BACKUP_REQUEST_TIMEOUT, backup::set_schedule(&self.shared, request.into_inner())).await
    }

    async fn remove_backup_schedule(
        &self,
        request: Request<RemoveBackupScheduleRequest>,
    ) -> Result<Response<RemoveBackupScheduleResponse>, Status> {
        within(ADMIN_TIMEOUT, backup::remove_schedule(&self.shared, request.into_inner())).await
    }

    async fn list_backup_schedules(
        &self,
        _: Request<ListBackupSchedulesRequest>,
    ) -> Result<Response<ListBackupSchedulesResponse>, Status> {
        within(ADMIN_TIMEOUT, backup::schedules(&self.shared)).await
    }

    async fn list_servers(
        &self,
        _: Request<ListServersRequest>,
    ) -> Result<Response<ListServersResponse>, Status> {
        within(ADMIN_TIMEOUT, self.list_servers()).await
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        within(ADMIN_TIMEOUT, self.get_status()).await
    }
}
