//! `ebla tablet move`, and the commands that drain servers, empty and forget them.

use super::connect;
use super::server::{resolve, server_json};
use crate::cli::{Global, MoveTablet, ServerAct};
use crate::exit::Failure;
use crate::output::Output;
use crate::parse::ServerName;
use anyhow::Context as _;
use ebla_client::{Client, v1};
use serde_json::json;
use std::time::{Duration, Instant};

/// How often a server that is drained or emptied is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Takes a copy from one server to another, and waits until it is there.
pub async fn move_tablet(global: &Global, args: MoveTablet, out: &mut Output) -> anyhow::Result<()> {
    let client = connect(global, args.wait).await?;
    let (from, to) = (id_of(&client, &args.from).await?, id_of(&client, &args.to).await?);
    let admin = client.admin();
    let id = admin.move_tablet(args.id, from, to).await?;
    let object = json!({ "job": id, "tablet": args.id });
    if args.no_wait {
        return out
            .one(&object, || format!("job {id} moves tablet {}: follow `ebla job show {id}`", args.id));
    }
    let job = admin.wait_for_job(id, args.wait.timeout).await?;
    match job.state() {
        v1::JobState::Done => out.one(&object, || {
            format!("the copy of tablet {} on server {from} is on server {to} now", args.id)
        }),
        v1::JobState::Cancelled => Err(Failure::job_not_done(id, "cancelled", &job.error).into()),
        v1::JobState::Failed | v1::JobState::Running | v1::JobState::Unspecified => {
            Err(Failure::job_not_done(id, "failed", &job.error).into())
        }
    }
}

/// Lets others lead what a server leads, and waits until they do.
pub async fn drain(global: &Global, args: ServerAct, out: &mut Output) -> anyhow::Result<()> {
    let is_done = |server: &v1::ServerSummary| server.leaders + server.system_leaders == 0;
    act(global, args, out, v1::ServerDuty::Drained, is_done, "leads nothing now").await
}

/// Takes everything off a server, and waits until it holds nothing.
pub async fn decommission(global: &Global, args: ServerAct, out: &mut Output) -> anyhow::Result<()> {
    let is_done = |server: &v1::ServerSummary| server.tablets + server.system_tablets == 0;
    act(global, args, out, v1::ServerDuty::Leaves, is_done, "holds nothing now").await
}

/// Lets a server lead and hold copies again.
pub async fn activate(global: &Global, args: ServerAct, out: &mut Output) -> anyhow::Result<()> {
    act(global, args, out, v1::ServerDuty::Serves, |_| true, "serves again").await
}

/// Forgets a server that is gone.
pub async fn forget(global: &Global, args: ServerAct, out: &mut Output) -> anyhow::Result<()> {
    let client = connect(global, args.wait).await?;
    let id = id_of(&client, &args.server).await?;
    client.admin().forget_server(id).await?;
    out.one(&json!({ "server": id }), || format!("server {id} is forgotten"))
}

async fn act(
    global: &Global,
    args: ServerAct,
    out: &mut Output,
    duty: v1::ServerDuty,
    is_done: impl Fn(&v1::ServerSummary) -> bool,
    what: &str,
) -> anyhow::Result<()> {
    let client = connect(global, args.wait).await?;
    let id = id_of(&client, &args.server).await?;
    let until = Instant::now() + args.wait.timeout;
    let mut summary = client.admin().set_server_duty(id, duty).await?;
    while !is_done(&summary) {
        if Instant::now() >= until {
            return Err(Failure::timed_out(not_yet(id, duty, &summary)).into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let servers = client.admin().list_servers().await?;
        let is_it =
            |summary: &v1::ServerSummary| summary.server.as_ref().is_some_and(|server| server.id == id);
        summary = servers.into_iter().find(is_it).context("the server was forgotten meanwhile")?;
    }
    out.one(&server_json(&summary), || format!("server {id} {what}"))
}

/// Why a server is not rid of what it is to be rid of, and what to do.
fn not_yet(id: u64, duty: v1::ServerDuty, summary: &v1::ServerSummary) -> String {
    let of_all = |users: u64, own: u64| match own {
        0 => users.to_string(),
        _ => format!("{} ({own} of them of the cluster's own tables)", users + own),
    };
    let tablets = of_all(summary.tablets, summary.system_tablets);
    let leaders = of_all(summary.leaders, summary.system_leaders);
    let way_out = match duty {
        v1::ServerDuty::Drained => format!(
            "; where no other copy is in sync nobody else can lead: `ebla server decommission {id}` takes copies away, too"
        ),
        v1::ServerDuty::Unspecified | v1::ServerDuty::Serves | v1::ServerDuty::Leaves => String::new(),
    };
    format!(
        "server {id} still leads {leaders} and holds {tablets} tablets; it goes on by itself: wait longer, and follow \
         `ebla server list` and `ebla job list`{way_out}"
    )
}

/// The id of a server; the masters know whether there is one of an id.
async fn id_of(client: &Client, name: &ServerName) -> anyhow::Result<u64> {
    match name {
        ServerName::Id(id) => Ok(*id),
        ServerName::Address(_) => Ok(resolve(client, name).await?.id),
    }
}
