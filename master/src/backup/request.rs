//! What operators and schedules ask for: resolved, checked as far as that is possible at once,
//! and begun.

use super::open;
use crate::clock;
use crate::service::Shared;
use crate::service::control::unexpected;
use ebla_backup::{BackupError, Location, Manifest, Repository};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::meta::{
    BackupWish, Command, Job, Origin, Rejection, Reply, RestoreWish, State, Table, TableKind, Wish,
    check_table_name, is_system_name,
};
use ebla_proto::convert::time_text;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::{CreateBackupRequest, RestoreBackupRequest};
use std::time::{Duration, SystemTime};

/// Begins a backup that a person or, if it is `scheduled`, a schedule wants.
pub(crate) async fn create_backup(
    shared: &Shared,
    request: CreateBackupRequest,
    scheduled: bool,
) -> Result<Job, ApiError> {
    shared.confirm_leading().await?;
    let repository = open(&request.url).await.map_err(|error| ApiError::from(&error))?;
    let key_id = key_id(&repository, request.encrypted)?;
    let parent = parent(shared, &repository, &request.parent_id).await?;
    check_encryption(parent.as_ref(), request.encrypted)?;
    let at = (request.at_ts != 0).then_some(Hlc(request.at_ts));
    check_at(at, parent.as_ref())?;
    let tables = tables(&shared.raft.view().state(), &request.tables, parent.as_ref(), at)?;
    let is_added = tables.iter().any(|(_, since)| *since != Hlc::MIN);
    let base = parent.as_ref().filter(|_| is_added).map(|parent| Hlc(parent.ts));
    let wish = BackupWish {
        backup: ebla_backup::new_id(SystemTime::now()),
        url: one_url(&request.url)?,
        tables,
        parent: parent.map(|parent| (parent.id, Hlc(parent.ts))),
        at,
        safe: base.or(at).unwrap_or_else(clock::wall),
        rate_bytes: request.rate_bytes,
        key_id,
        by: request.by,
        scheduled,
    };
    let origin = if scheduled { Origin::Automatic } else { Origin::Operator };
    begin(shared, Wish::Backup(Box::new(wish)), origin).await
}

async fn begin(shared: &Shared, wish: Wish, origin: Origin) -> Result<Job, ApiError> {
    let command = Command::StartJob { wish, origin, time_ms: clock::wall_ms() };
    match shared.raft.propose(command).await.map_err(|why| shared.no_answer(why))? {
        Reply::Job(job) => Ok(*job),
        Reply::Rejected(rejection) => Err(rejection.into()),
        other => Err(unexpected(&other)),
    }
}

/// The name of the key that files at a target are to be encrypted with, empty for none. The
/// target is one that can be used.
pub(crate) async fn key_of(url: &str, encrypted: bool) -> Result<String, ApiError> {
    let repository = open(url).await.map_err(|error| ApiError::from(&error))?;
    key_id(&repository, encrypted)
}

fn key_id(repository: &Repository, encrypted: bool) -> Result<String, ApiError> {
    if !encrypted {
        return Ok(String::new());
    }
    repository.own_key().map(|key| key.id()).ok_or_else(|| {
        let hint = "the leading master has no key: start masters and servers with EBLA_BACKUP_KEY_FILE or EBLA_BACKUP_KEY";
        ApiError::new(Reason::BackupTarget, hint)
    })
}

/// The manifest of the backup to add to.
async fn parent(shared: &Shared, repository: &Repository, id: &str) -> Result<Option<Manifest>, ApiError> {
    if id.is_empty() {
        return Ok(None);
    }
    // All of it must be there, or what is added is worth nothing.
    let mut chain = repository.chain(id).await.map_err(|error| ApiError::from(&error))?;
    for manifest in &chain {
        repository.check_presence(manifest).await.map_err(|error| ApiError::from(&error))?;
    }
    let parent = chain.pop().ok_or_else(|| no_backup(id))?;
    let own = shared.raft.view().state().cluster_id().map(|id| id.to_string()).unwrap_or_default();
    if parent.cluster_id != own {
        let hint = format!("backup {id} is of cluster {}, this is {own}: make a full one", parent.cluster_id);
        return Err(ApiError::new(Reason::WrongCluster, hint));
    }
    Ok(Some(parent))
}

fn no_backup(id: &str) -> ApiError {
    ApiError::from(&BackupError::NoBackup(format!("there is no backup {id}: `ebla backup list` shows them")))
}

/// What was encrypted once is not added to in the clear by mistake.
fn check_encryption(parent: Option<&Manifest>, encrypted: bool) -> Result<(), ApiError> {
    let Some(parent) = parent.filter(|parent| parent.encryption.is_some() && !encrypted) else {
        return Ok(());
    };
    let hint = format!(
        "backup {} is encrypted, and what is to be added to it would not be: give --encrypt, or take a full backup",
        parent.id
    );
    Err(ApiError::new(Reason::BadRequest, hint))
}

/// A URL as it is written down: one place has one.
pub(crate) fn one_url(url: &str) -> Result<String, ApiError> {
    let location = Location::parse(url).map_err(|error| ApiError::from(&BackupError::from(error)))?;
    Ok(location.to_string())
}

fn check_at(at: Option<Hlc>, parent: Option<&Manifest>) -> Result<(), ApiError> {
    let Some(at) = at else { return Ok(()) };
    if at > Hlc::new(clock::wall_ms(), u16::MAX) {
        let hint = "--at lies in the future: give a timestamp that has passed, or now";
        return Err(ApiError::new(Reason::BadRequest, hint));
    }
    if parent.is_some_and(|parent| Hlc(parent.ts) >= at) {
        let hint = "--at is not after the backup that is added to: choose a later timestamp";
        return Err(ApiError::new(Reason::BadRequest, hint));
    }
    Ok(())
}

/// The tables, each with the timestamp above which its versions are wanted. What the parent does
/// not have, and what lives in memory and may have lost everything since, is wanted whole. `at` an
/// earlier time, those that were there then.
fn tables(
    state: &State,
    names: &[String],
    parent: Option<&Manifest>,
    at: Option<Hlc>,
) -> Result<Vec<(TableId, Hlc)>, ApiError> {
    let was_there = |table: &Table| at.is_none_or(|at| table.created_ms <= at.ms());
    let all = || state.tables().filter(|table| !is_system_name(&table.name) && table.restoring.is_none());
    let wanted: Vec<&Table> = match names {
        [] => {
            check_drops(state, at)?;
            all().filter(|table| was_there(table)).collect()
        }
        names => {
            let known = names.iter().map(|name| {
                if is_system_name(name) {
                    let hint = format!("table {name} is the cluster's own: what it holds is never backed up");
                    return Err(ApiError::new(Reason::BadRequest, hint));
                }
                state.table_named(name).ok_or_else(|| {
                    let hint = format!(
                        "there is no table {name}: name one that `ebla table list` shows; if a schedule names it, change that with `ebla backup schedule set` or end it with `ebla backup schedule remove`"
                    );
                    ApiError::new(Reason::TableNotFound, hint)
                })
            });
            known.collect::<Result<_, _>>()?
        }
    };
    if let Some(table) = wanted.iter().find(|table| !was_there(table)) {
        let hint = format!(
            "table {} came into being at {}, after --at: choose a later timestamp",
            table.name,
            time_text(table.created_ms)
        );
        return Err(ApiError::new(Reason::BadRequest, hint));
    }
    let since = |table: &Table| {
        let known = parent.filter(|parent| parent.tables.iter().any(|entry| entry.id == table.id.0));
        match table.spec.kind {
            TableKind::Durable => known.map_or(Hlc::MIN, |parent| Hlc(parent.ts)),
            TableKind::Memory => Hlc::MIN,
        }
    };
    if let Some(at) = at {
        let whole = wanted.iter().filter(|table| since(table) == Hlc::MIN);
        whole.copied().try_for_each(|table| check_retention(table, at))?;
    }
    let mut tables: Vec<(TableId, Hlc)> = wanted.iter().map(|table| (table.id, since(table))).collect();
    tables.sort_unstable();
    tables.dedup();
    Ok(tables)
}

/// Of a table that was dropped since, nothing can be read at an earlier time: a backup of all tables
/// would lack it.
fn check_drops(state: &State, at: Option<Hlc>) -> Result<(), ApiError> {
    let dropped_ms = state.table_dropped_ms();
    if at.is_none_or(|at| dropped_ms < at.ms()) {
        return Ok(());
    }
    let hint = format!(
        "a table was dropped at {}, after --at, and what it held then is gone: choose a later timestamp, or \
         name tables that are still there with --table",
        time_text(dropped_ms)
    );
    Err(ApiError::new(Reason::BadRequest, hint))
}

/// Versions that were replaced before the retention's time may be gone already.
fn check_retention(table: &Table, at: Hlc) -> Result<(), ApiError> {
    let oldest_ms = clock::wall_ms().saturating_sub(table.spec.retention_ms);
    if at.ms() >= oldest_ms {
        return Ok(());
    }
    let retention = humantime::format_duration(Duration::from_millis(table.spec.retention_ms));
    let hint = format!(
        "table {} keeps old versions for {retention}, and --at is older: choose a timestamp after {}, or give the table \
         a longer --retention",
        table.name,
        time_text(oldest_ms)
    );
    Err(ApiError::new(Reason::TimestampOutOfRange, hint).with("oldest", Hlc::new(oldest_ms, 0).0))
}

/// Begins to bring tables back.
pub(crate) async fn restore_backup(shared: &Shared, request: RestoreBackupRequest) -> Result<Job, ApiError> {
    shared.confirm_leading().await?;
    if !request.new_name.is_empty() && request.table.is_empty() {
        let hint = "--as names one table: say with --table which";
        return Err(ApiError::new(Reason::BadRequest, hint));
    }
    let replicas =
        u8::try_from(request.replicas).ok().filter(|copies| *copies <= ebla_kernel::limits::REPLICAS_MAX);
    let replicas = replicas.ok_or_else(|| {
        let hint = format!("--replicas is at most {}", ebla_kernel::limits::REPLICAS_MAX);
        ApiError::new(Reason::BadRequest, hint)
    })?;
    let repository = open(&request.url).await.map_err(|error| ApiError::from(&error))?;
    let manifest = newest_of(&repository, &request.backup_id).await?;
    let tables = restored(&manifest, &request.table, &request.new_name)?;
    for (_, name) in &tables {
        check_table_name(name)?;
        if let Some(table) = shared.raft.view().state().table_named(name) {
            return Err(Rejection::TableExists(Box::new(table.clone())).into());
        }
    }
    let wish = RestoreWish {
        backup: manifest.id,
        url: request.url,
        ts: Hlc(manifest.ts),
        tables,
        replicas: (replicas != 0).then_some(replicas),
        rate_bytes: request.rate_bytes,
        by: request.by,
    };
    begin(shared, Wish::Restore(Box::new(wish)), Origin::Operator).await
}

/// The newest manifest of the chain of a backup; of the newest backup if none is named.
async fn newest_of(repository: &Repository, id: &str) -> Result<Manifest, ApiError> {
    let id = match id {
        "" => {
            let all = repository.list().await.map_err(|error| ApiError::from(&error))?;
            all.last().map(|manifest| manifest.id.clone()).ok_or_else(|| {
                ApiError::from(&BackupError::NoBackup("there is no backup at that target".to_owned()))
            })?
        }
        id => id.to_owned(),
    };
    let mut chain = repository.chain(&id).await.map_err(|error| ApiError::from(&error))?;
    chain.pop().ok_or_else(|| no_backup(&id))
}

/// Tables of the backup by id, with the names that they get.
fn restored(manifest: &Manifest, table: &str, new_name: &str) -> Result<Vec<(TableId, String)>, ApiError> {
    if manifest.tables.is_empty() {
        let hint = format!("backup {} holds no tables: there is nothing to restore", manifest.id);
        return Err(ApiError::new(Reason::TableNotFound, hint));
    }
    if table.is_empty() {
        return Ok(manifest.tables.iter().map(|entry| (TableId(entry.id), entry.name.clone())).collect());
    }
    let entry = manifest.tables.iter().find(|entry| entry.name == table).ok_or_else(|| {
        let names: Vec<&str> = manifest.tables.iter().map(|entry| entry.name.as_str()).collect();
        let hint = format!("backup {} has no table {table}: it has {}", manifest.id, names.join(", "));
        ApiError::new(Reason::TableNotFound, hint)
    })?;
    let name = if new_name.is_empty() { table } else { new_name };
    Ok(vec![(TableId(entry.id), name.to_owned())])
}
