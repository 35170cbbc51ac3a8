//! Where a range of rows can be cut into parts of about the same size.
//!
//! A small range is walked, and every so many bytes a key is noted. Of a large one the store's
//! own estimate by files is asked, and keys are found by bisection: no more than some hundred
//! looks, whatever the size.

use super::{Cursor, Store, StoreError, user_key};
use crate::limits::{SPLIT_NOTES_MAX, SPLIT_WALK_BYTES_MAX};
use bytes::Bytes;
use ebla_kernel::ids::TableId;
use ebla_kernel::key;
use ebla_kernel::range::KeyRange;

/// Bytes of a key that bisection looks at behind what all keys have in common.
const MIDDLE_BYTES: usize = 16;

/// Most steps of one bisection.
const STEPS_MAX: usize = 128;

/// Keys strictly inside of `range`, strictly rising, that cut its rows into `parts` parts; fewer
/// where there are too few rows.
///
/// # Errors
/// As the store says.
pub fn split_points(
    store: &dyn Store,
    table: TableId,
    range: &KeyRange,
    parts: usize,
) -> Result<Vec<Bytes>, StoreError> {
    let bytes = store.approximate_bytes(table, range);
    let mut points = if bytes < SPLIT_WALK_BYTES_MAX {
        walk(&mut *store.cursor(table, range)?, parts)?
    } else {
        let looks = Looks { store, table, range, cursor: store.cursor(table, range)? };
        looks.bisect_all(bytes, parts)?
    };
    let mut cursor = store.cursor(table, range)?;
    cursor.seek_first();
    let first = cursor.stored_key()?.map(user_key).transpose()?;
    // Of a point at the first row the part before it would be empty.
    points.retain(|point| range.contains(point) && first.as_ref().is_some_and(|first| point > first));
    points.dedup();
    Ok(points)
}

/// Walks all stored versions.
fn walk(cursor: &mut dyn Cursor, parts: usize) -> Result<Vec<Bytes>, StoreError> {
    let (mut notes, mut total, mut stride): (Vec<(u64, Bytes)>, u64, u64) = (Vec::new(), 0, 1);
    cursor.seek_first();
    while let Some(stored) = cursor.stored_key()? {
        if notes.last().is_none_or(|(at, _)| total >= at + stride) {
            let key = user_key(stored)?;
            if notes.last().is_none_or(|(_, last)| *last != key) {
                notes.push((total, key));
            }
        }
        total += (stored.len() + cursor.stored_value().len()) as u64;
        if notes.len() == SPLIT_NOTES_MAX {
            let mut at = 0;
            notes.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            stride = total / (SPLIT_NOTES_MAX as u64 / 2) + 1;
        }
        cursor.step();
    }
    let nearest = |part: usize| {
        let wanted = total / parts as u64 * part as u64;
        let above = notes.partition_point(|(at, _)| *at < wanted);
        notes.get(above).or(notes.last()).map(|(_, key)| key.clone())
    };
    Ok((1..parts).filter_map(nearest).collect())
}

struct Looks<'a> {
    store: &'a dyn Store,
    table: TableId,
    range: &'a KeyRange,
    cursor: Box<dyn Cursor + 'a>,
}

impl Looks<'_> {
    fn bisect_all(mut self, bytes: u64, parts: usize) -> Result<Vec<Bytes>, StoreError> {
        let mut points = Vec::with_capacity(parts);
        for part in 1..parts {
            points.extend(self.bisect(bytes / parts as u64 * part as u64, bytes / 200)?);
        }
        Ok(points)
    }

    /// A key below which about `wanted` bytes lie.
    fn bisect(&mut self, wanted: u64, slack: u64) -> Result<Option<Bytes>, StoreError> {
        self.cursor.seek_first();
        let Some(mut low) = self.key_here()? else { return Ok(None) };
        self.cursor.seek_last();
        let Some(mut high) = self.key_here()? else { return Ok(None) };
        for _ in 0..STEPS_MAX {
            let Some(middle) = middle(&low, &high) else { break };
            self.cursor.seek(&key::row_prefix(self.table, &middle));
            let Some(key) = self.key_here()?.filter(|key| *key < high) else {
                high = middle.into();
                continue;
            };
            let below = KeyRange::new(self.range.start().clone(), Some(key.clone()));
            let bytes = below.map_or(0, |below| self.store.approximate_bytes(self.table, &below));
            if bytes.abs_diff(wanted) <= slack {
                return Ok(Some(key));
            }
            if bytes < wanted { low = key } else { high = middle.into() }
        }
        Ok(Some(high))
    }

    fn key_here(&self) -> Result<Option<Bytes>, StoreError> {
        self.cursor.stored_key()?.map(user_key).transpose()
    }
}

/// A key between two keys; none when there is hardly one.
fn middle(low: &[u8], high: &[u8]) -> Option<Vec<u8>> {
    let common = low.iter().zip(high).take_while(|(a, b)| a == b).count();
    let number = |key: &[u8]| {
        let mut digits = [0; MIDDLE_BYTES];
        let rest = &key[common..];
        let take = rest.len().min(MIDDLE_BYTES);
        digits[..take].copy_from_slice(&rest[..take]);
        u128::from_be_bytes(digits)
    };
    let (from, to) = (number(low), number(high));
    let between = from + to.checked_sub(from)? / 2;
    if between == from {
        return None;
    }
    let mut middle = low[..common].to_vec();
    middle.extend_from_slice(&between.to_be_bytes());
    while middle.last() == Some(&0) {
        middle.pop();
    }
    (middle.as_slice() > low && middle.as_slice() < high).then_some(middle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Applied;
    use crate::store::memory::MemoryStore;
    use ebla_kernel::hlc::Hlc;
    use ebla_kernel::op::{Body, Change};

    fn store(keys: impl Iterator<Item = (String, usize)>) -> MemoryStore {
        let store = MemoryStore::default();
        for (key, bytes) in keys {
            let body = Body::Value(vec![0; bytes].into());
            let change = Change::Put { key: key.into(), body, expires_ms: None };
            store.apply(&[Applied { table: TableId(1), ts: Hlc(1), change: &change }]).unwrap();
        }
        store
    }

    fn points(store: &MemoryStore, range: &KeyRange, parts: usize) -> Vec<String> {
        let points = split_points(store, TableId(1), range, parts).unwrap();
        points.into_iter().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect()
    }

    #[test]
    fn no_part_is_empty() {
        let one = store(std::iter::once(("m".to_owned(), 100)));
        assert_eq!(points(&one, &KeyRange::all(), 2), [""; 0]);
        let uneven = store([("a", 1_000), ("b", 1)].map(|(key, bytes)| (key.to_owned(), bytes)).into_iter());
        assert_eq!(points(&uneven, &KeyRange::all(), 4), ["b"]);
    }

    #[test]
    fn the_parts_have_about_the_same_bytes() {
        let even = store((0..1_000).map(|i| (format!("{i:04}"), 100)));
        assert_eq!(points(&even, &KeyRange::all(), 4), ["0250", "0500", "0750"]);
        let heavy = store((0..1_000).map(|i| (format!("{i:04}"), if i < 100 { 10_000 } else { 10 })));
        let [point] = &points(&heavy, &KeyRange::all(), 2)[..] else { panic!("one point") };
        assert!(("0045".."0060").contains(&point.as_str()), "{point}");
    }

    #[test]
    fn too_few_rows_give_fewer_points() {
        let one = store(std::iter::once(("k".to_owned(), 10)));
        let range = KeyRange::new(Bytes::from_static(b"k"), None).unwrap();
        assert!(points(&one, &range, 2).is_empty());
        assert!(points(&store(std::iter::empty()), &KeyRange::all(), 3).is_empty());
        let many = store((0..30_000).map(|i| (format!("{i:05}"), 1)));
        let [point] = &points(&many, &KeyRange::all(), 2)[..] else { panic!("one point") };
        assert!(("14900".."15100").contains(&point.as_str()), "{point}");
    }

    #[test]
    fn a_middle_lies_between() {
        assert_eq!(middle(b"a", b"c").as_deref(), Some(&b"b"[..]));
        let middle_of = middle(b"user1", b"user9").unwrap();
        assert!(middle_of[..] > b"user1"[..] && middle_of[..] < b"user9"[..]);
        assert_eq!(middle(b"a", b"a"), None);
    }
}
