//! Rows whose newest version has expired, in key order.

use super::value::Head;
use super::{Store, StoreError, after_row, split_stored, user_key};
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::key;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstones;

/// Where to look.
#[derive(Clone, Debug)]
pub struct ExpiredSpec {
    /// The table.
    pub table: TableId,
    /// The rows.
    pub range: KeyRange,
    /// First of them; empty for the first of the range.
    pub from: Bytes,
    /// Expired at this timestamp.
    pub at: Hlc,
    /// Most rows to name.
    pub rows_max: usize,
    /// Most stored versions to look at.
    pub work_max: usize,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expired {
    /// Expired rows and the timestamps of their newest versions.
    pub rows: Vec<(Bytes, Hlc)>,
    /// Whether any row has a time to end, expired or not.
    pub has_expiry: bool,
    /// Where to go on; none when the range is finished.
    pub next: Option<Bytes>,
}

/// Looks for expired rows.
///
/// # Errors
/// `Corrupt` or `Engine`.
pub fn expired(
    store: &dyn Store,
    tombstones: &RangeTombstones,
    spec: &ExpiredSpec,
) -> Result<Expired, StoreError> {
    let mut found = Expired::default();
    let mut cursor = store.cursor(spec.table, &spec.range)?;
    if spec.from.is_empty() {
        cursor.seek_first();
    } else {
        cursor.seek(&key::encode_row(spec.table, &spec.from, Hlc::MAX));
    }
    let mut work = 0;
    while let Some(stored) = cursor.stored_key()? {
        let (prefix, ts) = split_stored(stored)?;
        let prefix = prefix.to_vec();
        if found.rows.len() >= spec.rows_max || work >= spec.work_max {
            found.next = Some(user_key(stored)?);
            return Ok(found);
        }
        work += 1;
        let head = Head::read(cursor.stored_value())?;
        found.has_expiry |= head.expires_ms.is_some();
        if !head.is_tombstone() && head.is_expired(spec.at) {
            let key = user_key(stored)?;
            let is_hidden = tombstones.newest_covering(&key, spec.at).is_some_and(|newer| newer > ts);
            if !is_hidden {
                found.rows.push((key, ts));
            }
        }
        cursor.seek(&after_row(&prefix));
    }
    Ok(found)
}
