//! The row of a room: which servers have subscribers.
//!
//! A `roaring` bitmap of server ordinals in its portable form, then for each set bit, in rising
//! order, the stamp: incarnation and subscription sequence, 8 bytes each, big-endian. Worked
//! bytes: `docs/formats.md`. A room without bits has no row.

use super::{ServerRuns, Stamp, SubSeq};
use crate::ids::{Incarnation, Ordinal};
use crate::limits::SERVERS_MAX;
use crate::mutated;
use crate::op::{Body, Cause};
use bytes::Bytes;
use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::fmt;

/// Bytes of one stamp.
const STAMP_BYTES: usize = 16;

/// About what one more bit adds to a row.
pub const ROOM_BIT_BYTES: usize = STAMP_BYTES + 24;

/// Longest row: all servers there may be, and what their bitmap takes at most.
const ROW_BYTES_MAX: usize = SERVERS_MAX * (STAMP_BYTES + 16) + 1024;

/// Who has subscribers in a room.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RoomRow {
    bits: BTreeMap<Ordinal, Stamp>,
}

/// Bytes that are no room row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadRoomRow;

impl fmt::Display for BadRoomRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the row is no room row: delete it, the servers with subscribers write it anew")
    }
}

impl std::error::Error for BadRoomRow {}

/// What becomes of one server's bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BitChange {
    /// It is set with this stamp, unless a later one is there.
    Set(Ordinal, Stamp),
    /// It is cleared if it has exactly this stamp.
    Clear(Ordinal, Stamp),
    /// Only the bits of runs that are over go.
    Sweep,
}

impl RoomRow {
    /// Reads a row.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadRoomRow> {
        if bytes.len() > ROW_BYTES_MAX {
            return Err(BadRoomRow);
        }
        let mut rest = bytes;
        let bitmap = RoaringBitmap::deserialize_from(&mut rest).map_err(|_| BadRoomRow)?;
        let (stamps, rest) = rest.as_chunks::<STAMP_BYTES>();
        if !rest.is_empty() || bitmap.len() != stamps.len() as u64 {
            return Err(BadRoomRow);
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let stamp = |bytes: &[u8; STAMP_BYTES]| Stamp {
            incarnation: Incarnation(number(&bytes[..8])),
            sub_seq: SubSeq(number(&bytes[8..])),
        };
        Ok(Self { bits: bitmap.iter().map(Ordinal).zip(stamps.iter().map(stamp)).collect() })
    }

    /// The row as bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let bitmap: RoaringBitmap = self.bits.keys().map(|ordinal| ordinal.0).collect();
        let mut bytes = Vec::with_capacity(bitmap.serialized_size() + STAMP_BYTES * self.bits.len());
        bitmap.serialize_into(&mut bytes).expect("a vector takes everything");
        for stamp in self.bits.values() {
            bytes.extend_from_slice(&stamp.incarnation.0.to_be_bytes());
            bytes.extend_from_slice(&stamp.sub_seq.0.to_be_bytes());
        }
        bytes.into()
    }

    /// The room that a row says; one that says nothing of the kind is empty, and the servers with
    /// subscribers write it anew.
    #[must_use]
    pub fn of(body: Option<&Body>) -> Self {
        match body {
            Some(Body::Value(value)) => Self::decode(value).unwrap_or_default(),
            Some(Body::Tombstone(_) | Body::Counter(_)) | None => Self::default(),
        }
    }

    /// What the row is to say: a room without bits has none.
    #[must_use]
    pub fn into_body(self) -> Body {
        if self.is_empty() { Body::Tombstone(Cause::Deleted) } else { Body::Value(self.encode()) }
    }

    /// Whether no bit is set: such a room has no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// Every bit with its stamp.
    pub fn bits(&self) -> impl Iterator<Item = (Ordinal, Stamp)> + '_ {
        self.bits.iter().map(|(ordinal, stamp)| (*ordinal, *stamp))
    }

    /// The bits that count: those of present runs.
    pub fn present<'a>(&'a self, runs: &'a ServerRuns) -> impl Iterator<Item = (Ordinal, Stamp)> + 'a {
        let counts = |(ordinal, stamp): &(Ordinal, Stamp)| {
            runs.is_present(*ordinal, stamp.incarnation) || mutated!(OldRunsBitCounts)
        };
        self.bits().filter(counts)
    }

    /// Makes a change, and lets the bits of runs that are over go. Whether anything became
    /// different.
    pub fn change(&mut self, change: BitChange, runs: &ServerRuns) -> bool {
        let before = self.bits.len();
        self.bits.retain(|ordinal, stamp| !runs.is_over(*ordinal, stamp.incarnation));
        let swept = self.bits.len() < before;
        let changed = match change {
            BitChange::Set(ordinal, stamp) => {
                let known = self.bits.get(&ordinal);
                let is_news = known.is_none_or(|known| *known < stamp);
                // A run that is over came late: its bit would be swept at once.
                let counts = is_news && !runs.is_over(ordinal, stamp.incarnation);
                if counts {
                    self.bits.insert(ordinal, stamp);
                }
                counts
            }
            BitChange::Clear(ordinal, stamp) => {
                let known = self.bits.get(&ordinal);
                let is_its = known.is_some_and(|known| *known == stamp || mutated!(ClearUnconditional));
                if is_its {
                    self.bits.remove(&ordinal);
                }
                is_its
            }
            BitChange::Sweep => false,
        };
        swept || changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(incarnation: u64, sub_seq: u64) -> Stamp {
        Stamp { incarnation: Incarnation(incarnation), sub_seq: SubSeq(sub_seq) }
    }

    fn row(bits: &[(u32, u64, u64)]) -> RoomRow {
        let bit = |(ordinal, incarnation, sub_seq): &(u32, u64, u64)| {
            (Ordinal(*ordinal), stamp(*incarnation, *sub_seq))
        };
        RoomRow { bits: bits.iter().map(bit).collect() }
    }

    fn runs(runs: &[(u32, u64)]) -> ServerRuns {
        let runs = runs.iter().map(|(ordinal, run)| (Ordinal(*ordinal), Incarnation(*run)));
        ServerRuns { runs: runs.collect() }
    }

    #[test]
    fn the_bytes_are_those_of_the_documentation() {
        let bytes = row(&[(0, 2, 7), (3, 1, 9)]).encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let bitmap = "3a30000001000000000001001000000000000300";
        let stamps = "0000000000000002000000000000000700000000000000010000000000000009";
        assert_eq!(hex, format!("{bitmap}{stamps}"));
    }

    #[test]
    fn a_clear_takes_exactly_its_own_bit() {
        let known = runs(&[(0, 2), (1, 5)]);
        let mut room = row(&[(0, 2, 7), (1, 5, 1)]);
        assert!(!room.change(BitChange::Clear(Ordinal(0), stamp(2, 6)), &known));
        assert!(!room.change(BitChange::Clear(Ordinal(0), stamp(1, 7)), &known));
        assert!(room.change(BitChange::Clear(Ordinal(0), stamp(2, 7)), &known));
        assert_eq!(room, row(&[(1, 5, 1)]));
    }

    #[test]
    fn a_late_set_takes_no_later_one_back() {
        let known = runs(&[(0, 2)]);
        let mut room = row(&[(0, 2, 7)]);
        assert!(!room.change(BitChange::Set(Ordinal(0), stamp(2, 6)), &known));
        assert!(!room.change(BitChange::Set(Ordinal(0), stamp(2, 7)), &known));
        assert!(room.change(BitChange::Set(Ordinal(0), stamp(2, 8)), &known));
        assert!(!room.change(BitChange::Set(Ordinal(0), stamp(1, 9)), &known), "of a former run");
        assert_eq!(room, row(&[(0, 2, 8)]));
    }

    #[test]
    fn bits_of_former_runs_do_not_count_and_are_swept() {
        let known = runs(&[(0, 3), (2, 1)]);
        let mut room = row(&[(0, 2, 7), (1, 9, 9), (2, 1, 1), (3, 1, 1)]);
        let present: Vec<Ordinal> = room.present(&known).map(|(ordinal, _)| ordinal).collect();
        assert_eq!(present, [Ordinal(2)]);
        assert!(room.change(BitChange::Sweep, &known));
        assert_eq!(room, row(&[(2, 1, 1), (3, 1, 1)]), "what is above all that is known may be new");
        assert!(!room.change(BitChange::Sweep, &known));
    }

    proptest! {
        #[test]
        fn rows_survive_their_bytes(bits in prop::collection::btree_map(0..5_000_u32, (any::<u64>(), any::<u64>()), 0..40)) {
            let bits: Vec<_> = bits.into_iter().map(|(ordinal, (run, seq))| (ordinal, run, seq)).collect();
            let room = row(&bits);
            prop_assert_eq!(RoomRow::decode(&room.encode()), Ok(room));
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = RoomRow::decode(&bytes);
        }

        #[test]
        fn no_damage_makes_decoding_panic(at in 0..60_usize, flip in any::<u8>(), cut in 0..60_usize) {
            let mut bytes = row(&[(0, 2, 7), (3, 1, 9), (70_000, 4, 4)]).encode().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            let _ = RoomRow::decode(&bytes);
        }
    }
}
