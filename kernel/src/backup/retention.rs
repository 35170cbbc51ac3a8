//! Which backups may go.

use crate::hlc::Hlc;
use std::collections::{BTreeMap, BTreeSet};

/// A backup that has its manifest.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Kept {
    /// Its name.
    pub id: String,
    /// Its timestamp.
    pub ts: Hlc,
    /// The backup that it adds to.
    pub parent: Option<String>,
    /// Whether a schedule made it. What people and other clusters made is theirs.
    pub scheduled: bool,
}

/// The backups that may be deleted when the newest `keep` of those that a schedule made are kept: all
/// of its but these, and what these and the backups of others rest on. In the order in which to delete them: whatever rests on another goes before it, so that
/// a deletion that breaks off leaves no backup without its parent.
///
/// A backup whose chain is broken, because a parent is missing, is none that can be kept: it does
/// not count. It is not deleted either, as long as somebody may find the parent again.
#[must_use]
pub fn deletable(backups: &[Kept], keep: usize) -> Vec<&str> {
    let by_id: BTreeMap<&str, &Kept> = backups.iter().map(|backup| (backup.id.as_str(), backup)).collect();
    let mut whole: Vec<(&Kept, Vec<&str>)> =
        by_id.values().filter_map(|backup| Some((*backup, chain(&by_id, backup)?))).collect();
    // A backup is newer than its parent.
    whole.sort_by(|(a, _), (b, _)| (b.ts, &b.id).cmp(&(a.ts, &a.id)));
    let (scheduled, others): (Vec<_>, Vec<_>) = whole.iter().partition(|(backup, _)| backup.scheduled);
    let kept = scheduled.iter().take(keep.max(1)).chain(&others);
    let needed: BTreeSet<&str> = kept.flat_map(|(_, chain)| chain).copied().collect();
    let broken = by_id.values().filter(|backup| !whole.iter().any(|(other, _)| other.id == backup.id));
    let rested_on: BTreeSet<&str> = broken.flat_map(|backup| ancestors(&by_id, backup)).collect();
    let ids = scheduled.iter().map(|(backup, _)| backup.id.as_str());
    ids.filter(|id| !needed.contains(id) && !rested_on.contains(id)).collect()
}

/// A backup and everything that it rests on; none when something of that is missing.
fn chain<'a>(by_id: &BTreeMap<&'a str, &'a Kept>, backup: &'a Kept) -> Option<Vec<&'a str>> {
    let chain: Vec<&str> = ancestors(by_id, backup).collect();
    let last = by_id.get(chain.last()?)?;
    last.parent.is_none().then_some(chain)
}

/// A backup, its parent, and so on as long as they are there and older: what is read from files may
/// be anything, a circle too.
fn ancestors<'a>(by_id: &BTreeMap<&'a str, &'a Kept>, backup: &'a Kept) -> impl Iterator<Item = &'a str> {
    let older = |backup: &&'a Kept| {
        let parent = backup.parent.as_deref().and_then(|parent| by_id.get(parent).copied());
        parent.filter(|parent| parent.ts < backup.ts)
    };
    std::iter::successors(Some(backup), older).map(|backup| backup.id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backup(id: u64, parent: u64) -> Kept {
        let name = |id: u64| format!("b{id:02}");
        Kept { id: name(id), ts: Hlc(id), parent: (parent > 0).then(|| name(parent)), scheduled: true }
    }

    #[test]
    fn what_others_made_neither_counts_nor_goes() {
        let by_hand = |id, parent| Kept { scheduled: false, ..backup(id, parent) };
        let backups = [by_hand(1, 0), backup(2, 0), backup(3, 2), by_hand(4, 3), backup(5, 0), backup(6, 0)];
        assert_eq!(deletable(&backups, 1), ["b05"], "one by hand rests on the third and the second");
        assert_eq!(deletable(&backups[..3], 1), Vec::<&str>::new());
    }

    #[test]
    fn what_kept_ones_rest_on_stays() {
        let backups = [backup(1, 0), backup(2, 1), backup(3, 2), backup(4, 0), backup(5, 4), backup(6, 5)];
        assert_eq!(deletable(&backups, 3), ["b03", "b02", "b01"]);
        assert_eq!(deletable(&backups, 4), Vec::<&str>::new());
        assert_eq!(deletable(&backups, 1), ["b03", "b02", "b01"]);
        assert_eq!(deletable(&backups, 0), ["b03", "b02", "b01"], "one is always kept");
    }

    #[test]
    fn broken_chains_neither_count_nor_go() {
        let backups = [backup(1, 0), backup(2, 0), backup(9, 8), backup(10, 9)];
        assert_eq!(deletable(&backups, 1), ["b01"]);
        let circle = [backup(1, 0), backup(2, 3), backup(3, 2)];
        assert_eq!(deletable(&circle, 1), Vec::<&str>::new());
    }

    proptest! {
        #[test]
        fn what_is_kept_can_be_restored(
            parents in proptest::collection::vec((0..30u64, any::<bool>()), 1..20),
            keep in 1..6usize,
            deleted in 0..20usize,
        ) {
            let made = |(id, (parent, scheduled)): (u64, &(u64, bool))| Kept { scheduled: *scheduled, ..backup(id, *parent) };
            let backups: Vec<Kept> = (1..).zip(&parents).map(made).collect();
            let gone = deletable(&backups, keep);
            // Wherever it breaks off, nothing that is there lacks a parent that was there. What names a
            // younger one as its parent could not be restored before either.
            let gone = &gone[..deleted.min(gone.len())];
            let left: Vec<&Kept> = backups.iter().filter(|b| !gone.contains(&b.id.as_str())).collect();
            for backup in &left {
                let is_parent = |other: &&Kept| Some(&other.id) == backup.parent.as_ref() && other.ts < backup.ts;
                prop_assert!(!backups.iter().filter(is_parent).any(|parent| !left.contains(&parent)));
            }
            let by_id = backups.iter().map(|backup| (backup.id.as_str(), backup)).collect();
            let mut whole: Vec<&Kept> = backups.iter().filter(|b| chain(&by_id, b).is_some()).collect();
            whole.sort_by_key(|backup| std::cmp::Reverse(backup.ts));
            let is_there = |backup: &&Kept| !gone.contains(&backup.id.as_str());
            prop_assert!(whole.iter().filter(|backup| backup.scheduled).take(keep).all(is_there));
            prop_assert!(backups.iter().filter(|backup| !backup.scheduled).all(|backup| is_there(&backup)));
        }
    }
}
