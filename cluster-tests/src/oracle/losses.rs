//! Tablets in memory that lose every copy: they begin anew, empty, and owe nothing of before.

use super::{History, Oracle};
use ebla_kernel::ids::TabletId;
use ebla_kernel::range::KeyRange;
use std::borrow::Cow;

impl Oracle {
    /// A tablet has lost everything: its log has a new beginning, and it owes nothing of before.
    pub(super) fn begins_anew(&mut self, id: TabletId) {
        self.stories.remove(&id);
        self.parents.remove(&id);
        self.hopeless.remove(&id);
        self.degraded.remove(&id);
    }

    /// How often a tablet has lost every copy and begun anew.
    #[must_use]
    pub fn losses(&self, tablet: TabletId) -> u64 {
        self.losses.get(&tablet).copied().unwrap_or_default()
    }

    /// How often any tablet has.
    #[must_use]
    pub fn losses_of_all(&self) -> u64 {
        self.losses.values().sum()
    }

    /// What clients were told, as far as what it was about is still there: of what was lost with
    /// every copy, nobody knows any more how it ended.
    #[must_use]
    pub fn still_owed<'a>(history: &'a History) -> Cow<'a, History> {
        if history.losses.is_empty() {
            return Cow::Borrowed(history);
        }
        let mut owed = history.clone();
        for operation in &mut owed.operations {
            let is_lost = |(range, until_us): &(KeyRange, u64)| {
                operation.invoked_us <= *until_us && operation.asked.touches(range)
            };
            if history.losses.iter().any(is_lost) {
                (operation.ended, operation.epoch) = (None, None);
            }
        }
        Cow::Owned(owed)
    }
}
