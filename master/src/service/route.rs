//! Routes: any master answers from its applied state and pushes every change of it.

use super::{Answers, Shared, stopped};
use crate::clock;
use crate::limits::ROUTE_QUEUE_MAX;
use ebla_kernel::ids::TableId;
use ebla_kernel::meta::{Changes, Server, State, Table, Tablet};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::meta::{server_to_wire, table_to_wire, tablet_to_wire};
use ebla_proto::v1::route_service_server::RouteService;
use ebla_proto::v1::{
    self, GetRoutesRequest, GetRoutesResponse, RouteMap, WatchRoutesRequest, WatchRoutesResponse,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The service.
pub(crate) struct Route {
    pub shared: Shared,
}

/// Which tables somebody wants to know about; empty for all.
type Names = BTreeSet<String>;

#[tonic::async_trait]
impl RouteService for Route {
    async fn get_routes(
        &self,
        request: Request<GetRoutesRequest>,
    ) -> Result<Response<GetRoutesResponse>, Status> {
        let name = request.into_inner().table;
        let mut names = Names::new();
        if !name.is_empty() {
            // This master may be a little behind: a table it does not know is looked up for sure.
            if self.shared.raft.view().state().table_named(&name).is_none() && self.shared.role().leading {
                self.shared.confirm_leading().await?;
            }
            if self.shared.raft.view().state().table_named(&name).is_none() {
                return Err(no_table(&name).into());
            }
            names.insert(name);
        }
        Ok(Response::new(GetRoutesResponse { routes: Some(whole_map(&self.shared, &names)) }))
    }

    type WatchRoutesStream = Answers<WatchRoutesResponse>;

    async fn watch_routes(
        &self,
        request: Request<WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let names: Names = request.into_inner().tables.into_iter().collect();
        let (answers, stream) = mpsc::channel(ROUTE_QUEUE_MAX);
        let watcher = Watcher { shared: self.shared.clone(), names, answers };
        tokio::spawn(watcher.run());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// The answer when there is no such table.
pub(crate) fn no_table(name: &str) -> ApiError {
    let hint = format!("there is no table {name}: create it with `ebla table create {name}`");
    ApiError::new(Reason::TableNotFound, hint)
}

struct Watcher {
    shared: Shared,
    names: Names,
    answers: mpsc::Sender<Result<WatchRoutesResponse, Status>>,
}

impl Watcher {
    async fn run(self) {
        let mut stop = std::pin::pin!(stopped(self.shared.stopping.clone()));
        let mut changes = self.shared.raft.view().watch_changes();
        let mut role = self.shared.raft.view().watch_role();
        let mut next = self.full();
        loop {
            if self.answers.send(Ok(next)).await.is_err() {
                return;
            }
            next = tokio::select! {
                () = &mut stop => return,
                () = self.answers.closed() => return,
                changed = changes.recv() => match changed {
                    Ok(first) => self.delta(first, &mut changes),
                    Err(RecvError::Lagged(_)) => self.full(),
                    Err(RecvError::Closed) => return,
                },
                changed = role.changed() => match changed {
                    Ok(()) => self.masters(),
                    Err(_) => return,
                },
            };
        }
    }

    fn full(&self) -> WatchRoutesResponse {
        let routes = Some(whole_map(&self.shared, &self.names));
        WatchRoutesResponse { full: true, routes, ..Default::default() }
    }

    /// Another master leads.
    fn masters(&self) -> WatchRoutesResponse {
        let routes = empty_map(&self.shared, &self.shared.raft.view().state());
        WatchRoutesResponse { routes: Some(routes), ..Default::default() }
    }

    /// Everything that changed by now, in one message.
    fn delta(
        &self,
        first: Arc<Changes>,
        changes: &mut broadcast::Receiver<Arc<Changes>>,
    ) -> WatchRoutesResponse {
        let mut all = Changes::clone(&first);
        loop {
            match changes.try_recv() {
                Ok(more) => merge(&mut all, &more),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                Err(TryRecvError::Lagged(_)) => all.all = true,
            }
        }
        if all.all { self.full() } else { self.some(&all) }
    }

    fn some(&self, changes: &Changes) -> WatchRoutesResponse {
        let state = self.shared.raft.view().state();
        let mut routes = empty_map(&self.shared, &state);
        let tables = changes.tables.iter().filter_map(|id| state.table(*id));
        routes.tables = tables.filter(|table| self.wants(table)).map(table_to_wire).collect();
        let tablets = changes.tablets.iter().filter_map(|id| state.tablet(*id));
        let wanted =
            tablets.filter(|tablet| state.table(tablet.table).is_some_and(|table| self.wants(table)));
        routes.tablets = wanted.map(|tablet| tablet_to_wire(&state, tablet)).collect();
        // A new run of a server ends its leaderships.
        for server in &changes.servers {
            let led = state.tablets_on(*server).filter(|tablet| !changes.tablets.contains(&tablet.id));
            let led = led.filter(|tablet| state.table(tablet.table).is_some_and(|table| self.wants(table)));
            routes.tablets.extend(led.map(|tablet| tablet_to_wire(&state, tablet)));
        }
        let servers = changes.servers.iter().filter_map(|id| state.server(*id));
        routes.servers = servers.map(|server| one_server(&self.shared, server)).collect();
        WatchRoutesResponse {
            full: false,
            routes: Some(routes),
            removed_table_ids: changes.removed_tables.iter().map(|id: &TableId| id.0).collect(),
            removed_tablet_ids: changes.removed_tablets.keys().map(|id| id.0).collect(),
        }
    }

    fn wants(&self, table: &Table) -> bool {
        self.names.is_empty() || self.names.contains(&table.name)
    }
}

fn merge(all: &mut Changes, more: &Changes) {
    all.all |= more.all;
    all.servers.extend(&more.servers);
    all.tables.extend(&more.tables);
    all.removed_tables.extend(&more.removed_tables);
    all.tablets.extend(&more.tablets);
    all.removed_tablets.extend(more.removed_tablets.iter().map(|(id, removed)| (*id, removed.clone())));
}

fn empty_map(shared: &Shared, state: &State) -> RouteMap {
    RouteMap {
        version: state.version(),
        cluster_id: state.cluster_id().map(|id| id.to_string()).unwrap_or_default(),
        masters: shared.masters(),
        safe_ts: state.safe_ts(clock::wall_ms()).map_or(0, |ts| ts.0),
        ..RouteMap::default()
    }
}

fn whole_map(shared: &Shared, names: &Names) -> RouteMap {
    let state = shared.raft.view().state();
    let mut map = empty_map(shared, &state);
    let wanted: Vec<&Table> =
        state.tables().filter(|table| names.is_empty() || names.contains(&table.name)).collect();
    map.tables = wanted.iter().map(|table| table_to_wire(table)).collect();
    let tablets = wanted.iter().flat_map(|table| state.tablets_of(table.id));
    map.tablets = tablets.map(|tablet: &Tablet| tablet_to_wire(&state, tablet)).collect();
    map.servers = state.servers().map(|server| one_server(shared, server)).collect();
    map
}

/// Only the leading master knows which servers are alive.
fn one_server(shared: &Shared, server: &Server) -> v1::Server {
    let state = match shared.role().leading {
        true => shared.liveness.health(server.id).state,
        false => v1::ServerState::Unspecified,
    };
    server_to_wire(server, state)
}
