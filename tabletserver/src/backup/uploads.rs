//! The files of one part on their way to the target: one is sent while the next is written.

use super::pace::Transfers;
use super::{Answers, Stop};
use ebla_backup::{BackupError, FileEntry, Key, Part, Repository, Written};
use ebla_failpoints::failpoint;
use ebla_proto::v1;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tracing::warn;

/// Where a part goes.
pub(super) struct Destination {
    pub(super) repository: Repository,
    pub(super) backup: String,
    pub(super) part: String,
    pub(super) key: Option<Key>,
    pub(super) pace: Arc<Transfers>,
    /// Open as long as somebody waits for the part.
    pub(super) answers: Answers<v1::ExportResponse>,
}

/// The files of a part; for a thread that may block.
pub(super) struct Uploads {
    runtime: Handle,
    to: Arc<Destination>,
    under_way: Option<(String, Written, Upload)>,
    done: Vec<FileEntry>,
    /// The names of all of them.
    begun: Vec<String>,
}

/// Bytes as they lie at the target, and their sha256.
type Upload = JoinHandle<Result<(u64, String), BackupError>>;

impl Uploads {
    pub(super) fn new(runtime: Handle, to: Destination) -> Self {
        Self { runtime, to: Arc::new(to), under_way: None, done: Vec::new(), begun: Vec::new() }
    }

    /// Begins to send a local file, which is removed afterwards, once the one before is there.
    ///
    /// # Errors
    /// When the one before could not be put.
    pub(super) fn begin(&mut self, written: Written, path: PathBuf) -> Result<(), Stop> {
        self.wait()?;
        let name = format!("data/{}-{:04}.sst", self.to.part, self.done.len());
        self.begun.push(name.clone());
        failpoint!("export.file");
        let (to, sent_as) = (Arc::clone(&self.to), name.clone());
        let task = self.runtime.spawn(async move {
            let put = to.repository.put_file(&to.backup, &sent_as, &path, to.key.as_ref(), &*to.pace).await;
            // Its directory goes with the export.
            let _ = tokio::fs::remove_file(&path).await;
            put
        });
        self.under_way = Some((name, written, task));
        Ok(())
    }

    /// Waits for the last file; gives all of them.
    ///
    /// # Errors
    /// When one could not be put.
    pub(super) fn finish(&mut self) -> Result<Vec<FileEntry>, Stop> {
        self.wait()?;
        Ok(self.done.clone())
    }

    /// Puts the description of the part: from here on it counts.
    ///
    /// # Errors
    /// As the target says.
    pub(super) fn put_part(&self, part: &Part) -> Result<(), Stop> {
        failpoint!("export.part");
        self.runtime.block_on(self.to.repository.put_part(&self.to.backup, part))?;
        failpoint!("export.done");
        Ok(())
    }

    /// Removes what was put of a part that is given up; what cannot be removed is left for
    /// `ebla backup prune`.
    pub(super) fn remove(mut self) {
        let Destination { backup, part, repository, .. } = &*self.to;
        // The description may be there although putting it failed, and must not outlive its files.
        let described = vec![format!("backups/{backup}/parts/{part}.json")];
        // A file that is just being put would appear later.
        self.to.pace.hurry();
        if let Some((_, _, task)) = self.under_way.take() {
            let _ = self.runtime.block_on(task);
        }
        let files: Vec<String> = self.begun.iter().map(|name| format!("backups/{backup}/{name}")).collect();
        let target = repository.target();
        let removed = self.runtime.block_on(async {
            target.delete(&described).await?;
            target.delete(&files).await
        });
        if let Err(error) = removed {
            warn!(%backup, %part, %error, "files of a part that was given up are left at the target");
        }
    }

    /// Whether anybody waits for the part.
    ///
    /// # Errors
    /// `GivenUp` when nobody does.
    pub(super) fn check_wanted(&self) -> Result<(), Stop> {
        if self.to.answers.is_closed() { Err(Stop::GivenUp) } else { Ok(()) }
    }

    fn wait(&mut self) -> Result<(), Stop> {
        let Some((_, _, task)) = &mut self.under_way else { return Ok(()) };
        let put = self.runtime.block_on(async {
            tokio::select! {
                put = task => put.map_err(|error| Stop::panicked(&error)),
                () = self.to.answers.closed() => Err(Stop::GivenUp),
            }
        });
        let put = match put {
            // It goes on, and is waited for when everything is removed.
            Err(Stop::GivenUp) => return Err(Stop::GivenUp),
            Ok(put) => put.map_err(Stop::from),
            Err(stop @ Stop::Failed(_)) => Err(stop),
        };
        if let Some((name, written, _)) = self.under_way.take() {
            self.done.push(written.entry(name, put?));
        }
        Ok(())
    }
}
