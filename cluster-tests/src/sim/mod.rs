//! A whole cluster on one thread, out of one seed.
//!
//! The cores are the ones of production: `kernel::tablet` and `kernel::lease` on every server,
//! `kernel::meta` on the metadata node. Around them stand a network, disks, clocks and clients made of chance,
//! and chance is a number: the same seed gives the same run, event by event.
//!
//! ```text
//! faults on            everything healed         rest       power loss, restart
//! ├─ chaos ───────────▶├─ liveness: every tablet ▶├─ rows ───▶├─ rows are the log, again
//!    invariants at every step   writable again      = log
//! ```
//!
//! Not simulated here: threads (a shell's stages are events), the masters' Raft group (one
//! node with a synced log), RocksDB and raft-engine (models that lose what those may lose).

pub mod archivist;
mod assigning;
pub mod clock;
pub mod copying;
pub mod crowd;
pub mod directed;
pub mod disk;
mod effects;
pub mod env;
pub mod exporting;
pub mod fault;
pub mod meta;
pub mod network;
pub mod pipeline;
pub mod promises;
mod removal;
pub mod replication;
pub mod requests;
pub mod restoring;
pub mod rng;
pub mod rooms;
pub mod server;
mod succession;
#[cfg(feature = "mutations")]
mod suit;
pub mod truncation;
pub mod watcher;
pub mod workload;
pub mod world;

use crate::invariants::Violation;
use archivist::BackupFaults;
use crowd::RoomFaults;
#[cfg(feature = "mutations")]
use ebla_kernel::mutation::Mutation;
use fault::Profile;
use meta::Wishes;
use rng::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// Of 1,000 seeds, how many have their table in memory.
const MEMORY_PM: u64 = 150;

/// Of 1,000 seeds with splits, how many have merges.
const MERGES_PM: u64 = 600;

/// Of 1,000 seeds, how many have backups.
const BACKUPS_PM: u64 = 250;

/// Of 1,000 seeds, how many have rooms.
const ROOMS_PM: u64 = 250;

/// Of 1,000 seeds with rooms, how many have their table in memory, and lose all of it.
const BEREFT_PM: u64 = 400;

/// What became of one seed.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash over everything that happened.
    pub trace: u64,
    /// Events that happened.
    pub events: u64,
    /// Operations that clients began.
    pub operations: usize,
    /// Backups that were made.
    pub backups: usize,
    /// Messages that somebody in a room has heard.
    pub heard: usize,
    /// How often a tablet in memory lost every copy and began anew.
    pub losses: u64,
    /// What became of splits, merges and moves.
    pub wishes: Wishes,
    /// The rule that was broken, if one was.
    pub violation: Option<Violation>,
    /// What happened, in words, if it was asked for.
    pub log: Vec<String>,
}

/// Whether somebody is going to read what happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Narration {
    /// Only the outcome counts.
    Silent,
    /// Every step in words.
    Told,
}

/// Runs one seed from beginning to end. A panic anywhere in it is a violation.
#[must_use]
pub fn run(seed: u64, narration: Narration) -> Report {
    // Draws of their own: what other seeds do does not change with them.
    let is_in_memory = Rng::new(!seed).chance(MEMORY_PM);
    let mut backups = backups_of(seed);
    let has_backups = backups.chance(BACKUPS_PM);
    let mut merges = Rng::new(seed.rotate_left(16));
    let mut rooms = rooms_of(seed);
    let has_rooms = rooms.chance(ROOMS_PM);
    let is_bereft = rooms.chance(BEREFT_PM);
    run_in(seed, narration, |profile| {
        if profile.repairs && merges.chance(MERGES_PM) {
            profile.merge_us = Some((100_000, 400_000 << merges.below(3)));
        }
        if is_in_memory {
            profile.keep_in_memory();
        }
        if has_backups {
            profile.backups = Some(BackupFaults::draw(backups));
        }
        if has_rooms {
            profile.rooms = Some(RoomFaults::draw(rooms));
        }
        if has_rooms && is_bereft {
            profile.bereave();
        }
    })
}

/// Runs one seed in the world that suits a seeded bug, whether it is seeded or not: without it
/// the same world must be without a violation.
#[cfg(feature = "mutations")]
#[must_use]
pub fn run_suited(seed: u64, narration: Narration, mutation: Mutation) -> Report {
    run_in(seed, narration, |profile| profile.suit(mutation, (backups_of(seed), rooms_of(seed))))
}

/// What decides about the backups of a seed.
fn backups_of(seed: u64) -> Rng {
    Rng::new(seed.rotate_left(32))
}

/// What decides about the rooms of a seed.
fn rooms_of(seed: u64) -> Rng {
    Rng::new(seed.rotate_left(48))
}

fn run_in(seed: u64, narration: Narration, suit: impl FnOnce(&mut Profile)) -> Report {
    let mut rng = Rng::new(seed);
    let mut profile = Profile::draw(&mut rng);
    suit(&mut profile);
    let mut world = World::new(rng, profile);
    if narration == Narration::Told {
        world.env.log = Some(Vec::new());
    }
    let violation = match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(outcome) => outcome.err(),
        Err(panic) => Some(Violation { invariant: "an assertion".into(), detail: message(&*panic) }),
    };
    Report {
        seed,
        trace: world.env.trace,
        events: world.events,
        operations: world.env.history.operations.len(),
        backups: world.env.history.backups.len(),
        heard: world.env.published.heard.len(),
        losses: world.env.watch.oracle.losses_of_all(),
        wishes: world.meta.wishes(),
        violation,
        log: world.env.log.take().unwrap_or_default(),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_string()
}
