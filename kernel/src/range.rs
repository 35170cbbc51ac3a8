//! Half-open key ranges and their algebra. Nobody else compares bounds.

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use std::fmt;

/// The keys from `start` (inclusive) to `end` (exclusive); no `end` means no upper bound.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct KeyRange {
    start: Bytes,
    end: Option<Bytes>,
}

/// A range whose end is not above its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvertedRange;

impl KeyRange {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// The keys in `[start, end)`.
    ///
    /// # Errors
    /// `InvertedRange` when `end` is not above `start`.
    pub fn new(start: Bytes, end: Option<Bytes>) -> Result<Self, InvertedRange> {
        match &end {
            Some(end) if *end <= start => Err(InvertedRange),
            _ => Ok(Self { start, end }),
        }
    }

    /// The keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: Bytes) -> Self {
        let end = prefix_end(&prefix);
        Self { start: prefix, end }
    }

    /// First key of the range; empty when unbounded below.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// First key above the range; none when unbounded above.
    #[must_use]
    pub fn end(&self) -> Option<&Bytes> {
        self.end.as_ref()
    }

    /// Whether `key` lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && !self.is_below(key)
    }

    /// Whether the whole range lies below `key`.
    #[must_use]
    pub fn is_below(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_some_and(|end| key >= &end[..])
    }

    /// Whether every key of `other` lies in this range.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.start <= other.start && end_at_most(other.end.as_ref(), self.end.as_ref())
    }

    /// Whether some key lies in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.intersect(other).is_some()
    }

    /// The keys in both, if any.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let start = self.start.clone().max(other.start.clone());
        let end = match (&self.end, &other.end) {
            (Some(a), Some(b)) => Some(a.clone().min(b.clone())),
            (Some(end), None) | (None, Some(end)) => Some(end.clone()),
            (None, None) => None,
        };
        Self::new(start, end).ok()
    }

    /// Whether `other` begins where this range ends.
    #[must_use]
    pub fn is_followed_by(&self, other: &Self) -> bool {
        self.end.as_ref() == Some(&other.start)
    }

    /// Both as one, if `other` begins where this one ends.
    #[must_use]
    pub fn followed_by(&self, other: &Self) -> Option<Self> {
        let is_next = self.is_followed_by(other);
        is_next.then(|| Self { start: self.start.clone(), end: other.end.clone() })
    }

    /// What of this range does not lie in `other`, in key order.
    pub fn without(&self, other: &Self) -> impl Iterator<Item = Self> + use<> {
        let below = self.intersect(&Self { start: Bytes::new(), end: Some(other.start.clone()) });
        let above = other.end.clone().and_then(|end| self.intersect(&Self { start: end, end: None }));
        [below, above].into_iter().flatten()
    }

    /// Its key, if it holds exactly one.
    #[must_use]
    pub fn only_key(&self) -> Option<&Bytes> {
        let end = self.end.as_ref()?;
        let is_next = end.split_last() == Some((&0, &self.start[..]));
        is_next.then_some(&self.start)
    }

    /// Whether `other` begins where this range ends, or above.
    #[must_use]
    pub fn ends_below(&self, other: &Self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= other.start)
    }

    /// Whether its end is above its start, as [`Self::new`] makes sure; a range that was read
    /// from bytes may be otherwise.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.end.as_ref().is_none_or(|end| *end > self.start)
    }

    /// Cuts the whole key space at `keys`.
    ///
    /// # Errors
    /// `InvertedRange` when `keys` do not strictly rise or hold the empty key.
    pub fn cut_at(keys: &[Bytes]) -> Result<Vec<Self>, InvertedRange> {
        let mut ranges = Vec::with_capacity(keys.len() + 1);
        let mut start = Bytes::new();
        for key in keys {
            ranges.push(Self::new(start, Some(key.clone()))?);
            start = key.clone();
        }
        ranges.push(Self { start, end: None });
        Ok(ranges)
    }
}

/// The least key above every key with `prefix`; none when there is no such key.
fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xFF)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

fn end_at_most(a: Option<&Bytes>, b: Option<&Bytes>) -> bool {
    match (a, b) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(a), Some(b)) => a <= b,
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, ", self.start.escape_ascii())?;
        match &self.end {
            Some(end) => write!(f, "{})", end.escape_ascii()),
            None => write!(f, "+inf)"),
        }
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xFE), Just(0xFF)], 0..4)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), proptest::option::of(key()))
            .prop_filter_map("inverted", |(a, b)| KeyRange::new(a.into(), b.map(Into::into)).ok())
    }

    proptest! {
        #[test]
        fn prefix_holds_exactly_the_keys_that_begin_with_it(prefix in key(), probe in key()) {
            prop_assert_eq!(KeyRange::prefix(prefix.clone().into()).contains(&probe), probe.starts_with(&prefix));
        }

        #[test]
        fn intersection_holds_what_both_hold(a in range(), b in range(), probe in key()) {
            let both = a.intersect(&b).is_some_and(|r| r.contains(&probe));
            prop_assert_eq!(both, a.contains(&probe) && b.contains(&probe));
        }

        #[test]
        fn without_holds_what_only_the_first_holds(a in range(), b in range(), probe in key()) {
            let left: Vec<KeyRange> = a.without(&b).collect();
            let holders = left.iter().filter(|range| range.contains(&probe)).count();
            prop_assert_eq!(holders, usize::from(a.contains(&probe) && !b.contains(&probe)));
            prop_assert!(left.iter().all(KeyRange::is_sound));
        }

        #[test]
        fn the_only_key_is_the_only_one(key in key()) {
            let one = KeyRange::new(key.clone().into(), Some(crate::key::successor(&key))).unwrap();
            prop_assert_eq!(one.only_key().map(|key| key.to_vec()), Some(key));
        }

        #[test]
        fn covering_is_containing_every_key(a in range(), b in range(), probe in key()) {
            if a.covers(&b) && b.contains(&probe) {
                prop_assert!(a.contains(&probe));
            }
        }

        #[test]
        fn cuts_are_total_and_disjoint(mut keys in proptest::collection::vec(key(), 0..5), probe in key()) {
            keys.sort();
            keys.dedup();
            keys.retain(|k| !k.is_empty());
            let keys: Vec<Bytes> = keys.into_iter().map(Into::into).collect();
            let ranges = KeyRange::cut_at(&keys).unwrap();
            prop_assert_eq!(ranges.iter().filter(|r| r.contains(&probe)).count(), 1);
            prop_assert!(ranges.windows(2).all(|w| w[0].is_followed_by(&w[1])));
        }
    }

    #[test]
    fn cutting_at_unordered_keys_is_refused() {
        let keys = [Bytes::from_static(b"m"), Bytes::from_static(b"c")];
        assert_eq!(KeyRange::cut_at(&keys), Err(InvertedRange));
        assert_eq!(KeyRange::cut_at(&[Bytes::new()]), Err(InvertedRange));
    }
}
