//! Versions out of files, on their way into a store.

use super::Stop;
use super::imports::Imported;
use super::merge::Merge;
use super::pace::Looks;
use crate::limits;
use crate::store::live::LiveRows;
use crate::store::{Incoming, StoreError};
use bytes::Bytes;
use ebla_kernel::ids::TableId;
use ebla_proto::error::{ApiError, Reason};

/// What is on its way, and what was counted of it.
pub(super) struct Taking<'a> {
    incoming: Box<dyn Incoming + 'a>,
    table: TableId,
    live: LiveRows,
    batch: Vec<(Bytes, Bytes)>,
    batch_bytes: usize,
    bytes: u64,
    versions: u64,
}

impl<'a> Taking<'a> {
    /// Nothing yet, for rows of `table`.
    pub(super) fn new(incoming: Box<dyn Incoming + 'a>, table: TableId, live: LiveRows) -> Self {
        Self { incoming, table, live, batch: Vec::new(), batch_bytes: 0, bytes: 0, versions: 0 }
    }

    /// Takes every version of a merge. `look` is called again and again, with the bytes so far.
    ///
    /// # Errors
    /// As the files, the store or `look` say.
    pub(super) fn take_all(
        &mut self,
        merge: &mut Merge<'_>,
        look: &mut dyn FnMut(u64) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let (mut key, mut value, mut looks) = (Vec::new(), Vec::new(), Looks::default());
        while merge.next(&mut key, &mut value)? {
            self.take(&key, &value).map_err(of_file)?;
            if looks.is_due(value.len()) {
                look(self.bytes)?;
            }
        }
        Ok(self.pack()?)
    }

    /// What is to be installed, what was taken, and about the bytes of the rows that are there.
    pub(super) fn end(self) -> (Box<dyn Incoming + 'a>, Imported, u64) {
        let (rows, row_bytes) = self.live.counted();
        (self.incoming, Imported { bytes: self.bytes, rows, versions: self.versions }, row_bytes)
    }

    /// Takes a version as it stands in files.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let stored_key = [&self.table.0.to_be_bytes(), key].concat();
        self.live.take(&stored_key, value)?;
        let bytes = key.len() + value.len();
        self.bytes += bytes as u64;
        self.versions += 1;
        self.batch_bytes += bytes;
        self.batch.push((stored_key.into(), Bytes::copy_from_slice(value)));
        if self.batch_bytes >= limits::BOOTSTRAP_PART_BYTES { self.pack() } else { Ok(()) }
    }

    /// Makes a file of what has gathered.
    fn pack(&mut self) -> Result<(), StoreError> {
        self.batch_bytes = 0;
        self.incoming.add(&std::mem::take(&mut self.batch))
    }
}

/// Its sum was right, so it was written like that.
fn of_file(error: StoreError) -> Stop {
    match error {
        StoreError::Corrupt { what } => {
            let hint = format!(
                "a file of the backup holds what no backup has written ({what}): restore another one"
            );
            Stop::Failed(ApiError::new(Reason::Corrupt, hint))
        }
        error @ (StoreError::NewerFormat { .. } | StoreError::Engine { .. }) => error.into(),
    }
}
