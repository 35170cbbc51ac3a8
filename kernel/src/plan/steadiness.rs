//! Since when servers have had too much, or too little.

use crate::ids::{ServerId, Tick};
use std::collections::BTreeMap;

/// How a server compares with the mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// It has clearly more.
    Heavy,
    /// It has clearly less.
    Light,
}

/// Since when each server has been on its side without a break.
#[derive(Clone, Debug, Default)]
pub(super) struct Steadiness {
    since: BTreeMap<ServerId, (Side, Tick)>,
}

impl Steadiness {
    /// Takes in which servers are on which side now.
    pub fn note(&mut self, now: Tick, sides: BTreeMap<ServerId, Side>) {
        let since = |(server, side): (ServerId, Side)| {
            let before = self.since.get(&server).filter(|(known, _)| *known == side);
            (server, (side, before.map_or(now, |(_, since)| *since)))
        };
        self.since = sides.into_iter().map(since).collect();
    }

    /// Servers that have been on their side for so long.
    pub fn lasting(&self, now: Tick, lasts_ms: u64) -> BTreeMap<ServerId, Side> {
        let lasting = self.since.iter().filter(|(_, (_, since))| now.ms_since(*since) >= lasts_ms);
        lasting.map(|(server, (side, _))| (*server, *side)).collect()
    }

    /// On which side a server is, and for how many milliseconds.
    pub fn of(&self, now: Tick, server: ServerId) -> Option<(Side, u64)> {
        self.since.get(&server).map(|(side, since)| (*side, now.ms_since(*since)))
    }
}
