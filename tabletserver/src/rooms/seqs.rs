//! The numbers of messages: per room, rising by one, so that a gap shows.
//!
//! The upper bits are the epoch in which the leader gave them, so that they rise over a change of
//! leader. What is remembered is bounded: of rooms that were not used lately only the greatest
//! number is known, and such a room goes on above it.

use crate::limits;
use bytes::Bytes;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard};

/// Bits of a number below the epoch.
const COUNT_BITS: u32 = 40;

/// The numbers of all rooms that are led here.
pub struct Seqs {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
}

/// Some of them.
#[derive(Default)]
pub struct Shard {
    young: HashMap<Bytes, u64>,
    old: HashMap<Bytes, u64>,
    /// Greatest number that was forgotten.
    forgotten: u64,
}

impl Default for Seqs {
    fn default() -> Self {
        let shards = (0..limits::ROOM_SEQ_SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::new() }
    }
}

impl Seqs {
    /// The numbers among which those of a room are.
    pub fn lock(&self, room: &[u8]) -> MutexGuard<'_, Shard> {
        let count = self.shards.len() as u64;
        let at = usize::try_from(self.hasher.hash_one(room) % count).expect("there are few shards");
        self.shards[at].lock().expect("no holder of this lock panics")
    }
}

impl Shard {
    /// The next number of a room that is led in `epoch`.
    pub fn next(&mut self, epoch: u64, room: &Bytes) -> u64 {
        if let Some(known) = self.young.get_mut(&room[..]) {
            *known = after(*known, epoch);
            return *known;
        }
        let known = self.old.remove(&room[..]).unwrap_or(self.forgotten);
        let next = after(known, epoch);
        if self.young.len() >= limits::ROOM_SEQS_PER_SHARD {
            let forgotten = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.forgotten = forgotten.into_values().fold(self.forgotten, u64::max);
        }
        // Not a part of the frame that the message came in.
        self.young.insert(Bytes::copy_from_slice(room), next);
        next
    }
}

/// The number after `known` in `epoch`.
fn after(known: u64, epoch: u64) -> u64 {
    let first = epoch.checked_shl(COUNT_BITS).unwrap_or(0);
    known.max(first).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(n: usize) -> Bytes {
        Bytes::from(format!("room-{n}"))
    }

    #[test]
    fn numbers_rise_by_one_and_over_epochs() {
        let mut shard = Shard::default();
        let numbers: Vec<u64> = [3, 3, 3, 4].map(|epoch| shard.next(epoch, &room(1))).into();
        let (third, fourth) = (3 << COUNT_BITS, 4 << COUNT_BITS);
        assert_eq!(numbers, [third + 1, third + 2, third + 3, fourth + 1]);
        assert_eq!(shard.next(3, &room(2)), third + 1, "each room has its own");
    }

    #[test]
    fn a_forgotten_room_goes_on_above_what_it_had() {
        let mut shard = Shard::default();
        let mut last = 0;
        for _ in 0..5 {
            last = shard.next(1, &room(0));
        }
        for n in 1..=2 * limits::ROOM_SEQS_PER_SHARD {
            shard.next(1, &room(n));
        }
        assert!(shard.young.len() + shard.old.len() <= 2 * limits::ROOM_SEQS_PER_SHARD);
        assert!(shard.next(1, &room(0)) > last);
    }
}
