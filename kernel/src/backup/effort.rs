//! Who may be asked now: bounded work for each server, pauses after refusals, and an end to
//! patience.

use crate::ids::{ServerId, Tick};
use crate::limits::{
    BACKUP_ORDERS_MAX, BACKUP_ORDERS_PER_SERVER_MAX, BACKUP_PATIENCE_MS, BACKUP_PAUSE_MS_MAX,
    BACKUP_PAUSE_MS_MIN, BACKUP_WAIT_SHOWN_MS,
};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of tries, by what was tried.
#[derive(Clone, Debug)]
pub(super) struct Effort<K> {
    tries: BTreeMap<K, Tries>,
    progressed: Tick,
    reason: Option<String>,
    is_impossible: bool,
}

#[derive(Clone, Debug, Default)]
struct Tries {
    refusals: u32,
    not_before: Tick,
    refused_by: BTreeSet<ServerId>,
}

impl<K: Ord + Copy> Effort<K> {
    pub fn new(now: Tick) -> Self {
        Self { tries: BTreeMap::new(), progressed: now, reason: None, is_impossible: false }
    }

    /// Whether it may be tried now.
    pub fn is_due(&self, what: K, now: Tick) -> bool {
        self.tries.get(&what).is_none_or(|tries| tries.not_before <= now)
    }

    /// Whether this server refused it since all of them were last tried.
    pub fn was_refused_by(&self, what: K, server: ServerId) -> bool {
        self.tries.get(&what).is_some_and(|tries| tries.refused_by.contains(&server))
    }

    /// Something moved.
    pub fn progressed(&mut self, now: Tick) {
        self.progressed = self.progressed.max(now);
        if !self.is_impossible {
            self.reason = None;
        }
    }

    /// It is done, and what was refused before is forgotten.
    pub fn succeeded(&mut self, what: K, now: Tick) {
        self.tries.remove(&what);
        self.progressed(now);
    }

    /// A server refused; after a pause another is asked, then the same again.
    pub fn refused(&mut self, what: K, server: ServerId, reason: String, now: Tick) {
        let tries = self.tries.entry(what).or_default();
        tries.refused_by.insert(server);
        let pause_ms = BACKUP_PAUSE_MS_MIN.checked_shl(tries.refusals).unwrap_or(BACKUP_PAUSE_MS_MAX);
        tries.refusals = (tries.refusals + 1).min(u64::BITS / 2);
        tries.not_before = now.plus_ms(pause_ms.min(BACKUP_PAUSE_MS_MAX));
        self.reason = Some(reason);
    }

    /// Every server that could be asked has refused: the first may be asked again.
    pub fn ask_all_again(&mut self, what: K) {
        if let Some(tries) = self.tries.get_mut(&what) {
            tries.refused_by.clear();
        }
    }

    /// Nobody could be asked.
    pub fn blocked(&mut self, reason: String) {
        self.reason = Some(reason);
    }

    /// It never succeeds.
    pub fn impossible(&mut self, reason: String) {
        if !self.is_impossible {
            (self.is_impossible, self.reason) = (true, Some(reason));
        }
    }

    /// What it waits for, once nothing has moved for a while.
    pub fn waits_for(&self, now: Tick) -> Option<&str> {
        self.reason.as_deref().filter(|_| now.ms_since(self.progressed) >= BACKUP_WAIT_SHOWN_MS)
    }

    /// Why it is given up, if it is.
    pub fn given_up(&self, now: Tick) -> Option<String> {
        let reason = || self.reason.clone().unwrap_or_else(|| "the servers at work say nothing".into());
        if self.is_impossible {
            return Some(reason());
        }
        let idle_ms = now.ms_since(self.progressed);
        let minutes = BACKUP_PATIENCE_MS / 60_000;
        (idle_ms >= BACKUP_PATIENCE_MS)
            .then(|| format!("nothing has moved for {minutes} minutes, and last: {}", reason()))
    }
}

/// How many orders servers have, and whether they may get another.
#[derive(Debug)]
pub(super) struct Slots<'a> {
    usable: &'a BTreeSet<ServerId>,
    taken: BTreeMap<ServerId, usize>,
    total: usize,
}

impl<'a> Slots<'a> {
    pub fn new(usable: &'a BTreeSet<ServerId>, busy: impl Iterator<Item = ServerId>) -> Self {
        let mut slots = Self { usable, taken: BTreeMap::new(), total: 0 };
        busy.for_each(|server| slots.take(server));
        slots
    }

    /// Whether nobody may get another order.
    pub fn are_full(&self) -> bool {
        let is_full = |server: &ServerId| self.taken(*server) >= BACKUP_ORDERS_PER_SERVER_MAX;
        self.total >= BACKUP_ORDERS_MAX || self.usable.iter().all(is_full)
    }

    pub fn is_usable(&self, server: ServerId) -> bool {
        self.usable.contains(&server)
    }

    pub fn is_free(&self, server: ServerId) -> bool {
        self.is_usable(server) && self.taken(server) < BACKUP_ORDERS_PER_SERVER_MAX
    }

    pub fn taken(&self, server: ServerId) -> usize {
        self.taken.get(&server).copied().unwrap_or_default()
    }

    pub fn take(&mut self, server: ServerId) {
        *self.taken.entry(server).or_default() += 1;
        self.total += 1;
    }
}
