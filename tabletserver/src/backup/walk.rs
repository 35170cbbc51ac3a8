//! The versions of a range, as files.
//!
//! One walk through the store, on one snapshot where the store has such a thing. Range tombstones
//! are read before the rows: garbage collection removes what one hid before it removes the
//! tombstone, so whoever does not see it sees nothing that it hid.

use super::Stop;
use super::pace::Looks;
use crate::store::live::LiveRows;
use crate::store::{Cursor, Store, StoreError, split_stored};
use ebla_backup::{FileWriter, TABLE_ID_BYTES, Written};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstone;
use std::path::Path;

/// What is wanted of a range.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) table: TableId,
    pub(super) range: KeyRange,
    /// Versions above this ...
    pub(super) since: Hlc,
    /// ... up to this.
    pub(super) upto: Hlc,
}

impl Window {
    /// The oldest timestamp at which the store must still be readable: what is above it is all
    /// there, and of what is below each row's newest version.
    pub(super) fn floor(&self) -> Hlc {
        if self.since == Hlc::MIN { self.upto } else { self.since }
    }

    fn has(&self, ts: Hlc) -> bool {
        self.since < ts && ts <= self.upto
    }
}

/// A walk under way.
pub(super) struct Walk<'a> {
    cursor: Box<dyn Cursor + 'a>,
    window: Window,
    tombstones: Vec<RangeTombstone>,
    live: LiveRows,
    bytes: u64,
    looks: Looks,
}

impl<'a> Walk<'a> {
    /// Stands before the first version of the window's range.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn begin(store: &'a dyn Store, window: Window) -> Result<Self, StoreError> {
        let known = store.load_range_tombstones(window.table, &window.range)?;
        let covering = known.iter().filter(|tombstone| tombstone.ts <= window.upto).cloned().collect();
        let within = known.into_iter().filter(|tombstone| window.has(tombstone.ts));
        let clamped = within.filter_map(|RangeTombstone { range, ts }| {
            range.intersect(&window.range).map(|range| RangeTombstone { range, ts })
        });
        let tombstones = clamped.collect();
        let mut cursor = store.cold_cursor(window.table, &window.range)?;
        cursor.seek_first();
        let live = LiveRows::new(covering, window.since, window.upto);
        Ok(Self { cursor, window, tombstones, live, bytes: 0, looks: Looks::default() })
    }

    /// The range tombstones of the window, cut to its range.
    pub(super) fn tombstones(&self) -> &[RangeTombstone] {
        &self.tombstones
    }

    /// Rows at the window's end so far; of a window that begins late, those that changed in it.
    pub(super) fn rows(&self) -> u64 {
        self.live.counted().0
    }

    /// Bytes of keys and values in files so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the next versions to a new file at `path` until `is_full` and its last row is whole;
    /// none when there are no more. `look` is called again and again, with the bytes of the rows
    /// that went by.
    ///
    /// # Errors
    /// As the store, the file or `look` say.
    pub(super) fn next_file(
        &mut self,
        path: &Path,
        is_full: &dyn Fn(&FileWriter) -> bool,
        look: &mut dyn FnMut(u64) -> Result<(), Stop>,
    ) -> Result<Option<Written>, Stop> {
        let mut file: Option<FileWriter> = None;
        while let Some(stored_key) = self.cursor.stored_key()? {
            if self.looks.is_due(self.cursor.stored_value().len()) {
                look(self.live.passed_bytes())?;
            }
            let (_, ts) = split_stored(stored_key)?;
            if self.window.has(ts) {
                if file.as_ref().is_some_and(is_full) && self.live.begins_row(stored_key)? {
                    break;
                }
                let (key, value) = (&stored_key[TABLE_ID_BYTES..], self.cursor.stored_value());
                let writer = file.take().map_or_else(|| FileWriter::create(path), Ok)?;
                file.insert(writer).add(key, value)?;
                self.bytes += (key.len() + value.len()) as u64;
            }
            if ts <= self.window.upto {
                self.live.take(stored_key, self.cursor.stored_value())?;
            }
            self.cursor.step();
        }
        Ok(file.map(FileWriter::finish).transpose()?)
    }
}
