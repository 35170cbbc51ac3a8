//! Imports: the versions of a copy's range, out of the files of a chain of backups.
//!
//! Every copy is filled by itself, so nothing of it goes through a log. That is sound because the
//! table's log says nothing of rows until it is activated: nobody may write it. Before the rows
//! go in, an entry that closes the backup's timestamp must stand in the log here: whatever is built
//! from this copy's rows later, is built up to that entry or a later one. The same bytes go in on
//! every copy, and again after a crash, until the ledger has the copy.

use super::imports::{AtWork, Begun, Imported};
use super::merge::{Merge, fetch};
use super::pace::Transfers;
use super::selection::{Selection, Source, select};
use super::taking::Taking;
use super::{Answers, Stop, open_repository};
use crate::limits;
use crate::node::Node;
use crate::replicas::Replicas;
use crate::store::Incoming;
use crate::store::live::LiveRows;
use crate::tablets::TabletHandle;
use ebla_backup::{Pace as _, Repository, background};
use ebla_failpoints::failpoint;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{ReplicaId, TableId, TabletId};
use ebla_kernel::range_tombstones::RangeTombstone;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::runtime::Handle;

/// An import that may begin.
pub(super) struct Import {
    node: Arc<Node>,
    replicas: Arc<Replicas>,
    handle: Arc<TabletHandle>,
    request: v1::ImportRequest,
    begun: Begun,
    pace: Transfers,
}

impl Import {
    /// Checks a request.
    ///
    /// # Errors
    /// `STALE_ROUTE` when the copy is not here (yet), `JOB_ENDED` when its table is not being
    /// restored, `OVERLOADED` while it is being filled already.
    pub(super) fn check(
        node: Arc<Node>,
        replicas: Arc<Replicas>,
        request: v1::ImportRequest,
        pace: Transfers,
    ) -> Result<Self, ApiError> {
        let (table, copy) = (TableId(request.table_id), ReplicaId(request.replica_id));
        let handle = node.directory.load().tablet(TabletId(request.tablet_id)).map(Arc::clone);
        let is_meant = |handle: &Arc<TabletHandle>| handle.table == table && handle.replica == copy;
        let handle = handle.filter(is_meant).ok_or_else(|| {
            let hint = format!(
                "copy {} of tablet {} is not here, or not built yet: try again",
                copy.0, request.tablet_id
            );
            ApiError::new(Reason::StaleRoute, hint).with("tablet", request.tablet_id)
        })?;
        check_restored(&node, table)?;
        node.disk.check(true)?;
        let begun = node.imports.begin(table, copy, |table| super::restoring(&node, table) != 0);
        if matches!(begun, Begun::Busy) {
            return Err(ApiError::new(Reason::Overloaded, "the copy is being filled already: try again"));
        }
        Ok(Self { node, replicas, handle, request, begun, pace })
    }

    /// Runs to the end, or until nobody waits for it.
    pub(super) async fn run(self, dir: PathBuf, answers: Answers<v1::ImportResponse>) {
        let Self { node, replicas, handle, request, begun, pace } = self;
        let tablet = handle.id;
        let imported = match begun {
            Begun::Done(imported) => Ok(imported),
            Begun::Busy => Err(Stop::GivenUp),
            Begun::Now(at_work) => {
                let taken = AtomicU64::new(0);
                let answers = answers.clone();
                Filling { node, replicas, handle, request, answers, pace, taken }.run(dir, at_work).await
            }
        };
        let done = imported.map(|Imported { bytes, rows, versions }| v1::ImportResponse {
            bytes,
            done: true,
            rows,
            versions,
        });
        super::end(&answers, done, "import", tablet).await;
    }
}

/// An import under way.
struct Filling {
    node: Arc<Node>,
    replicas: Arc<Replicas>,
    handle: Arc<TabletHandle>,
    request: v1::ImportRequest,
    answers: Answers<v1::ImportResponse>,
    pace: Transfers,
    /// Bytes of versions.
    taken: AtomicU64,
}

impl Filling {
    async fn run(self, dir: PathBuf, at_work: AtWork) -> Result<Imported, Stop> {
        let filling = Arc::new(self);
        let so_far = || {
            // Either half of the work shows, while files come and while they are taken in.
            let bytes = filling.taken.load(Ordering::Relaxed).midpoint(filling.pace.moved());
            v1::ImportResponse { bytes, ..v1::ImportResponse::default() }
        };
        super::telling(&filling.answers, so_far, Self::make(&filling, dir, at_work)).await
    }

    async fn make(filling: &Arc<Self>, dir: PathBuf, at_work: AtWork) -> Result<Imported, Stop> {
        let (repository, selection) = tokio::select! {
            prepared = filling.prepare() => prepared?,
            () = filling.answers.closed() => return Err(Stop::GivenUp),
        };
        let filling = Arc::clone(filling);
        let fill = move || {
            let imported = filling.fill(&repository, selection, dir)?;
            at_work.done(imported);
            Ok(imported)
        };
        tokio::task::spawn_blocking(fill).await.unwrap_or_else(|error| Err(Stop::panicked(&error)))
    }

    /// Finds what is to go in, and waits until the copy here may take it.
    async fn prepare(&self) -> Result<(Repository, Selection), Stop> {
        let repository = open_repository(&self.request.target).await?;
        let chain = repository.chain(&self.request.backup_id).await?;
        let selection = select(&chain, self.request.source_table_id, &self.handle.range)?;
        self.node.clock.observe(selection.ts).map_err(|_| {
            let hint = format!(
                "the backup is from the future: its timestamp is {}, the clock of this server at {}: set the clock, \
                 or wait",
                selection.ts.0,
                self.node.clock.now().0
            );
            ApiError::new(Reason::TimestampOutOfRange, hint)
        })?;
        self.node.wait_closed(&self.handle, selection.ts, limits::BACKUP_CLOSE_PATIENCE).await?;
        Ok((repository, selection))
    }

    /// Puts everything in; runs on a thread of its own.
    fn fill(&self, repository: &Repository, selection: Selection, dir: PathBuf) -> Result<Imported, Stop> {
        let dir = super::scratch(dir)?;
        let fetched = super::scratch(dir.0.join("fetched"))?;
        let packed = super::scratch(dir.0.join("packed"))?;
        let store = Arc::clone(&self.node.reader.store);
        let incoming = store.take_in(self.handle.table, &self.handle.range, &packed.0)?;
        let Selection { ts, sources, tombstones } = selection;
        let covering = tombstones.iter().cloned().collect();
        let mut taking = Taking::new(incoming, self.handle.table, LiveRows::new(covering, Hlc::MIN, ts));
        let runtime = Handle::current();
        let mut number = 0;
        let fetch_next = |source: &Source| {
            number += 1;
            let place = fetched.0.join(format!("{number:06}"));
            runtime.block_on(async {
                tokio::select! {
                    file = fetch(repository, source, place, &self.pace) => file,
                    () = self.answers.closed() => Err(Stop::GivenUp),
                }
            })
        };
        background::work(|| {
            let mut merge = Merge::new(sources, Box::new(fetch_next));
            taking.take_all(&mut merge, &mut self.look())
        })?;
        let (incoming, imported, row_bytes) = taking.end();
        self.install(incoming, &tombstones, (imported.rows, row_bytes))?;
        metrics::counter!("ebla_backup_imported_bytes_total").increment(imported.bytes);
        Ok(imported)
    }

    /// What is looked at again and again while versions go by.
    fn look(&self) -> impl FnMut(u64) -> Result<(), Stop> {
        let mut worker = self.pace.worker();
        let mut looked = Instant::now();
        move |bytes| {
            worker.rest();
            self.taken.store(bytes, Ordering::Relaxed);
            if looked.elapsed() >= limits::BACKUP_SAY_EVERY {
                looked = Instant::now();
                self.node.check_copy(&self.handle)?;
                // Room that others need to write is not taken; what is given up here comes back.
                self.node.disk.check(true)?;
            }
            if self.answers.is_closed() { Err(Stop::GivenUp) } else { Ok(()) }
        }
    }

    /// Puts the versions in place of what the range holds. Whoever removes the copy waits for it.
    fn install(
        &self,
        incoming: Box<dyn Incoming + '_>,
        tombstones: &[RangeTombstone],
        (rows, bytes): (u64, u64),
    ) -> Result<(), Stop> {
        failpoint!("import.install");
        let _installing = self.node.imports.install(self.handle.id);
        self.node.check_copy(&self.handle)?;
        check_restored(&self.node, self.handle.table)?;
        if self.answers.is_closed() {
            return Err(Stop::GivenUp);
        }
        incoming.install(tombstones)?;
        self.handle.tombstones.store(Arc::new(tombstones.iter().cloned().collect()));
        // Versions that are older than the table's retention may be garbage already.
        self.handle.size.has_garbage.store(true, Ordering::Relaxed);
        self.handle.size.may_expire.store(true, Ordering::Relaxed);
        self.handle.size.set(rows, bytes);
        failpoint!("import.size");
        // A start shows the counts of the registry until the rows are counted anew.
        let sized = self.replicas.sized((self.handle.id, self.handle.replica), rows, bytes);
        sized.map_err(|error| Stop::Failed(ApiError::new(Reason::Internal, error.to_string())))?;
        failpoint!("import.done");
        Ok(())
    }
}

/// Rows are only put under a table that nobody else reads or writes.
fn check_restored(node: &Node, table: TableId) -> Result<(), ApiError> {
    if super::restoring(node, table) != 0 {
        return Ok(());
    }
    let hint = format!("table {} is not being restored, as far as this server knows: try again", table.0);
    Err(ApiError::new(Reason::JobEnded, hint))
}
