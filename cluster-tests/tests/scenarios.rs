//! Scenarios of splits, merges and moves, each at many moments: a number of microseconds after something
//! was begun. Chance tries the same in `tests/sim.rs`; here nothing else is in the way.

use ebla_cluster_tests::sim::directed::{Directed, Masters, Step};
use ebla_kernel::meta::{Policy, TableKind};

/// Moments after a wish at which something breaks: from its record to long after its end.
const MOMENTS_US: [u64; 9] = [0, 700, 1_500, 3_000, 5_000, 8_000, 15_000, 60_000, 700_000];

fn holds(name: &str, moment: u64, outcome: Step) {
    if let Err(violation) = outcome {
        panic!("{name}, {moment} us after the wish: {violation}");
    }
}

fn masters_fail_over(cluster: &mut Directed) -> Step {
    cluster.fail_over_masters();
    Ok(())
}

fn the_leader_dies(cluster: &mut Directed) -> Step {
    if let Some(leader) = cluster.leader_of_row(0) {
        cluster.crash(leader);
        cluster.play(30_000)?;
        cluster.start(leader);
    }
    Ok(())
}

/// Begins a split, lets `fault` happen at every moment, and judges.
fn at_every_moment(name: &str, fault: impl Fn(&mut Directed) -> Step) {
    for (seed, moment) in (1..).zip(MOMENTS_US) {
        let run = || {
            let mut cluster = Directed::begin(seed, |_| {})?;
            cluster.split_at(6);
            cluster.play(moment)?;
            fault(&mut cluster)?;
            cluster.play(1_500_000)?;
            cluster.end()
        };
        holds(name, moment, run());
    }
}

#[test]
fn scenario_9_deletes_and_conditions_are_taken_back_around_a_split() {
    at_every_moment("9", |cluster| {
        // Writes above level leader wait in vain and are taken back while the seal waits for them.
        let Some(leader) = cluster.leader_of_row(0) else { return Ok(()) };
        cluster.cut_off(leader, Masters::Reached);
        cluster.play(700_000)?;
        cluster.join();
        cluster.split_at(3);
        cluster.play(300_000)
    });
}

#[test]
fn scenario_10_a_deposed_leader_is_killed_while_it_drops_its_tail() {
    at_every_moment("10", |cluster| {
        let Some(leader) = cluster.leader_of_row(0) else { return Ok(()) };
        cluster.cut_off(leader, Masters::Cut);
        cluster.play(2_500_000)?;
        cluster.join();
        for wait_us in [500, 2_000, 5_000, 20_000, 60_000] {
            cluster.play(wait_us)?;
            cluster.crash(leader);
            cluster.start(leader);
        }
        Ok(())
    });
}

#[test]
fn scenario_11_masters_fail_over_at_every_step_of_a_split() {
    at_every_moment("11 masters", masters_fail_over);
}

#[test]
fn scenario_11_the_leader_dies_at_every_step_of_a_split() {
    at_every_moment("11 leader", the_leader_dies);
}

#[test]
fn scenario_11_the_leader_does_not_hear_what_became_of_the_commit() {
    at_every_moment("11 reply", |cluster| {
        if let Some(leader) = cluster.leader_of_row(0) {
            cluster.cut_off(leader, Masters::Cut);
            cluster.play(1_800_000)?;
            cluster.join();
        }
        Ok(())
    });
}

#[test]
fn scenario_11_a_copy_is_absent_during_the_whole_split() {
    for seed in 1..=4 {
        let run = || {
            let mut cluster = Directed::begin(seed, |_| {})?;
            let absent = cluster.follower_of_row(0).unwrap_or_default();
            cluster.crash(absent);
            cluster.split_at(6);
            cluster.wait("the children", |cluster| cluster.tablets() == 2)?;
            cluster.split_at(3);
            cluster.wait("the children of a child", |cluster| cluster.tablets() == 3)?;
            cluster.start(absent);
            cluster.end()
        };
        holds("11 absent", seed, run());
    }
}

#[test]
fn scenario_11_a_seal_is_lost_with_its_leader_and_the_split_is_cancelled() {
    for (seed, moment) in (1..).zip(MOMENTS_US) {
        let run = || {
            let mut cluster = Directed::begin(seed, |_| {})?;
            let Some(leader) = cluster.leader_of_row(0) else { return Ok(()) };
            cluster.split_at(6);
            cluster.wait("a seal", |cluster| cluster.is_sealed(leader, 6) || cluster.tablets() == 2)?;
            cluster.cut_off(leader, Masters::Cut);
            cluster.play(moment)?;
            cluster.cancel();
            cluster.depose(0);
            cluster.play(2_500_000)?;
            cluster.join();
            cluster.end()
        };
        holds("11 lost seal", moment, run());
    }
}

#[test]
fn scenario_12_a_child_is_split_before_anything_was_flushed_and_all_lose_power() {
    for (seed, moment) in (1..).zip(MOMENTS_US) {
        let run = || {
            let mut cluster = Directed::begin(seed, |profile| {
                profile.disk.flush_every_us = (60_000_000, 60_000_001);
            })?;
            for (children, row) in [(2, 6), (3, 3), (4, 9), (5, 7)] {
                cluster.split_at(row);
                cluster.wait("the children", |cluster| cluster.tablets() == children)?;
            }
            cluster.play(moment)?;
            cluster.blackout();
            cluster.play(500_000)?;
            cluster.flush_often();
            cluster.blackout();
            cluster.end()
        };
        holds("12", moment, run());
    }
}

/// Splits, wishes for the merge of what came of it before anything was flushed, lets `fault` happen
/// at every moment after, and judges.
fn at_every_moment_of_a_merge(name: &str, fault: impl Fn(&mut Directed) -> Step) {
    // The wish is recorded; the tablets lie together for 200 ms before they are sealed.
    let settling = [5_000, 100_000, 203_000, 207_000, 212_000, 220_000, 240_000, 700_000];
    for (seed, moment) in (1..).zip(settling) {
        let run = || {
            let mut cluster = Directed::begin(seed, |_| {})?;
            cluster.split_at(6);
            cluster.wait("the split", |cluster| cluster.tablets() == 2)?;
            cluster.merge_at(6);
            cluster.play(moment)?;
            fault(&mut cluster)?;
            cluster.wait("the merge", |cluster| cluster.tablets() == 1)?;
            cluster.split_at(3);
            cluster.play(500_000)?;
            cluster.end()
        };
        holds(name, moment, run());
    }
}

#[test]
fn scenario_12_two_children_are_merged_before_anything_was_flushed() {
    at_every_moment_of_a_merge("12", |_| Ok(()));
}

#[test]
fn scenario_12_all_lose_power_at_every_step_of_a_merge() {
    at_every_moment_of_a_merge("12 power", |cluster| {
        cluster.blackout();
        cluster.play(30_000)?;
        cluster.blackout();
        Ok(())
    });
}

#[test]
fn scenario_11_masters_fail_over_at_every_step_of_a_merge() {
    at_every_moment_of_a_merge("11 masters, merge", masters_fail_over);
}

#[test]
fn scenario_11_the_leader_dies_at_every_step_of_a_merge() {
    at_every_moment_of_a_merge("11 leader, merge", the_leader_dies);
}

#[test]
fn scenario_13_the_source_of_a_move_sleeps_and_comes_back_after_all() {
    for (seed, moment) in (1..).zip(MOMENTS_US) {
        let run = || {
            let mut cluster = Directed::begin(seed, |_| {})?;
            let Some(leader) = cluster.leader_of_row(0) else { return Ok(()) };
            cluster.move_row(0, leader);
            cluster.play(moment)?;
            cluster.suspend(leader, 3_000_000);
            cluster.play(1_000_000)?;
            cluster.split_at(6);
            cluster.play(3_000_000)?;
            cluster.end()
        };
        holds("13", moment, run());
    }
}

#[test]
fn scenario_22_a_copy_is_at_the_limit_of_being_in_sync_while_its_tablet_is_split() {
    for seed in 1..=3 {
        let run = || {
            let mut cluster = Directed::begin(seed, |_| {})?;
            for row in [6, 3, 9, 2, 7] {
                if let Some(slow) = cluster.follower_of_row(row) {
                    cluster.suspend(slow, 1_990_000);
                }
                cluster.split_at(row);
                cluster.play(2_050_000)?;
            }
            cluster.end()
        };
        holds("22", seed, run());
    }
}

#[test]
fn scenario_23_all_tablets_of_a_cluster_fail_over_at_once() {
    let run = || {
        let mut cluster = Directed::begin(1, |profile| (profile.keys, profile.tablets) = (60, 60))?;
        for server in 0..3 {
            cluster.crash(server);
            cluster.play(2_500_000)?;
            cluster.start(server);
            cluster.play(2_500_000)?;
        }
        cluster.end()
    };
    holds("23", 0, run());
}

#[test]
fn no_copy_of_a_strict_table_diverges() {
    for seed in 1..=5 {
        let run = || {
            let mut cluster = Directed::begin(seed, |profile| profile.servers = 3)?;
            let late = cluster.follower_of_row(0).unwrap_or_default();
            cluster.cut_off(late, Masters::Cut);
            cluster.play(400_000)?;
            cluster.join();
            for other in (0..3).filter(|server| *server != late) {
                cluster.cut_off(other, Masters::Cut);
            }
            // The masters do not know that the leader cannot serve; somebody tells them. Only the copy
            // that lacks something is reached, for longer than a degraded table waits.
            cluster.depose(0);
            cluster.play(15_000_000)?;
            assert_ne!(cluster.leader_of_row(0), Some(late), "seed {seed}: it lacks what was acknowledged");
            cluster.join();
            cluster.play(3_000_000)?;
            assert_eq!(cluster.forsaken(), 0, "seed {seed}");
            cluster.end()
        };
        holds("strict", seed, run());
    }
}

#[test]
fn the_last_copy_of_a_degraded_table_serves_alone() {
    for kind in [TableKind::Durable, TableKind::Memory] {
        for seed in 1..=10 {
            let run = || {
                let mut cluster = Directed::begin(seed, |profile| {
                    profile.servers = 3;
                    profile.spec.policy = Policy::Degraded;
                    if kind == TableKind::Memory {
                        profile.keep_in_memory();
                    }
                })?;
                let last = cluster.follower_of_row(0).unwrap_or_default();
                let others: Vec<usize> = (0..3).filter(|server| *server != last).collect();
                others.iter().for_each(|server| cluster.crash(*server));
                cluster.play(12_000_000)?;
                cluster.wait("the last copy serves", |cluster| cluster.serves_row(last, 0))?;
                cluster.play(1_000_000)?;
                // They find a copy to follow, although nothing was published since.
                others.iter().for_each(|server| cluster.start(*server));
                cluster.play(3_000_000)?;
                cluster.end()
            };
            holds("the last copy", seed, run());
        }
    }
}
