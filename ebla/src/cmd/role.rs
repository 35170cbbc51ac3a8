//! `ebla master` and `ebla tabletserver`: one role until a signal or its death.

use crate::cli::{Master as MasterArgs, Tabletserver};
use crate::exit::Failure;
use crate::http::{self, Readiness};
use anyhow::Context as _;
use ebla_master::Master;
use ebla_tabletserver::TabletServer;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often the page /ready learns whether the role does its work.
const READINESS_EVERY: Duration = Duration::from_millis(100);

/// A role as the binary drives it.
pub trait Role: Sized {
    /// What people call it.
    const NAME: &'static str;
    /// Where it serves.
    fn address(&self) -> SocketAddr;
    /// Whether it does its work now.
    fn is_ready(&self) -> bool;
    /// Resolves when it has died.
    fn failed(&self) -> impl Future<Output = anyhow::Error> + Send;
    /// Hands its work over and ends.
    fn stop(self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

impl Role for Master {
    const NAME: &'static str = "master";

    fn address(&self) -> SocketAddr {
        self.address()
    }

    fn is_ready(&self) -> bool {
        self.is_ready()
    }

    async fn failed(&self) -> anyhow::Error {
        self.failed().await.into()
    }

    async fn stop(self) -> anyhow::Result<()> {
        Ok(self.stop().await?)
    }
}

impl Role for TabletServer {
    const NAME: &'static str = "tablet server";

    fn address(&self) -> SocketAddr {
        self.address()
    }

    fn is_ready(&self) -> bool {
        self.is_ready()
    }

    async fn failed(&self) -> anyhow::Error {
        self.failed().await.into()
    }

    async fn stop(self) -> anyhow::Result<()> {
        Ok(self.stop().await?)
    }
}

/// SIGINT and SIGTERM, both of which ask for a clean end.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes the signals over from the system's default, which is to die.
    pub fn listen() -> anyhow::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Resolves at the next signal.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Runs a master.
pub async fn run_master(args: MasterArgs) -> anyhow::Result<ExitCode> {
    let mut peers = BTreeMap::new();
    for (id, address) in args.peers {
        if peers.insert(id, address).is_some() {
            return Err(Failure::usage(format!("--peers names master {id} twice: give each id once")).into());
        }
    }
    if !peers.contains_key(&args.id) {
        let hint = format!(
            "--peers does not name master {}: give the address of every master, this one included",
            args.id
        );
        return Err(Failure::usage(hint).into());
    }
    let config = ebla_master::Config {
        replace_after: args.replace_after.0,
        balance_interval: args.balance_interval.0,
        snapshot_entries: args.snapshot_entries,
        ..ebla_master::Config::new(args.id, peers, args.data_dir)
    };
    run(async { Ok(Master::start(config).await?) }, args.http.as_deref()).await
}

/// Runs a tablet server.
pub async fn run_tabletserver(args: Tabletserver) -> anyhow::Result<ExitCode> {
    let config = ebla_tabletserver::Config {
        zone: args.zone,
        flush_interval: args.flush_interval.0,
        bootstrap_bytes_per_s: args.bootstrap_rate,
        oplog_bytes_max: args.log_max,
        subscriptions_per_stream: args.subscriptions_per_stream,
        subscriptions_max: args.subscriptions_max,
        ..ebla_tabletserver::Config::new(args.masters, args.listen, args.data_dir)
    };
    run(async { Ok(TabletServer::start(config).await?) }, args.http.as_deref()).await
}

async fn run<R: Role>(
    start: impl Future<Output = anyhow::Result<R>>,
    http: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let readiness = Readiness::default();
    if let Some(address) = http {
        http::start(address, readiness.clone()).await?;
    }
    let role = tokio::select! {
        started = start => started.with_context(|| format!("the {} cannot start", R::NAME))?,
        () = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    tracing::info!(address = %role.address(), "{} serves", R::NAME);
    let mut interval = tokio::time::interval(READINESS_EVERY);
    loop {
        tokio::select! {
            _ = interval.tick() => readiness.set(role.is_ready()),
            error = role.failed() => return Err(error.context(format!("the {} died", R::NAME))),
            () = signals.next() => break,
        }
    }
    readiness.set(false);
    tracing::info!("{} stops; a second signal ends it at once", R::NAME);
    tokio::select! {
        stopped = role.stop() => stopped.with_context(|| format!("the {} did not end cleanly", R::NAME))?,
        () = signals.next() => anyhow::bail!("ended at once by a second signal"),
    }
    Ok(ExitCode::SUCCESS)
}
