//! `models`: small explicit-state models of what departs from the models that the rules of the
//! protocol come from. `docs/decisions/0015-models-of-what-departs.md` says what they show.
//!
//! Ends with an error when the full rules break, or when leaving one out goes unnoticed.

mod explore;
mod reads;
mod replication;

use explore::{Explored, Model, breadth_first, walk};
use reads::Reads;
use replication::{Bounds, Replication};
use std::process::ExitCode;

/// States of one exploration: a few seconds.
const STATES_MAX: usize = 300_000;

/// Steps of one set of walks, and of one walk.
const WALK_STEPS: usize = 1_000_000;
const WALK_LENGTH: usize = 120;

fn main() -> ExitCode {
    let verbose = std::env::args().any(|word| word == "--traces");
    let all = [reads_hold(verbose), replication_holds(verbose), removals_show(verbose)];
    if all.into_iter().all(|holds| holds) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn reads_hold(verbose: bool) -> bool {
    use reads::Without::{ClockBound, Nothing, ReadFloor, RisingLog};
    let full = breadth_first(&Reads { without: Nothing }, STATES_MAX);
    let mut holds = tell("reads, all rules", &full, Expected::Nothing, verbose);
    for without in [ReadFloor, ClockBound, RisingLog] {
        let found = breadth_first(&Reads { without }, STATES_MAX);
        holds &= tell(&format!("reads without {without:?}"), &found, Expected::Violation, verbose);
    }
    holds
}

/// The full rules: in several small worlds breadth first, in a larger one by walks.
fn replication_holds(verbose: bool) -> bool {
    let without = replication::Without::Nothing;
    let small = |epochs, ops, reverts, crashes| Bounds { epochs, ops, reverts, crashes };
    let worlds =
        [small(1, 2, 1, 0), small(1, 2, 1, 1), small(2, 1, 1, 0), small(2, 2, 1, 1), small(3, 1, 1, 1)];
    let mut holds = true;
    for bounds in worlds {
        let full = breadth_first(&Replication { bounds, without }, STATES_MAX);
        holds &= tell(&format!("replication {}", brief(bounds)), &full, Expected::Nothing, verbose);
    }
    let bounds = small(4, 3, 2, 2);
    let full = walk(&Replication { bounds, without }, 1, WALK_LENGTH, WALK_STEPS);
    holds & tell(&format!("replication {}, walks", brief(bounds)), &full, Expected::Nothing, verbose)
}

/// Every rule is needed: without it something breaks, breadth first or on a walk.
fn removals_show(verbose: bool) -> bool {
    use replication::Without;
    // The world in which each shows itself soonest.
    let small = |epochs, ops, reverts, crashes| Bounds { epochs, ops, reverts, crashes };
    let rules = [
        (Without::WholeWatermarks, small(1, 1, 1, 0)),
        (Without::RowsWaitForQ, small(1, 1, 1, 0)),
        (Without::OwnDisk, small(2, 1, 0, 1)),
        (Without::QAroundReverts, small(1, 1, 1, 0)),
        (Without::RevertsAboveQ, small(1, 1, 1, 0)),
        (Without::RevertDecidedByQ, small(2, 1, 1, 0)),
        (Without::QOfOwnEpoch, small(3, 1, 1, 0)),
        (Without::DrainedFence, small(2, 1, 0, 0)),
        (Without::Quota, small(2, 1, 0, 0)),
        (Without::LastEpochWins, small(3, 1, 0, 0)),
    ];
    let mut holds = true;
    for (without, bounds) in rules {
        let model = Replication { bounds, without };
        let near = breadth_first(&model, STATES_MAX);
        let found = if near.violation.is_some() { near } else { far(&model) };
        holds &= tell(&format!("replication without {without:?}"), &found, Expected::Violation, verbose);
    }
    holds
}

fn far<M: Model>(model: &M) -> Explored {
    walk(model, 7, WALK_LENGTH, 4 * WALK_STEPS)
}

fn brief(bounds: Bounds) -> String {
    let Bounds { epochs, ops, reverts, crashes } = bounds;
    format!("e{epochs} o{ops} r{reverts} c{crashes}")
}

#[derive(PartialEq, Eq)]
enum Expected {
    Nothing,
    Violation,
}

/// One line, and whether it is the expected one.
fn tell(name: &str, explored: &Explored, expected: Expected, verbose: bool) -> bool {
    let Explored { states, depth, exhausted, violation } = explored;
    let seen = match violation {
        Some((why, trace)) => format!("{} steps: {why}", trace.len()),
        None if *exhausted => "no violation, exhausted".into(),
        None => "no violation".into(),
    };
    let is_right = violation.is_some() == (expected == Expected::Violation);
    let mark = if is_right { "" } else { "  <- WRONG" };
    println!("{name:<40} {states:>8} states, depth {depth:>3}: {seen}{mark}");
    if let Some((_, trace)) = violation.as_ref().filter(|_| verbose || !is_right) {
        trace.iter().for_each(|step| println!("    {step}"));
    }
    is_right
}
