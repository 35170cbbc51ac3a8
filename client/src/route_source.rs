//! Where routes come from: any master or tablet server that answers, asked in turn, and one
//! stream of pushes per table in use.

use crate::channel::{Channels, Lane};
use crate::client::Shared;
use crate::error::Error;
use crate::limits::{MESSAGE_BYTES_MAX, ROUTE_FETCH_TIMEOUT, ROUTE_WATCH_AFTER, WATCH_BACKOFF_MAX};
use crate::retry::{Backoff, Deadline};
use ebla_proto::error::Reason;
use ebla_proto::v1;
use ebla_proto::v1::route_service_client::RouteServiceClient;
use std::sync::{Arc, Weak};
use tonic::transport::Channel;

impl Shared {
    /// Fetches the routes of `table` from whoever answers first in order, until the deadline.
    pub(crate) async fn fetch_routes(self: &Arc<Self>, table: &str, deadline: Deadline) -> Result<(), Error> {
        let mut backoff = Backoff::new();
        loop {
            match self.fetch_routes_once(table, deadline).await {
                Ok(map) => {
                    let is_new = !self.routes.knows(table);
                    self.routes.put_table(table, map);
                    if is_new {
                        self.watch_later(table);
                    }
                    return Ok(());
                }
                Err(error) if !error.is_worth_a_retry() => {
                    self.routes.forget(table);
                    return Err(error);
                }
                Err(error) => {
                    if !backoff.pause(deadline, &error).await {
                        return Err(Error::timed_out(
                            format!("finding table {table:?}"),
                            deadline.timeout,
                            Some(&error),
                        ));
                    }
                }
            }
        }
    }

    /// Asks every source once. A source that has not heard of the table yet does not decide:
    /// the table is missing only if nobody knows it.
    async fn fetch_routes_once(&self, table: &str, deadline: Deadline) -> Result<v1::RouteMap, Error> {
        let mut missing = None;
        let mut tried = Vec::new();
        for address in self.sources() {
            if deadline.has_passed() {
                break;
            }
            match fetch_from(&self.channels, &address, table, deadline).await {
                Ok(map) if map.tables.iter().any(|known| known.name == table) => {
                    self.remember_source(&address);
                    return Ok(map);
                }
                Ok(_) => missing = Some(table_not_found(table)),
                Err(error) if error.reason() == Reason::TableNotFound => missing = Some(error),
                Err(error) => tried.push(format!("{address} ({error})")),
            }
        }
        Err(missing.unwrap_or_else(|| unreachable(&tried)))
    }

    /// Keeps the routes of `table` fresh from soon on, for as long as the client lives and
    /// the table is in use.
    fn watch_later(self: &Arc<Self>, table: &str) {
        if self.begin_watching(table) {
            tokio::spawn(watch(Arc::downgrade(self), table.to_owned()));
        }
    }
}

async fn fetch_from(
    channels: &Channels,
    address: &str,
    table: &str,
    deadline: Deadline,
) -> Result<v1::RouteMap, Error> {
    let mut client = route_client(channels, address)?;
    let request = v1::GetRoutesRequest { table: table.to_owned() };
    let limit = ROUTE_FETCH_TIMEOUT.min(deadline.left());
    match tokio::time::timeout(limit, client.get_routes(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner().routes.unwrap_or_default()),
        Ok(Err(status)) => Err(Error::from_status(&status)),
        Err(_) => Err(Error::new(Reason::Unavailable, "no answer")),
    }
}

fn route_client(channels: &Channels, address: &str) -> Result<RouteServiceClient<Channel>, Error> {
    let channel = channels.get(address, Lane::Calls)?;
    Ok(RouteServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

fn table_not_found(table: &str) -> Error {
    let hint =
        format!("there is no table {table:?}: see `ebla table list`, or create it with `ebla table create`");
    Error::new(Reason::TableNotFound, hint)
}

/// Nobody who could answer can be reached.
pub(crate) fn unreachable(tried: &[String]) -> Error {
    let hint = format!(
        "no endpoint answers, tried {}: check that the cluster runs (`ebla dev` starts one) and that --endpoints or EBLA_ENDPOINTS name it",
        if tried.is_empty() { "none in time".to_owned() } else { tried.join(", ") }
    );
    Error::new(Reason::Unavailable, hint)
}

/// Watches one table until it, its use or the client is gone.
async fn watch(shared: Weak<Shared>, table: String) {
    follow_all(&shared, &table).await;
    if let Some(shared) = shared.upgrade() {
        shared.end_watching(&table);
        shared.routes.forget(&table);
    }
}

/// Follows the pushes of one table; opened again with growing pauses after a loss.
async fn follow_all(shared: &Weak<Shared>, table: &str) {
    tokio::time::sleep(ROUTE_WATCH_AFTER).await;
    let mut backoff = Backoff::up_to(WATCH_BACKOFF_MAX);
    loop {
        let Some((sources, mut stop)) = shared.upgrade().map(|shared| (shared.sources(), shared.stopped()))
        else {
            return;
        };
        for address in sources {
            let following = follow(shared, &address, table);
            let followed = tokio::select! {
                followed = following => followed,
                _ = stop.changed() => return,
            };
            match followed {
                Followed::Gone => return,
                Followed::Lost => {
                    backoff = Backoff::up_to(WATCH_BACKOFF_MAX);
                    break;
                }
                Followed::Refused => {}
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_pause()) => {}
            _ = stop.changed() => return,
        }
    }
}

/// How following one source ended.
enum Followed {
    /// The table is gone or no longer in use, or the client is.
    Gone,
    /// The stream ended after it had worked.
    Lost,
    /// The source gave nothing.
    Refused,
}

async fn follow(shared: &Weak<Shared>, address: &str, table: &str) -> Followed {
    let Some(client) = shared.upgrade().map(|shared| route_client(&shared.channels, address)) else {
        return Followed::Gone;
    };
    let request = v1::WatchRoutesRequest { tables: vec![table.to_owned()] };
    let Ok(mut client) = client else { return Followed::Refused };
    let Ok(response) = client.watch_routes(request).await else { return Followed::Refused };
    let mut pushes = response.into_inner();
    let mut worked = false;
    while let Ok(Some(push)) = pushes.message().await {
        let Some(shared) = shared.upgrade() else { return Followed::Gone };
        if !shared.routes.knows(table) || !shared.routes.apply_push(table, push) {
            return Followed::Gone;
        }
        worked = true;
    }
    if worked { Followed::Lost } else { Followed::Refused }
}
