//! `RouteService` from the cached map: clients find their way also while all masters are down.

use crate::node::Node;
use crate::routes::{Routes, TableInfo};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::route_service_server::RouteService;
use ebla_proto::v1::{GetRoutesRequest, GetRoutesResponse, WatchRoutesRequest, WatchRoutesResponse};
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Changes that wait for a slow watcher before it is sent the whole map instead.
const CHANGES_WAITING: usize = 16;

/// The service.
pub struct Route {
    /// The server behind it.
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl RouteService for Route {
    type WatchRoutesStream = ReceiverStream<Result<WatchRoutesResponse, Status>>;

    async fn get_routes(
        &self,
        request: Request<GetRoutesRequest>,
    ) -> Result<Response<GetRoutesResponse>, Status> {
        let name = request.into_inner().table;
        if !name.is_empty() {
            self.node.known_table(&name)?;
        }
        let routes = self.node.routes.now();
        if routes.version == 0 {
            let hint = "this server has not heard from a master yet: try again, or another server";
            return Err(ApiError::new(Reason::Unavailable, hint).into());
        }
        let map = routes.to_wire(|info| name.is_empty() || info.table.name == name);
        Ok(Response::new(GetRoutesResponse { routes: Some(map) }))
    }

    async fn watch_routes(
        &self,
        request: Request<WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let names = request.into_inner().tables;
        let (to, out) = mpsc::channel(CHANGES_WAITING);
        tokio::spawn(push_changes(Arc::clone(&self.node), names, to));
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

/// Sends the map, then every change that concerns the wanted tables.
async fn push_changes(
    node: Arc<Node>,
    names: Vec<String>,
    to: mpsc::Sender<Result<WatchRoutesResponse, Status>>,
) {
    let wanted = |info: &TableInfo| names.is_empty() || names.contains(&info.table.name);
    let (routes, mut changes) = node.routes.watch();
    if to.send(Ok(whole(&routes, wanted))).await.is_err() {
        return;
    }
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = to.closed() => return,
        };
        let message = match change {
            Ok(change) if names.is_empty() && !change.full => WatchRoutesResponse::clone(&change),
            Ok(change) if !change.full => narrowed(&change, &node.routes.now(), wanted),
            // Too far behind, or the map was replaced: everything again.
            Ok(_) | Err(RecvError::Lagged(_)) => whole(&node.routes.now(), wanted),
            Err(RecvError::Closed) => return,
        };
        if to.send(Ok(message)).await.is_err() {
            return;
        }
    }
}

fn whole(routes: &Routes, wanted: impl Fn(&TableInfo) -> bool) -> WatchRoutesResponse {
    WatchRoutesResponse { full: true, routes: Some(routes.to_wire(wanted)), ..Default::default() }
}

/// A change without the tables that nobody asked for.
fn narrowed(
    change: &WatchRoutesResponse,
    routes: &Routes,
    wanted: impl Fn(&TableInfo) -> bool,
) -> WatchRoutesResponse {
    let ids: Vec<u32> = routes.tables().filter(|info| wanted(info)).map(|info| info.id.0).collect();
    let mut change = change.clone();
    if let Some(map) = &mut change.routes {
        map.tables.retain(|table: &v1::Table| ids.contains(&table.id));
        map.tablets.retain(|tablet: &v1::Tablet| ids.contains(&tablet.table_id));
    }
    change
}
