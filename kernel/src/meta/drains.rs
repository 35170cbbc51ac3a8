//! Leaderships that go away from servers which are not to lead any more.
//!
//! A few of each server at a time: writes of a tablet wait while its leadership is handed over, and
//! many at once would wait for each other's.

use crate::ids::{ServerId, TabletId, Tick};
use crate::limits::{DRAINS_AT_ONCE, REPLICA_CHANGE_RETRY_MS};
use std::collections::{BTreeMap, BTreeSet};

/// What paces drains. A master that begins to lead begins anew.
#[derive(Debug, Default)]
pub(super) struct Drains {
    /// Tablets that each server was told to hand over, and until when they count.
    under_way: BTreeMap<ServerId, BTreeMap<TabletId, Tick>>,
    /// Tablets that it will be told to.
    waiting: BTreeMap<ServerId, BTreeSet<TabletId>>,
}

impl Drains {
    /// A tablet is looked at that `from` leads, a server which is not to lead; none: it is led by
    /// another, or gone. The server that it has left, or for which it waits no more.
    pub fn look(&mut self, tablet: TabletId, from: Option<ServerId>) -> Option<ServerId> {
        let mut left = None;
        self.under_way.retain(|server, tablets| {
            if Some(*server) != from && tablets.remove(&tablet).is_some() {
                left = Some(*server);
            }
            !tablets.is_empty()
        });
        self.waiting.retain(|server, tablets| {
            if tablets.remove(&tablet) {
                left = Some(*server);
            }
            !tablets.is_empty()
        });
        left
    }

    /// Whether a tablet that `from` leads may go now; if not, it waits. One that did not go in its
    /// time lets others go first.
    pub fn begin(&mut self, now: Tick, tablet: TabletId, from: ServerId) -> bool {
        let going = self.under_way.entry(from).or_default();
        let was_slow = going.get(&tablet).is_some_and(|until| *until <= now);
        going.retain(|_, until| *until > now);
        let gives_way = was_slow && self.waiting.contains_key(&from);
        let may_go = !gives_way && (going.len() < DRAINS_AT_ONCE || going.contains_key(&tablet));
        if may_go {
            going.insert(tablet, now.plus_ms(REPLICA_CHANGE_RETRY_MS));
        } else {
            self.waiting.entry(from).or_default().insert(tablet);
        }
        may_go
    }

    /// A tablet that waits for `from`, if there is room for one.
    pub fn next(&self, from: ServerId) -> Option<TabletId> {
        let going = self.under_way.get(&from).map_or(0, BTreeMap::len);
        self.waiting.get(&from)?.first().copied().filter(|_| going < DRAINS_AT_ONCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: ServerId = ServerId(1);

    #[test]
    fn a_few_go_at_a_time_and_each_that_has_gone_makes_room_for_one() {
        let mut drains = Drains::default();
        let tablets = || (1..=2 * DRAINS_AT_ONCE as u64).map(TabletId);
        let begun = tablets().filter(|tablet| drains.begin(Tick(0), *tablet, FROM)).count();
        assert_eq!((begun, drains.next(FROM)), (DRAINS_AT_ONCE, None));
        let mut gone = 0;
        for tablet in tablets() {
            assert_eq!(drains.look(tablet, None), Some(FROM));
            gone += 1;
            if let Some(next) = drains.next(FROM) {
                assert_eq!(drains.look(next, Some(FROM)), Some(FROM));
                assert!(drains.begin(Tick(0), next, FROM));
            }
        }
        assert_eq!((gone, drains.next(FROM)), (2 * DRAINS_AT_ONCE, None));
        assert!(drains.under_way.is_empty() && drains.waiting.is_empty());
    }

    #[test]
    fn those_that_do_not_go_are_in_nobodys_way() {
        let mut drains = Drains::default();
        let slow: Vec<TabletId> = (1..=DRAINS_AT_ONCE as u64).map(TabletId).collect();
        assert!(slow.iter().all(|tablet| drains.begin(Tick(0), *tablet, FROM)));
        let other = TabletId(1_000);
        assert!(!drains.begin(Tick(0), other, FROM));
        let later = Tick(0).plus_ms(REPLICA_CHANGE_RETRY_MS);
        assert_eq!(drains.look(slow[0], Some(FROM)), None);
        assert!(!drains.begin(later, slow[0], FROM));
        assert_eq!(drains.look(other, Some(FROM)), Some(FROM));
        assert!(drains.begin(later, other, FROM));
    }
}
