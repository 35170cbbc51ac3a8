//! Entries of the log that copies under way go on with: from the entry that their rows go up to.
//!
//! A pin lasts while its copy is sent, and a while after the last part, until the copy says what
//! it wants by itself. One per copy, so that they are as bounded as copies are; what they keep is
//! bounded by the size of the log, see [`crate::limits::OPLOG_PINNED_BYTES_MIN`].

use crate::limits::BOOTSTRAP_PIN_TTL;
use ebla_kernel::ids::{ReplicaId, Seq, TabletId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Whose copy, and which.
type Name = (TabletId, ReplicaId);

/// All pins of a server: what stays, and until when.
#[derive(Default)]
pub struct LogPins {
    pins: Mutex<BTreeMap<Name, (Seq, Instant)>>,
}

/// Keeps what is above an entry; for [`BOOTSTRAP_PIN_TTL`] more when it is dropped.
pub struct LogPin {
    pins: Arc<LogPins>,
    name: Name,
}

impl LogPins {
    /// Keeps the whole log of a tablet for a copy, until the pin is raised.
    #[must_use]
    pub fn pin(self: &Arc<Self>, tablet: TabletId, copy: ReplicaId) -> LogPin {
        let name = (tablet, copy);
        let now = Instant::now();
        let mut pins = self.lock();
        pins.retain(|_, (_, until)| *until > now);
        pins.insert(name, (Seq(0), now + BOOTSTRAP_PIN_TTL));
        drop(pins);
        LogPin { pins: Arc::clone(self), name }
    }

    /// The entry from which on all of a tablet's log stays, if there is one.
    #[must_use]
    pub fn lowest(&self, tablet: TabletId) -> Option<Seq> {
        let (pins, now) = (self.lock(), Instant::now());
        let of_tablet = pins.range((tablet, ReplicaId(0))..=(tablet, ReplicaId(u64::MAX)));
        of_tablet.filter(|(_, (_, until))| *until > now).map(|(_, (seq, _))| *seq).min()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, (Seq, Instant)>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogPin {
    /// From now on only what follows `seq` is needed.
    pub fn raise(&self, seq: Seq) {
        self.pins.lock().insert(self.name, (seq, Instant::now() + BOOTSTRAP_PIN_TTL));
    }

    /// The copy still takes what it is sent.
    pub fn renew(&self) {
        if let Some((_, until)) = self.pins.lock().get_mut(&self.name) {
            *until = Instant::now() + BOOTSTRAP_PIN_TTL;
        }
    }
}

impl Drop for LogPin {
    fn drop(&mut self) {
        self.renew();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_outlasts_its_stream_and_each_copy_has_one() {
        let pins = Arc::new(LogPins::default());
        assert_eq!(pins.lowest(TabletId(1)), None);
        let first = pins.pin(TabletId(1), ReplicaId(7));
        assert_eq!(pins.lowest(TabletId(1)), Some(Seq(0)));
        first.raise(Seq(30));
        let second = pins.pin(TabletId(1), ReplicaId(8));
        second.raise(Seq(20));
        assert_eq!((pins.lowest(TabletId(1)), pins.lowest(TabletId(2))), (Some(Seq(20)), None));
        drop(second);
        assert_eq!(pins.lowest(TabletId(1)), Some(Seq(20)), "the copy catches up from there");
        pins.pin(TabletId(1), ReplicaId(8)).raise(Seq(40));
        assert_eq!(pins.lowest(TabletId(1)), Some(Seq(30)), "a new try takes the place of the old one");
    }
}
