//! A cluster of which one process is armed, and what keeps it going.

use crate::cli::{Output, exit};
use crate::cluster::{Cluster, Node};
use crate::observe::servers_in;
use anyhow::{Context as _, Result, bail, ensure};
use ebla_client::Client;
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How often what is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often a process that dies at its failpoint is started with it armed again.
const ARMED_RESTARTS: u32 = 3;

/// How long a cluster may take to become whole, however often one of its processes dies.
pub const SETTLE_MAX: Duration = Duration::from_secs(90);

/// The deadline of calls of the load: longer than every failover of a case together.
const DEADLINE: Duration = Duration::from_secs(60);

/// A process of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// The tablet server at this place.
    Server(usize),
    /// The master at this place.
    Master(usize),
}

/// The process that is armed.
#[derive(Clone, Copy, Debug)]
struct Armed {
    at: At,
    restarts: u32,
    /// How often the failpoints of this log had acted before.
    acted_before: usize,
}

/// Three masters and four servers, of which at most one is armed.
pub struct Rig {
    /// The processes.
    pub cluster: Cluster,
    /// A client whose deadline outlasts failovers.
    pub client: Client,
    /// Runs the load.
    pub runtime: Runtime,
    armed: Option<Armed>,
}

impl Rig {
    /// Starts a cluster that does nothing by itself.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start() -> Result<Self> {
        let masters = ["--balance-interval", "off", "--snapshot-entries", "50"];
        let cluster = Cluster::start_all_with(3, 4, &masters, &["--flush-interval", "1s"])?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let client = runtime.block_on(cluster.connect(DEADLINE))?;
        Ok(Self { cluster, client, runtime, armed: None })
    }

    /// A process.
    pub fn node(&mut self, at: At) -> &mut Node {
        match at {
            At::Server(at) => &mut self.cluster.servers[at],
            At::Master(at) => &mut self.cluster.masters[at],
        }
    }

    /// Arms a process from its next start on.
    pub fn arm(&mut self, at: At, failpoints: String) {
        let node = self.node(at);
        node.failpoints = failpoints;
        let acted_before = acted(node);
        self.armed = Some(Armed { at, restarts: 0, acted_before });
    }

    /// Kills a process and starts it armed.
    ///
    /// # Errors
    /// When it cannot be killed or started.
    pub fn restart_armed(&mut self, at: At, failpoints: String) -> Result<()> {
        self.arm(at, failpoints);
        self.node(at).kill_and_restart()
    }

    /// How often the failpoint has acted since it was armed.
    pub fn acted(&mut self) -> usize {
        let Some(armed) = self.armed else { return 0 };
        acted(self.node(armed.at)) - armed.acted_before
    }

    /// Sees to it that nothing more happens: what is armed and has not acted is started anew.
    ///
    /// # Errors
    /// When it cannot be killed or started.
    pub fn disarm(&mut self) -> Result<()> {
        let acted = self.acted();
        let Some(armed) = self.armed.take() else { return Ok(()) };
        let node = self.node(armed.at);
        let is_over = node.failpoints.is_empty() || acted > armed.restarts as usize;
        node.failpoints = String::new();
        if is_over { Ok(()) } else { node.kill_and_restart() }
    }

    /// Starts the armed process again if it has died, armed up to three times, then no more.
    ///
    /// # Errors
    /// When another process has died, or the armed one without its failpoint.
    pub fn supervise(&mut self) -> Result<()> {
        let armed = self.armed;
        let all = (0..self.cluster.masters.len()).map(At::Master);
        let all: Vec<At> = all.chain((0..self.cluster.servers.len()).map(At::Server)).collect();
        for at in all {
            let Some(status) = self.node(at).process().exit_status()? else { continue };
            let acts = self.acted();
            let Some(armed) = armed.filter(|armed| armed.at == at && acts > armed.restarts as usize) else {
                bail!(
                    "{at:?} ended with {status}, not by a failpoint\n{}",
                    self.node(at).process().log_tail()
                );
            };
            let restarts = armed.restarts + 1;
            let node = self.node(at);
            if restarts > ARMED_RESTARTS {
                node.failpoints = String::new();
            }
            node.start()?;
            self.armed = Some(Armed { restarts, ..armed });
        }
        Ok(())
    }

    /// Supervises until `done` holds.
    ///
    /// # Errors
    /// When it does not in time, or as [`Self::supervise`].
    pub fn wait(
        &mut self,
        what: &str,
        patience: Duration,
        mut done: impl FnMut(&Cluster) -> bool,
    ) -> Result<()> {
        let since = Instant::now();
        loop {
            self.supervise()?;
            if done(&self.cluster) {
                return Ok(());
            }
            ensure!(since.elapsed() < patience, "waited {patience:?} in vain until {what}");
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Supervises for a time.
    ///
    /// # Errors
    /// As [`Self::supervise`].
    pub fn linger(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.supervise()?;
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Supervises until a future has ended.
    ///
    /// # Errors
    /// When it panicked, or as [`Self::supervise`].
    pub fn run<T: Send + 'static>(&mut self, future: impl Future<Output = T> + Send + 'static) -> Result<T> {
        let task = self.runtime.spawn(future);
        while !task.is_finished() {
            self.supervise()?;
            thread::sleep(LOOK_EVERY);
        }
        Ok(self.runtime.block_on(task)?)
    }

    /// Supervises until some commands have been given, one after the other; gives what they said.
    ///
    /// # Errors
    /// As [`Self::supervise`].
    pub fn order(&mut self, commands: Vec<Vec<String>>) -> Result<Vec<Output>> {
        let cli = self.cluster.cli();
        let give =
            move |command: &Vec<String>| cli.run(&command.iter().map(String::as_str).collect::<Vec<_>>());
        self.run(async move {
            let given = move || commands.iter().map(give).collect::<Vec<_>>();
            tokio::task::spawn_blocking(given).await.expect("the CLI does not panic")
        })
    }

    /// Supervises until every server is up and every tablet serves with all its copies.
    ///
    /// # Errors
    /// When that takes too long; the tablets are in the message.
    pub fn wait_until_whole(&mut self, copies: usize) -> Result<()> {
        let waited = self.wait("the cluster is whole", SETTLE_MAX, |cluster| {
            cluster.all_ready() && cluster.is_whole(copies, &[])
        });
        waited.with_context(|| format!("{:#?}", self.cluster.tablets()))
    }

    /// Lets the copies on a server lead what they can.
    ///
    /// # Errors
    /// When they do not in time.
    pub fn let_lead(&mut self, server: u64) -> Result<()> {
        self.wait("a server leads", SETTLE_MAX, |cluster| {
            let of_it = |tablet: &serde_json::Value| servers_in(tablet, "replicas").contains(&server);
            let tablets = cluster.tablets();
            let others =
                tablets.iter().filter(|tablet| of_it(tablet) && tablet["leader"].as_u64() != Some(server));
            !tablets.is_empty()
                && others.fold(true, |_, tablet| {
                    let (id, to) = (tablet["id"].to_string(), server.to_string());
                    let order = ["tablet", "transfer-leader", &id, "--to", &to, "--timeout", "5s"];
                    cluster.cli().run(&order).code == exit::OK
                })
        })
    }
}

/// How many failpoints have acted in all lives of a process.
fn acted(node: &mut Node) -> usize {
    node.process().log_text().lines().filter(|line| line.starts_with("failpoint ")).count()
}
