//! Reading the rows of a range at one timestamp, page by page.
//!
//! A row is visible at S when its newest version up to S is a value that has not expired at
//! S and is not covered by a range tombstone at or after it and up to S. A page ends by rows,
//! by bytes *and* by work: a field of tombstones gives an empty page with a place to go on.
//! A [`Scanner`] holds one snapshot and one cursor for as many pages as its caller wants;
//! [`scan_page`] opens one for a single page. Between pages of different scanners the
//! timestamp keeps the reads equal, so it must be pinned ([`super::gc::ReadPins`]).

use super::value::Head;
use super::{Cursor, Store, StoreError, after_row, split_stored, ts_of, user_key, with_ts};
use crate::limits::VERSIONS_STEPPED_MAX;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::op::Body;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstones;

/// In which order a scan gives its rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Order {
    /// By rising keys.
    #[default]
    Forward,
    /// By falling keys.
    Reverse,
}

/// What of each row a scan gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Projection {
    /// Key, timestamp and body.
    #[default]
    Rows,
    /// Key and timestamp.
    Keys,
    /// Only how many there are.
    Count,
}

/// Where a page ends. Each is reached, not passed, but for the last row's bytes; a page
/// looks at one row at least.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageLimits {
    /// Visible rows.
    pub rows_max: usize,
    /// Bytes of keys and values.
    pub bytes_max: usize,
    /// Stored versions looked at.
    pub work_max: usize,
}

/// What to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanSpec {
    /// The table.
    pub table: TableId,
    /// The rows.
    pub range: KeyRange,
    /// The timestamp of the read.
    pub at: Hlc,
    /// The order of the rows.
    pub order: Order,
    /// What of each row to give.
    pub projection: Projection,
}

impl ScanSpec {
    /// What is left to read when a page has ended with `next`; none when that is nothing.
    #[must_use]
    pub fn resume(&self, next: &Bytes) -> Option<Self> {
        let range = match self.order {
            Order::Forward => KeyRange::new(next.clone(), self.range.end().cloned()),
            Order::Reverse => KeyRange::new(self.range.start().clone(), Some(next.clone())),
        };
        range.ok().map(|range| Self { range, ..self.clone() })
    }
}

/// A visible row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Its key.
    pub key: Bytes,
    /// When its visible version was written.
    pub ts: Hlc,
    /// What that says; none when only keys were asked for.
    pub body: Option<Body>,
    /// When the row ends by itself, milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

/// Some of the rows of a scan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// The rows, in the scan's order; none when only the count was asked for.
    pub rows: Vec<Row>,
    /// How many visible rows the page has.
    pub count: u64,
    /// Where to go on: the first key not looked at in a forward scan, the least key looked
    /// at (an exclusive upper end) in a reverse one. None: the range is finished.
    pub next: Option<Bytes>,
    /// Stored versions looked at.
    pub work: usize,
}

/// Reads one page of `spec`.
///
/// # Errors
/// `Corrupt` or `Engine`.
pub fn scan_page(
    store: &dyn Store,
    tombstones: &RangeTombstones,
    spec: &ScanSpec,
    limits: &PageLimits,
) -> Result<Page, StoreError> {
    Scanner::open(store, tombstones, spec)?.next_page(limits)
}

/// A scan under way on one snapshot.
pub struct Scanner<'a> {
    cursor: Box<dyn Cursor + 'a>,
    tombstones: &'a RangeTombstones,
    at: Hlc,
    order: Order,
    projection: Projection,
}

impl<'a> Scanner<'a> {
    /// Begins to read `spec` on a snapshot of now.
    ///
    /// # Errors
    /// `Engine`.
    pub fn open(
        store: &'a dyn Store,
        tombstones: &'a RangeTombstones,
        spec: &ScanSpec,
    ) -> Result<Self, StoreError> {
        let mut cursor = store.cursor(spec.table, &spec.range)?;
        match spec.order {
            Order::Forward => cursor.seek_first(),
            Order::Reverse => cursor.seek_last(),
        }
        Ok(Self { cursor, tombstones, at: spec.at, order: spec.order, projection: spec.projection })
    }

    /// The next rows, up to `limits`.
    ///
    /// # Errors
    /// `Corrupt` or `Engine`; the scanner is then useless.
    pub fn next_page(&mut self, limits: &PageLimits) -> Result<Page, StoreError> {
        let mut page = Page::default();
        let mut bytes = 0;
        let mut last_key = Vec::new();
        loop {
            let Some(stored) = self.cursor.stored_key()? else { return Ok(page) };
            let (prefix, _) = split_stored(stored)?;
            if page.is_full(bytes, limits) {
                page.next = Some(match self.order {
                    Order::Forward => user_key(stored)?,
                    Order::Reverse => user_key(&last_key)?,
                });
                return Ok(page);
            }
            last_key.clear();
            last_key.extend_from_slice(stored);
            let prefix_bytes = prefix.len();
            let row = match self.order {
                Order::Forward => self.take_forward(&last_key, prefix_bytes, &mut page.work)?,
                Order::Reverse => self.take_reverse(&last_key, prefix_bytes, &mut page.work)?,
            };
            if let Some(row) = row {
                bytes += page.add(row, self.projection);
            }
        }
    }

    /// Reads the row whose newest version is here and goes to the next row.
    fn take_forward(
        &mut self,
        first: &[u8],
        prefix_bytes: usize,
        work: &mut usize,
    ) -> Result<Option<Row>, StoreError> {
        let prefix = &first[..prefix_bytes];
        let mut steps = 0;
        let mut taken = None;
        while let Some(ts) = ts_of(&*self.cursor, prefix)? {
            *work += 1;
            if taken.is_none() && ts <= self.at {
                taken = Some(self.read_row(ts)?);
            } else if steps >= VERSIONS_STEPPED_MAX {
                steps = 0;
                match taken {
                    None => self.cursor.seek(&with_ts(prefix, self.at)),
                    Some(_) => self.cursor.seek(&after_row(prefix)),
                }
                continue;
            }
            steps += 1;
            self.cursor.step();
        }
        Ok(taken.flatten())
    }

    /// Reads the row whose oldest version is here and goes to the row before it.
    fn take_reverse(
        &mut self,
        last: &[u8],
        prefix_bytes: usize,
        work: &mut usize,
    ) -> Result<Option<Row>, StoreError> {
        let prefix = &last[..prefix_bytes];
        let mut steps = 0;
        let mut newest = None;
        while let Some(ts) = ts_of(&*self.cursor, prefix)? {
            *work += 1;
            if ts > self.at {
                self.cursor.seek_back(prefix);
                break;
            }
            if steps == VERSIONS_STEPPED_MAX {
                self.cursor.seek(&with_ts(prefix, self.at));
                newest = ts_of(&*self.cursor, prefix)?.map(|ts| self.read_row(ts)).transpose()?;
                self.cursor.seek_back(prefix);
                break;
            }
            newest = Some(self.read_row(ts)?);
            steps += 1;
            self.cursor.step_back();
        }
        Ok(newest.flatten())
    }

    /// The row of the version here, written at `ts`, if that is visible.
    fn read_row(&self, ts: Hlc) -> Result<Option<Row>, StoreError> {
        let head = Head::read(self.cursor.stored_value())?;
        if !head.is_live(self.at) {
            return Ok(None);
        }
        let Some(stored) = self.cursor.stored_key()? else { return Ok(None) };
        let key = user_key(stored)?;
        if self.tombstones.newest_covering(&key, self.at).is_some_and(|tombstone| tombstone >= ts) {
            return Ok(None);
        }
        let body = match self.projection {
            Projection::Rows => Some(head.body(&self.cursor.stored_value_owned())?),
            Projection::Keys | Projection::Count => None,
        };
        Ok(Some(Row { key, ts, body, expires_ms: head.expires_ms }))
    }
}

impl Page {
    fn is_full(&self, bytes: usize, limits: &PageLimits) -> bool {
        let rows = usize::try_from(self.count).unwrap_or(usize::MAX);
        let over = rows >= limits.rows_max || bytes >= limits.bytes_max || self.work >= limits.work_max;
        self.work > 0 && over
    }

    /// Adds a row; gives the bytes that it brings.
    fn add(&mut self, row: Row, projection: Projection) -> usize {
        self.count += 1;
        let body = match &row.body {
            Some(Body::Value(value)) => value.len(),
            Some(Body::Counter(_)) => 8,
            Some(Body::Tombstone(_)) | None => 0,
        };
        let bytes = row.key.len() + body;
        match projection {
            Projection::Rows | Projection::Keys => {
                self.rows.push(row);
                bytes
            }
            Projection::Count => 0,
        }
    }
}
