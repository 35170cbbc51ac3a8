//! Masters and tablet servers as processes on loopback, each with a directory of its own.
//!
//! A [`Node`] keeps its command line, address and directory over restarts; a [`Cluster`] is
//! some of them that belong together. Ports are chosen below the range that the system gives
//! to outgoing connections, so that nobody takes one while its owner is dead.

use crate::cli::Cli;
use crate::process::{Process, Signal};
use anyhow::{Context as _, Result, bail, ensure};
use rand::Rng as _;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Where ports are looked for: above the services, below outgoing connections.
const PORTS: Range<u16> = 10_240..32_000;

/// How often a cluster is set up anew because somebody took a port in between.
const ATTEMPTS: usize = 3;

/// How long a cluster may take until everything serves, a slow machine included.
pub const READY_MAX: Duration = Duration::from_secs(30);

/// Looks at `done` until it holds.
///
/// # Errors
/// When it does not hold in time; `what` says what was waited for.
pub fn eventually(what: &str, patience: Duration, mut done: impl FnMut() -> bool) -> Result<Duration> {
    let since = Instant::now();
    loop {
        if done() {
            return Ok(since.elapsed());
        }
        ensure!(since.elapsed() < patience, "waited {patience:?} in vain until {what}");
        thread::sleep(Duration::from_millis(25));
    }
}

/// Addresses on loopback that nobody listens on now.
///
/// # Panics
/// When the machine has no port left.
#[must_use]
pub fn free_addresses(count: usize) -> Vec<String> {
    let mut found = BTreeSet::new();
    for _ in 0..10_000 {
        if found.len() == count {
            return found.into_iter().map(|port: u16| format!("127.0.0.1:{port}")).collect();
        }
        let port = rand::rng().random_range(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            found.insert(port);
        }
    }
    panic!("no {count} free ports in {PORTS:?}");
}

/// One process of a cluster, over its restarts.
pub struct Node {
    /// Where it listens.
    pub address: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Where it serves its metrics, if it does.
    pub pages: Option<String>,
    /// What is armed in it from its next start on, as `EBLA_FAILPOINTS` has it; chaos builds only.
    pub failpoints: String,
    /// Further variables of its environment from its next start on.
    pub environment: Vec<(&'static str, String)>,
    args: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

impl Node {
    /// A whole cluster in one process, `ebla dev`, below `place`.
    #[must_use]
    pub fn dev(place: &Path, address: &str, more: &[&str]) -> Self {
        Self::new(place, "dev", address, &[&["dev", "--listen", address], more].concat())
    }

    /// A master, `id` of `peers`.
    #[must_use]
    pub fn master(place: &Path, id: usize, address: &str, peers: &str) -> Self {
        Self::master_with(place, id, address, peers, &[])
    }

    /// A master with further flags.
    #[must_use]
    pub fn master_with(place: &Path, id: usize, address: &str, peers: &str, more: &[&str]) -> Self {
        let number = id.to_string();
        let args = ["master", "--id", &number, "--peers", peers];
        Self::new(place, &format!("master-{id}"), address, &[&args, more].concat())
    }

    /// A tablet server of the cluster of `masters`.
    #[must_use]
    pub fn server(place: &Path, name: &str, address: &str, masters: &str) -> Self {
        Self::server_with(place, name, address, masters, &[])
    }

    /// A tablet server with further flags.
    #[must_use]
    pub fn server_with(place: &Path, name: &str, address: &str, masters: &str, more: &[&str]) -> Self {
        let args = ["tabletserver", "--masters", masters, "--listen", address];
        Self::new(place, name, address, &[&args, more].concat())
    }

    fn new(place: &Path, name: &str, address: &str, args: &[&str]) -> Self {
        let data_dir = place.join(name);
        let mut args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        args.extend(["--data-dir".to_owned(), data_dir.to_string_lossy().into_owned()]);
        let log = place.join(format!("{name}.log"));
        let (address, failpoints, environment) = (address.to_owned(), String::new(), Vec::new());
        Self { address, data_dir, pages: None, failpoints, environment, args, log, process: None }
    }

    /// The same node on another's data directory.
    #[must_use]
    pub fn on_directory(mut self, data_dir: &Path) -> Self {
        let last = self.args.last_mut().expect("the data directory is the last argument");
        *last = data_dir.to_string_lossy().into_owned();
        data_dir.clone_into(&mut self.data_dir);
        self
    }

    /// The same node with its metrics at `address`.
    #[must_use]
    pub fn with_pages(mut self, address: &str) -> Self {
        self.pages = Some(address.to_owned());
        // The data directory stays the last argument.
        self.args.splice(1..1, ["--http".to_owned(), address.to_owned()]);
        self
    }

    /// The value of one of its metrics.
    ///
    /// # Errors
    /// When it does not serve them or has none of that name.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let page = self.page("/metrics")?;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("there is no metric {name}"))?.trim().parse()?)
    }

    /// Whether it does its work: registered, and every tablet that it has a copy of is served.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.page("/ready").is_ok_and(|page| page.lines().next().is_some_and(|line| line.contains(" 200 ")))
    }

    /// A page with its head, over plain HTTP.
    fn page(&self, path: &str) -> Result<String> {
        let address = self.pages.as_ref().context("the node serves no pages")?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }

    /// Starts it, also again.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(&mut self) -> Result<&mut Process> {
        self.process = None;
        let armed = [("EBLA_FAILPOINTS", self.failpoints.clone())];
        let environment = [&armed, &self.environment[..]].concat();
        Ok(self.process.insert(Process::start(&self.args, &environment, &self.log)?))
    }

    /// Its process.
    ///
    /// # Panics
    /// When it was never started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the node was started")
    }

    /// Kills it and starts it again at once.
    ///
    /// # Errors
    /// When it cannot be killed or started.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.process().kill()?;
        self.start().map(drop)
    }

    /// Waits for the line that `ebla dev` prints when it serves.
    ///
    /// # Errors
    /// When it does not come in time or says something else.
    pub fn wait_for_ready_line(&mut self) -> Result<()> {
        let line = self.process().stdout_line(READY_MAX + Duration::from_secs(10))?;
        let wanted = format!("ready endpoints={}", self.address);
        ensure!(line == wanted, "printed {line:?} instead of {wanted:?}");
        Ok(())
    }

    /// The CLI, talking to this node alone, with the same variables in its environment.
    #[must_use]
    pub fn cli(&self) -> Cli {
        Cli::new(&self.address).with_environment(&self.environment)
    }
}

/// `ebla dev` with its directory, for tests of what users see.
pub struct Dev {
    /// Its process.
    pub node: Node,
    /// Holds the data directory; removed when dropped.
    pub place: TempDir,
}

impl Dev {
    /// Starts one and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(more: &[&str]) -> Result<Self> {
        Self::start_in(&[], more)
    }

    /// The same with further variables in its environment.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_in(environment: &[(&'static str, String)], more: &[&str]) -> Result<Self> {
        let place = tempfile::tempdir()?;
        for _ in 0..ATTEMPTS {
            let mut node = Node::dev(place.path(), &free_addresses(1)[0], more);
            node.environment = environment.to_vec();
            node.start()?;
            match node.wait_for_ready_line() {
                Ok(()) => return Ok(Self { node, place }),
                Err(_) if port_was_taken(node.process()) => {}
                Err(error) => return Err(error),
            }
        }
        bail!("somebody took the port {ATTEMPTS} times in a row")
    }
}

/// Whether a process ended because its port was not free any more.
fn port_was_taken(process: &mut Process) -> bool {
    let ended = matches!(process.exit_status(), Ok(Some(_)));
    ended && process.log_text().to_lowercase().contains("in use")
}

/// Masters and tablet servers that belong together.
pub struct Cluster {
    /// The metadata group; ids count from 1.
    pub masters: Vec<Node>,
    /// The tablet servers.
    pub servers: Vec<Node>,
    /// Holds all directories and logs; removed when dropped.
    pub place: TempDir,
}

impl Cluster {
    /// Starts a cluster and waits until every server is up.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub fn start(masters: usize, servers: usize) -> Result<Self> {
        Self::start_with(masters, servers, &[])
    }

    /// As [`Self::start`], with further flags for the tablet servers.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub fn start_with(masters: usize, servers: usize, flags: &[&str]) -> Result<Self> {
        Self::start_all_with(masters, servers, &[], flags)
    }

    /// As [`Self::start`], with further flags for the masters and the tablet servers.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub fn start_all_with(
        masters: usize,
        servers: usize,
        of_masters: &[&str],
        of_servers: &[&str],
    ) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let mut cluster = Self::plan(masters, servers, of_masters, of_servers)?;
            if cluster.is_up()? {
                return Ok(cluster);
            }
        }
        bail!("somebody took a port {ATTEMPTS} times in a row")
    }

    /// As [`Self::start`], with further variables in the environment of every process.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub fn start_in(environment: &[(&'static str, String)], masters: usize, servers: usize) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let mut cluster = Self::plan(masters, servers, &[], &[])?;
            cluster.nodes().for_each(|node| node.environment = environment.to_vec());
            if cluster.is_up()? {
                return Ok(cluster);
            }
        }
        bail!("somebody took a port {ATTEMPTS} times in a row")
    }

    /// Starts every process; false when somebody has taken a port.
    fn is_up(&mut self) -> Result<bool> {
        for node in self.nodes() {
            node.start()?;
        }
        match self.wait_until_serving() {
            Ok(()) => Ok(true),
            Err(_) if self.nodes().any(|node| port_was_taken(node.process())) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn plan(masters: usize, servers: usize, more: &[&str], flags: &[&str]) -> Result<Self> {
        let place = tempfile::tempdir()?;
        let mut addresses = free_addresses(masters + 2 * servers);
        let pages = addresses.split_off(masters + servers);
        let (of_masters, of_servers) = addresses.split_at(masters);
        let peers: Vec<_> =
            of_masters.iter().zip(1..).map(|(address, id)| format!("{id}={address}")).collect();
        let master = |(address, id): (&String, usize)| {
            Node::master_with(place.path(), id, address, &peers.join(","), more)
        };
        let server = |(address, number): (&String, usize)| {
            let (name, masters) = (format!("server-{number}"), of_masters.join(","));
            let server = Node::server_with(place.path(), &name, address, &masters, flags);
            server.with_pages(&pages[number - 1])
        };
        let masters = of_masters.iter().zip(1..).map(master).collect();
        let servers = of_servers.iter().zip(1..).map(server).collect();
        Ok(Self { masters, servers, place })
    }

    /// Every process, masters first.
    pub fn nodes(&mut self) -> impl Iterator<Item = &mut Node> {
        self.masters.iter_mut().chain(&mut self.servers)
    }

    /// Addresses of the masters, as `--endpoints` and `--masters` take them.
    #[must_use]
    pub fn master_endpoints(&self) -> String {
        join_addresses(&self.masters)
    }

    /// Addresses of the tablet servers.
    #[must_use]
    pub fn server_endpoints(&self) -> String {
        join_addresses(&self.servers)
    }

    /// The CLI, talking to masters and servers alike.
    #[must_use]
    pub fn cli(&self) -> Cli {
        let cli = Cli::new(&format!("{},{}", self.master_endpoints(), self.server_endpoints()));
        cli.with_environment(self.masters.first().map_or(&[], |master| &master.environment))
    }

    /// Waits until every server is up and every tablet has a leader.
    ///
    /// # Errors
    /// When that takes too long; the ends of all logs are in the message.
    pub fn wait_until_serving(&mut self) -> Result<()> {
        let cli = Cli::new(&self.master_endpoints());
        let servers = self.servers.len();
        let outcome = eventually("every server is up and every tablet is led", READY_MAX, || {
            let up = cli
                .list(&["server", "list"])
                .is_some_and(|list| list.iter().filter(|server| server["state"] == "up").count() == servers);
            let led =
                |list: Vec<serde_json::Value>| list.iter().all(|tablet| tablet["leader"].as_u64() > Some(0));
            up && cli.list(&["tablet", "list"]).is_some_and(led)
        });
        outcome.map(drop).with_context(|| {
            let tails: Vec<_> = self.nodes().map(|node| node.process().log_tail()).collect();
            tails.join("\n")
        })
    }

    /// Copies what the processes said to a directory that stays, named after what failed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_logs(&mut self, name: &str) -> Result<PathBuf> {
        let dir = std::env::temp_dir().join("ebla-chaos").join(name.replace(':', "-"));
        std::fs::create_dir_all(&dir)?;
        for node in self.nodes() {
            let name = node.data_dir.file_name().context("a data directory has a name")?;
            std::fs::write(dir.join(name).with_extension("log"), node.process().log_text())?;
        }
        Ok(dir)
    }

    /// Kills every process at the same moment, as a power cut would.
    ///
    /// # Errors
    /// When one cannot be killed.
    pub fn kill_all(&mut self) -> Result<()> {
        for node in self.nodes() {
            node.process().signal(Signal::Kill)?;
        }
        self.nodes().try_for_each(|node| node.process().kill())
    }

    /// Starts every process again on its own directory.
    ///
    /// # Errors
    /// When one cannot be started or the cluster does not come up.
    pub fn start_all(&mut self) -> Result<()> {
        for node in self.nodes() {
            node.start()?;
        }
        self.wait_until_serving()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            for node in self.nodes() {
                eprintln!("{}", node.process().log_tail());
            }
        }
    }
}

fn join_addresses(nodes: &[Node]) -> String {
    nodes.iter().map(|node| node.address.as_str()).collect::<Vec<_>>().join(",")
}
