//! Rooms among chances: the cores of several servers and rows as their leader keeps them, under one
//! seed.
//!
//! Messages between servers come late and in another order; servers die and come back under the
//! same ordinal; the leader of the rows changes and with it goes what too few copies had, at times
//! everything (scenario 20). What must hold all the time: no message goes to a run that is over;
//! and whoever was told that it is in hears what is published afterwards, unless its server died
//! or all copies of the rows were lost just before. What must hold when everything is calm and one
//! round has passed (I16): a server's bit stands exactly where it has subscribers.
//!
//! `ROOM_SEEDS` says how many seeds, `ROOM_SEED` runs one alone. With the feature `mutations` the
//! bugs of `Mutation::OF_ROOMS` must be found.

mod room_world {
    pub mod world;
}

use room_world::world::World;

/// Seeds of an ordinary run: some seconds.
const SEEDS_DEFAULT: u64 = 100;

fn number(name: &str) -> Option<u64> {
    std::env::var_os(name).and_then(|text| text.into_string().ok()).and_then(|text| text.parse().ok())
}

#[test]
fn whoever_is_in_hears_and_bits_stand_where_subscribers_are() {
    if let Some(seed) = number("ROOM_SEED") {
        World::new(seed).run().unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        return;
    }
    let mut heard = 0;
    for seed in 1..=number("ROOM_SEEDS").unwrap_or(SEEDS_DEFAULT) {
        let mut world = World::new(seed);
        world.run().unwrap_or_else(|violation| {
            panic!("seed {seed}: {violation}\nrun it again with ROOM_SEED={seed}")
        });
        heard += world.heard();
    }
    assert!(heard > 1_000, "the seeds hardly do anything: {heard} messages were heard");
}

#[test]
fn ten_thousand_rooms_in_doubt_are_said_in_windows() {
    let told = World::new(7).storm(10_000).expect("a storm passes");
    assert!(told.longest_queue <= ebla_kernel::limits::ROOM_BITS_IN_FLIGHT_MAX);
    assert_eq!(told.set, 10_000);
}

#[cfg(feature = "mutations")]
#[test]
fn every_seeded_bug_is_found() {
    use ebla_kernel::mutation::{Mutation, seed_bug};
    for mutation in Mutation::OF_ROOMS {
        let found = (1..=number("ROOM_SEEDS").unwrap_or(3_000)).find(|seed| {
            seed_bug(Some(mutation));
            let outcome = World::new(*seed).run();
            seed_bug(None);
            outcome.is_err()
        });
        println!("{mutation:?}: {found:?}");
        assert!(found.is_some(), "{mutation:?} was not found");
    }
}
