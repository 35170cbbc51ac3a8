//! Splits and merges among chances: real cores of metadata and tablets on three servers, under one seed.
//!
//! Messages come late, in another order, or never; servers crash and lose what is not durable;
//! epochs are raised at any time; splits and merges are wished for, cancelled and wished for again. What
//! must hold all the time: no two servers hold the lease of one key. What must hold when all
//! faults are healed: every write that D copies acknowledged stands once in the history of its
//! key, none stands twice, none that was taken back stands, and every key can be written.
//!
//! `SPLIT_SEEDS` says how many seeds; `SPLIT_SEED` runs one alone and tells what happens. With the
//! feature `mutations` the bugs of `Mutation::OF_SPLITS` must be found; `SPLIT_BUG` seeds one alone.

mod split_world {
    pub mod check;
    pub mod meta;
    pub mod server;
    pub mod wishes;
    pub mod world;
}

use split_world::world::World;

/// Seeds of an ordinary run: about three seconds.
const SEEDS_DEFAULT: u64 = 400;

fn text(name: &str) -> Option<String> {
    std::env::var_os(name).and_then(|text| text.into_string().ok())
}

fn number(name: &str) -> Option<u64> {
    text(name).and_then(|text| text.parse().ok())
}

#[test]
fn nothing_is_lost_or_doubled_whatever_happens_around_splits_and_merges() {
    if let Some(seed) = number("SPLIT_SEED") {
        let mut world = World::new(seed, true);
        world.run().unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        return;
    }
    let (mut splits, mut merges, mut aborts, mut writes) = (0, 0, 0, 0);
    for seed in 1..=number("SPLIT_SEEDS").unwrap_or(SEEDS_DEFAULT) {
        let mut world = World::new(seed, false);
        world.run().unwrap_or_else(|violation| {
            panic!("seed {seed}: {violation}\nrun it again with SPLIT_SEED={seed}")
        });
        let (split, merged) = world.commits();
        splits += split;
        merges += merged;
        aborts += world.aborts();
        writes += world.acknowledged();
    }
    println!("{splits} splits, {merges} merges, {aborts} that were given up, {writes} acknowledged writes");
    assert!(splits > 0 && merges > 0 && aborts > 0 && writes > 0, "the seeds hardly do anything");
}

/// Bugs that this world does not show: no disk is lost in it, and the others need a chain of
/// misfortunes that chance does not bring about in some thousand seeds (the models of the design
/// took 13 and 15 directed steps). The scripts `meta/split`, `meta/merge` and `tablet/split` hold
/// their rules.
#[cfg(feature = "mutations")]
const HELD_BY_SCRIPTS: [ebla_kernel::mutation::Mutation; 5] = {
    use ebla_kernel::mutation::Mutation;
    [
        Mutation::CommitOfAnyEpoch,
        Mutation::CommitOfAnyDisk,
        Mutation::ReadySetIgnored,
        Mutation::MergeReadyOfOneParent,
        Mutation::MergeReadyIntersects,
    ]
};

#[cfg(feature = "mutations")]
#[test]
fn every_seeded_bug_is_found() {
    use ebla_kernel::mutation::{Mutation, seed_bug};
    let mut missed = Vec::new();
    let only = text("SPLIT_BUG");
    let wanted = |mutation: &Mutation| match &only {
        Some(name) => *name == format!("{mutation:?}"),
        None => !HELD_BY_SCRIPTS.contains(mutation),
    };
    for mutation in Mutation::OF_SPLITS.into_iter().filter(wanted) {
        let found = (1..=number("SPLIT_SEEDS").unwrap_or(20_000)).find(|seed| {
            let seed = *seed;
            // An assertion of the core finds a bug as well as a check does.
            let run = std::panic::catch_unwind(move || {
                seed_bug(Some(mutation));
                let outcome = World::new(seed, false).run();
                seed_bug(None);
                outcome
            });
            seed_bug(None);
            !matches!(run, Ok(Ok(())))
        });
        println!("{mutation:?}: {found:?}");
        if found.is_none() {
            missed.push(mutation);
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
