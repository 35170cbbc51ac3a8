//! Versions out of files, on their way into a store.

use super::Stop;
use super::imports::Imported;
use super::merge::Merge;
use super::pace::Looks;
use crate::store::live::LiveRows;
use crate::store::{Incoming, StoreError};
use ebla_backup::TABLE_ID_BYTES;
use ebla_kernel::ids::TableId;
use ebla_proto::error::{ApiError, Reason};

/// What is on its way, and what was counted of it.
pub(super) struct Taking<'a> {
    incoming: Box<dyn Incoming + 'a>,
    table: TableId,
    live: LiveRows,
    bytes: u64,
    versions: u64,
}

impl<'a> Taking<'a> {
    /// Nothing yet, for rows of `table`.
    pub(super) fn new(incoming: Box<dyn Incoming + 'a>, table: TableId, live: LiveRows) -> Self {
        Self { incoming, table, live, bytes: 0, versions: 0 }
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
        let mut stored_key = Vec::new();
        while merge.next(&mut key, &mut value)? {
            stored_key.clear();
            stored_key.extend_from_slice(&self.table.0.to_be_bytes());
            stored_key.extend_from_slice(&key);
            self.take(&stored_key, &value).map_err(of_file)?;
            if looks.is_due(value.len()) {
                look(self.bytes)?;
            }
        }
        Ok(())
    }

    /// What is to be installed, what was taken, and about the bytes of the rows that are there.
    pub(super) fn end(self) -> (Box<dyn Incoming + 'a>, Imported, u64) {
        let (rows, row_bytes) = self.live.counted();
        (self.incoming, Imported { bytes: self.bytes, rows, versions: self.versions }, row_bytes)
    }

    fn take(&mut self, stored_key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.live.take(stored_key, value)?;
        self.bytes += (stored_key.len() - TABLE_ID_BYTES + value.len()) as u64;
        self.versions += 1;
        self.incoming.add(stored_key, value)
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
