//! The one binary of Ebla: a whole cluster in one process, each role by itself, and the
//! commands that talk to a cluster. `main.rs` runs it as `ebla`, `chaos.rs` as `ebla-chaos`, whose
//! servers fail where they are told to.
//!
//! Data goes to stdout, everything else to stderr; the exit code says how it ended
//! (`exit.rs`).

mod cli;
mod cmd;
mod exit;
mod http;
mod logging;
mod output;
mod parse;

use clap::Parser as _;
use std::process::ExitCode;
use std::time::Duration;

/// Longest wait for tasks of a server that has stopped.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::report_usage(&error),
    };
    let format = cli.global.output;
    logging::start(&cli);
    match run(cli) {
        Ok(code) => code,
        Err(error) => exit::report(&error, format),
    }
}

fn run(cli: cli::Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let is_server = cli.command.is_server();
    #[cfg(feature = "failpoints")]
    if is_server {
        arm_failpoints()?;
    }
    let code = runtime.block_on(cmd::run(cli));
    if is_server {
        // The stores must be closed before the process unwinds under their threads.
        runtime.shutdown_timeout(CLOSE_WITHIN);
    } else {
        // What still runs belongs to commands that ended; a read of stdin could wait for ever.
        runtime.shutdown_background();
    }
    code
}

/// Says loudly what this build is, and arms what the environment asks for.
#[cfg(feature = "failpoints")]
fn arm_failpoints() -> anyhow::Result<()> {
    let armed = ebla_failpoints::arm_from_environment();
    let armed = armed.map_err(|error| exit::Failure::usage(error.to_string()))?;
    tracing::warn!(
        ?armed,
        "THIS IS A CHAOS BUILD: it dies, fails and waits where it is told to; keep real data away from it"
    );
    Ok(())
}
