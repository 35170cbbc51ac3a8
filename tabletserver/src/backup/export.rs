//! Exports: what a copy here holds of a range at a timestamp, as files at a target.
//!
//! A copy may be read at T once an entry at or below Q closes T: then it has everything up to T,
//! and nothing of that is ever cut or taken back, whoever leads. What T needs is pinned from the
//! beginning, and it is looked whether the floor has passed it before the work and after. A copy
//! that goes while it is read makes the export an error, never a smaller part.

use super::pace::{Progress, Transfers, file_bytes};
use super::uploads::{Destination, Uploads};
use super::walk::{Walk, Window};
use super::{Answers, Stop, open_repository};
use crate::limits;
use crate::node::Node;
use crate::store::gc::ReadPin;
use crate::tablets::TabletHandle;
use ebla_backup::{
    FileEntry, MANIFEST_FORMAT, Pace as _, Part, Scratch, Tombstone, Worker, Written, background,
};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{TableId, TabletId};
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstone;
use ebla_proto::convert::{non_empty, time_text};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Handle;

/// An export that may begin.
pub(super) struct Export {
    node: Arc<Node>,
    handle: Arc<TabletHandle>,
    window: Window,
    request: v1::ExportRequest,
    pace: Arc<Transfers>,
    progress: Progress,
    _pin: ReadPin,
}

/// What a thread writes, and what it looks at meanwhile.
struct Writing<'a> {
    export: &'a Export,
    dir: Scratch,
    worker: Worker,
    looked: Instant,
    files: u64,
}

impl Export {
    /// Checks a request, and pins what it needs.
    ///
    /// # Errors
    /// `STALE_ROUTE` when the copy is not here, `TIMESTAMP_OUT_OF_RANGE` when it no longer holds
    /// what is asked for, `BAD_REQUEST`.
    pub(super) fn check(
        node: Arc<Node>,
        request: v1::ExportRequest,
        pace: Transfers,
    ) -> Result<Self, ApiError> {
        let window = window(&request)?;
        super::check_name("part", &request.part)?;
        super::check_name("backup_id", &request.backup_id)?;
        let handle = node.directory.load().tablet(TabletId(request.tablet_id)).map(Arc::clone);
        let is_meant = |handle: &Arc<TabletHandle>| {
            handle.table == window.table && handle.range.covers(&window.range) && !handle.is_sealed()
        };
        let handle = handle.filter(is_meant).ok_or_else(|| gone(request.tablet_id))?;
        let pin = node.pins.pin(window.floor());
        let (pace, progress) = (Arc::new(pace), Progress::default());
        let export = Self { node, handle, window, request, pace, progress, _pin: pin };
        export.check_table()?;
        export.check_floor()?;
        export.node.disk.check(true)?;
        Ok(export)
    }

    /// Runs to the end, or until nobody waits for it.
    pub(super) async fn run(self, dir: PathBuf, answers: Answers<v1::ExportResponse>) {
        let (tablet, export) = (self.handle.id, Arc::new(self));
        let so_far = || {
            let (bytes, files) = (export.progress.bytes(export.pace.moved()), export.progress.files());
            v1::ExportResponse { bytes, files, ..v1::ExportResponse::default() }
        };
        let written = super::telling(&answers, so_far, Self::make(&export, dir, &answers)).await;
        super::end(&answers, written, "export", tablet).await;
    }

    async fn make(
        export: &Arc<Self>,
        dir: PathBuf,
        answers: &Answers<v1::ExportResponse>,
    ) -> Result<v1::ExportResponse, Stop> {
        let to = tokio::select! {
            to = Self::prepare(export, answers) => to?,
            () = answers.closed() => return Err(Stop::GivenUp),
        };
        let export = Arc::clone(export);
        let runtime = Handle::current();
        let write = move || background::work(|| export.write(to, dir, runtime));
        tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(Stop::panicked(&error)))
    }

    /// Opens the target, and waits until the copy here has everything.
    async fn prepare(export: &Arc<Self>, answers: &Answers<v1::ExportResponse>) -> Result<Destination, Stop> {
        let repository = open_repository(&export.request.target).await?;
        let key = repository.key(&export.request.key_id)?.cloned();
        export.node.wait_closed(&export.handle, export.window.upto, limits::BACKUP_CLOSE_PATIENCE).await?;
        let (backup, part) = (export.request.backup_id.clone(), export.request.part.clone());
        let pace = Arc::clone(&export.pace);
        Ok(Destination { repository, backup, part, key, pace, answers: answers.clone() })
    }

    /// Writes the part; runs on a thread of its own.
    fn write(&self, to: Destination, dir: PathBuf, runtime: Handle) -> Result<v1::ExportResponse, Stop> {
        let store = Arc::clone(&self.node.reader.store);
        let mut walk = Walk::begin(&*store, self.window.clone())?;
        self.check_here()?;
        let mut uploads = Uploads::new(runtime, to);
        let dir = super::scratch(dir)?;
        let worker = self.pace.worker();
        let mut writing = Writing { export: self, dir, worker, looked: Instant::now(), files: 0 };
        let done = writing.files(&mut walk, &mut uploads).and_then(|files| {
            // Of a store without snapshots only this says that nothing was missed.
            self.check_here()?;
            self.check_floor()?;
            Ok(files)
        });
        let part = done.map(|files| self.part(&walk, files));
        match part.and_then(|part| uploads.put_part(&part).map(|()| part)) {
            Ok(part) => {
                let (bytes, files) = (walk.bytes(), writing.files);
                Ok(v1::ExportResponse { bytes, done: true, rows: part.rows, files })
            }
            Err(stop) => {
                uploads.remove();
                Err(stop)
            }
        }
    }

    fn part(&self, walk: &Walk<'_>, files: Vec<FileEntry>) -> Part {
        let Window { table, range, since, upto } = &self.window;
        Part {
            format: MANIFEST_FORMAT,
            name: self.request.part.clone(),
            table: table.0,
            start: range.start().to_vec(),
            end: range.end().map(|end| end.to_vec()),
            tablet: self.handle.id.0,
            server: self.node.peers.identity().map_or(0, |own| own.run.server.0),
            since_ts: since.0,
            ts: upto.0,
            rows: walk.rows(),
            tombstones: walk.tombstones().iter().map(tombstone).collect(),
            files,
        }
    }

    /// The table's rows are whole: a restore that is under way has not put all of them in.
    fn check_table(&self) -> Result<(), ApiError> {
        match super::restoring(&self.node, self.window.table) {
            0 => Ok(()),
            job => {
                let hint =
                    format!("table {} is being restored by job {job}: back it up then", self.window.table.0);
                Err(ApiError::new(Reason::TableRestoring, hint))
            }
        }
    }

    fn check_here(&self) -> Result<(), ApiError> {
        self.node.check_copy(&self.handle)
    }

    fn check_floor(&self) -> Result<(), ApiError> {
        let wanted = self.window.floor();
        if self.node.floors.can_read(self.window.table, wanted) {
            return Ok(());
        }
        let floor = self.node.floors.floor(self.window.table);
        let routes = self.node.routes.now();
        let name = routes.table_of(self.window.table).map_or("", |info| &info.table.name);
        let (tried, what) = if self.window.since == Hlc::MIN {
            ("as it was at", "back it up at a later time")
        } else {
            ("above", "take a full backup")
        };
        let hint = format!(
            "table {name} can no longer be read {tried} {} (only from {} on): {what}, or give it a longer --retention",
            time_text(wanted.ms()),
            time_text(floor.ms())
        );
        Err(ApiError::new(Reason::TimestampOutOfRange, hint).with("oldest", floor.0))
    }
}

impl Writing<'_> {
    /// Writes and puts every file.
    fn files(&mut self, walk: &mut Walk<'_>, uploads: &mut Uploads) -> Result<Vec<FileEntry>, Stop> {
        loop {
            let path = self.dir.0.join(format!("{:04}.sst", self.files));
            let Some(written) = self.next_file(walk, uploads, &path)? else { break };
            metrics::counter!("ebla_backup_exported_bytes_total").increment(written.bytes);
            metrics::counter!("ebla_backup_exported_files_total").increment(1);
            self.files += 1;
            self.export.progress.pack(path.metadata().map_or(0, |file| file.len()));
            // One file is sent while the next is written, and no more wait.
            uploads.begin(written, path)?;
        }
        uploads.finish()
    }

    fn next_file(
        &mut self,
        walk: &mut Walk<'_>,
        uploads: &Uploads,
        path: &Path,
    ) -> Result<Option<Written>, Stop> {
        let Self { worker, looked, export, .. } = self;
        let bytes_max = file_bytes(export.request.rate_bytes);
        walk.next_file(path, &|file| file.bytes() >= bytes_max, &mut |bytes| {
            worker.rest();
            export.progress.pass(bytes);
            if looked.elapsed() >= limits::BACKUP_SAY_EVERY {
                *looked = Instant::now();
                // One that goes is not read to its end.
                export.check_here()?;
            }
            uploads.check_wanted()
        })
    }
}

fn window(request: &v1::ExportRequest) -> Result<Window, ApiError> {
    let range = KeyRange::new(request.start.clone(), non_empty(request.end.clone()));
    let (since, upto) = (Hlc(request.since_ts), Hlc(request.ts));
    match range {
        Ok(range) if since < upto => Ok(Window { table: TableId(request.table_id), range, since, upto }),
        Ok(_) | Err(_) => {
            let hint = "give a range whose end is above its start, and a ts above since_ts";
            Err(ApiError::new(Reason::BadRequest, hint))
        }
    }
}

fn gone(tablet: u64) -> ApiError {
    let hint = format!(
        "no copy of tablet {tablet} with that range is here, or another takes its place: plan it again"
    );
    ApiError::new(Reason::StaleRoute, hint).with("tablet", tablet)
}

pub(super) fn tombstone(tombstone: &RangeTombstone) -> Tombstone {
    Tombstone {
        from: tombstone.range.start().to_vec(),
        to: tombstone.range.end().map(|end| end.to_vec()),
        ts: tombstone.ts.0,
    }
}
