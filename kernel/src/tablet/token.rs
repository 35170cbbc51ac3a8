//! Which writes this replica's log holds, by the name their clients gave them.
//!
//! The table covers the whole log from `floor_ms` on: queued entries, entries of earlier
//! epochs and token fences too (m37). A token issued before the floor is refused, never run:
//! it may have run once and been forgotten.

use crate::entry::{Entry, Payload};
use crate::hlc::Hlc;
use crate::ids::{Pos, Seq};
use crate::limits::TOKEN_WINDOW_MS;
use crate::mutated;
use crate::op::{AckLevel, Committed, OpResult, Token};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::BTreeMap;

/// What the log says of a token.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum TokenRecord {
    /// A write stands in the log.
    Write {
        /// Where.
        pos: Pos,
        /// At what timestamp.
        ts: Hlc,
        /// The level that its client asked for.
        level: AckLevel,
        /// What its operations gave.
        results: Vec<OpResult>,
        /// The revert that took it back, if one did.
        reverted: Option<Pos>,
    },
    /// No write with this token may run after this position.
    Fenced {
        /// Where the fence stands.
        pos: Pos,
    },
}

impl TokenRecord {
    /// The entry that decides.
    #[must_use]
    pub fn pos(&self) -> Pos {
        match self {
            Self::Write { reverted: Some(pos), .. } | Self::Write { pos, .. } | Self::Fenced { pos } => *pos,
        }
    }

    /// The answer to the client of a write that stands.
    #[must_use]
    pub fn committed(&self) -> Option<Committed> {
        match self {
            Self::Write { pos, ts, level, results, reverted: None } => {
                Some(Committed { pos: *pos, ts: *ts, level: *level, results: results.clone() })
            }
            Self::Write { .. } | Self::Fenced { .. } => None,
        }
    }

    /// Whether a fence or a revert decided that no write of the token stands.
    #[must_use]
    pub fn is_fence(&self) -> bool {
        matches!(self, Self::Fenced { .. })
    }
}

/// The tokens of one replica's log.
#[derive(Clone, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub struct TokenTable {
    records: BTreeMap<Token, TokenRecord>,
    floor_ms: u64,
}

/// What is known of a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TokenLookup<'a> {
    /// The log holds it.
    Known(&'a TokenRecord),
    /// The log does not hold it.
    New,
    /// It is older than what is remembered.
    TooOld,
}

impl TokenTable {
    /// A table that is complete for tokens issued from `floor_ms` on.
    #[must_use]
    pub fn complete_from(floor_ms: u64) -> Self {
        Self { records: BTreeMap::new(), floor_ms }
    }

    /// Remembers the token of a log entry, if it has one.
    pub fn note_entry(&mut self, entry: &Entry) {
        match &entry.payload {
            Payload::EpochStart { .. } | Payload::Close | Payload::Seal(_) | Payload::Unseal { .. } => {}
            Payload::Write(write) => {
                let Some(token) = write.token else { return };
                let (level, results) = (write.level, write.results.clone());
                let (pos, ts) = (entry.pos, entry.ts);
                self.note(token, TokenRecord::Write { pos, ts, level, results, reverted: None });
            }
            Payload::TokenFence { token } => self.note(*token, TokenRecord::Fenced { pos: entry.pos }),
            Payload::Revert { targets } => {
                for target in targets.iter().filter(|_| !mutated!(RevertedTokensForgotten)) {
                    self.note_reverted(target.token, target.pos, entry.pos);
                }
            }
        }
    }

    fn note_reverted(&mut self, token: Option<Token>, target: Pos, by: Pos) {
        let record = token.and_then(|token| self.records.get_mut(&token));
        if let Some(TokenRecord::Write { pos, reverted, .. }) = record
            && *pos == target
        {
            *reverted = Some(by);
        }
    }

    /// Remembers what the log says of `token`.
    pub fn note(&mut self, token: Token, record: TokenRecord) {
        if token.issued_ms >= self.floor_ms {
            self.records.insert(token, record);
        }
    }

    /// Looks `token` up at wall time `wall_ms`.
    #[must_use]
    pub fn look_up(&self, token: Token, wall_ms: u64) -> TokenLookup<'_> {
        match self.records.get(&token) {
            Some(record) => TokenLookup::Known(record),
            None if token.issued_ms < self.floor_ms.max(wall_ms.saturating_sub(TOKEN_WINDOW_MS)) => {
                TokenLookup::TooOld
            }
            None => TokenLookup::New,
        }
    }

    /// Forgets the tokens issued before `floor_ms`; from then on they are too old.
    pub fn forget_before(&mut self, floor_ms: u64) {
        if floor_ms <= self.floor_ms {
            return;
        }
        self.floor_ms = floor_ms;
        self.records = self.records.split_off(&Token { issued_ms: floor_ms, client: 0, seq: 0 });
    }

    /// Forgets what entries from `from` on said: they were never written.
    pub fn cut(&mut self, from: Seq) {
        self.records.retain(|_, record| match record {
            TokenRecord::Write { pos, reverted, .. } => {
                *reverted = reverted.filter(|by| by.seq < from);
                pos.seq < from
            }
            TokenRecord::Fenced { pos } => pos.seq < from,
        });
    }

    /// What two logs say together. A token that both know has one record with a write, if any
    /// has one: its rows lay in one of the two.
    #[must_use]
    pub fn join(mut self, mut other: Self) -> Self {
        let floor_ms = self.floor_ms.max(other.floor_ms);
        self.forget_before(floor_ms);
        other.forget_before(floor_ms);
        for (token, record) in std::mem::take(&mut other.records) {
            let known = self.records.get(&token);
            if known.is_none_or(|known| known.is_fence() && !record.is_fence()) {
                self.records.insert(token, record);
            }
        }
        self
    }

    /// The table's bytes, for a copy that begins where this log is.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        borsh::to_vec(self).expect("writing to a vector does not fail")
    }

    /// Reads a table back; none for bytes that are none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        borsh::from_slice(bytes).ok()
    }

    /// Issue time from which on the table is complete, milliseconds since 1970.
    #[must_use]
    pub fn floor_ms(&self) -> u64 {
        self.floor_ms
    }

    /// Issue time, milliseconds since 1970, from which on no token is known and none is
    /// forgotten.
    #[must_use]
    pub fn unknown_from_ms(&self) -> u64 {
        let latest = self.records.last_key_value().map_or(0, |(token, _)| token.issued_ms + 1);
        self.floor_ms.max(latest)
    }

    /// How many tokens are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(issued_ms: u64, seq: u64) -> Token {
        Token { issued_ms, client: 1, seq }
    }

    #[test]
    fn a_forgotten_token_is_too_old_and_never_new() {
        let mut table = TokenTable::default();
        table.note(token(10, 1), TokenRecord::Fenced { pos: Pos::ZERO });
        table.note(token(20, 2), TokenRecord::Fenced { pos: Pos::ZERO });
        table.forget_before(15);
        assert_eq!(table.look_up(token(10, 1), 20), TokenLookup::TooOld);
        assert!(matches!(table.look_up(token(20, 2), 20), TokenLookup::Known(_)));
        assert_eq!(table.look_up(token(20, 3), 20), TokenLookup::New);
    }

    #[test]
    fn joined_tables_know_what_either_knew_from_the_higher_floor_on() {
        let write = TokenRecord::Write {
            pos: Pos::ZERO,
            ts: Hlc(7),
            level: AckLevel::Leader,
            results: Vec::new(),
            reverted: None,
        };
        let fence = || TokenRecord::Fenced { pos: Pos::ZERO };
        let (mut left, mut right) = (TokenTable::default(), TokenTable::complete_from(15));
        left.note(token(10, 1), fence());
        left.note(token(20, 2), fence());
        right.note(token(20, 2), write.clone());
        right.note(token(30, 3), fence());
        for joined in [left.clone().join(right.clone()), right.join(left)] {
            assert_eq!((joined.len(), joined.floor_ms()), (2, 15));
            assert_eq!(joined.look_up(token(10, 1), 20), TokenLookup::TooOld);
            assert_eq!(joined.look_up(token(20, 2), 20), TokenLookup::Known(&write));
        }
    }

    #[test]
    fn the_window_moves_with_the_wall_clock() {
        let table = TokenTable::default();
        assert_eq!(table.look_up(token(10, 1), 10 + TOKEN_WINDOW_MS), TokenLookup::New);
        assert_eq!(table.look_up(token(10, 1), 11 + TOKEN_WINDOW_MS), TokenLookup::TooOld);
    }
}
