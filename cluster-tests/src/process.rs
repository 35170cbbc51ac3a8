//! One child process of the program under test: started, observed, stopped, killed, frozen.
//!
//! A [`Process`] never outlives its owner, and no signal is ever sent to anything but a child
//! of this test that has not been waited for. Its stderr goes to a file, in which no panic
//! may stand when it is dropped.

use crate::binary;
use anyhow::{Context as _, Result, bail, ensure};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How often a condition that is waited for is looked at.
const POLL: Duration = Duration::from_millis(10);

/// How long a process may take to end after SIGTERM. It drains first.
pub const STOP_MAX: Duration = Duration::from_secs(20);

/// Signals that tests send.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    /// Please end.
    Term,
    /// End at once, without a chance to say so.
    Kill,
    /// Freeze.
    Stop,
    /// Go on.
    Cont,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Cont => "CONT",
        }
    }
}

/// A running child.
pub struct Process {
    child: Child,
    log: PathBuf,
    stdout: Receiver<String>,
    /// Set once it was waited for: its id may belong to somebody else from then on.
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `ebla ARGS` with some variables in its environment; what it says on stderr is
    /// appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn start(args: &[String], environment: &[(&str, String)], log: &Path) -> Result<Self> {
        let stderr = File::options().create(true).append(true).open(log)?;
        let mut child = Command::new(binary::ebla())
            .args(args)
            .env_remove("EBLA_ENDPOINTS")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("start {}", binary::ebla().display()))?;
        let pipe = child.stdout.take().expect("stdout was asked to be a pipe");
        let (lines, stdout) = channel();
        thread::spawn(move || {
            BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
        });
        Ok(Self { child, log: log.to_owned(), stdout, ended: None })
    }

    /// The next line on stdout.
    ///
    /// # Errors
    /// When none comes in time or the process ended.
    pub fn stdout_line(&mut self, patience: Duration) -> Result<String> {
        match self.stdout.recv_timeout(patience) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("nothing on stdout in {patience:?}\n{}", self.log_tail()),
            Err(RecvTimeoutError::Disconnected) => bail!("it ended without a word\n{}", self.log_tail()),
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.exit_status()? {
                return Ok(status);
            }
            ensure!(since.elapsed() < patience, "still running after {patience:?}\n{}", self.log_tail());
            thread::sleep(POLL);
        }
    }

    /// Sends a signal; nothing when it has ended.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.exit_status()?.is_some() {
            return Ok(());
        }
        let line = format!("kill -{} {}", signal.name(), self.child.id());
        let status = Command::new("sh").args(["-c", &line]).status()?;
        ensure!(status.success(), "`{line}` failed");
        Ok(())
    }

    /// Ends it at once, as a power cut would.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::Kill)?;
        self.wait(STOP_MAX)?;
        Ok(())
    }

    /// Asks it to end and waits until it has drained.
    ///
    /// # Errors
    /// When it does not end in time, or with another status than success.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::Term)?;
        let status = self.wait(STOP_MAX)?;
        ensure!(status.success(), "ended with {status} after SIGTERM\n{}", self.log_tail());
        Ok(())
    }

    /// Everything that this and former processes wrote to the same log.
    #[must_use]
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of the log, for a message.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<_> = text.lines().collect();
        format!("--- {}\n{}", self.log.display(), lines[lines.len().saturating_sub(25)..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.signal(Signal::Kill);
        let _ = self.child.wait();
        let panicked = self.log_text().contains("panicked at");
        assert!(!panicked || thread::panicking(), "a server panicked\n{}", self.log_tail());
    }
}
