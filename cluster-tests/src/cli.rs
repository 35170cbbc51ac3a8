//! Calls commands of the CLI as a user's script would: arguments in, exit code, stdout and
//! stderr out.

use crate::binary;
use crate::cluster::eventually;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fmt;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// No command may take longer unless it is given the time; commands have deadlines of their own.
const COMMAND_MAX: Duration = Duration::from_secs(120);

/// How long a command that goes on may take to print something.
const RUNNING_MAX: Duration = Duration::from_secs(30);

/// Exit codes that scripts rely on.
pub mod exit {
    /// Done.
    pub const OK: i32 = 0;
    /// Failed, for a definite reason.
    pub const FAILED: i32 = 1;
    /// Not understood.
    pub const USAGE: i32 = 2;
    /// No such row, table or tablet.
    pub const NOT_FOUND: i32 = 3;
    /// Nobody answered in time.
    pub const UNAVAILABLE: i32 = 4;
}

/// The CLI with its endpoints.
#[derive(Clone)]
pub struct Cli {
    endpoints: String,
    patience: Duration,
    environment: Vec<(&'static str, String)>,
}

impl Cli {
    /// Talks to these, `HOST:PORT,...`.
    #[must_use]
    pub fn new(endpoints: &str) -> Self {
        Self { endpoints: endpoints.to_owned(), patience: COMMAND_MAX, environment: Vec::new() }
    }

    /// The same with further variables in the environment of its commands.
    #[must_use]
    pub fn with_environment(mut self, variables: &[(&'static str, String)]) -> Self {
        self.environment.extend_from_slice(variables);
        self
    }

    /// The same for commands that take longer.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Runs a command.
    ///
    /// # Panics
    /// When the program cannot be run or does not end.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Output {
        self.run_with_input(args, b"")
    }

    /// Runs a command with something on its stdin.
    ///
    /// # Panics
    /// When the program cannot be run or does not end.
    #[must_use]
    pub fn run_with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = Command::new(binary::ebla())
            .args(args)
            .env("EBLA_ENDPOINTS", &self.endpoints)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program under test can be started");
        let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
        let input = input.to_owned();
        // A command that needs no input may close it first.
        let writer = thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = collect(child.stdout.take().expect("stdout was asked to be a pipe"));
        let stderr = collect(child.stderr.take().expect("stderr was asked to be a pipe"));
        let code = wait(&mut child, args, self.patience);
        writer.join().expect("writing to a pipe does not panic");
        let stdout = stdout.join().expect("reading a pipe does not panic");
        let stderr =
            String::from_utf8_lossy(&stderr.join().expect("reading a pipe does not panic")).into_owned();
        Output { command: args.join(" "), code, stdout, stderr }
    }

    /// Runs a command and gives its JSON.
    ///
    /// # Panics
    /// When it does not succeed.
    #[must_use]
    pub fn json(&self, args: &[&str]) -> Value {
        self.run(&[args, &["-o", "json"]].concat()).expect(exit::OK).json()
    }

    /// Runs a command that prints a list; none when it fails.
    #[must_use]
    pub fn list(&self, args: &[&str]) -> Option<Vec<Value>> {
        let output = self.run(&[args, &["-o", "json"]].concat());
        if output.code != exit::OK {
            return None;
        }
        serde_json::from_slice(&output.stdout).ok()
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn wait(child: &mut Child, args: &[&str], patience: Duration) -> i32 {
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status.code().unwrap_or(-1);
        }
        if since.elapsed() > patience {
            let _ = child.kill();
            panic!("`ebla {}` does not end", args.join(" "));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A command that goes on until it is ended, and the lines that it has printed: JSON, or text.
pub struct Running {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Cli {
    /// Starts a command that does not end by itself.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, args: &[&str]) -> Result<Running> {
        self.spawn_program(binary::ebla(), args)
    }

    /// Starts another program that finds the cluster as commands do.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_program(&self, program: &Path, args: &[&str]) -> Result<Running> {
        let mut child = Command::new(program)
            .args(args)
            .env("EBLA_ENDPOINTS", &self.endpoints)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = BufReader::new(child.stdout.take().context("stdout is a pipe")?);
        let lines: Arc<Mutex<Vec<Value>>> = Arc::default();
        let shared = Arc::clone(&lines);
        thread::spawn(move || {
            for line in out.lines().map_while(|line| line.ok()) {
                let parsed = serde_json::from_str(&line).unwrap_or(Value::String(line));
                shared.lock().expect("no holder panics").push(parsed);
            }
        });
        Ok(Running { child, lines })
    }
}

impl Running {
    /// Types a line into it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("stdin is a pipe")?;
        writeln!(stdin, "{line}").context("it takes what is typed")
    }

    /// Waits for so many lines.
    ///
    /// # Errors
    /// When they do not come.
    pub fn wait_for_lines(&self, count: usize) -> Result<()> {
        self.wait_until(|lines| lines.len() >= count)
    }

    /// Waits until the lines are as wanted.
    ///
    /// # Errors
    /// When they do not become so.
    pub fn wait_until(&self, mut wanted: impl FnMut(&[Value]) -> bool) -> Result<()> {
        let is_done = || wanted(&self.lines.lock().expect("no holder panics"));
        eventually("the command prints what is wanted", RUNNING_MAX, is_done)
            .with_context(|| format!("{:#?}", self.lines.lock().expect("no holder panics")))?;
        Ok(())
    }

    /// Ends it; gives everything that it printed.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn end(mut self) -> Result<Vec<Value>> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.lines.lock().expect("no holder panics").clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command left behind.
pub struct Output {
    /// For messages.
    command: String,
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Data.
    pub stdout: Vec<u8>,
    /// Everything else.
    pub stderr: String,
}

impl Output {
    /// Insists on an exit code.
    ///
    /// # Panics
    /// When it ended with another.
    #[must_use]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code of {self}");
        self
    }

    /// Insists on words in what it said on stderr, whatever their case.
    ///
    /// # Panics
    /// When one is missing.
    #[must_use]
    pub fn saying(self, words: &[&str]) -> Self {
        let said = self.stderr.to_lowercase();
        for word in words {
            assert!(said.contains(&word.to_lowercase()), "{word:?} is missing from {self}");
        }
        self
    }

    /// The command, without the program.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Stdout as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Stdout as one JSON value.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self}"))
    }

    /// Stdout as one JSON value a line.
    ///
    /// # Panics
    /// When a line is none.
    #[must_use]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
        self.text().lines().map(parse).collect()
    }

    /// The error as JSON mode prints it on stderr.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn error(&self) -> Value {
        let parsed = self.stderr.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        parsed.unwrap_or_else(|| panic!("no JSON error in {self}"))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stdout: String = self.text().chars().take(2_000).collect();
        write!(f, "`ebla {}` -> {}\nstdout: {stdout}\nstderr: {}", self.command, self.code, self.stderr)
    }
}
