//! Seeds of the simulator: some fresh ones, all that ever failed, and a few twice.
//!
//! `EBLA_SIM_SEEDS` says how many fresh ones; `EBLA_SIM_SEED` runs one alone.

use ebla_cluster_tests::sim::{Narration, Report, run};

/// Enough to meet every kind of fault many times, in a few seconds.
const SEEDS_DEFAULT: u64 = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number of seeds"))
}

fn holds(seed: u64) -> Report {
    let report = run(seed, Narration::Silent);
    if let Some(violation) = &report.violation {
        panic!(
            "seed {seed}: {violation}\nrun it again: make sim SEED={seed}, and keep it in cluster-tests/regressions.txt"
        );
    }
    report
}

#[test]
fn seeds_hold() {
    if let Some(seed) = number("EBLA_SIM_SEED") {
        holds(seed);
        return;
    }
    let seeds = number("EBLA_SIM_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let reports: Vec<Report> = (1..=seeds).map(holds).collect();
    let events: u64 = reports.iter().map(|report| report.events).sum();
    let operations: usize = reports.iter().map(|report| report.operations).sum();
    println!("{seeds} seeds, {operations} operations, {events} events");
    assert!(operations as u64 > 50 * seeds, "the clients hardly did anything");
}

#[test]
fn seeds_that_failed_once_hold() {
    let list = include_str!("../regressions.txt");
    let seeds =
        list.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_whitespace().next());
    seeds.for_each(|seed| {
        holds(seed.parse().expect("a line begins with a seed"));
    });
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=10 {
        let (first, second) = (holds(seed), holds(seed));
        assert_eq!((first.trace, first.events), (second.trace, second.events), "seed {seed}");
    }
    assert_ne!(holds(1).trace, holds(2).trace, "the hash says nothing");
}
