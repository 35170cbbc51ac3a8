//! What the history of a tablet goes back to, so that what was seen of another can be judged.
//!
//! A tablet that was split off has its parent's lineage: positions mean the same in both. A merge
//! begins a lineage of its own, and joins those of its parents by time: what was seen in one of
//! them counts by its timestamp. A tablet in memory that lost every copy begins anew, and nothing
//! from before is part of it, nor of what it is merged into.

use crate::hlc::Hlc;
use crate::ids::Lineage;
use borsh::{BorshDeserialize, BorshSerialize};

/// The history of a tablet, as far back as it goes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, BorshSerialize, BorshDeserialize)]
pub struct Ancestry {
    /// Positions of the same lineage mean the same.
    pub lineage: Lineage,
    /// When histories were last joined in it; zero for never.
    pub joined_ts: Hlc,
    /// When every copy was lost for the last time and it began anew; zero for never. Only tables in
    /// memory do, of which nothing is stored.
    #[borsh(skip)]
    pub began_ts: Hlc,
}

/// What something that was seen elsewhere is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Part of this very history: its position counts.
    Here,
    /// Part of one that was joined into it: its time counts.
    InAncestor,
    /// Part of another, or of one that is gone.
    Elsewhere,
}

impl Ancestry {
    /// What an entry of `lineage` at `ts` is here.
    #[must_use]
    pub fn judge(&self, lineage: Lineage, ts: Hlc) -> Seen {
        if lineage == self.lineage {
            Seen::Here
        } else if ts <= self.joined_ts && self.reaches(ts) {
            Seen::InAncestor
        } else {
            Seen::Elsewhere
        }
    }

    /// Whether what was seen at `ts`, whoever showed it, can be part of this history.
    #[must_use]
    pub fn reaches(&self, ts: Hlc) -> bool {
        ts >= self.began_ts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_counts_by_position_by_time_or_not_at_all() {
        let merged = Ancestry { lineage: Lineage(7), joined_ts: Hlc(50), began_ts: Hlc(30) };
        assert_eq!(merged.judge(Lineage(7), Hlc(60)), Seen::Here);
        assert_eq!(merged.judge(Lineage(5), Hlc(50)), Seen::InAncestor);
        assert_eq!(merged.judge(Lineage(5), Hlc(51)), Seen::Elsewhere);
        assert_eq!(merged.judge(Lineage(5), Hlc(29)), Seen::Elsewhere, "all of it was lost since");
        assert!(merged.reaches(Hlc(30)) && !merged.reaches(Hlc(29)));
    }
}
