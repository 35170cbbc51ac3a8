//! Where the requests of a busy tablet can be cut into parts of about the same load.
//!
//! A sample has two windows of time, one after the other. Cuts are quantiles of the older one
//! and must prove themselves on the younger one: where requests go along the keys, as those of
//! rows that are added at an end do, whatever halves the past leaves all of the future on one
//! side, and a split would be in vain. So it would be where one key has most of the requests.

use crate::limits::{HOT_KEY_PERCENT, KEY_BYTES_MAX, LOAD_SAMPLE_KEYS_MIN};
use crate::range::KeyRange;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Keys of requests, drawn at random from two windows of time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LoadSample {
    /// Of the window before the last one.
    pub older: Vec<Bytes>,
    /// Of the last one.
    pub younger: Vec<Bytes>,
}

/// What a sample says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LoadCut {
    /// First keys of all parts but the first: strictly inside, strictly rising.
    At(Vec<Bytes>),
    /// One key has most of the requests.
    HotKey {
        /// Which.
        key: Bytes,
        /// Its share of the requests, in percent.
        percent: u32,
    },
    /// No cut of the older window cuts the younger one.
    Wandering,
    /// Too few requests were sampled.
    TooFew,
}

/// Cuts a tablet's load into at most `parts` parts; fewer where the sample does not allow more.
#[must_use]
pub fn cut_load(sample: LoadSample, range: &KeyRange, parts: usize) -> LoadCut {
    let LoadSample { mut older, mut younger } = sample;
    older.retain(|key| range.contains(key));
    younger.retain(|key| range.contains(key));
    if older.len().min(younger.len()) < LOAD_SAMPLE_KEYS_MIN {
        return LoadCut::TooFew;
    }
    if let Some(hot) = hot_key(&older, &younger) {
        return hot;
    }
    older.sort_unstable();
    younger.sort_unstable();
    let mut cuts: Vec<Bytes> =
        (1..parts).filter_map(|part| quantile(&older, older.len() * part / parts, range)).collect();
    cuts.dedup();
    let cuts = proven(cuts, &younger, parts);
    if cuts.is_empty() { LoadCut::Wandering } else { LoadCut::At(cuts) }
}

/// The key that has more than its share in both windows.
fn hot_key(older: &[Bytes], younger: &[Bytes]) -> Option<LoadCut> {
    let mut counts: BTreeMap<&Bytes, usize> = BTreeMap::new();
    for key in older.iter().chain(younger) {
        *counts.entry(key).or_default() += 1;
    }
    let (key, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    let percent = count * 100 / (older.len() + younger.len());
    let percent = u32::try_from(percent).expect("a share is at most 100");
    (percent as usize > HOT_KEY_PERCENT).then(|| LoadCut::HotKey { key: key.clone(), percent })
}

/// A cut below which about `wanted` of the keys lie: before or behind the key that is there,
/// whichever is nearer.
fn quantile(keys: &[Bytes], wanted: usize, range: &KeyRange) -> Option<Bytes> {
    let key = keys.get(wanted)?;
    let below = keys.partition_point(|other| other < key);
    let upto = keys.partition_point(|other| other <= key);
    let is_inside = |cut: &Bytes| range.contains(cut) && cut != range.start() && cut.len() <= KEY_BYTES_MAX;
    let (before, behind) = (Some(key.clone()).filter(is_inside), Some(successor(key)).filter(is_inside));
    let is_behind_nearer = upto - wanted < wanted - below;
    if is_behind_nearer { behind.or(before) } else { before.or(behind) }
}

/// The least key above another.
fn successor(key: &Bytes) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}

/// Those of the cuts that leave every part at least half of its share of `keys`.
fn proven(cuts: Vec<Bytes>, keys: &[Bytes], parts: usize) -> Vec<Bytes> {
    let least = keys.len() / (2 * parts).max(1);
    let mut kept: Vec<Bytes> = Vec::new();
    let mut begin = 0;
    for cut in cuts {
        let at = keys.partition_point(|key| *key < cut);
        if at - begin >= least && keys.len() - at >= least {
            (begin, kept) = (at, [kept, vec![cut]].concat());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(numbers: impl Iterator<Item = usize>) -> Vec<Bytes> {
        numbers.map(|number| format!("{number:04}").into()).collect()
    }

    fn cut(older: Vec<Bytes>, younger: Vec<Bytes>, parts: usize) -> LoadCut {
        cut_load(LoadSample { older, younger }, &KeyRange::all(), parts)
    }

    fn at(cuts: &[&'static str]) -> LoadCut {
        LoadCut::At(cuts.iter().map(|cut| Bytes::from_static(cut.as_bytes())).collect())
    }

    #[test]
    fn requests_are_halved_and_not_rows() {
        // Nine of ten requests are for the keys below 0100.
        let mixed = |seed: usize| {
            let draw =
                move |i: usize| if i.is_multiple_of(10) { 900 + i % 100 } else { (i * 37 + seed) % 100 };
            keys((0..100).map(draw))
        };
        let LoadCut::At(cuts) = cut(mixed(0), mixed(11), 2) else { panic!("it can be cut") };
        assert!(("0045".."0065").contains(&std::str::from_utf8(&cuts[0]).unwrap()), "{cuts:?}");
        let even = || keys((0..128).map(|i| i * 10));
        assert_eq!(cut(even(), even(), 4), at(&["0320", "0640", "0960"]));
    }

    #[test]
    fn a_hot_key_is_told() {
        let hot = |share: usize| keys((0..100).map(move |i| if i < share { 500 } else { i }));
        assert_eq!(cut(hot(60), hot(70), 2), LoadCut::HotKey { key: "0500".into(), percent: 65 });
        // Beside a key with less than half there is something to cut off.
        assert_eq!(cut(hot(45), hot(45), 2), at(&["0095"]));
        let first = |share: usize| keys((0..100).map(move |i| if i < share { 0 } else { i }));
        assert_eq!(cut(first(45), first(45), 2), at(&["0050"]));
        let all = keys((0..100).map(|_| 7));
        assert!(matches!(cut(all.clone(), all, 2), LoadCut::HotKey { percent: 100, .. }));
    }

    #[test]
    fn two_hot_keys_are_parted() {
        let two = || keys((0..100).map(|i| if i % 2 == 0 { 3 } else { 5 }));
        assert_eq!(cut(two(), two(), 2), at(&["0005"]));
        assert_eq!(cut(two(), two(), 8), at(&["0003\0"]));
    }

    #[test]
    fn rows_that_are_added_at_the_end_are_not_cut() {
        assert_eq!(cut(keys(0..100), keys(100..200), 2), LoadCut::Wandering);
        assert_eq!(cut(keys(100..200), keys(0..100), 8), LoadCut::Wandering);
    }

    #[test]
    fn few_requests_say_nothing() {
        assert_eq!(cut(keys(0..100), keys(0..31), 2), LoadCut::TooFew);
        assert_eq!(cut(Vec::new(), Vec::new(), 2), LoadCut::TooFew);
        // Keys that a former range of the tablet had do not count.
        let range = KeyRange::new(Bytes::from_static(b"0090"), None).unwrap();
        let sample = LoadSample { older: keys(0..100), younger: keys(0..100) };
        assert_eq!(cut_load(sample, &range, 2), LoadCut::TooFew);
    }

    #[test]
    fn a_cut_lies_strictly_inside() {
        let range = KeyRange::new(Bytes::from_static(b"0005"), Some(Bytes::from_static(b"0006"))).unwrap();
        let half = |i: usize| if i < 50 { Bytes::from_static(b"0005") } else { format!("0005x{i}").into() };
        let sample = || (0..100).map(half).collect::<Vec<_>>();
        let LoadCut::At(cuts) = cut_load(LoadSample { older: sample(), younger: sample() }, &range, 4) else {
            panic!("it can be cut")
        };
        crate::meta::check_split_keys(crate::ids::TabletId(1), &range, &cuts).unwrap();
    }
}
