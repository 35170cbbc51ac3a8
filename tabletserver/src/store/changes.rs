//! What happened to the rows of a range between two timestamps, row by row, page by page.
//!
//! The versions of a row stand newest first, watchers want them oldest first: each row is read
//! backwards. A range tombstone shows as the deletion of each row that it took. Everything
//! above the lower timestamp is there only as long as that is not below the garbage floor, so
//! callers pin it and look at the floor after the work.

use super::value::{self, Head};
use super::{Cursor, Store, StoreError, after_row, split_stored, ts_of, user_key, with_ts};
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::key;
use ebla_kernel::op::{Body, Cause, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstones;
use ebla_kernel::watch::Event;

/// What to read.
#[derive(Clone, Debug)]
pub struct ChangesSpec {
    /// The table.
    pub table: TableId,
    /// The rows.
    pub range: KeyRange,
    /// Changes above this timestamp ...
    pub since: Hlc,
    /// ... up to this one.
    pub upto: Hlc,
}

/// Some of the changes of a range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChangesPage {
    /// By row, each row's in the order of their timestamps.
    pub changes: Vec<(Hlc, Event)>,
    /// Where to go on: everything of rows below this key is here, and of the row itself what
    /// happened up to the timestamp. None: the range is finished.
    pub next: Option<(Bytes, Hlc)>,
}

/// Where a page ends; each bound is reached, not passed, but for the last change's bytes.
#[derive(Clone, Copy, Debug)]
pub struct ChangesLimits {
    /// Bytes of keys and values.
    pub bytes_max: usize,
    /// Changes.
    pub changes_max: usize,
    /// Stored versions looked at.
    pub work_max: usize,
}

/// Reads a page of the changes of `spec`. Of the first row only what is above `begun` counts.
///
/// # Errors
/// `Corrupt` or `Engine`.
pub fn changes_page(
    store: &dyn Store,
    tombstones: &RangeTombstones,
    spec: &ChangesSpec,
    begun: Option<&(Bytes, Hlc)>,
    limits: &ChangesLimits,
) -> Result<ChangesPage, StoreError> {
    let mut cursor = store.cursor(spec.table, &spec.range)?;
    match begun {
        Some((key, _)) => cursor.seek(&key::encode_row(spec.table, key, Hlc::MAX)),
        None => cursor.seek_first(),
    }
    let mut reader = Reader { cursor, tombstones, spec, page: ChangesPage::default(), bytes: 0, work: 0 };
    while let Some(stored) = reader.cursor.stored_key()? {
        let (prefix, newest) = split_stored(stored)?;
        let (prefix, key) = (prefix.to_vec(), user_key(stored)?);
        let since = begun.filter(|(row, _)| *row == key).map_or(spec.since, |(_, ts)| (*ts).max(spec.since));
        if reader.is_full(limits) {
            reader.page.next = Some((key, since));
            return Ok(reader.page);
        }
        reader.work += 1;
        if let Some(upto) = reader.read_row(&prefix, &key, (since, newest), limits)? {
            reader.page.next = Some((key, upto));
            return Ok(reader.page);
        }
        reader.cursor.seek(&after_row(&prefix));
    }
    Ok(reader.page)
}

struct Reader<'a> {
    cursor: Box<dyn Cursor + 'a>,
    tombstones: &'a RangeTombstones,
    spec: &'a ChangesSpec,
    page: ChangesPage,
    bytes: usize,
    work: usize,
}

impl Reader<'_> {
    fn is_full(&self, limits: &ChangesLimits) -> bool {
        let changes = self.page.changes.len();
        self.bytes >= limits.bytes_max || changes >= limits.changes_max || self.work >= limits.work_max
    }

    /// Reads what happened to a row after `since`; up to when, if the page was full before its
    /// end. `newest` is the timestamp of its newest version.
    fn read_row(
        &mut self,
        prefix: &[u8],
        key: &Bytes,
        (since, newest): (Hlc, Hlc),
        limits: &ChangesLimits,
    ) -> Result<Option<Hlc>, StoreError> {
        let mut covering = self.covering(key, since);
        if newest <= since && covering.is_empty() {
            return Ok(None);
        }
        let mut is_live = !covering.is_empty() && self.was_live(key, since)?;
        let mut last = since;
        // The oldest version above `since`, then ever newer ones.
        self.cursor.seek_back(&with_ts(prefix, since.next()));
        while let Some(ts) = ts_of(&*self.cursor, prefix)?.filter(|ts| *ts <= self.spec.upto) {
            self.work += 1;
            let version = value::decode(ts, &self.cursor.stored_value_owned())?;
            while let Some(tombstone) = covering.pop_if(|tombstone| *tombstone < ts) {
                self.take_away(key, tombstone, &mut is_live);
            }
            is_live = !matches!(version.body, Body::Tombstone(_));
            self.push(ts, event(key, version));
            last = ts;
            if self.is_full(limits) {
                return Ok(Some(last));
            }
            self.cursor.step_back();
        }
        while let Some(tombstone) = covering.pop() {
            self.take_away(key, tombstone, &mut is_live);
            last = last.max(tombstone);
        }
        Ok(None)
    }

    /// The range tombstones over `key` between the timestamps, newest first.
    fn covering(&self, key: &Bytes, since: Hlc) -> Vec<Hlc> {
        let mut covering = Vec::new();
        let mut at = self.spec.upto;
        while let Some(ts) = self.tombstones.newest_covering(key, at).filter(|ts| *ts > since) {
            covering.push(ts);
            at = ts.prev();
        }
        covering
    }

    /// Whether the row had a value at `since`, as far as a range tombstone may take it away.
    fn was_live(&mut self, key: &Bytes, since: Hlc) -> Result<bool, StoreError> {
        let wanted = key::encode_row(self.spec.table, key, since);
        let (prefix, _) = split_stored(&wanted)?;
        self.cursor.seek(&wanted);
        let Some(ts) = ts_of(&*self.cursor, prefix)? else { return Ok(false) };
        let is_live = Head::read(self.cursor.stored_value())?.is_live(since);
        let hidden = self.tombstones.newest_covering(key, since).is_some_and(|tombstone| tombstone > ts);
        Ok(is_live && !hidden)
    }

    fn take_away(&mut self, key: &Bytes, ts: Hlc, is_live: &mut bool) {
        if std::mem::take(is_live) {
            self.push(ts, Event::Gone { key: key.clone(), cause: Cause::Deleted });
        }
    }

    fn push(&mut self, ts: Hlc, event: Event) {
        self.bytes += event.bytes();
        self.page.changes.push((ts, event));
    }
}

fn event(key: &Bytes, version: Version) -> Event {
    match version.body {
        Body::Tombstone(cause) => Event::Gone { key: key.clone(), cause },
        body @ (Body::Value(_) | Body::Counter(_)) => {
            Event::Set { key: key.clone(), body, expires_ms: version.expires_ms }
        }
    }
}
