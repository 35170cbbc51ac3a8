//! What a watch is shown before the log: rows as of a time, versions between two.

use super::begin::{Watches, too_old};
use crate::limits;
use crate::node::store_error;
use crate::read::SCAN_PAGE;
use crate::routes::TableInfo;
use crate::store::StoreError;
use crate::store::changes::{ChangesLimits, ChangesSpec, changes_page};
use crate::store::scan::{Order, Projection, ScanSpec, scan_page};
use crate::tablets::TabletHandle;
use bytes::Bytes;
use ebla_kernel::entry::LogEnd;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::key::successor;
use ebla_kernel::range::KeyRange;
use ebla_kernel::watch::{Event, LostWhy, Piece, Place};
use ebla_proto::error::{ApiError, Reason};
use std::sync::Arc;

/// Something of the past that is shown.
#[derive(Clone, Debug)]
pub(super) enum Past {
    /// What was seen means nothing any more.
    Break {
        /// Of these keys.
        range: KeyRange,
        /// Why.
        why: LostWhy,
    },
    /// The rows as of a time.
    Rows {
        /// Of these keys.
        range: KeyRange,
        /// The time.
        at: Hlc,
    },
    /// The versions between two times, of each row in their order.
    Versions {
        /// Of these keys.
        range: KeyRange,
        /// Above this time ...
        since: Hlc,
        /// ... and up to this entry.
        upto: LogEnd,
    },
}

/// Some of it.
#[derive(Default)]
pub(super) struct Page {
    /// What happened and when.
    pub(super) events: Vec<(Hlc, Event)>,
    /// How far the watch is when all of it was shown.
    pub(super) places: Vec<Piece>,
    /// Where to go on; none when that was all.
    pub(super) next: Option<(Bytes, Hlc)>,
}

/// Reads rows and versions of one tablet.
pub(super) struct Pages {
    pub(super) watches: Arc<Watches>,
    pub(super) table: Arc<TableInfo>,
    pub(super) tablet: Arc<TabletHandle>,
}

impl Pages {
    /// The next page of `past`, which was read up to `begun`.
    ///
    /// # Errors
    /// `WATCH_TOO_OLD` when some of it may be gone; when the store cannot be read.
    pub(super) async fn read(&self, past: &Past, begun: Option<(Bytes, Hlc)>) -> Result<Page, ApiError> {
        let permit = self.watches.pages.acquire().await;
        permit.as_ref().expect("the semaphore is never closed");
        let (watches, tablet, work) = (Arc::clone(&self.watches), Arc::clone(&self.tablet), past.clone());
        let read = tokio::task::spawn_blocking(move || read_page(&watches, &tablet, &work, begun));
        let read = read.await;
        let page =
            read.map_err(|error| ApiError::new(Reason::Internal, format!("a read did not end: {error}")))?;
        let page = page.map_err(store_error)?;
        // What was read counts only if it was all still there.
        let oldest = match past {
            Past::Break { .. } => return Ok(page),
            Past::Rows { at, .. } => *at,
            Past::Versions { since, .. } => *since,
        };
        let is_whole = self.watches.node.check_floor(&self.table, oldest).is_ok();
        if is_whole { Ok(page) } else { Err(too_old(&self.table, oldest)) }
    }
}

fn read_page(
    watches: &Watches,
    tablet: &TabletHandle,
    past: &Past,
    begun: Option<(Bytes, Hlc)>,
) -> Result<Page, StoreError> {
    match past {
        Past::Break { .. } => Ok(Page::default()),
        Past::Rows { range, at } => read_rows(watches, tablet, (range, *at), begun),
        Past::Versions { range, since, upto } => {
            read_versions(watches, tablet, (range, *since, *upto), begun)
        }
    }
}

fn read_rows(
    watches: &Watches,
    tablet: &TabletHandle,
    (range, at): (&KeyRange, Hlc),
    begun: Option<(Bytes, Hlc)>,
) -> Result<Page, StoreError> {
    let spec = ScanSpec {
        table: tablet.table,
        range: range.clone(),
        at,
        order: Order::Forward,
        projection: Projection::Rows,
    };
    let Some(spec) = begun.map_or(Some(spec.clone()), |(key, _)| spec.resume(&key)) else {
        return Ok(Page::default());
    };
    let page = scan_page(&*watches.node.reader.store, &tablet.tombstones.load(), &spec, &SCAN_PAGE)?;
    let set = |row: crate::store::scan::Row| {
        row.body.map(|body| (row.ts, Event::Set { key: row.key, body, expires_ms: None }))
    };
    let done = KeyRange::new(spec.range.start().clone(), page.next.clone().or(range.end().cloned()));
    let places = done.ok().map(|range| Piece { range, place: Place::Time(at) });
    Ok(Page {
        events: page.rows.into_iter().filter_map(set).collect(),
        places: places.into_iter().collect(),
        next: page.next.map(|key| (key, at)),
    })
}

fn read_versions(
    watches: &Watches,
    tablet: &TabletHandle,
    (range, since, upto): (&KeyRange, Hlc, LogEnd),
    begun: Option<(Bytes, Hlc)>,
) -> Result<Page, StoreError> {
    let spec = ChangesSpec { table: tablet.table, range: range.clone(), since, upto: upto.ts };
    let limits = ChangesLimits {
        bytes_max: limits::SCAN_PAGE_BYTES,
        changes_max: limits::SCAN_PAGE_ROWS,
        work_max: limits::SCAN_PAGE_WORK,
    };
    let store = &*watches.node.reader.store;
    let page = changes_page(store, &tablet.tombstones.load(), &spec, begun.as_ref(), &limits)?;
    let from = begun.map_or_else(|| range.start().clone(), |(key, _)| key);
    let done = if tablet.is_sealed() {
        // The end may be the beginning of an epoch behind the seal, which no child knows.
        Place::Time(upto.ts)
    } else {
        Place::Entry { lineage: tablet.ancestry.lineage, pos: upto.pos, ts: upto.ts }
    };
    let mut places = Vec::new();
    match &page.next {
        None => {
            places.extend(
                KeyRange::new(from, range.end().cloned()).ok().map(|range| Piece { range, place: done }),
            );
        }
        Some((key, ts)) => {
            let below = KeyRange::new(from, Some(key.clone())).ok();
            places.extend(below.map(|range| Piece { range, place: done }));
            let row = KeyRange::new(key.clone(), Some(successor(key))).ok();
            places.extend(row.map(|range| Piece { range, place: Place::Time(*ts) }));
        }
    }
    Ok(Page { events: page.changes, places, next: page.next })
}
