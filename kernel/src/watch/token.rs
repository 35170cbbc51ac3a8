//! How far a watch is, as a text that outlives it.
//!
//! A token lists pieces of the watched range with a place each. Its text is `w` and hexadecimal
//! digits of the borsh bytes and a check sum; `docs/formats.md` has worked bytes. A watch over
//! many tablets keeps the exact place of the piece that moved last and joins the others by time:
//! whoever goes on from there may see some changes twice, none too few.

use crate::hlc::Hlc;
use crate::ids::{Lineage, Pos, TableId};
use crate::limits::WATCH_TOKEN_BYTES_MAX;
use crate::range::KeyRange;
use borsh::{BorshDeserialize, BorshSerialize};
use std::fmt;
use std::str::FromStr;

/// Version of the token's layout.
const TOKEN_FORMAT: u8 = 1;

/// Bytes of the check sum.
const SUM_BYTES: usize = 4;

/// How far a watch is in one range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Place {
    /// It has seen everything up to an entry.
    Entry {
        /// The history that the entry is part of.
        lineage: Lineage,
        /// Where it stands.
        pos: Pos,
        /// Its timestamp.
        ts: Hlc,
    },
    /// It has seen every version up to this time.
    Time(Hlc),
    /// It wants the rows as of this time first; zero for now.
    Rows(Hlc),
}

impl Place {
    /// Up to when everything was seen; none before the rows were.
    #[must_use]
    pub fn seen_upto(&self) -> Option<Hlc> {
        match self {
            Self::Entry { ts, .. } | Self::Time(ts) => Some(*ts),
            Self::Rows(_) => None,
        }
    }

    /// A place from which nothing of either is missed; none when there is none.
    fn join(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (a, b) if a == b => Some(*a),
            (Self::Rows(_), _) | (_, Self::Rows(_)) => None,
            (Self::Entry { ts: a, .. } | Self::Time(a), Self::Entry { ts: b, .. } | Self::Time(b)) => {
                Some(Self::Time(*a.min(b)))
            }
        }
    }
}

/// A part of the watched range.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Piece {
    /// Its keys.
    pub range: KeyRange,
    /// How far the watch is in it.
    pub place: Place,
}

/// How far a watch is.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Token {
    /// The table.
    pub table: TableId,
    /// In key order, without overlaps.
    pieces: Vec<Piece>,
}

impl Token {
    /// A watch that is at `place` in all of `range`.
    #[must_use]
    pub fn new(table: TableId, range: KeyRange, place: Place) -> Self {
        Self { table, pieces: vec![Piece { range, place }] }
    }

    /// The parts of the watched range, in key order.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// What of it lies in `range`.
    #[must_use]
    pub fn within(&self, range: &KeyRange) -> Vec<Piece> {
        let part =
            |piece: &Piece| piece.range.intersect(range).map(|range| Piece { range, place: piece.place });
        self.pieces.iter().filter_map(part).collect()
    }

    /// Puts `piece` over what is known of its range; equal neighbours become one.
    pub fn put(&mut self, piece: Piece) {
        let mut pieces = Vec::with_capacity(self.pieces.len() + 2);
        for known in std::mem::take(&mut self.pieces) {
            pieces.extend(known.range.without(&piece.range).map(|range| Piece { range, place: known.place }));
        }
        let at = pieces.partition_point(|known| known.range.start() < piece.range.start());
        pieces.insert(at, piece);
        pieces.dedup_by(|next, known| {
            let joined = (next.place == known.place).then(|| known.range.followed_by(&next.range)).flatten();
            joined.is_some_and(|range| {
                known.range = range;
                true
            })
        });
        self.pieces = pieces;
    }

    /// Whether the pieces cover every key of `range`.
    #[must_use]
    pub fn covers(&self, range: &KeyRange) -> bool {
        let mut within = self.within(range).into_iter().map(|piece| piece.range);
        let Some(first) = within.next() else { return false };
        let joined = within.try_fold(first, |sum, next| sum.followed_by(&next));
        joined.is_some_and(|joined| joined.covers(range))
    }

    /// Up to when everything was seen everywhere; none while rows are still to be read.
    #[must_use]
    pub fn resolved(&self) -> Option<Hlc> {
        let mut seen = Some(Hlc::MAX);
        for piece in &self.pieces {
            seen = seen.zip(piece.place.seen_upto()).map(|(a, b)| a.min(b));
        }
        seen.filter(|_| !self.pieces.is_empty())
    }

    /// The same with at most about `max` pieces: those of `exact` stay, neighbours are joined.
    #[must_use]
    pub fn joined(&self, exact: &KeyRange, max: usize) -> Self {
        if self.pieces.len() <= max {
            return self.clone();
        }
        let mut pieces: Vec<Piece> = Vec::new();
        for piece in &self.pieces {
            let last = pieces.last_mut().filter(|last| !last.range.overlaps(exact));
            let joined = last.filter(|_| !piece.range.overlaps(exact)).and_then(|last| {
                let range = last.range.followed_by(&piece.range)?;
                let place = last.place.join(&piece.place)?;
                *last = Piece { range, place };
                Some(())
            });
            if joined.is_none() {
                pieces.push(piece.clone());
            }
        }
        Self { table: self.table, pieces }
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![TOKEN_FORMAT];
        self.serialize(&mut bytes).expect("writing to a vector does not fail");
        let sum = check_sum(&bytes);
        bytes.extend(sum);
        bytes
    }

    /// Reads its bytes back.
    ///
    /// # Errors
    /// `MalformedToken` for anything that [`Self::encode`] did not give.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedToken> {
        if bytes.len() > WATCH_TOKEN_BYTES_MAX {
            return Err(MalformedToken);
        }
        let (body, sum) = bytes.split_last_chunk::<SUM_BYTES>().ok_or(MalformedToken)?;
        let (format, record) = body.split_first().ok_or(MalformedToken)?;
        if *format != TOKEN_FORMAT || *sum != check_sum(body) {
            return Err(MalformedToken);
        }
        let token: Self = borsh::from_slice(record).map_err(|_| MalformedToken)?;
        let rises = token.pieces.windows(2).all(|pair| pair[0].range.ends_below(&pair[1].range));
        let are_ranges = token.pieces.iter().all(|piece| piece.range.is_sound());
        if rises && are_ranges { Ok(token) } else { Err(MalformedToken) }
    }
}

fn check_sum(bytes: &[u8]) -> [u8; SUM_BYTES] {
    let [a, b, c, d, ..] = xxhash_rust::xxh3::xxh3_64(bytes).to_be_bytes();
    [a, b, c, d]
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("w")?;
        self.encode().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text or bytes that are no token of a watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MalformedToken;

impl fmt::Display for MalformedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no token of a watch: give one as an event of a watch has it in `token`, whole")
    }
}

impl std::error::Error for MalformedToken {}

impl FromStr for Token {
    type Err = MalformedToken;

    fn from_str(text: &str) -> Result<Self, MalformedToken> {
        let digits = text.strip_prefix('w').ok_or(MalformedToken)?.as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (pairs, rest) = digits.as_chunks::<2>();
        let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
        let bytes: Vec<u8> =
            bytes.collect::<Option<_>>().filter(|_| rest.is_empty()).ok_or(MalformedToken)?;
        Self::decode(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, Seq};
    use bytes::Bytes;
    use proptest::prelude::*;

    fn range(from: &'static str, to: &'static str) -> KeyRange {
        let to = Some(Bytes::from_static(to.as_bytes())).filter(|to| !to.is_empty());
        KeyRange::new(Bytes::from_static(from.as_bytes()), to).unwrap()
    }

    fn at(seq: u64) -> Place {
        Place::Entry { lineage: Lineage(1), pos: Pos::new(Epoch(1), Seq(seq)), ts: Hlc(seq * 10) }
    }

    fn show(token: &Token) -> Vec<String> {
        let show = |piece: &Piece| format!("{} {:?}", piece.range, piece.place.seen_upto().map(|ts| ts.0));
        token.pieces().iter().map(show).collect()
    }

    #[test]
    fn a_token_survives_its_text() {
        let mut token = Token::new(TableId(3), range("", ""), at(4));
        token.put(Piece { range: range("k", "m"), place: Place::Rows(Hlc(7)) });
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        for bad in ["", "w", "w00", "x", "5", "wzz", "wé"] {
            assert_eq!(bad.parse::<Token>(), Err(MalformedToken), "{bad}");
        }
        let text = token.to_string();
        assert_eq!(text[..text.len() - 2].parse::<Token>(), Err(MalformedToken));
    }

    #[test]
    fn pieces_lie_over_what_was_known() {
        let mut token = Token::new(TableId(1), range("", ""), at(1));
        token.put(Piece { range: range("m", ""), place: at(5) });
        token.put(Piece { range: range("c", "p"), place: at(7) });
        assert_eq!(show(&token), ["[, c) Some(10)", "[c, p) Some(70)", "[p, +inf) Some(50)"]);
        assert_eq!(token.resolved(), Some(Hlc(10)));
        assert!(token.covers(&range("", "")) && token.covers(&range("b", "z")));
        token.put(Piece { range: range("", "c"), place: at(7) });
        assert_eq!(show(&token), ["[, p) Some(70)", "[p, +inf) Some(50)"]);
    }

    #[test]
    fn many_pieces_are_joined_by_time_around_the_exact_one() {
        let mut token = Token::new(TableId(1), range("", "b"), at(3));
        for (from, to, seq) in [("b", "c", 4), ("c", "d", 5), ("d", "e", 6), ("e", "", 9)] {
            token.put(Piece { range: range(from, to), place: at(seq) });
        }
        let joined = token.joined(&range("c", "d"), 3);
        assert_eq!(show(&joined), ["[, c) Some(30)", "[c, d) Some(50)", "[d, +inf) Some(60)"]);
        assert_eq!(token.joined(&range("c", "d"), 5), token);
    }

    #[test]
    fn nothing_is_resolved_before_the_rows_were_read() {
        let mut token = Token::new(TableId(1), range("", ""), at(1));
        token.put(Piece { range: range("x", ""), place: Place::Rows(Hlc(0)) });
        assert_eq!(token.resolved(), None);
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut body = vec![TOKEN_FORMAT];
            body.extend(bytes);
            let sum = check_sum(&body);
            body.extend(sum);
            let _ = Token::decode(&body);
        }
    }
}
