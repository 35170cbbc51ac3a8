//! Backups, as a tablet server has to do with them: `BackupService`, which the leading master
//! calls.
//!
//! ```text
//!   master                     server                                target
//!     ── Probe ──────────────▶ read what the master put ◀────────────
//!                              put its own ─────────────────────────▶ probe
//!
//!     ── Export(range, T) ───▶ the copy here has everything up to T?
//!                              pin · floor · walk ──────────────────▶ data/PART-NNNN.sst
//!     ◀── so far ... ───────── still the same copy? · floor ────────▶ parts/PART.json
//!     ◀── done: rows, bytes ──
//!
//!     ── Import(replica) ────▶ chain ◀───────────────────────────────
//!                              files, merged by key ◀──────────────── data/...
//!     ◀── so far ... ───────── clear · ingest · tombstones · flush
//!     ◀── done: rows, versions
//! ```
//!
//! Nothing here is remembered over a restart, and nothing decides: whoever asks plans again after
//! every refusal. A stream that its caller drops ends the work behind it. What counts is what lies
//! at the target, and what a copy's store has.

mod export;
mod import;
mod imports;
mod merge;
mod pace;
mod probe;
mod rows;
mod selection;
mod taking;
#[cfg(test)]
mod tests;
mod uploads;
mod walk;

pub use imports::Imports;
pub use rows::{BackupRow, BackupTable};

use crate::limits;
use crate::node::{Node, store_error};
use crate::replicas::Replicas;
use crate::store::StoreError;
use ebla_backup::limits::{BACKUP_CORE_PARTS, RESTORE_CORE_PARTS};
use ebla_backup::{BackupError, Location, Repository, Scratch};
use ebla_kernel::ids::{TableId, TabletId};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::backup_service_server::BackupService;
use export::Export;
use import::Import;
use pace::Budget;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::{debug, info};

/// The service.
pub struct Backups {
    node: Arc<Node>,
    /// Where files stand on their way.
    dir: PathBuf,
    exports: Arc<Semaphore>,
    imports: Arc<Semaphore>,
    next: AtomicU64,
    /// Everything that is sent and fetched here shares it.
    budget: Budget,
    replicas: Arc<Replicas>,
}

/// Where the answers of a stream go.
type Answers<T> = mpsc::Sender<Result<T, Status>>;

/// Why an export or an import ended early.
#[derive(Debug)]
enum Stop {
    /// Nobody waits for it any more.
    GivenUp,
    /// It cannot be done.
    Failed(ApiError),
}

impl Stop {
    fn panicked(error: &JoinError) -> Self {
        Self::Failed(ApiError::new(Reason::Internal, format!("a part of the work did not end: {error}")))
    }
}

impl From<ApiError> for Stop {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(store_error(error))
    }
}

impl From<ebla_failpoints::Failed> for Stop {
    fn from(failed: ebla_failpoints::Failed) -> Self {
        Self::Failed(ApiError::new(Reason::Internal, failed.to_string()))
    }
}

impl From<BackupError> for Stop {
    fn from(error: BackupError) -> Self {
        Self::Failed(ApiError::from(&error))
    }
}

#[tonic::async_trait]
impl BackupService for Backups {
    type ExportStream = ReceiverStream<Result<v1::ExportResponse, Status>>;
    type ImportStream = ReceiverStream<Result<v1::ImportResponse, Status>>;

    async fn probe(&self, request: Request<v1::ProbeRequest>) -> Result<Response<v1::ProbeResponse>, Status> {
        let request = request.into_inner();
        self.check_caller(&request.cluster_id)?;
        let own = self.node.peers.identity().map_or(0, |own| own.run.server.0);
        probe::probe(&request, own).await?;
        Ok(Response::new(v1::ProbeResponse {}))
    }

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let request = request.into_inner();
        self.check_caller(&request.cluster_id)?;
        let room = take_room(&self.exports)?;
        let pace = self.budget.transfers(request.rate_bytes, BACKUP_CORE_PARTS);
        let export = Export::check(Arc::clone(&self.node), request, pace)?;
        let (answers, out) = mpsc::channel(limits::BACKUP_ANSWERS_WAITING);
        let dir = self.scratch("export");
        tokio::spawn(async move {
            export.run(dir, answers).await;
            drop(room);
        });
        Ok(Response::new(ReceiverStream::new(out)))
    }

    async fn import(
        &self,
        request: Request<v1::ImportRequest>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        let request = request.into_inner();
        self.check_caller(&request.cluster_id)?;
        let room = take_room(&self.imports)?;
        let pace = self.budget.transfers(request.rate_bytes, RESTORE_CORE_PARTS);
        let import = Import::check(Arc::clone(&self.node), Arc::clone(&self.replicas), request, pace)?;
        let (answers, out) = mpsc::channel(limits::BACKUP_ANSWERS_WAITING);
        let dir = self.scratch("import");
        tokio::spawn(async move {
            import.run(dir, answers).await;
            drop(room);
        });
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

impl Backups {
    /// A service whose files stand in `dir` while they are on their way.
    #[must_use]
    pub fn new(node: Arc<Node>, replicas: Arc<Replicas>, dir: PathBuf) -> Self {
        Self {
            node,
            dir,
            exports: Arc::new(Semaphore::new(limits::BACKUP_EXPORTS_MAX)),
            imports: Arc::new(Semaphore::new(limits::BACKUP_IMPORTS_MAX)),
            next: AtomicU64::new(0),
            budget: Budget::default(),
            replicas,
        }
    }

    /// Another cluster's master reached us by a wrong address; and one that stops begins nothing.
    fn check_caller(&self, cluster_id: &str) -> Result<(), ApiError> {
        let own = self.node.peers.identity().ok_or_else(|| {
            ApiError::new(Reason::Unavailable, "this server has not registered with a master yet: try again")
        })?;
        if own.cluster_id != cluster_id {
            let hint = format!("this server belongs to cluster {}: fetch the route again", own.cluster_id);
            return Err(ApiError::new(Reason::WrongCluster, hint));
        }
        match self.node.draining.load(Ordering::Relaxed) {
            true => Err(ApiError::new(Reason::Draining, "this server is stopping: ask another one")),
            false => Ok(()),
        }
    }

    fn scratch(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{what}-{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

/// Whether a name is that of a directory of files on their way.
pub fn is_on_its_way(name: &str) -> bool {
    let number = name.strip_prefix("export-").or_else(|| name.strip_prefix("import-"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn take_room(room: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
    Arc::clone(room).try_acquire_owned().map_err(|_| {
        ApiError::new(Reason::Overloaded, "this server works on as much of backups as it may: try again")
    })
}

/// Does work, and tells whoever waits now and then how far it is.
async fn telling<T, R>(answers: &Answers<T>, so_far: impl Fn() -> T, work: impl Future<Output = R>) -> R {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            ended = &mut work => return ended,
            () = tokio::time::sleep(limits::BACKUP_SAY_EVERY) => {
                // A slow listener is told the next time.
                let _ = answers.try_send(Ok(so_far()));
            }
        }
    }
}

/// Tells whoever waits how the work ended.
async fn end<T>(to: &Answers<T>, ended: Result<T, Stop>, what: &'static str, tablet: TabletId) {
    match ended {
        Ok(answer) => {
            info!(%tablet, "an {what} is done");
            metrics::counter!(format!("ebla_backup_{what}s_total")).increment(1);
            let _ = to.send(Ok(answer)).await;
        }
        Err(Stop::GivenUp) => debug!(%tablet, "nobody waits for an {what} any more"),
        Err(Stop::Failed(error)) => {
            info!(%tablet, reason = error.reason.as_str(), %error, "an {what} was refused or failed");
            metrics::counter!(format!("ebla_backup_{what}s_failed_total")).increment(1);
            let _ = to.send(Err(error.into())).await;
        }
    }
}

async fn open_repository(url: &str) -> Result<Repository, Stop> {
    let location = Location::parse(url).map_err(BackupError::from)?;
    Ok(Repository::open(&location).await?)
}

/// The job that restores a table, 0 for none.
fn restoring(node: &Node, table: TableId) -> u64 {
    node.routes.now().table_of(table).map_or(0, |info| info.table.restoring_job_id)
}

/// Names become parts of names at the target.
fn check_name(field: &str, name: &str) -> Result<(), ApiError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !name.is_empty() && name.bytes().all(is_plain) {
        return Ok(());
    }
    let hint = format!("{field} {name:?} is no name of letters, digits, - and _: give one");
    Err(ApiError::new(Reason::BadRequest, hint))
}

/// A directory for files on their way.
fn scratch(dir: PathBuf) -> Result<Scratch, Stop> {
    Scratch::make(dir.clone()).map_err(|error| {
        let hint = format!("cannot create {}: {error}; look at the disk of this server", dir.display());
        Stop::Failed(ApiError::new(Reason::Internal, hint))
    })
}
