//! How the process ends: one place where errors become messages and exit codes.
//!
//! 0 ok, 1 failed, 2 usage, 3 not found, 4 unavailable or timed out.

use crate::output::Format;
use ebla_backup::BackupError;
use ebla_client::Reason;
use ebla_proto::error::ApiError;
use serde_json::{Value as Json, json};
use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// It did not work.
pub const FAILED: u8 = 1;
/// The arguments are wrong.
pub const USAGE: u8 = 2;
/// What was named does not exist.
pub const NOT_FOUND: u8 = 3;
/// Nobody answered, or not in time.
pub const UNAVAILABLE: u8 = 4;

/// What an error may tell beside its message and programs want to go on with: the token of a watch
/// that was cut off, the tablets that took another's place, the job that is in the way.
const FACTS: [&str; 3] = ["token", "successors", "job"];

/// An error of the binary itself, with its exit code.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    reason: &'static str,
    message: String,
}

impl Failure {
    /// The arguments are wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, reason: "BAD_REQUEST", message: message.into() }
    }

    /// There is no such server.
    pub fn server_not_found(message: impl Into<String>) -> Self {
        Self { code: NOT_FOUND, reason: "SERVER_NOT_FOUND", message: message.into() }
    }

    /// What was asked for makes no sense now.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { code: FAILED, reason: "FAILED", message: message.into() }
    }

    /// It goes on, and was not done in time.
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self { code: UNAVAILABLE, reason: "TIMED_OUT", message: message.into() }
    }

    /// A job ended and was not done.
    pub fn job_not_done(id: u64, state: &str, error: &str) -> Self {
        let why = if error.is_empty() { String::new() } else { format!(": {error}") };
        Self { code: FAILED, reason: "JOB_FAILED", message: format!("job {id} is {state}{why}") }
    }

    /// There is no row at a key.
    pub fn key_not_found(message: impl Into<String>) -> Self {
        Self { code: NOT_FOUND, reason: "KEY_NOT_FOUND", message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Says what went wrong and gives the exit code for it.
pub fn report(error: &anyhow::Error, format: Format) -> ExitCode {
    // The reader of our output has seen enough.
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let (code, reason, definite) = classify(error);
    let mut object = error_json(reason, &format!("{error:#}"), definite);
    if let Some(error) = error.downcast_ref::<ebla_client::Error>() {
        let told = FACTS.iter().filter_map(|name| Some((*name, error.fact(name)?)));
        told.for_each(|(name, fact)| object[name] = fact_json(name, fact));
    }
    write_error(format, &object);
    ExitCode::from(code)
}

/// A fact as JSON: ids are numbers, and of several there is a list.
fn fact_json(name: &str, fact: &str) -> serde_json::Value {
    match name {
        "successors" => fact.split(',').filter_map(|id| id.parse::<u64>().ok()).collect(),
        "job" => fact.parse::<u64>().map_or_else(|_| fact.into(), Into::into),
        _ => fact.into(),
    }
}

/// Says what is wrong with the arguments, or prints the help that was asked for.
pub fn report_usage(error: &clap::Error) -> ExitCode {
    let wants_json = || {
        let arguments: Vec<_> = std::env::args_os().collect();
        let is_json = |text: &str| matches!(text, "json" | "jsonl");
        arguments.iter().filter_map(|argument| argument.to_str()).any(|argument| {
            ["-o=", "-o", "--output="].iter().any(|flag| argument.strip_prefix(flag).is_some_and(is_json))
        }) || arguments.windows(2).any(|pair| {
            matches!(pair[0].to_str(), Some("-o" | "--output")) && pair[1].to_str().is_some_and(is_json)
        })
    };
    if error.use_stderr() && wants_json() {
        let message = error.render().to_string();
        let message = message.trim();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        write_error(Format::Json, &error_json("BAD_REQUEST", message, true));
    } else {
        // Nothing to be done when stderr is closed.
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
}

fn classify(error: &anyhow::Error) -> (u8, &'static str, bool) {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return (failure.code, failure.reason, true);
    }
    if let Some(error) = error.downcast_ref::<BackupError>() {
        let reason = ApiError::from(error).reason;
        return (code_of(reason), reason.as_str(), true);
    }
    match error.downcast_ref::<ebla_client::Error>() {
        Some(error) => (code_of(error.reason()), error.reason().as_str(), error.is_definite()),
        None => (FAILED, "FAILED", true),
    }
}

/// The exit code of an error of the client.
pub fn code_of(reason: Reason) -> u8 {
    match reason {
        Reason::BadRequest => USAGE,
        Reason::TableNotFound
        | Reason::TabletNotFound
        | Reason::ServerNotFound
        | Reason::JobNotFound
        | Reason::BackupNotFound
        | Reason::RecordNotFound => NOT_FOUND,
        Reason::NotLeader
        | Reason::StaleRoute
        | Reason::TableRestoring
        | Reason::NotEnoughReplicas
        | Reason::CopyBehind
        | Reason::Unavailable
        | Reason::Draining
        | Reason::Overloaded
        | Reason::TimedOut => UNAVAILABLE,
        Reason::TableExists
        | Reason::TabletRetired
        | Reason::JobConflict
        | Reason::JobEnded
        | Reason::JobFailed
        | Reason::ConditionFailed
        | Reason::BatchSpansTablets
        | Reason::NotACounter
        | Reason::CounterOverflow
        | Reason::LimitReached
        | Reason::SubscriberTooSlow
        | Reason::MemoryLimit
        | Reason::DiskFull
        | Reason::TimestampOutOfRange
        | Reason::WatchTooOld
        | Reason::WatchTooSlow
        | Reason::TokenTooOld
        | Reason::TokenFenced
        | Reason::Reverted
        | Reason::WriteLost
        | Reason::NotMovable
        | Reason::NotTransferable
        | Reason::TooFewServers
        | Reason::Superseded
        | Reason::WrongCluster
        | Reason::BackupTarget
        | Reason::Corrupt
        | Reason::Internal => FAILED,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

fn error_json(reason: &str, message: &str, definite: bool) -> Json {
    json!({ "reason": reason, "message": message, "definite": definite })
}

fn write_error(format: Format, error: &Json) {
    let line = match format {
        Format::Table => format!("error: {}", error["message"].as_str().unwrap_or_default()),
        Format::Json | Format::Jsonl => error.to_string(),
    };
    // Nothing to be done when stderr is closed.
    let _ = writeln!(io::stderr(), "{line}");
}
