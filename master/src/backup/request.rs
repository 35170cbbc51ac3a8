//! What operators and schedules ask for: resolved, checked as far as that is possible at once,
//! and begun.

use super::open;
use crate::clock;
use crate::service::Shared;
use crate::service::control::unexpected;
use crate::service::route::no_table;
use ebla_backup::{BackupError, Manifest, Repository};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::meta::{
    BackupWish, Command, Job, Origin, Rejection, Reply, RestoreWish, State, Table, TableKind, Wish,
    check_table_name, is_system_name,
};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::{CreateBackupRequest, RestoreBackupRequest};

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
    let at = (request.at_ts != 0).then_some(Hlc(request.at_ts));
    check_at(at, parent.as_ref())?;
    let tables = tables(&shared.raft.view().state(), &request.tables, parent.as_ref())?;
    let is_added = tables.iter().any(|(_, since)| *since != Hlc::MIN);
    let base = parent.as_ref().filter(|_| is_added).map(|parent| Hlc(parent.ts));
    let wish = BackupWish {
        backup: new_id(),
        url: request.url,
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

/// When it was asked for, readable, and a number against two at once.
fn new_id() -> String {
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    format!("{}-{:08x}", now.replace(['-', ':'], ""), rand::random::<u32>())
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
/// not have, and what lives in memory and may have lost everything since, is wanted whole.
fn tables(
    state: &State,
    names: &[String],
    parent: Option<&Manifest>,
) -> Result<Vec<(TableId, Hlc)>, ApiError> {
    let all = || state.tables().filter(|table| !is_system_name(&table.name) && table.restoring.is_none());
    let wanted: Vec<&Table> = match names {
        [] => all().collect(),
        names => {
            let known = names.iter().map(|name| {
                let table = state.table_named(name).filter(|table| !is_system_name(&table.name));
                table.ok_or_else(|| no_table(name))
            });
            known.collect::<Result<_, _>>()?
        }
    };
    let since = |table: &Table| {
        let known = parent.filter(|parent| parent.tables.iter().any(|entry| entry.id == table.id.0));
        match table.spec.kind {
            TableKind::Durable => known.map_or(Hlc::MIN, |parent| Hlc(parent.ts)),
            TableKind::Memory => Hlc::MIN,
        }
    };
    let mut tables: Vec<(TableId, Hlc)> = wanted.iter().map(|table| (table.id, since(table))).collect();
    tables.sort_unstable();
    tables.dedup();
    Ok(tables)
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
