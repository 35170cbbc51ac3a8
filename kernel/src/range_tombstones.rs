//! The range tombstones of one tablet: which key is covered by which, since when.
//!
//! A range tombstone is a version like any other, named for ever by (from, ts). The map is
//! cut into fragments at every end of a tombstone; each fragment lists the timestamps that
//! cover it, newest first. So a read costs one look into a tree, and a tablet that has no
//! range tombstone pays one comparison. Invariants:
//! - the fragments that list a timestamp together are exactly the tombstone's range;
//! - inserting or removing the same tombstone twice changes nothing.

use crate::hlc::Hlc;
use crate::range::KeyRange;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// One range tombstone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeTombstone {
    /// The keys that it covers.
    pub range: KeyRange,
    /// When it was written; it hides versions up to and with this timestamp.
    pub ts: Hlc,
}

/// All range tombstones of one tablet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeTombstones {
    by_name: BTreeMap<(Bytes, Hlc), Option<Bytes>>,
    fragments: BTreeMap<Bytes, Vec<Hlc>>,
}

impl Extend<RangeTombstone> for RangeTombstones {
    fn extend<T: IntoIterator<Item = RangeTombstone>>(&mut self, tombstones: T) {
        for RangeTombstone { range, ts } in tombstones {
            self.insert(range.start().clone(), range.end().cloned(), ts);
        }
    }
}

impl FromIterator<RangeTombstone> for RangeTombstones {
    fn from_iter<T: IntoIterator<Item = RangeTombstone>>(tombstones: T) -> Self {
        let mut known = Self::new();
        known.extend(tombstones);
        known
    }
}

impl RangeTombstones {
    /// No range tombstone.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of range tombstones.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Adds the tombstone (`from`, `ts`) over `[from, to)`. One of the same name is replaced.
    /// A range that holds no key is ignored.
    pub fn insert(&mut self, from: Bytes, to: Option<Bytes>, ts: Hlc) {
        if KeyRange::new(from.clone(), to.clone()).is_err() {
            return;
        }
        self.remove(&from, ts);
        self.cut_at_ends(&from, to.as_ref());
        for (_, covering) in self.fragments.range_mut::<[u8], _>(bounds(&from, to.as_ref())) {
            let at = covering.partition_point(|other| *other > ts);
            covering.insert(at, ts);
        }
        self.by_name.insert((from, ts), to);
    }

    /// Removes the tombstone (`from`, `ts`); nothing when there is none.
    pub fn remove(&mut self, from: &Bytes, ts: Hlc) {
        let Some(to) = self.by_name.remove(&(from.clone(), ts)) else { return };
        // A neighbour of the same timestamp may have been joined to this one meanwhile.
        self.cut_at_ends(from, to.as_ref());
        for (_, covering) in self.fragments.range_mut::<[u8], _>(bounds(from, to.as_ref())) {
            let at = covering.iter().position(|other| *other == ts);
            covering.remove(at.expect("every fragment of a tombstone lists it"));
        }
        self.join_at(from);
        if let Some(to) = &to {
            self.join_at(to);
        }
    }

    /// The newest tombstone at or before `at` that covers `key`.
    #[must_use]
    pub fn newest_covering(&self, key: &[u8], at: Hlc) -> Option<Hlc> {
        if self.by_name.is_empty() {
            return None;
        }
        let up_to_key = (Bound::Unbounded, Bound::Included(key));
        let (_, covering) = self.fragments.range::<[u8], _>(up_to_key).next_back()?;
        covering.get(covering.partition_point(|ts| *ts > at)).copied()
    }

    /// The tombstones that cover some key of `range`, by first key and time.
    pub fn overlapping<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = RangeTombstone> + 'a {
        self.iter().filter(|tombstone| tombstone.range.overlaps(range))
    }

    /// Every tombstone, by first key and time.
    pub fn iter(&self) -> impl Iterator<Item = RangeTombstone> + '_ {
        self.by_name.iter().map(|((from, ts), to)| {
            let range = KeyRange::new(from.clone(), to.clone());
            RangeTombstone { range: range.expect("empty ranges are not inserted"), ts: *ts }
        })
    }

    fn cut_at_ends(&mut self, from: &Bytes, to: Option<&Bytes>) {
        self.cut_at(from);
        if let Some(to) = to {
            self.cut_at(to);
        }
    }

    /// Makes `key` the start of a fragment.
    fn cut_at(&mut self, key: &Bytes) {
        if self.fragments.contains_key(key) {
            return;
        }
        let below =
            self.fragments.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&key[..]))).next_back();
        let covering = below.map(|(_, covering)| covering.clone()).unwrap_or_default();
        self.fragments.insert(key.clone(), covering);
    }

    /// Drops the start of a fragment that no longer differs from the one below it.
    fn join_at(&mut self, key: &Bytes) {
        let Some(covering) = self.fragments.get(key) else { return };
        let below =
            self.fragments.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&key[..]))).next_back();
        let same = below.map_or(covering.is_empty(), |(_, other)| other == covering);
        if same {
            self.fragments.remove(key);
        }
    }
}

fn bounds<'a>(from: &'a Bytes, to: Option<&'a Bytes>) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    let upper = to.map_or(Bound::Unbounded, |to| Bound::Excluded(&to[..]));
    (Bound::Included(&from[..]), upper)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Naive = BTreeMap<(Bytes, Hlc), Option<Bytes>>;

    fn key() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'c')], 0..3).prop_map(Into::into)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(Bytes, Option<Bytes>, Hlc),
        Remove(Bytes, Hlc),
    }

    fn step() -> impl Strategy<Value = Step> {
        let ts = || (1u64..6).prop_map(Hlc);
        prop_oneof![
            3 => (key(), proptest::option::of(key()), ts()).prop_map(|(a, b, t)| Step::Insert(a, b, t)),
            1 => (key(), ts()).prop_map(|(a, t)| Step::Remove(a, t)),
        ]
    }

    fn run(steps: Vec<Step>) -> (RangeTombstones, Naive) {
        let (mut real, mut naive) = (RangeTombstones::new(), Naive::new());
        for step in steps {
            match step {
                Step::Insert(from, to, ts) => {
                    real.insert(from.clone(), to.clone(), ts);
                    if to.as_ref().is_none_or(|to| *to > from) {
                        naive.insert((from, ts), to);
                    }
                }
                Step::Remove(from, ts) => {
                    real.remove(&from, ts);
                    naive.remove(&(from, ts));
                }
            }
        }
        (real, naive)
    }

    fn naive_newest(naive: &Naive, key: &[u8], at: Hlc) -> Option<Hlc> {
        let covers =
            |from: &Bytes, to: &Option<Bytes>| *from <= key && to.as_ref().is_none_or(|to| key < *to);
        naive.iter().filter(|((from, ts), to)| *ts <= at && covers(from, to)).map(|((_, ts), _)| *ts).max()
    }

    proptest! {
        #[test]
        fn covers_what_a_plain_list_covers(
            steps in proptest::collection::vec(step(), 0..40), probe in key(), at in 0u64..7,
        ) {
            let (real, naive) = run(steps);
            prop_assert_eq!(real.len(), naive.len());
            prop_assert_eq!(real.newest_covering(&probe, Hlc(at)), naive_newest(&naive, &probe, Hlc(at)));
        }

        #[test]
        fn removing_everything_leaves_nothing(steps in proptest::collection::vec(step(), 0..40)) {
            let (mut real, naive) = run(steps);
            for (from, ts) in naive.keys() {
                real.remove(from, *ts);
                real.remove(from, *ts);
            }
            prop_assert_eq!(real, RangeTombstones::new());
        }

        #[test]
        fn overlapping_is_what_a_plain_list_gives(
            steps in proptest::collection::vec(step(), 0..40), from in key(), to in proptest::option::of(key()),
        ) {
            if let Ok(range) = KeyRange::new(from, to) {
                let (real, naive) = run(steps);
                let mut expected = Vec::new();
                for ((from, ts), to) in naive {
                    let own = KeyRange::new(from, to).unwrap();
                    if own.overlaps(&range) {
                        expected.push(RangeTombstone { range: own, ts });
                    }
                }
                prop_assert_eq!(real.overlapping(&range).collect::<Vec<_>>(), expected);
            }
        }
    }

    #[test]
    fn two_tombstones_of_one_time_are_told_apart() {
        let mut real = RangeTombstones::new();
        real.insert(Bytes::from_static(b"a"), None, Hlc(3));
        real.insert(Bytes::from_static(b"b"), None, Hlc(3));
        real.remove(&Bytes::from_static(b"a"), Hlc(3));
        assert_eq!(real.newest_covering(b"a", Hlc(9)), None);
        assert_eq!(real.newest_covering(b"c", Hlc(9)), Some(Hlc(3)));
    }
}
