//! One file per command.

mod add;
mod backup;
mod balancer;
mod delete;
mod delete_range;
mod dev;
mod dev_plan;
mod export;
mod get;
mod job;
mod load;
mod load_file;
mod lost;
mod merge;
mod moves;
mod outcome;
mod range;
mod role;
mod room;
mod server;
mod set;
mod split;
mod status;
mod table;
mod tablet;
mod top;
mod watch;
mod written;

use crate::cli::{Cli, Command, Global, Keys, Wait};
use crate::exit::Failure;
use crate::output::{Output, argument_bytes};
use bytes::Bytes;
use ebla_client::Client;
use std::ffi::OsString;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;

/// Runs a command to its end.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = cli.global;
    match cli.command {
        Command::Dev(args) => dev::run(args).await,
        Command::Master(args) => role::run_master(args).await,
        Command::Tabletserver(args) => role::run_tabletserver(args).await,
        Command::Status(wait) => status::run(&global, wait).await,
        Command::Table(command) => table::run(&global, command).await,
        Command::Tablet(command) => tablet::run(&global, command).await,
        Command::Server(command) => server::run(&global, command).await,
        Command::Balancer(command) => balancer::run(&global, command).await,
        Command::Job(command) => job::run(&global, command).await,
        Command::Get(args) => get::run(&global, args).await,
        Command::Set(args) => set::run(&global, args).await,
        Command::Delete(args) => delete::run(&global, args).await,
        Command::DeleteRange(args) => delete_range::run(&global, args).await,
        Command::Add(args) => add::run(&global, args).await,
        Command::Range(args) => range::run(&global, args).await,
        Command::Watch(args) => watch::run(&global, args).await,
        Command::Export(args) => export::run(&global, args).await,
        Command::Load(args) => load::run(&global, args).await,
        Command::Outcome(args) => outcome::run(&global, args).await,
        Command::Lost(command) => lost::run(&global, command).await,
        Command::Top(args) => top::run(&global, args).await,
        Command::Room(command) => room::run(&global, command).await,
        Command::Backup(command) => backup::run(&global, command).await,
    }
}

/// Connects to the cluster that the flags name.
async fn connect(global: &Global, wait: Wait) -> anyhow::Result<Client> {
    let endpoints =
        global.endpoints.iter().map(|endpoint| endpoint.trim()).filter(|endpoint| !endpoint.is_empty());
    Ok(Client::builder().endpoints(endpoints).timeout(wait.timeout).connect().await?)
}

/// First key, first key above, and prefix, as the flags want them; empty for none.
fn key_bounds(keys: &Keys, global: &Global) -> (Bytes, Bytes, Bytes) {
    let bytes = |argument: &Option<OsString>| {
        argument.as_ref().map(|argument| argument_bytes(argument, global.hex)).unwrap_or_default()
    };
    (bytes(&keys.from), bytes(&keys.to), bytes(&keys.prefix))
}

/// Tells people something that is no answer.
fn note(text: &str) {
    // Nothing to be done when stderr is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Stdout as the flags want it.
fn output(global: &Global) -> Output {
    Output::new(global.output, global.hex)
}

/// Goes on only with `--yes` or, on a terminal, after the user has said so.
fn confirm(yes: bool, what: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    let refuse = || Failure::usage(format!("{what} cannot be taken back: give --yes to do it"));
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(refuse().into());
    }
    write!(io::stderr(), "{what}? This cannot be taken back. Type yes: ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(refuse().into()) }
}
