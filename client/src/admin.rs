//! What operators ask, sent to the master that leads, wherever that is.

use crate::channel::Lane;
use crate::client::Client;
use crate::error::Error;
use crate::limits::{ADMIN_READ_TIMEOUT, CREATE_TABLE_TIMEOUT, MESSAGE_BYTES_MAX, TRANSFER_LEADER_TIMEOUT};
use crate::retry::{Backoff, Deadline};
use crate::route_source::unreachable;
use ebla_proto::error::Reason;
use ebla_proto::v1;
use ebla_proto::v1::admin_service_client::AdminServiceClient;
use ebla_proto::v1::route_service_client::RouteServiceClient;
use std::collections::VecDeque;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// Calls of the operators' service.
#[derive(Clone, Debug)]
pub struct Admin {
    pub(crate) client: Client,
}

impl Client {
    /// Calls of the operators' service.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin { client: self.clone() }
    }
}

pub(crate) type AdminClient = AdminServiceClient<Channel>;

/// What a call may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// It changes nothing, so that another master may be asked when one is silent.
    Question,
    /// It changes something and may take this long.
    Change(Duration),
    /// As before, and the master waits for the effect: that it did not come in time is an answer.
    Order(Duration),
}

impl Admin {
    /// Creates a table and returns when every tablet of it serves.
    ///
    /// # Errors
    /// `TABLE_EXISTS`, `BAD_REQUEST`, `UNAVAILABLE` and what a master reports.
    pub async fn create_table(&self, request: v1::CreateTableRequest) -> Result<v1::Table, Error> {
        let mut lost = false;
        let created = self
            .call(Kind::Change(CREATE_TABLE_TIMEOUT), &mut lost, |mut admin| {
                let request = request.clone();
                async move { admin.create_table(request).await }
            })
            .await;
        match created {
            Ok(created) => created.table.ok_or_else(|| incomplete("table")),
            // The first try may have been the one that made it.
            Err(error) if lost && error.reason() == Reason::TableExists => {
                let summary =
                    self.describe_table(&request.name).await?.table.ok_or_else(|| incomplete("table"))?;
                summary.table.ok_or_else(|| incomplete("table"))
            }
            Err(error) => Err(error),
        }
    }

    /// Changes what may be changed of a table; what is not set stays.
    ///
    /// # Errors
    /// `TABLE_NOT_FOUND`, `BAD_REQUEST`, `UNAVAILABLE` and what a master reports.
    pub async fn change_table(&self, request: v1::ChangeTableRequest) -> Result<v1::Table, Error> {
        let mut lost = false;
        let call = |mut admin: AdminClient| {
            let request = request.clone();
            async move { admin.change_table(request).await }
        };
        let changed = self.call(Kind::Change(self.client.timeout), &mut lost, call).await?;
        changed.table.ok_or_else(|| incomplete("table"))
    }

    /// Drops a table.
    ///
    /// # Errors
    /// `TABLE_NOT_FOUND`, `UNAVAILABLE` and what a master reports.
    pub async fn drop_table(&self, name: &str) -> Result<(), Error> {
        let mut lost = false;
        let dropped = self
            .call(Kind::Change(self.client.timeout), &mut lost, |mut admin| {
                let request = v1::DropTableRequest { name: name.to_owned() };
                async move { admin.drop_table(request).await }
            })
            .await;
        self.client.shared.routes.forget(name);
        match dropped {
            Ok(_) => Ok(()),
            Err(error) if lost && error.reason() == Reason::TableNotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All tables of users.
    ///
    /// # Errors
    /// `UNAVAILABLE` and what a master reports.
    pub async fn list_tables(&self) -> Result<Vec<v1::TableSummary>, Error> {
        self.list(v1::ListTablesRequest { system: false }).await
    }

    /// All tables, those that the cluster keeps for itself included.
    ///
    /// # Errors
    /// As [`Self::list_tables`].
    pub async fn list_all_tables(&self) -> Result<Vec<v1::TableSummary>, Error> {
        self.list(v1::ListTablesRequest { system: true }).await
    }

    async fn list(&self, request: v1::ListTablesRequest) -> Result<Vec<v1::TableSummary>, Error> {
        let call = |mut admin: AdminClient| async move { admin.list_tables(request).await };
        Ok(self.ask(call).await?.tables)
    }

    /// One table.
    ///
    /// # Errors
    /// `TABLE_NOT_FOUND`, `UNAVAILABLE` and what a master reports.
    pub async fn describe_table(&self, name: &str) -> Result<v1::DescribeTableResponse, Error> {
        self.ask(|mut admin: AdminClient| {
            let request = v1::DescribeTableRequest { name: name.to_owned() };
            async move { admin.describe_table(request).await }
        })
        .await
    }

    /// The tablets of one table, or of all when the name is empty.
    ///
    /// # Errors
    /// `TABLE_NOT_FOUND`, `UNAVAILABLE` and what a master reports.
    pub async fn list_tablets(&self, table: &str) -> Result<Vec<v1::TabletSummary>, Error> {
        let response = self
            .ask(|mut admin: AdminClient| {
                let request = v1::ListTabletsRequest { table: table.to_owned() };
                async move { admin.list_tablets(request).await }
            })
            .await?;
        Ok(response.tablets)
    }

    /// One tablet.
    ///
    /// # Errors
    /// `TABLET_NOT_FOUND`, `UNAVAILABLE` and what a master reports.
    pub async fn describe_tablet(&self, id: u64) -> Result<v1::TabletSummary, Error> {
        let call = |mut admin: AdminClient| async move {
            admin.describe_tablet(v1::DescribeTabletRequest { id }).await
        };
        self.ask(call).await?.tablet.ok_or_else(|| incomplete("tablet"))
    }

    /// Hands the leadership of a tablet to the copy on a server; returns when that serves. The job
    /// is 0 when an answer was lost on the way.
    ///
    /// # Errors
    /// `NOT_TRANSFERABLE`, `TABLET_NOT_FOUND`, `SERVER_NOT_FOUND`, `TIMED_OUT`, `UNAVAILABLE` and
    /// what a master reports.
    pub async fn transfer_leader(
        &self,
        tablet_id: u64,
        server_id: u64,
    ) -> Result<v1::TransferLeaderResponse, Error> {
        let mut lost = false;
        let call = |mut admin: AdminClient| async move {
            admin.transfer_leader(v1::TransferLeaderRequest { tablet_id, server_id }).await
        };
        let transferred = self.call(Kind::Order(TRANSFER_LEADER_TIMEOUT), &mut lost, call).await;
        match transferred {
            Ok(response) if response.tablet.is_none() => Err(incomplete("tablet")),
            // The first try may have been the one that did it.
            Err(error) if lost && error.reason() == Reason::NotTransferable => {
                let summary = self.describe_tablet(tablet_id).await?;
                let leads =
                    summary.tablet.as_ref().is_some_and(|tablet| tablet.leader_server_id == server_id);
                let answer = v1::TransferLeaderResponse { tablet: Some(summary), job_id: 0 };
                if leads { Ok(answer) } else { Err(error) }
            }
            answer => answer,
        }
    }

    /// All tablet servers.
    ///
    /// # Errors
    /// `UNAVAILABLE` and what a master reports.
    pub async fn list_servers(&self) -> Result<Vec<v1::ServerSummary>, Error> {
        let call =
            |mut admin: AdminClient| async move { admin.list_servers(v1::ListServersRequest {}).await };
        Ok(self.ask(call).await?.servers)
    }

    /// The cluster at a glance.
    ///
    /// # Errors
    /// `UNAVAILABLE` and what a master reports.
    pub async fn status(&self) -> Result<v1::GetStatusResponse, Error> {
        self.ask(|mut admin: AdminClient| async move { admin.get_status(v1::GetStatusRequest {}).await })
            .await
    }

    pub(crate) async fn ask<T, F>(&self, call: impl Fn(AdminClient) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(Kind::Question, &mut false, call).await
    }

    /// Calls the master that leads: candidates in turn, following what they say about who
    /// leads. A leader has to be found within the client's deadline. `lost` is set when a try may have run without an answer.
    pub(crate) async fn call<T, F>(
        &self,
        kind: Kind,
        lost: &mut bool,
        call: impl Fn(AdminClient) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let find = Deadline::after(self.client.timeout);
        let mut backoff = Backoff::new();
        loop {
            let mut round = Round::default();
            let mut candidates: VecDeque<_> = self.client.shared.master_candidates().into();
            while let Some(address) = candidates.pop_front() {
                if !round.begin(&address) {
                    continue;
                }
                let admin = self.client.shared.channels.get(&address, Lane::Calls)?;
                let admin = AdminServiceClient::new(admin).max_decoding_message_size(MESSAGE_BYTES_MAX);
                let limit = match kind {
                    Kind::Question => ADMIN_READ_TIMEOUT.min(find.left()),
                    Kind::Change(run) | Kind::Order(run) => run.max(find.left()),
                };
                let status = match tokio::time::timeout(limit, call(admin)).await {
                    Ok(Ok(response)) => return Ok(response.into_inner()),
                    Ok(Err(status)) => status,
                    Err(_) if kind == Kind::Question => {
                        round.failed.push(format!("{address} (no answer)"));
                        continue;
                    }
                    Err(_) => {
                        return Err(Error::timed_out("the request to the master", limit, None).indefinite());
                    }
                };
                let error = Error::from_status(&status);
                if status.code() == tonic::Code::Unimplemented {
                    candidates.extend(self.masters_known_to(&address).await);
                    round.failed.push(format!("{address} (is no master)"));
                    continue;
                }
                let is_answer = matches!(kind, Kind::Order(_)) && error.reason() == Reason::TimedOut;
                if is_answer || !error.is_worth_a_retry() {
                    return Err(error);
                }
                *lost |= !error.is_definite();
                if let Some(leader) = error.fact("leader") {
                    candidates.push_front(leader.to_owned());
                }
                round.note(&address, error);
            }
            let error = round.error();
            if !backoff.pause(find, &error).await {
                return Err(if *lost { error.indefinite() } else { error });
            }
        }
    }

    /// The masters that a tablet server knows of.
    async fn masters_known_to(&self, address: &str) -> Vec<String> {
        let Ok(channel) = self.client.shared.channels.get(address, Lane::Calls) else { return Vec::new() };
        let mut routes = RouteServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let asking = routes.get_routes(v1::GetRoutesRequest::default());
        match tokio::time::timeout(crate::limits::ROUTE_FETCH_TIMEOUT, asking).await {
            Ok(Ok(response)) => {
                let masters = response.into_inner().routes.unwrap_or_default().masters;
                masters.into_iter().map(|master| master.address).collect()
            }
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }
}

/// One pass over the candidates.
#[derive(Default)]
struct Round {
    begun: Vec<String>,
    failed: Vec<String>,
    /// Why the one that leads could not do it.
    refused: Option<Error>,
}

impl Round {
    /// Most tries at one address per pass: once as a candidate, once because another master
    /// named it as the leader since.
    const TRIES_MAX: usize = 2;

    fn begin(&mut self, address: &str) -> bool {
        if self.begun.iter().filter(|begun| *begun == address).count() >= Self::TRIES_MAX {
            return false;
        }
        self.begun.push(address.to_owned());
        true
    }

    fn note(&mut self, address: &str, error: Error) {
        self.failed.push(format!("{address} ({error})"));
        if error.is_definite() && error.reason() != Reason::NotLeader {
            self.refused = Some(error);
        }
    }

    /// Why nobody did it.
    fn error(self) -> Error {
        self.refused.unwrap_or_else(|| unreachable(&self.failed))
    }
}

pub(crate) fn incomplete(what: &str) -> Error {
    let hint = format!("the master's answer has no {what}: is it newer than this client?");
    Error::new(Reason::Internal, hint)
}
