//! Whether the parts of a table hold every key, and none twice.

use crate::manifest::Part;
use bytes::Bytes;
use ebla_kernel::backup::cover::{Flaw, check_cover};
use ebla_kernel::range::KeyRange;
use std::fmt;

/// Why parts are not the whole of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotCovered {
    /// A part whose end is not above its start.
    Inverted(String),
    /// Keys that no part has.
    Gap(KeyRange),
    /// A part that begins below the end of the one before it.
    Overlap(String),
}

impl fmt::Display for NotCovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inverted(part) => write!(f, "has a part {part} that ends before it begins"),
            Self::Gap(range) => write!(f, "has no part for the keys {range}"),
            Self::Overlap(part) => write!(f, "has a part {part} with keys of the one before it"),
        }
    }
}

/// Checks that `parts`, in their order, hold every key once.
///
/// # Errors
/// The first key range for which that is not so.
pub fn check_coverage(parts: &[Part]) -> Result<(), NotCovered> {
    let name = |place: usize| parts.get(place).map(|part| part.name.clone()).unwrap_or_default();
    let ranges = parts.iter().map(|part| part.range().map_err(|_| NotCovered::Inverted(part.name.clone())));
    let ranges: Vec<KeyRange> = ranges.collect::<Result<_, _>>()?;
    check_cover(&KeyRange::all(), &ranges).map_err(|flaw| match flaw {
        Flaw::Gap(range) => NotCovered::Gap(range),
        Flaw::Overlap(place) | Flaw::Beyond(place) => NotCovered::Overlap(name(place)),
    })
}

/// The first keys of parts: where a table is cut before it is restored.
#[must_use]
pub fn boundaries(parts: &[Part]) -> Vec<Bytes> {
    parts
        .iter()
        .filter(|part| !part.start.is_empty())
        .map(|part| Bytes::copy_from_slice(&part.start))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(start: &str, end: &str) -> Part {
        Part {
            format: 1,
            name: format!("{start}-{end}"),
            table: 1,
            start: start.into(),
            end: (!end.is_empty()).then(|| end.into()),
            tablet: 1,
            server: 1,
            since_ts: 0,
            ts: 5,
            rows: 0,
            tombstones: Vec::new(),
            files: Vec::new(),
        }
    }

    fn check(parts: &[(&str, &str)]) -> String {
        let parts: Vec<_> = parts.iter().map(|(start, end)| part(start, end)).collect();
        check_coverage(&parts).map_or_else(|wrong| wrong.to_string(), |()| "whole".to_owned())
    }

    #[test]
    fn every_gap_and_overlap_is_named() {
        assert_eq!(check(&[("", "")]), "whole");
        assert_eq!(check(&[("", "b"), ("b", "d"), ("d", "")]), "whole");
        assert_eq!(check(&[]), "has no part for the keys [, +inf)");
        assert_eq!(check(&[("", "b"), ("c", "")]), "has no part for the keys [b, c)");
        assert_eq!(check(&[("a", "")]), "has no part for the keys [, a)");
        assert_eq!(check(&[("", "b"), ("b", "c")]), "has no part for the keys [c, +inf)");
        assert_eq!(check(&[("", "c"), ("b", "")]), "has a part b- with keys of the one before it");
        assert_eq!(check(&[("", ""), ("b", "c")]), "has a part b-c with keys of the one before it");
        assert_eq!(check(&[("", "b"), ("b", "b")]), "has a part b-b that ends before it begins");
    }

    proptest! {
        #[test]
        fn a_cut_table_is_whole_and_less_is_not(cuts in proptest::collection::btree_set("[a-d]{1,3}", 0..6), lost: prop::sample::Index) {
            let mut edges: Vec<&str> = cuts.iter().map(String::as_str).collect();
            edges.insert(0, "");
            edges.push("");
            let mut parts: Vec<_> = edges.windows(2).map(|pair| part(pair[0], pair[1])).collect();
            prop_assert_eq!(check_coverage(&parts), Ok(()));
            prop_assert_eq!(boundaries(&parts).len(), cuts.len());
            let lost = lost.index(parts.len());
            let twice = parts[lost].clone();
            parts.insert(lost, twice);
            prop_assert!(matches!(check_coverage(&parts), Err(NotCovered::Overlap(_))));
            parts.drain(lost..lost + 2);
            prop_assert!(matches!(check_coverage(&parts), Err(NotCovered::Gap(_))));
        }
    }
}
