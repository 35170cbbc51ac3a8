//! The log record of a tablet.
//!
//! An entry names its predecessor and carries a chained hash over the log up to itself, so
//! that the same position means the same prefix on every replica (log matching). The bytes
//! are borsh (a published canonical encoding); the layout with worked bytes is in
//! `docs/formats.md`. The hash is a fast one: integrity on disk is the log's own checksum.

use crate::hlc::Hlc;
use crate::ids::{Attempt, Epoch, Incarnation, Pos, ReplicaId, Seq, TabletId};
use crate::mutated;
use crate::op::{AckLevel, Change, OpResult, Token};
use crate::range::KeyRange;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;

/// Version of the record layout, the first byte of every record.
pub const ENTRY_FORMAT: u8 = 2;

/// One record of a tablet's log.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Entry {
    /// Where it stands.
    pub pos: Pos,
    /// What stands before it.
    pub prev: Pos,
    /// Chained hash over the whole log up to and with this entry.
    pub hash: u64,
    /// Timestamp of its changes; strictly above that of every entry before it.
    pub ts: Hlc,
    /// What it says.
    pub payload: Payload,
}

/// What a log entry says.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Payload {
    /// First entry of an epoch.
    EpochStart {
        /// The replica that leads.
        replica: ReplicaId,
        /// The process that leads.
        incarnation: Incarnation,
    },
    /// One atomic batch of one client.
    Write(WriteRecord),
    /// From here on a write with this token is refused.
    TokenFence {
        /// The token that was asked for and not found.
        token: Token,
    },
    /// Takes back writes whose wait for copies failed: exactly their versions.
    Revert {
        /// The writes, all of the revert's own epoch.
        targets: Vec<RevertTarget>,
    },
    /// Nothing but its timestamp: no entry at or below it will follow.
    Close,
    /// The last data entry of a tablet that others are to take the place of (m25).
    Seal(SealRecord),
    /// Takes the seal of an attempt back, once metadata has shown that it was aborted (m29).
    Unseal {
        /// The attempt.
        attempt: Attempt,
    },
}

/// What is to take the place of a sealed tablet.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SealRecord {
    /// The attempt that the tablet is sealed for.
    pub attempt: Attempt,
    /// The tablets that are to be, in key order.
    pub children: Vec<SealedChild>,
}

/// A tablet that is to be.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SealedChild {
    /// Its name.
    pub tablet: TabletId,
    /// Its keys.
    pub range: KeyRange,
    /// Its copies, by the copy of the sealed tablet that each goes on from.
    pub replicas: BTreeMap<ReplicaId, ReplicaId>,
}

/// A write that is taken back.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct RevertTarget {
    /// Where it stands.
    pub pos: Pos,
    /// The timestamp of its versions.
    pub ts: Hlc,
    /// Its name: from here on the answer to it is "reverted".
    pub token: Option<Token>,
    /// What it put.
    pub rows: Vec<RevertedRow>,
}

/// The name of a version, but for its timestamp.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum RevertedRow {
    /// A row's version.
    Row {
        /// The row.
        key: Bytes,
    },
    /// A range tombstone.
    Range {
        /// First key of the range.
        from: Bytes,
    },
}

impl RevertedRow {
    /// The name of what `change` puts.
    #[must_use]
    pub fn of(change: &Change) -> Self {
        match change {
            Change::Put { key, .. } => Self::Row { key: key.clone() },
            Change::RangeTombstone { from, .. } => Self::Range { from: from.clone() },
        }
    }
}

/// One atomic batch as the log keeps it: effects, never conditions.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct WriteRecord {
    /// Names the write for retries.
    pub token: Option<Token>,
    /// The level that its client waits for.
    pub level: AckLevel,
    /// What to put, all at the entry's timestamp.
    pub changes: Vec<Change>,
    /// What each operation gave, for the answer to a retry.
    pub results: Vec<OpResult>,
}

/// A record that this version cannot read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryError {
    /// No bytes.
    Empty,
    /// Written by a newer version.
    UnknownFormat(u8),
    /// Not a record.
    Malformed(String),
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the log record is empty"),
            Self::UnknownFormat(format) => {
                write!(
                    f,
                    "log record of format {format}, this ebla knows {ENTRY_FORMAT}: use the ebla that wrote it"
                )
            }
            Self::Malformed(reason) => write!(f, "the log record is malformed: {reason}"),
        }
    }
}

impl std::error::Error for EntryError {}

/// The end of a log: where the next entry goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub struct LogEnd {
    /// Position of the last entry.
    pub pos: Pos,
    /// Its chained hash.
    pub hash: u64,
    /// Its timestamp, the greatest of the log.
    pub ts: Hlc,
}

impl LogEnd {
    /// Where the log of a tablet begins that goes on from logs that end at `ends`, in key order:
    /// at the end of the one, or, of several, behind every position and timestamp of theirs.
    /// Nobody wrote that position; its hash tells which histories met there.
    #[must_use]
    pub fn joined(ends: &[Self]) -> Self {
        if let [end] = ends {
            return *end;
        }
        let mut hasher = xxhash_rust::xxh3::Xxh3::with_seed(0);
        ends.serialize(&mut HashWriter(&mut hasher)).expect("hashing does not fail");
        let epoch = ends.iter().map(|end| end.pos.epoch).max().unwrap_or_default();
        let seq = ends.iter().map(|end| end.pos.seq).max().unwrap_or_default();
        let ts = ends.iter().map(|end| end.ts);
        let ts = if mutated!(MergedTimeGoesBack) { ts.min() } else { ts.max() };
        Self { pos: Pos::new(epoch, seq), hash: hasher.digest(), ts: ts.unwrap_or_default() }
    }

    /// The entry that follows this end in `epoch`.
    #[must_use]
    pub fn follow(self, epoch: Epoch, ts: Hlc, payload: Payload) -> Entry {
        assert!(ts > self.ts, "timestamps rise with positions");
        let pos = Pos::new(epoch, self.pos.seq.next());
        let mut entry = Entry { pos, prev: self.pos, hash: 0, ts, payload };
        entry.hash = entry.chain(self.hash);
        entry
    }

    /// Whether `entry` may stand right after this end.
    #[must_use]
    pub fn is_followed_by(&self, entry: &Entry) -> bool {
        entry.prev == self.pos
            && entry.pos.seq == self.pos.seq.next()
            && entry.pos.epoch >= self.pos.epoch
            && entry.hash == entry.chain(self.hash)
    }
}

impl Entry {
    /// The end of a log whose last entry is this.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        LogEnd { pos: self.pos, hash: self.hash, ts: self.ts }
    }

    /// Index in the log.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.pos.seq
    }

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![ENTRY_FORMAT];
        self.serialize(&mut out).expect("writing to a vector does not fail");
        out
    }

    /// What it puts, exactly.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        match &self.payload {
            Payload::Write(write) => &write.changes,
            Payload::EpochStart { .. }
            | Payload::TokenFence { .. }
            | Payload::Revert { .. }
            | Payload::Seal(_)
            | Payload::Unseal { .. }
            | Payload::Close => &[],
        }
    }

    /// What it takes back.
    #[must_use]
    pub fn reverts(&self) -> &[RevertTarget] {
        match &self.payload {
            Payload::Revert { targets } => targets,
            Payload::Write(_)
            | Payload::EpochStart { .. }
            | Payload::TokenFence { .. }
            | Payload::Seal(_)
            | Payload::Unseal { .. }
            | Payload::Close => &[],
        }
    }

    /// Reads a record back.
    ///
    /// # Errors
    /// `EntryError` for bytes that no version up to this one has written.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        match bytes.split_first() {
            None => Err(EntryError::Empty),
            Some((&ENTRY_FORMAT, body)) => {
                borsh::from_slice(body).map_err(|error| EntryError::Malformed(error.to_string()))
            }
            Some((&format, _)) => Err(EntryError::UnknownFormat(format)),
        }
    }

    /// Hash over the previous hash and everything else that this entry says.
    fn chain(&self, previous: u64) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::with_seed(previous);
        let body = (&self.pos, &self.prev, &self.ts, &self.payload);
        body.serialize(&mut HashWriter(&mut hasher)).expect("hashing does not fail");
        hasher.digest()
    }
}

struct HashWriter<'a>(&'a mut xxhash_rust::xxh3::Xxh3);

impl borsh::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> borsh::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> borsh::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Body;
    use proptest::prelude::*;

    fn write(value: &'static [u8]) -> Payload {
        let body = Body::Value(Bytes::from_static(value));
        let change = Change::Put { key: Bytes::from_static(b"k"), body, expires_ms: None };
        Payload::Write(WriteRecord {
            token: None,
            level: AckLevel::Leader,
            changes: vec![change],
            results: vec![OpResult::Done],
        })
    }

    #[test]
    fn entries_survive_encoding() {
        let entry = LogEnd::default().follow(Epoch(1), Hlc(5), write(b"v"));
        assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
    }

    #[test]
    fn the_chain_tells_two_histories_apart() {
        let a = LogEnd::default().follow(Epoch(1), Hlc(5), write(b"a"));
        let b = LogEnd::default().follow(Epoch(1), Hlc(5), write(b"b"));
        let after_a = a.end().follow(Epoch(1), Hlc(6), write(b"c"));
        assert!(a.end().is_followed_by(&after_a));
        assert!(!b.end().is_followed_by(&after_a));
    }

    #[test]
    fn joined_logs_go_on_behind_all_of_them() {
        let end = |epoch, seq, ts| LogEnd { pos: Pos::new(Epoch(epoch), Seq(seq)), hash: seq, ts: Hlc(ts) };
        let (left, right) = (end(3, 7, 50), end(2, 9, 60));
        assert_eq!(LogEnd::joined(&[left]), left);
        let both = LogEnd::joined(&[left, right]);
        assert_eq!((both.pos, both.ts), (Pos::new(Epoch(3), Seq(9)), Hlc(60)));
        assert_eq!(both, LogEnd::joined(&[left, right]));
        assert_ne!(both.hash, LogEnd::joined(&[right, left]).hash);
    }

    #[test]
    fn a_newer_format_is_named() {
        assert_eq!(Entry::decode(&[9, 0]), Err(EntryError::UnknownFormat(9)));
        assert_eq!(Entry::decode(&[]), Err(EntryError::Empty));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut record = vec![ENTRY_FORMAT];
            record.extend(bytes);
            let _ = Entry::decode(&record);
        }
    }
}
