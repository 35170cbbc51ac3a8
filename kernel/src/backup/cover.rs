//! Ranges that cover a range: every key, none twice.

use crate::range::KeyRange;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Parts that cover a range as well as any.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cover {
    /// Places of the parts that were chosen, in key order; no two of them overlap.
    pub chosen: Vec<usize>,
    /// What no chosen part has, in key order.
    pub gaps: Vec<KeyRange>,
}

/// What is wrong with ranges that should cover another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// Nobody has these keys.
    Gap(KeyRange),
    /// The part at this place begins before the one before it ends, or before the whole.
    Overlap(usize),
    /// The part at this place ends behind the whole.
    Beyond(usize),
}

/// Chooses parts that lie in `range` and do not overlap, so that as few as possible of the pieces
/// are missing that the bounds of all parts cut it into; none, if that can be.
///
/// A shortest way from the lowest bound to the highest: a part leads over its pieces for nothing,
/// any piece can be passed over for a price.
#[must_use]
pub fn cover(range: &KeyRange, parts: &[KeyRange]) -> Cover {
    let inside: Vec<(usize, &KeyRange)> =
        parts.iter().enumerate().filter(|(_, part)| range.covers(part)).collect();
    let pieces = pieces(range, inside.iter().map(|(_, part)| *part));
    let places: BTreeMap<&Bytes, usize> =
        pieces.iter().enumerate().map(|(place, piece)| (piece.start(), place)).collect();
    let place_of = |key: Option<&Bytes>| key.and_then(|key| places.get(key)).copied();
    // Of the parts that begin at a piece: where they end.
    let mut from: Vec<Vec<(usize, usize)>> = vec![Vec::new(); pieces.len()];
    for (index, part) in inside {
        let begin = place_of(Some(part.start())).unwrap_or_default();
        from[begin].push((place_of(part.end()).unwrap_or(pieces.len()), index));
    }
    walk(&pieces, &shortest(&from))
}

/// The ranges between neighbouring bounds.
fn pieces<'a>(range: &KeyRange, parts: impl Iterator<Item = &'a KeyRange>) -> Vec<KeyRange> {
    let mut bounds: Vec<&Bytes> = Vec::new();
    for part in parts {
        bounds.push(part.start());
        bounds.extend(part.end());
    }
    bounds.sort_unstable();
    bounds.dedup();
    let mut rest = Some(range.clone());
    let mut pieces = Vec::with_capacity(bounds.len() + 1);
    for bound in bounds {
        let Some(whole) = rest.take_if(|whole| whole.start() < bound && whole.contains(bound)) else {
            continue;
        };
        let below = KeyRange::new(whole.start().clone(), Some(bound.clone()));
        pieces.push(below.expect("the bound is above the start"));
        rest = KeyRange::new(bound.clone(), whole.end().cloned()).ok();
    }
    pieces.extend(rest);
    pieces
}

/// How the way goes on from a place.
#[derive(Clone, Copy)]
struct Next {
    /// Pieces that are missing from here to the end.
    missing: usize,
    /// Where it goes.
    to: usize,
    /// By which part; none: over a gap.
    part: Option<usize>,
}

/// The best way on from each place, found from the last to the first.
fn shortest(from: &[Vec<(usize, usize)>]) -> Vec<Next> {
    let end = Next { missing: 0, to: from.len(), part: None };
    let mut ways = vec![end; from.len() + 1];
    for place in (0..from.len()).rev() {
        let mut best = Next { missing: ways[place + 1].missing + 1, to: place + 1, part: None };
        for (to, part) in &from[place] {
            let missing = ways[*to].missing;
            if missing < best.missing || (missing == best.missing && best.part.is_none()) {
                best = Next { missing, to: *to, part: Some(*part) };
            }
        }
        ways[place] = best;
    }
    ways
}

fn walk(pieces: &[KeyRange], ways: &[Next]) -> Cover {
    let mut found = Cover::default();
    let mut place = 0;
    while let Some(piece) = pieces.get(place) {
        let way = ways[place];
        match way.part {
            Some(part) => found.chosen.push(part),
            None => add_gap(&mut found.gaps, piece),
        }
        place = way.to;
    }
    found
}

/// Neighbouring gaps are one.
fn add_gap(gaps: &mut Vec<KeyRange>, piece: &KeyRange) {
    let joined = gaps.last().and_then(|last| last.followed_by(piece));
    match (gaps.last_mut(), joined) {
        (Some(last), Some(joined)) => *last = joined,
        (None, _) | (_, None) => gaps.push(piece.clone()),
    }
}

/// Whether parts, in key order, are exactly `range`: every key, none twice.
///
/// # Errors
/// The first flaw.
pub fn check_cover<'a>(range: &KeyRange, parts: impl IntoIterator<Item = &'a KeyRange>) -> Result<(), Flaw> {
    let mut rest = Some(range.clone());
    for (place, part) in parts.into_iter().enumerate() {
        let Some(whole) = rest.take() else { return Err(Flaw::Overlap(place)) };
        if part.start() < whole.start() {
            return Err(Flaw::Overlap(place));
        }
        if part.start() > whole.start() {
            return Err(Flaw::Gap(whole.without(part).next().unwrap_or(whole)));
        }
        if !whole.covers(part) {
            return Err(Flaw::Beyond(place));
        }
        rest = whole.without(part).next();
    }
    rest.map_or(Ok(()), |gap| Err(Flaw::Gap(gap)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        let end = (!end.is_empty()).then(|| Bytes::from_static(end.as_bytes()));
        KeyRange::new(Bytes::from_static(start.as_bytes()), end).unwrap()
    }

    #[test]
    fn parts_of_two_masters_are_chosen_so_that_they_fit() {
        let parts = [range("", "m"), range("", "c"), range("c", "m"), range("c", ""), range("m", "p")];
        let found = cover(&KeyRange::all(), &parts);
        assert_eq!((found.chosen, found.gaps), (vec![1, 3], vec![]));
    }

    #[test]
    fn what_does_not_fit_is_a_gap() {
        let parts = [range("b", "m"), range("k", "z")];
        let found = cover(&KeyRange::all(), &parts);
        assert_eq!(found.chosen.len(), 1);
        assert_eq!(found.gaps.len(), 2);
        assert_eq!(cover(&KeyRange::all(), &[]).gaps, vec![KeyRange::all()]);
    }

    #[test]
    fn flaws_are_named() {
        let all = KeyRange::all();
        let check = |parts: &[KeyRange]| check_cover(&all, parts);
        assert_eq!(check(std::slice::from_ref(&all)), Ok(()));
        assert_eq!(check(&[range("", "c"), range("c", "")]), Ok(()));
        assert_eq!(check(&[]), Err(Flaw::Gap(all.clone())));
        assert_eq!(check(&[range("", "c"), range("d", "")]), Err(Flaw::Gap(range("c", "d"))));
        assert_eq!(check(&[range("", "c"), range("b", "")]), Err(Flaw::Overlap(1)));
        assert_eq!(check(&[all.clone(), all.clone()]), Err(Flaw::Overlap(1)));
        assert_eq!(check(&[range("", "c")]), Err(Flaw::Gap(range("c", ""))));
        assert_eq!(check_cover(&range("b", "m"), &[range("b", "n")]), Err(Flaw::Beyond(0)));
        assert_eq!(check_cover(&range("b", "m"), &[range("a", "m")]), Err(Flaw::Overlap(0)));
    }

    fn ranges() -> impl Strategy<Value = Vec<KeyRange>> {
        let one = (0..8u8, 0..9u8).prop_filter_map("inverted", |(start, end)| {
            let start = if start == 0 { Bytes::new() } else { Bytes::from(vec![start]) };
            let end = (end < 8).then(|| Bytes::from(vec![end]));
            KeyRange::new(start, end).ok()
        });
        proptest::collection::vec(one, 0..8)
    }

    /// Whether some choice of parts covers everything, by trying all.
    fn can_be_covered(rest: &KeyRange, parts: &[KeyRange]) -> bool {
        parts
            .iter()
            .filter(|part| part.start() == rest.start() && rest.covers(part))
            .any(|part| rest.without(part).next().is_none_or(|rest| can_be_covered(&rest, parts)))
    }

    proptest! {
        #[test]
        fn chosen_parts_and_gaps_are_everything_once(parts in ranges()) {
            let found = cover(&KeyRange::all(), &parts);
            let mut all: Vec<KeyRange> = found.chosen.iter().map(|index| parts[*index].clone()).collect();
            all.extend(found.gaps.iter().cloned());
            all.sort();
            prop_assert_eq!(check_cover(&KeyRange::all(), &all), Ok(()));
            prop_assert_eq!(found.gaps.is_empty(), can_be_covered(&KeyRange::all(), &parts));
        }

        #[test]
        fn a_cover_holds_each_key_once(parts in ranges(), probe in 0..8u8) {
            if check_cover(&KeyRange::all(), &parts).is_ok() {
                prop_assert_eq!(parts.iter().filter(|part| part.contains(&[probe])).count(), 1);
            }
        }
    }
}
