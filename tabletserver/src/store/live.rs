//! Rows that are there at a timestamp, counted while their versions go by.
//!
//! The versions come in stored order, so the first of a row at or below the timestamp decides.

use super::value::{self, Head};
use super::{StoreError, split_stored, user_key};
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::Version;
use ebla_kernel::range_tombstones::RangeTombstones;

/// A count under way.
pub struct LiveRows {
    tombstones: RangeTombstones,
    changed_after: Hlc,
    at: Hlc,
    row: Vec<u8>,
    rows: u64,
    bytes: u64,
    passed_bytes: u64,
}

impl LiveRows {
    /// A count of the rows at `at`, of those only that were written after `changed_after`.
    /// `tombstones` are the range tombstones of the rows.
    #[must_use]
    pub fn new(tombstones: RangeTombstones, changed_after: Hlc, at: Hlc) -> Self {
        Self { tombstones, changed_after, at, row: Vec::new(), rows: 0, bytes: 0, passed_bytes: 0 }
    }

    /// Whether a version is of another row than the one before.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn begins_row(&self, stored_key: &[u8]) -> Result<bool, StoreError> {
        split_stored(stored_key).map(|(prefix, _)| prefix != &self.row[..])
    }

    /// Takes the next version, one at or below the timestamp; whether it is a row that counts.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn take(&mut self, stored_key: &[u8], stored_value: &[u8]) -> Result<bool, StoreError> {
        let (prefix, ts) = split_stored(stored_key)?;
        let head = Head::read(stored_value)?;
        if prefix == &self.row[..] {
            return Ok(false);
        }
        self.row.clear();
        self.row.extend_from_slice(prefix);
        let is_there = head.is_live(self.at) && !self.is_covered(stored_key, ts)?;
        let (counts, bytes) =
            (is_there && ts > self.changed_after, (prefix.len() + stored_value.len()) as u64);
        if is_there {
            self.passed_bytes += bytes;
        }
        if counts {
            self.rows += 1;
            self.bytes += bytes;
        }
        Ok(counts)
    }

    /// As [`Self::take`], with the key and the version of a row that counts.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn row(
        &mut self,
        stored_key: &[u8],
        stored_value: &[u8],
    ) -> Result<Option<(Bytes, Version)>, StoreError> {
        if !self.take(stored_key, stored_value)? {
            return Ok(None);
        }
        let (_, ts) = split_stored(stored_key)?;
        let version = value::decode(ts, &Bytes::copy_from_slice(stored_value))?;
        Ok(Some((user_key(stored_key)?, version)))
    }

    /// Rows, and about the bytes of their keys and values.
    #[must_use]
    pub fn counted(&self) -> (u64, u64) {
        (self.rows, self.bytes)
    }

    /// About the bytes of the rows that went by, also of those that were written too early to count.
    #[must_use]
    pub fn passed_bytes(&self) -> u64 {
        self.passed_bytes
    }

    fn is_covered(&self, stored_key: &[u8], ts: Hlc) -> Result<bool, StoreError> {
        if self.tombstones.is_empty() {
            return Ok(false);
        }
        let newest = self.tombstones.newest_covering(&user_key(stored_key)?, self.at);
        Ok(newest.is_some_and(|tombstone| tombstone >= ts))
    }
}
