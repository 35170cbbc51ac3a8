//! Which writes this replica's log holds, by the name their clients gave them.
//!
//! The table covers the whole log from `floor_ms` on: queued entries, entries of earlier
//! epochs and token fences too (m37). A token issued before the floor is refused, never run:
//! it may have run once and been forgotten.
//!
//! A busy tablet remembers millions of them, and its children begin with all of them while writes
//! wait. So what is remembered lies in layers that are shared: a clone shares them all, and
//! whoever writes next begins a layer of its own. Small neighbours of like size become one, and none
//! grows large, so that nobody ever waits for many records that are copied, or forgotten, at once.

use crate::entry::{Entry, Payload};
use crate::hlc::Hlc;
use crate::ids::{Pos, Seq};
use crate::limits::TOKEN_WINDOW_MS;
use crate::mutated;
use crate::op::{AckLevel, Committed, OpResult, Token};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Records of a layer, at most: one is copied or forgotten within a few milliseconds.
const LAYER_RECORDS_MAX: usize = if cfg!(test) { 8 } else { 16 * 1024 };

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
#[derive(Clone, Debug, Default)]
pub struct TokenTable {
    /// What is noted now.
    own: Arc<Layer>,
    /// What was noted before, oldest first.
    shared: Vec<Shared>,
    floor_ms: u64,
}

/// A layer that does not grow any more.
#[derive(Clone, Debug)]
struct Shared {
    layer: Arc<Layer>,
    /// No token of it or of an older one was issued later, milliseconds since 1970.
    issued_ms: u64,
}

/// Tokens of a stretch of one log.
#[derive(Clone, Debug, Default)]
struct Layer {
    records: BTreeMap<Token, TokenRecord>,
    /// No record was decided by a later entry.
    last: Seq,
    /// No token was issued later, milliseconds since 1970.
    issued_ms: u64,
}

impl Layer {
    fn note(&mut self, token: Token, record: TokenRecord) {
        self.last = self.last.max(record.pos().seq);
        self.issued_ms = self.issued_ms.max(token.issued_ms);
        self.records.insert(token, record);
    }

    fn get(&self, token: Token) -> Option<&TokenRecord> {
        if token.issued_ms > self.issued_ms {
            return None;
        }
        self.records.get(&token)
    }

    /// Whether it and a younger layer are small enough, and so alike in size, that they become one.
    fn goes_with(&self, younger: &Self) -> bool {
        let (own, others) = (self.records.len(), younger.records.len());
        own <= 2 * others && own + others <= LAYER_RECORDS_MAX
    }

    /// Takes in what a younger layer says.
    fn take_in(&mut self, younger: &Self) {
        for (token, record) in &younger.records {
            let stands = self.records.get(token).is_some_and(|known| !known.is_fence() && record.is_fence());
            if !stands {
                self.note(*token, record.clone());
            }
        }
    }

    /// Forgets what entries from `from` on said.
    fn cut(&mut self, from: Seq) {
        self.records.retain(|_, record| match record {
            TokenRecord::Write { pos, reverted, .. } => {
                *reverted = reverted.filter(|by| by.seq < from);
                pos.seq < from
            }
            TokenRecord::Fenced { pos } => pos.seq < from,
        });
        self.last = self.records.values().map(|record| record.pos().seq).max().unwrap_or_default();
    }
}

/// A table's bytes.
#[derive(BorshSerialize, BorshDeserialize)]
struct Encoded {
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
        Self { floor_ms, ..Self::default() }
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
        let Some(token) = token else { return };
        let Some(TokenRecord::Write { pos, ts, level, results, .. }) = self.get(token) else { return };
        if *pos == target {
            let (pos, ts, level, results) = (*pos, *ts, *level, results.clone());
            let record = TokenRecord::Write { pos, ts, level, results, reverted: Some(by) };
            self.note(token, record);
        }
    }

    /// Remembers what the log says of `token`.
    pub fn note(&mut self, token: Token, record: TokenRecord) {
        if token.issued_ms >= self.floor_ms {
            self.own().note(token, record);
        }
    }

    /// The layer that nobody shares, with room for a record.
    fn own(&mut self) -> &mut Layer {
        if Arc::get_mut(&mut self.own).is_none_or(|own| own.records.len() >= LAYER_RECORDS_MAX) {
            self.freeze();
        }
        Arc::make_mut(&mut self.own)
    }

    /// Leaves the own layer to those who share it and begins another.
    fn freeze(&mut self) {
        let mut frozen = std::mem::take(&mut self.own);
        if frozen.records.is_empty() {
            return;
        }
        while let Some(older) = self.shared.pop_if(|older| older.layer.goes_with(&frozen)) {
            let younger = std::mem::replace(&mut frozen, older.layer);
            Arc::make_mut(&mut frozen).take_in(&younger);
        }
        self.push(frozen);
    }

    fn push(&mut self, layer: Arc<Layer>) {
        let issued_ms = self.shared.last().map_or(0, |older| older.issued_ms).max(layer.issued_ms);
        self.shared.push(Shared { layer, issued_ms });
    }

    /// All layers, youngest first.
    fn layers(&self) -> impl Iterator<Item = &Arc<Layer>> {
        std::iter::once(&self.own).chain(self.shared.iter().rev().map(|shared| &shared.layer))
    }

    /// What is known of a token: its write, if one layer has one.
    fn get(&self, token: Token) -> Option<&TokenRecord> {
        let shared = self.shared.iter().rev().take_while(|shared| token.issued_ms <= shared.issued_ms);
        let layers = std::iter::once(&self.own).chain(shared.map(|shared| &shared.layer));
        let mut fence = None;
        for record in layers.filter_map(|layer| layer.get(token)) {
            if !record.is_fence() {
                return Some(record);
            }
            fence = fence.or(Some(record));
        }
        fence
    }

    /// Everything in one layer.
    fn flat(&self) -> Layer {
        let mut flat = Layer::default();
        self.shared
            .iter()
            .map(|shared| &shared.layer)
            .chain([&self.own])
            .for_each(|layer| flat.take_in(layer));
        flat.records = flat.records.split_off(&Token { issued_ms: self.floor_ms, client: 0, seq: 0 });
        flat
    }

    /// Looks `token` up at wall time `wall_ms`.
    #[must_use]
    pub fn look_up(&self, token: Token, wall_ms: u64) -> TokenLookup<'_> {
        if token.issued_ms < self.floor_ms {
            return TokenLookup::TooOld;
        }
        match self.get(token) {
            Some(record) => TokenLookup::Known(record),
            None if token.issued_ms < wall_ms.saturating_sub(TOKEN_WINDOW_MS) => TokenLookup::TooOld,
            None => TokenLookup::New,
        }
    }

    /// Forgets the tokens issued before `floor_ms`; from then on they are too old.
    pub fn forget_before(&mut self, floor_ms: u64) {
        if floor_ms <= self.floor_ms {
            return;
        }
        self.floor_ms = floor_ms;
        for Shared { layer, .. } in std::mem::take(&mut self.shared) {
            if layer.issued_ms >= floor_ms {
                self.push(layer);
            }
        }
        // What others share stays a while longer; nobody finds it.
        if let Some(own) = Arc::get_mut(&mut self.own) {
            own.records = own.records.split_off(&Token { issued_ms: floor_ms, client: 0, seq: 0 });
        }
    }

    /// Forgets what entries from `from` on said: they were never written.
    pub fn cut(&mut self, from: Seq) {
        let layers = self.shared.iter_mut().map(|shared| &mut shared.layer).chain([&mut self.own]);
        layers.filter(|layer| layer.last >= from).for_each(|layer| Arc::make_mut(layer).cut(from));
    }

    /// What two logs say together. A token that both know has one record with a write, if any
    /// has one: its rows lay in one of the two.
    #[must_use]
    pub fn join(mut self, mut other: Self) -> Self {
        let floor_ms = self.floor_ms.max(other.floor_ms);
        self.freeze();
        other.freeze();
        self.shared.into_iter().for_each(|shared| other.push(shared.layer));
        other.forget_before(floor_ms);
        other
    }

    /// The table's bytes, for a copy that begins where this log is.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let encoded = Encoded { records: self.flat().records, floor_ms: self.floor_ms };
        borsh::to_vec(&encoded).expect("writing to a vector does not fail")
    }

    /// Reads a table back; none for bytes that are none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let Encoded { records, floor_ms } = borsh::from_slice(bytes).ok()?;
        let mut table = Self::complete_from(floor_ms);
        records.into_iter().for_each(|(token, record)| table.note(token, record));
        Some(table)
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
        let known = self.layers().filter(|layer| !layer.records.is_empty());
        known.map(|layer| layer.issued_ms + 1).fold(self.floor_ms, u64::max)
    }

    /// How many tokens are remembered; one that two layers know counts twice.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layers().map(|layer| layer.records.len()).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            assert_eq!((joined.flat().records.len(), joined.floor_ms()), (2, 15));
            assert_eq!(joined.look_up(token(10, 1), 20), TokenLookup::TooOld);
            assert_eq!(joined.look_up(token(20, 2), 20), TokenLookup::Known(&write));
        }
    }

    fn write(seq: u64) -> TokenRecord {
        let (pos, ts) = (Pos { seq: Seq(seq), ..Pos::ZERO }, Hlc(seq));
        TokenRecord::Write { pos, ts, level: AckLevel::Leader, results: Vec::new(), reverted: None }
    }

    /// What is done to a table; `Clone` lets somebody else share it from there on.
    #[derive(Clone, Debug)]
    enum Step {
        Note(u64),
        Revert(u64),
        Cut(u64),
        Forget(u64),
        Clone,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u64..40).prop_map(Step::Note),
            1 => (0_u64..40).prop_map(Step::Revert),
            1 => (20_u64..80).prop_map(Step::Cut),
            1 => (0_u64..20).prop_map(Step::Forget),
            2 => Just(Step::Clone),
        ]
    }

    proptest! {
        /// However often a table is shared, everybody sees what one flat map would say.
        #[test]
        fn layers_say_what_one_map_would(steps in proptest::collection::vec(step(), 0..200)) {
            let mut table = TokenTable::default();
            let mut model: BTreeMap<Token, TokenRecord> = BTreeMap::new();
            let mut kept: Vec<(TokenTable, BTreeMap<Token, TokenRecord>)> = Vec::new();
            for (seq, step) in (1..).zip(steps) {
                match step {
                    // A log holds a token once.
                    Step::Note(issued) if model.contains_key(&token(issued, issued)) => {}
                    Step::Note(issued) => {
                        table.note(token(issued, issued), write(seq));
                        if issued >= table.floor_ms() {
                            model.insert(token(issued, issued), write(seq));
                        }
                    }
                    Step::Revert(issued) => {
                        let by = Pos { seq: Seq(seq), ..Pos::ZERO };
                        let Some(record) = model.get_mut(&token(issued, issued)) else { continue };
                        let TokenRecord::Write { pos, reverted, .. } = record else { continue };
                        table.note_reverted(Some(token(issued, issued)), *pos, by);
                        *reverted = Some(by);
                    }
                    Step::Cut(from) => {
                        table.cut(Seq(from));
                        let mut layer = Layer { records: std::mem::take(&mut model), ..Layer::default() };
                        layer.cut(Seq(from));
                        model = layer.records;
                    }
                    Step::Forget(floor) => {
                        table.forget_before(floor);
                        model.retain(|token, _| token.issued_ms >= floor.max(table.floor_ms()));
                    }
                    Step::Clone => kept.push((table.clone(), model.clone())),
                }
                prop_assert!(table.layers().all(|layer| layer.records.len() <= LAYER_RECORDS_MAX));
            }
            kept.push((table, model));
            for (table, model) in kept {
                prop_assert_eq!(&table.flat().records, &model);
                let decoded = TokenTable::decode(&table.encode()).unwrap();
                prop_assert_eq!(&decoded.flat().records, &model);
                for issued in table.floor_ms()..40 {
                    let known = model.get(&token(issued, issued));
                    prop_assert_eq!(table.get(token(issued, issued)), known);
                }
            }
        }
    }

    #[test]
    fn a_clone_of_many_tokens_costs_nothing_to_either() {
        let mut table = TokenTable::default();
        (0..1_000).for_each(|seq| table.note(token(seq, seq), write(seq)));
        let before = table.shared.len();
        let mut child = table.clone();
        assert!(Arc::ptr_eq(&child.own, &table.own));
        child.note(token(2_000, 1), write(2_000));
        table.note(token(2_000, 2), write(2_000));
        let shared = child.shared.iter().zip(&table.shared);
        let same = shared.filter(|(child, table)| Arc::ptr_eq(&child.layer, &table.layer)).count();
        assert!(same >= before && before >= 1_000 / LAYER_RECORDS_MAX - 1, "neither copied what both have");
        assert_eq!((child.len(), table.len()), (1_001, 1_001));
    }

    /// As a tablet is split again and again, with many tokens from before.
    #[test]
    fn sharing_again_and_again_copies_little() {
        let mut table = TokenTable::default();
        (0..10_000).for_each(|seq| table.note(token(seq, seq), write(seq)));
        let mut copied = 0;
        for seq in 10_000..11_000 {
            let before = table.clone();
            table.note(token(seq, seq), write(seq));
            let is_new = |shared: &&Shared| !before.layers().any(|known| Arc::ptr_eq(known, &shared.layer));
            copied +=
                table.shared.iter().filter(is_new).map(|shared| shared.layer.records.len()).sum::<usize>();
        }
        assert!(copied <= 1_000 * LAYER_RECORDS_MAX, "{copied} records were copied for 1,000 tokens");
        assert!(table.shared.len() <= 2 * 11_000 / LAYER_RECORDS_MAX, "{} layers", table.shared.len());
        assert_eq!(table.flat().records.len(), 11_000);
    }

    #[test]
    fn the_window_moves_with_the_wall_clock() {
        let table = TokenTable::default();
        assert_eq!(table.look_up(token(10, 1), 10 + TOKEN_WINDOW_MS), TokenLookup::New);
        assert_eq!(table.look_up(token(10, 1), 11 + TOKEN_WINDOW_MS), TokenLookup::TooOld);
    }
}
