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
use std::os::unix::fs::MetadataExt as _;
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
    let name = |names: [&str; 3]| names.iter().find_map(|name| std::env::var(name).ok());
    let user = name(["EBLA_USER", "USER", "LOGNAME"]).unwrap_or_else(account);
    match std::fs::read_to_string("/etc/hostname") {
        Ok(host) if !host.trim().is_empty() => format!("{user}@{}", host.trim()),
        Ok(_) | Err(_) => user,
    }
}

/// The account of this process, by its name if it has one: nobody sets USER in a container.
fn account() -> String {
    let Ok(uid) = std::fs::metadata("/proc/self").map(|own| own.uid().to_string()) else {
        return "unknown".to_owned();
    };
    let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut accounts = known.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let name =
        accounts.find(|fields| fields.get(2) == Some(&uid.as_str())).map(|fields| fields[0].to_owned());
    name.unwrap_or_else(|| format!("uid-{uid}"))
}

/// The backups at a URL.
async fn repository(url: &str) -> Result<Repository, BackupError> {
    Repository::open(&Location::parse(url)?).await
}
