//! Logs to stderr: warnings by default, more for servers, as EBLA_LOG says if it is set.

use crate::cli::{Cli, Command, LogFormat};
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// Name of the variable that says what is logged.
const LOG_VARIABLE: &str = "EBLA_LOG";

/// Libraries whose finer output has signed requests, session tokens included: never logged.
const SIGNING: [&str; 5] = [
    "aws_config=warn",
    "aws_runtime=warn",
    "aws_sigv4=warn",
    "aws_smithy_runtime=warn",
    "aws_smithy_http_client=warn",
];

/// Starts logging for the whole process.
pub fn start(cli: &Cli) {
    let default = match cli.command {
        Command::Master(_) | Command::Tabletserver(_) => "info",
        Command::Dev(_)
        | Command::Status(_)
        | Command::Table(_)
        | Command::Tablet(_)
        | Command::Server(_)
        | Command::Job(_)
        | Command::Balancer(_)
        | Command::Get(_)
        | Command::Set(_)
        | Command::Delete(_)
        | Command::DeleteRange(_)
        | Command::Add(_)
        | Command::Range(_)
        | Command::Load(_)
        | Command::Export(_)
        | Command::Watch(_)
        | Command::Outcome(_)
        | Command::Lost(_)
        | Command::Top(_)
        | Command::Room(_)
        | Command::Backup(_) => "warn",
    };
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    let filter = SIGNING.iter().fold(filter, |filter, quiet| {
        filter.add_directive(quiet.parse().expect("the list holds directives only"))
    });
    let is_terminal = std::io::stderr().is_terminal();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_terminal);
    match cli.global.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
