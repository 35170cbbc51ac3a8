//! Which tablets have more requests than their tables want, and since when.

use super::picture::{Picture, TabletView};
use crate::ids::{TabletId, Tick};
use crate::limits::{BUSY_ENDS_PERCENT, BUSY_LASTS_PART};
use std::collections::BTreeMap;

/// Since when tablets have been too busy without a break. Idle ones are not in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Busy {
    since: BTreeMap<TabletId, Tick>,
}

impl Busy {
    /// Takes in how busy they are now.
    pub fn note(&mut self, now: Tick, picture: &Picture) {
        let known = std::mem::take(&mut self.since);
        let since = |(id, tablet): (&TabletId, &TabletView)| {
            let before = known.get(id).copied();
            let stays = before.is_some() && !has_calmed_down(tablet);
            (stays || is_too_busy(tablet)).then(|| (*id, before.unwrap_or(now)))
        };
        self.since = picture.tablets.iter().filter_map(since).collect();
    }

    /// Whether a tablet is too busy, or was a moment ago.
    pub fn is_noted(&self, tablet: TabletId) -> bool {
        self.since.contains_key(&tablet)
    }

    /// For how many milliseconds a tablet has been too busy.
    pub fn lasting_ms(&self, now: Tick, tablet: TabletId) -> Option<u64> {
        self.since.get(&tablet).map(|since| now.ms_since(*since))
    }
}

/// How long a tablet must have been too busy before it is split.
pub(super) fn patience_ms(lasts_ms: u64) -> u64 {
    lasts_ms / BUSY_LASTS_PART
}

/// Whether it has more requests than its table wants.
pub(super) fn is_too_busy(tablet: &TabletView) -> bool {
    tablet.split_load > 0 && tablet.recent > tablet.split_load
}

fn has_calmed_down(tablet: &TabletView) -> bool {
    tablet.recent < tablet.split_load.saturating_mul(BUSY_ENDS_PERCENT) / 100 || tablet.split_load == 0
}
