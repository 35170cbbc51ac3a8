//! `ebla backup`: what tables hold, as files elsewhere.

mod attempts;
mod create;
mod describe;
mod list;
mod prune;
mod restore;
mod sample;
mod schedule;
mod verify;
mod watched;

pub use schedule::schedule_json;

use crate::cli::{Backup, Global};
use ebla_backup::{BackupError, Location, Repository};
use std::process::ExitCode;

/// Runs one of the commands about backups.
pub async fn run(global: &Global, command: Backup) -> anyhow::Result<ExitCode> {
    match command {
        Backup::Create(args) => create::run(global, args).await?,
        Backup::Restore(args) => restore::run(global, args).await?,
        Backup::List(at) => list::run(global, at).await?,
        Backup::Describe(args) => describe::run(global, args).await?,
        Backup::Verify(args) => verify::run(global, args).await?,
        Backup::Prune(args) => prune::run(global, args).await?,
        Backup::Log(wait) => attempts::run(global, wait).await?,
        Backup::Schedule(command) => schedule::run(global, command).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Who asks, for the records: the user and the machine.
fn author() -> String {
    let name = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok());
    let user = name(["EBLA_USER", "USER"]).unwrap_or_else(|| "unknown".to_owned());
    match std::fs::read_to_string("/etc/hostname") {
        Ok(host) if !host.trim().is_empty() => format!("{user}@{}", host.trim()),
        Ok(_) | Err(_) => user,
    }
}

/// The backups at a URL.
async fn repository(url: &str) -> Result<Repository, BackupError> {
    Repository::open(&Location::parse(url)?).await
}
