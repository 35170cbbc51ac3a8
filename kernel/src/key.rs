//! The order of rows in a store: `table id (4 bytes BE) · escaped key · 00 01 · !ts (8 bytes BE)`.
//!
//! Escaping keeps order (`00` becomes `00 FF`, the end mark `00 01` sorts below every
//! continuation), the inverted timestamp puts the newest version of a key first. So a point
//! read is one seek and `(key, ts)` names one version for ever. Everything but the last
//! eight bytes is the row's prefix, the same for all versions of one key.
//!
//! Range tombstones stand under table id 0: `0 · 'R' · table id · escaped(from) · 00 01 · !ts`.
//! Worked bytes: `docs/formats.md`.

use crate::hlc::Hlc;
use crate::ids::TableId;
use crate::range::KeyRange;
use bytes::Bytes;

/// Bytes of the inverted timestamp at the end of a stored key.
pub const TS_BYTES: usize = 8;

const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xFF;
const END: u8 = 0x01;
const RANGE_TOMBSTONE_TAG: u8 = b'R';
const SYSTEM: TableId = TableId(0);

/// A stored key that no encoder wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MalformedKey;

/// A stored key taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoredKey {
    /// One version of a row.
    Row {
        /// The row's table.
        table: TableId,
        /// The user's key.
        key: Vec<u8>,
        /// When the version was written.
        ts: Hlc,
    },
    /// A range tombstone; its value is the upper end.
    RangeTombstone {
        /// The table it covers.
        table: TableId,
        /// First key that it covers.
        from: Vec<u8>,
        /// When it was written.
        ts: Hlc,
    },
}

/// What all versions of `key` begin with.
#[must_use]
pub fn row_prefix(table: TableId, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + key.len() + 2 + TS_BYTES);
    out.extend_from_slice(&table.0.to_be_bytes());
    escape_into(key, &mut out);
    out
}

/// The stored key of one version of a row.
#[must_use]
pub fn encode_row(table: TableId, key: &[u8], ts: Hlc) -> Vec<u8> {
    let mut out = row_prefix(table, key);
    push_ts(ts, &mut out);
    out
}

/// The stored key of a range tombstone that begins at `from`.
#[must_use]
pub fn encode_range_tombstone(table: TableId, from: &[u8], ts: Hlc) -> Vec<u8> {
    let mut out = range_tombstones_of(table);
    escape_into(from, &mut out);
    push_ts(ts, &mut out);
    out
}

/// What all range tombstones of `table` begin with.
#[must_use]
pub fn range_tombstones_of(table: TableId) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    out.extend_from_slice(&SYSTEM.0.to_be_bytes());
    out.push(RANGE_TOMBSTONE_TAG);
    out.extend_from_slice(&table.0.to_be_bytes());
    out
}

/// The stored keys, as `[from, to)`, of all rows of `table` whose key lies in `range`.
#[must_use]
pub fn row_bounds(table: TableId, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let mut from = table.0.to_be_bytes().to_vec();
    escape_open_into(range.start(), &mut from);
    let to = match range.end() {
        Some(end) => {
            let mut to = table.0.to_be_bytes().to_vec();
            escape_open_into(end, &mut to);
            to
        }
        None => match table.0.checked_add(1) {
            Some(next) => next.to_be_bytes().to_vec(),
            None => vec![0xFF; 5],
        },
    };
    (from, to)
}

/// Takes a stored key apart.
///
/// # Errors
/// `MalformedKey` when no encoder of this module can have written it.
pub fn decode(stored: &[u8]) -> Result<StoredKey, MalformedKey> {
    let (table, rest) = split_table(stored)?;
    if table != SYSTEM {
        let (key, ts) = split_key_and_ts(rest)?;
        return Ok(StoredKey::Row { table, key, ts });
    }
    let (tag, rest) = rest.split_first().ok_or(MalformedKey)?;
    if *tag != RANGE_TOMBSTONE_TAG {
        return Err(MalformedKey);
    }
    let (table, rest) = split_table(rest)?;
    let (from, ts) = split_key_and_ts(rest)?;
    Ok(StoredKey::RangeTombstone { table, from, ts })
}

/// The prefix and the timestamp of a stored key; a cheap look for those who compare rows
/// without needing the user's key.
///
/// # Errors
/// `MalformedKey` when the key is too short to end in a timestamp.
pub fn split_ts(stored: &[u8]) -> Result<(&[u8], Hlc), MalformedKey> {
    let at = stored.len().checked_sub(TS_BYTES).ok_or(MalformedKey)?;
    let (prefix, ts) = stored.split_at(at);
    let ts: [u8; TS_BYTES] = ts.try_into().map_err(|_| MalformedKey)?;
    Ok((prefix, Hlc(!u64::from_be_bytes(ts))))
}

/// The least user key above `key`.
#[must_use]
pub fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

fn push_ts(ts: Hlc, out: &mut Vec<u8>) {
    out.extend_from_slice(&(!ts.0).to_be_bytes());
}

fn escape_into(key: &[u8], out: &mut Vec<u8>) {
    escape_open_into(key, out);
    out.extend_from_slice(&[ESCAPE, END]);
}

/// Escapes without the end mark: at or below every stored key of `key`, above all smaller keys.
fn escape_open_into(key: &[u8], out: &mut Vec<u8>) {
    for byte in key {
        out.push(*byte);
        if *byte == ESCAPE {
            out.push(ESCAPED_ZERO);
        }
    }
}

fn split_table(stored: &[u8]) -> Result<(TableId, &[u8]), MalformedKey> {
    let (table, rest) = stored.split_first_chunk::<4>().ok_or(MalformedKey)?;
    Ok((TableId(u32::from_be_bytes(*table)), rest))
}

fn split_key_and_ts(stored: &[u8]) -> Result<(Vec<u8>, Hlc), MalformedKey> {
    let (escaped, ts) = split_ts(stored)?;
    Ok((unescape(escaped)?, ts))
}

fn unescape(escaped: &[u8]) -> Result<Vec<u8>, MalformedKey> {
    let body = escaped.strip_suffix(&[ESCAPE, END]).ok_or(MalformedKey)?;
    let mut key = Vec::with_capacity(body.len());
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        key.push(*byte);
        if *byte == ESCAPE && bytes.next() != Some(&ESCAPED_ZERO) {
            return Err(MalformedKey);
        }
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xFF), any::<u8>()], 0..6)
    }

    proptest! {
        #[test]
        fn order_of_stored_keys_is_key_then_newest_first(a in key(), b in key(), s: u64, t: u64) {
            let (x, y) = (encode_row(TableId(7), &a, Hlc(s)), encode_row(TableId(7), &b, Hlc(t)));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b).then(t.cmp(&s)));
        }

        #[test]
        fn decode_gives_back_what_was_encoded(key in key(), table in 1u32.., ts: u64) {
            let (table, ts) = (TableId(table), Hlc(ts));
            prop_assert_eq!(
                decode(&encode_row(table, &key, ts)),
                Ok(StoredKey::Row { table, key: key.clone(), ts })
            );
            prop_assert_eq!(
                decode(&encode_range_tombstone(table, &key, ts)),
                Ok(StoredKey::RangeTombstone { table, from: key, ts })
            );
        }

        #[test]
        fn bounds_hold_exactly_the_rows_of_the_range(a in key(), b in key(), probe in key(), ts: u64) {
            if let Ok(range) = KeyRange::new(a.into(), Some(b.into())) {
                let (from, to) = row_bounds(TableId(3), &range);
                let stored = encode_row(TableId(3), &probe, Hlc(ts));
                prop_assert_eq!(from <= stored && stored < to, range.contains(&probe));
            }
        }

        #[test]
        fn decode_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn worked_bytes_of_the_documentation() {
        let stored = encode_row(TableId(1), b"a\0b", Hlc(2));
        assert_eq!(
            stored,
            [0, 0, 0, 1, b'a', 0, 0xFF, b'b', 0, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFD]
        );
    }
}
