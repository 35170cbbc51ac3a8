//! I7, of watches: a watch shows what the log that survives says, each row's versions in their
//! order, and nothing is missing up to what it calls resolved. What it was told before a break
//! counts for nothing.

use super::{End, Invariant};
use crate::oracle::{Seen, Trust, Truth};
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::key::successor;
use ebla_kernel::op::Version;
use ebla_kernel::range::KeyRange;
use ebla_kernel::watch::{Piece, Place, Token};
use std::collections::BTreeMap;

/// Nothing to remember.
#[derive(Debug)]
pub struct Watches;

/// What a watch knows.
struct Known {
    /// Every version that it was shown.
    rows: BTreeMap<Bytes, BTreeMap<Hlc, Version>>,
    /// Up to when everything was shown.
    resolved: Token,
    /// From when on.
    begun: Token,
    /// Where it was told that what it had seen was lost.
    lost: Vec<(KeyRange, String)>,
}

impl Invariant for Watches {
    fn name(&self) -> &'static str {
        "I7 watches show the log that survives"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let mut known = Known::new();
        end.history.seen.iter().try_for_each(|seen| known.take(seen))?;
        end.truths.iter().try_for_each(|truth| known.judge(end, truth))
    }
}

impl Known {
    fn new() -> Self {
        let begun = Token::new(TableId(1), KeyRange::all(), Place::Time(Hlc::MIN));
        Self { rows: BTreeMap::new(), resolved: begun.clone(), begun, lost: Vec::new() }
    }

    fn take(&mut self, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Change { key, version } => {
                let last = self.rows.entry(key.clone()).or_default();
                let newest = last.last_key_value().map(|(ts, _)| *ts);
                if newest.is_some_and(|newest| newest >= version.ts) {
                    return Err(format!("{key:?} was shown {version:?} after {newest:?}"));
                }
                last.insert(version.ts, version.clone());
                let resolved = time_of(&self.resolved, key);
                if version.ts <= resolved {
                    return Err(format!("{key:?} was shown {version:?} after {resolved} was resolved"));
                }
            }
            Seen::Break { range, at, by, seen } => {
                self.rows.retain(|key, _| !range.contains(key));
                self.lost.push((range.clone(), format!("{range} up to {seen:?} by {by}")));
                self.begun.put(Piece { range: range.clone(), place: Place::Time(*at) });
                self.resolved.put(Piece { range: range.clone(), place: Place::Time(Hlc::MIN) });
            }
            Seen::Resolved { range, ts } => {
                self.resolved.put(Piece { range: range.clone(), place: Place::Time(*ts) });
            }
        }
        Ok(())
    }

    fn judge(&self, end: &End<'_>, truth: &Truth<'_>) -> Result<(), String> {
        let range = &truth.fate.range;
        let end_ts = truth.log.last().map_or(Hlc::MIN, |entry| entry.ts);
        let resolved = self.resolved.within(range);
        let is_at_end = resolved.iter().all(|piece| piece.place.seen_upto() >= Some(end_ts));
        // What a failover dropped is told by a break when the watch goes on.
        let is_owed = truth.fate.trust == Trust::Copies || (truth.fate.trust == Trust::InSync && is_at_end);
        if !is_owed {
            return Ok(());
        }
        // What is at or below a Q is never cut: whoever was shown nothing else has lost nothing.
        let lost = self.lost.iter().find(|(lost, _)| lost.overlaps(range));
        let is_owed = truth.fate.trust == Trust::Copies && end.oracle.losses(truth.fate.tablet) == 0;
        if let Some((_, lost)) = lost.filter(|_| is_owed) {
            return Err(format!("it was told that what it had seen was lost: {lost}"));
        }
        for (key, shown) in self.rows.iter().filter(|(key, _)| range.contains(key)) {
            let stands = |version: &&Version| {
                truth.rows.get(key).and_then(|versions| versions.get(&version.ts)) == Some(*version)
            };
            if let Some(version) = shown.values().find(|version| !stands(version)) {
                return Err(format!("{key:?} was shown {version:?}, which the log does not have"));
            }
        }
        for (key, versions) in truth.rows.iter().filter(|(key, _)| range.contains(key)) {
            let (after, upto) = (time_of(&self.begun, key), time_of(&self.resolved, key));
            let due = versions.values().filter(|version| version.ts > after && version.ts <= upto);
            let shown = self.rows.get(key);
            let is_missing = |version: &&Version| shown.is_none_or(|shown| !shown.contains_key(&version.ts));
            if let Some(version) = due.into_iter().find(is_missing) {
                return Err(format!("{key:?} was not shown {version:?} before {upto} was resolved"));
            }
        }
        Ok(())
    }
}

fn time_of(token: &Token, key: &Bytes) -> Hlc {
    let one = KeyRange::new(key.clone(), Some(successor(key))).unwrap_or_default();
    token.within(&one).first().and_then(|piece| piece.place.seen_upto()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::ids::TabletId;
    use ebla_kernel::op::Body;

    fn change(ts: u64) -> Seen {
        let version = Version { ts: Hlc(ts), body: Body::Counter(1), expires_ms: None };
        Seen::Change { key: Bytes::from_static(b"k"), version }
    }

    #[test]
    fn what_goes_back_or_comes_after_it_was_resolved_is_found() {
        let mut known = Known::new();
        assert!(known.take(&change(5)).is_ok());
        assert!(known.take(&change(5)).unwrap_err().contains("after"));
        let mut known = Known::new();
        assert!(known.take(&Seen::Resolved { range: KeyRange::all(), ts: Hlc(7) }).is_ok());
        assert!(known.take(&change(7)).unwrap_err().contains("resolved"));
        assert!(known.take(&change(8)).is_ok());
    }

    #[test]
    fn a_break_forgets() {
        let mut known = Known::new();
        assert!(known.take(&change(5)).is_ok());
        assert!(
            known
                .take(&Seen::Break {
                    range: KeyRange::all(),
                    at: Hlc(9),
                    by: TabletId(1),
                    seen: Place::Time(Hlc(5))
                })
                .is_ok()
        );
        assert!(known.take(&change(3)).is_ok());
    }
}
