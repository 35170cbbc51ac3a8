//! A whole cluster of its own in one process, `ebla dev` on an empty directory.

use anyhow::{Context as _, Result, ensure};
use ebla_client::Client;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A directory for one measurement, on the disk of `dir`, which is made if it is not there. It goes
/// when dropped.
///
/// # Errors
/// When it cannot be made.
pub fn scratch(dir: &Path) -> Result<TempDir> {
    std::fs::create_dir_all(dir)?;
    Ok(tempfile::Builder::new().prefix("ebla-bench-").tempdir_in(dir)?)
}

/// A running cluster, ended when dropped.
pub struct Dev {
    process: Child,
    /// Where its master listens.
    pub address: String,
    /// A client of it, whose calls end after a minute.
    pub client: Client,
}

impl Dev {
    /// Starts one master and three tablet servers; their log is beside the directory.
    ///
    /// # Errors
    /// The program is not there, or it does not become ready.
    pub async fn start(binary: &Path, data_dir: &Path) -> Result<Self> {
        let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let log = File::create(data_dir.with_extension("log"))?;
        let mut process = Command::new(binary)
            .args(["dev", "--listen", &listen, "--data-dir"])
            .arg(data_dir)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}: build it with `cargo build --release`", binary.display()))?;
        let stdout = process.stdout.take().expect("stdout was asked to be a pipe");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.starts_with("ready "), "the cluster did not become ready: {line:?}");
        let client =
            Client::builder().endpoints([&listen]).timeout(Duration::from_secs(60)).connect().await?;
        Ok(Self { process, address: listen, client })
    }

    /// Memory that the cluster has now.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }
}

impl Dev {
    /// Waits until the cluster has next to nothing left to do, at most ten minutes: rows that were
    /// just loaded are still being compacted and counted.
    ///
    /// # Errors
    /// When the system does not tell.
    pub async fn settle(&self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(600);
        let (mut idle, mut before) = (0, self.worked()?);
        while idle < 4 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = self.worked()?;
            idle = if now - before < Duration::from_millis(50) { idle + 1 } else { 0 };
            before = now;
        }
        Ok(())
    }

    /// Time that its threads have worked.
    fn worked(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name of the program comes second, in parentheses, and may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("no name in the process's stat")?;
        let ticks = |at: usize| fields.split_whitespace().nth(at).and_then(|field| field.parse::<u64>().ok());
        let (user, system) = ticks(11).zip(ticks(12)).context("no times in the process's stat")?;
        // Hundredths of a second, on every Linux there is.
        Ok(Duration::from_millis((user + system) * 10))
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
