//! Rows as a chain of backups holds them, for those who look at backups without restoring them.

use super::Stop;
use super::merge::{Merge, fetch};
use super::selection::{Source, select};
use crate::store::live::LiveRows;
use bytes::Bytes;
use ebla_backup::{Manifest, Repository, Unpaced};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::Version;
use ebla_kernel::range::KeyRange;
use ebla_proto::error::ApiError;
use std::path::PathBuf;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// Rows that were read and not taken yet: each may have a megabyte.
const ROWS_WAITING_MAX: usize = 64;

/// A row that was there at the backup's timestamp.
pub type BackupRow = (Bytes, Version);

/// What of a chain of backups is read.
pub struct BackupTable {
    /// Where it lies.
    pub repository: Repository,
    /// Oldest first.
    pub chain: Vec<Manifest>,
    /// Id of the table there.
    pub table: u32,
    /// An empty directory for files that are fetched.
    pub dir: PathBuf,
}

impl BackupTable {
    /// The rows in key order whose key is wanted. The files were checked before: what is wrong with
    /// them is an error of the stream, its last item.
    #[must_use]
    pub fn rows(
        self,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> mpsc::Receiver<Result<BackupRow, ApiError>> {
        let (found, rows) = mpsc::channel(ROWS_WAITING_MAX);
        spawn_blocking(move || match self.read(&wanted, &found) {
            // Nobody reads any more in the second case.
            Ok(()) | Err(Stop::GivenUp) => {}
            Err(Stop::Failed(error)) => drop(found.blocking_send(Err(error))),
        });
        rows
    }

    fn read(
        self,
        wanted: &dyn Fn(&[u8]) -> bool,
        found: &mpsc::Sender<Result<BackupRow, ApiError>>,
    ) -> Result<(), Stop> {
        let selection = select(&self.chain, self.table, &KeyRange::all())?;
        let mut live = LiveRows::new(selection.tombstones.into_iter().collect(), Hlc::MIN, selection.ts);
        let (runtime, mut number) = (Handle::current(), 0);
        let fetch_next = |source: &Source| {
            number += 1;
            let dir = self.dir.join(format!("{number:06}"));
            runtime.block_on(fetch(&self.repository, source, dir, &Unpaced))
        };
        let mut merge = Merge::new(selection.sources, Box::new(fetch_next));
        let (mut key, mut value) = (Vec::new(), Vec::new());
        while merge.next(&mut key, &mut value)? {
            let stored_key = [&self.table.to_be_bytes(), &key[..]].concat();
            let Some(row) = live.row(&stored_key, &value)? else { continue };
            if wanted(&row.0) && found.blocking_send(Ok(row)).is_err() {
                return Err(Stop::GivenUp);
            }
        }
        Ok(())
    }
}
