//! `ebla server`: tablet servers.

use super::{connect, moves, output};
use crate::cli::{Global, Server};
use crate::exit::Failure;
use crate::parse::ServerName;
use ebla_client::{Client, v1};
use serde_json::{Value as Json, json};
use std::process::ExitCode;

/// Lists the tablet servers, drains, empties or forgets one.
pub async fn run(global: &Global, command: Server) -> anyhow::Result<ExitCode> {
    let mut out = output(global);
    match command {
        Server::List(wait) => {
            let servers = connect(global, wait).await?.admin().list_servers().await?;
            let objects: Vec<_> = servers.iter().map(server_json).collect();
            out.list(&["id", "address", "zone", "state", "duty", "tablets", "leaders"], &objects)?;
        }
        Server::Drain(args) => moves::drain(global, args, &mut out).await?,
        Server::Decommission(args) => moves::decommission(global, args, &mut out).await?,
        Server::Activate(args) => moves::activate(global, args, &mut out).await?,
        Server::Forget(args) => moves::forget(global, args, &mut out).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The server of a name.
pub async fn resolve(client: &Client, name: &ServerName) -> anyhow::Result<v1::Server> {
    let servers = client.admin().list_servers().await?.into_iter().filter_map(|summary| summary.server);
    let is_meant = |server: &v1::Server| match name {
        ServerName::Id(id) => server.id == *id,
        ServerName::Address(address) => server.address == *address,
    };
    let found = servers.into_iter().find(is_meant);
    found.ok_or_else(|| {
        Failure::server_not_found(format!("there is no server {name}: `ebla server list` shows them")).into()
    })
}

/// A server as an object.
pub fn server_json(summary: &v1::ServerSummary) -> Json {
    let server = summary.server.clone().unwrap_or_default();
    let state = match server.state() {
        v1::ServerState::Up => "up",
        v1::ServerState::Suspect => "suspect",
        v1::ServerState::Down => "down",
        v1::ServerState::Draining => "draining",
        v1::ServerState::Unspecified => "unknown",
    };
    let duty = match server.duty() {
        v1::ServerDuty::Serves | v1::ServerDuty::Unspecified => "serves",
        v1::ServerDuty::Drained => "drained",
        v1::ServerDuty::Leaves => "leaves",
    };
    json!({
        "id": server.id,
        "address": server.address,
        "zone": server.zone,
        "state": state,
        "duty": duty,
        "tablets": summary.tablets,
        "leaders": summary.leaders,
        "silent_ms": summary.silent_ms,
        "disk_bytes": summary.disk_bytes,
        "disk_bytes_free": summary.disk_bytes_free,
    })
}
