//! `ebla dev`: a whole cluster in one process, on one data directory.
//!
//! ```text
//! DIR/dev.json            addresses of all roles, so that a restart finds them again
//! DIR/master-1 ..         one directory per master
//! DIR/server-1 ..         one directory per tablet server
//! ```
//!
//! The roles are those of `ebla master` and `ebla tabletserver` and talk over loopback.

use super::role::{Role, Signals};
use crate::cli::Dev;
use crate::cmd::dev_plan::Plan;
use anyhow::Context as _;
use ebla_client::Client;
use ebla_master::Master;
use ebla_tabletserver::TabletServer;
use futures::future::{BoxFuture, FutureExt as _, join_all, select_all};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How long to wait for every tablet before saying so and going on.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How often readiness is looked at.
const READY_LOOK_EVERY: Duration = Duration::from_millis(20);

/// Time for one question to the masters while waiting.
const READY_ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the cluster until a signal or the death of a role.
pub async fn run(args: Dev) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let plan = Plan::load_or_make(&args)?;
    let cluster = tokio::select! {
        started = Cluster::start(&plan, &args.data_dir) => started?,
        () = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let endpoint = plan.endpoint().to_owned();
    let ended = {
        let running = async {
            cluster.wait_until_ready(&endpoint).await;
            announce(&endpoint);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = running => Ok(()),
            error = cluster.failed() => Err(error),
            () = signals.next() => Ok(()),
        }
    };
    tokio::select! {
        stopped = cluster.stop() => ended.and(stopped)?,
        () = signals.next() => anyhow::bail!("ended at once by a second signal"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The one line on stdout.
fn announce(endpoint: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody may be listening; the cluster runs on.
    let _ = writeln!(out, "ready endpoints={endpoint}").and_then(|()| out.flush());
}

/// The roles of this process.
struct Cluster {
    masters: Vec<Master>,
    servers: Vec<TabletServer>,
}

impl Cluster {
    /// Starts every role; when one cannot start, those that did are stopped again.
    async fn start(plan: &Plan, data_dir: &Path) -> anyhow::Result<Self> {
        let mut cluster = Self { masters: Vec::new(), servers: Vec::new() };
        let peers: BTreeMap<u64, String> = (1..).zip(plan.masters.iter().cloned()).collect();
        let masters = peers.keys().map(|id| {
            let data_dir = data_dir.join(format!("master-{id}"));
            Master::start(ebla_master::Config::new(*id, peers.clone(), data_dir))
        });
        let started = keep_started("master", join_all(masters).await, &mut cluster.masters);
        if let Err(error) = started {
            return cluster.give_up(error).await;
        }
        let servers = (1..).zip(&plan.servers).map(|(number, listen): (u64, _)| {
            let data_dir = data_dir.join(format!("server-{number}"));
            TabletServer::start(ebla_tabletserver::Config::new(
                plan.masters.clone(),
                listen.clone(),
                data_dir,
            ))
        });
        let started = keep_started("tablet server", join_all(servers).await, &mut cluster.servers);
        match started {
            Ok(()) => Ok(cluster),
            Err(error) => cluster.give_up(error).await,
        }
    }

    async fn give_up(self, error: anyhow::Error) -> anyhow::Result<Self> {
        if let Err(error) = self.stop().await {
            tracing::warn!(%error, "a role did not end cleanly");
        }
        Err(error)
    }

    /// Waits until masters lead and every tablet serves, and says so when that takes too long.
    async fn wait_until_ready(&self, endpoint: &str) {
        let ready = async {
            while !self.roles_are_ready() {
                tokio::time::sleep(READY_LOOK_EVERY).await;
            }
            while !every_tablet_serves(endpoint).await {
                tokio::time::sleep(READY_LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(READY_WITHIN, ready).await.is_err() {
            // Nothing to be done when stderr is closed.
            let _ = writeln!(
                std::io::stderr(),
                "warning: not every tablet serves after {} s: see `ebla status --endpoints {endpoint}`",
                READY_WITHIN.as_secs()
            );
        }
    }

    fn roles_are_ready(&self) -> bool {
        self.masters.iter().all(Role::is_ready) && self.servers.iter().all(Role::is_ready)
    }

    /// Resolves when a role has died.
    async fn failed(&self) -> anyhow::Error {
        let masters = self.masters.iter().map(|master| with_name(Role::failed(master), "a master").boxed());
        let servers =
            self.servers.iter().map(|server| with_name(Role::failed(server), "a tablet server").boxed());
        let all: Vec<BoxFuture<'_, anyhow::Error>> = masters.chain(servers).collect();
        select_all(all).await.0
    }

    /// Stops servers before masters, which thus hear that the servers drain.
    async fn stop(self) -> anyhow::Result<()> {
        let servers = join_all(self.servers.into_iter().map(Role::stop)).await;
        let masters = join_all(self.masters.into_iter().map(Role::stop)).await;
        servers.into_iter().chain(masters).collect::<anyhow::Result<Vec<()>>>().map(|_| ())
    }
}

async fn with_name(failed: impl Future<Output = anyhow::Error>, name: &str) -> anyhow::Error {
    failed.await.context(format!("{name} died"))
}

/// Keeps the roles that started; the error of the first that did not.
fn keep_started<R, E>(name: &str, results: Vec<Result<R, E>>, roles: &mut Vec<R>) -> anyhow::Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let mut first = Ok(());
    for (number, result) in (1..).zip(results) {
        match result {
            Ok(role) => roles.push(role),
            Err(error) if first.is_ok() => {
                let number: u64 = number;
                first = Err(error).with_context(|| format!("{name} {number} cannot start"));
            }
            Err(error) => tracing::warn!(%error, number, "{name} cannot start"),
        }
    }
    first
}

/// Whether the masters know of no tablet without a leader that serves.
async fn every_tablet_serves(endpoint: &str) -> bool {
    let Ok(client) = Client::builder().endpoints([endpoint]).timeout(READY_ASK_TIMEOUT).connect().await
    else {
        return false;
    };
    client.admin().status().await.is_ok_and(|status| status.tablets_serving == status.tablets)
}
