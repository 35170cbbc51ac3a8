//! A cluster that does what the plan says, for tests: an hour passes in milliseconds.

use super::picture::{Picture, ServerView, TabletView};
use super::reason::{Action, Decision};
use super::{PlanSettings, Planner};
use crate::ids::{ServerId, TabletId, Tick};
use std::collections::{BTreeMap, BTreeSet};

/// Time between two rounds.
const ROUND_MS: u64 = 5_000;

/// Servers, and tablets of one table.
pub(super) struct Cluster {
    picture: Picture,
    pub split_bytes: u64,
}

impl Cluster {
    /// Servers 1, 2, ... in these zones.
    pub fn new(zones: &[&str]) -> Self {
        let view = |zone: &&str| ServerView { zone: (*zone).to_owned(), takes_copies: true };
        let servers = (1..).zip(zones).map(|(id, zone)| (ServerId(id), view(zone))).collect();
        Self { picture: Picture { servers, tablets: BTreeMap::new() }, split_bytes: u64::MAX }
    }

    /// A tablet with copies on these servers, led by the first.
    pub fn add(&mut self, id: u64, servers: &[u64], bytes: u64) {
        let copies: Vec<ServerId> = servers.iter().map(|server| ServerId(*server)).collect();
        let tablet = TabletView {
            split_bytes: self.split_bytes,
            wanted: copies.len(),
            bytes,
            requests: 0,
            leader: copies.first().copied(),
            in_sync: copies.clone(),
            copies,
            work: None,
        };
        self.picture.tablets.insert(TabletId(id), tablet);
    }

    pub fn picture(&self) -> Picture {
        self.picture.clone()
    }

    /// Carries a decision out.
    fn carry_out(&mut self, decision: &Decision) {
        let tablet = self
            .picture
            .tablets
            .get_mut(&decision.tablet)
            .expect("decisions are about tablets that are there");
        match decision.action {
            Action::HandOver { from, to } => {
                assert_eq!(tablet.leader, Some(from));
                assert!(tablet.in_sync.contains(&to));
                tablet.leader = Some(to);
            }
            Action::Move { from, to } => {
                assert!(tablet.copies.contains(&from) && !tablet.copies.contains(&to));
                tablet.copies.iter_mut().filter(|copy| **copy == from).for_each(|copy| *copy = to);
                tablet.in_sync = tablet.copies.clone();
                tablet.leader = tablet.leader.map(|leader| if leader == from { to } else { leader });
            }
            Action::Split { parts } => {
                let parent = self.picture.tablets.remove(&decision.tablet).expect("it was found above");
                for part in 0..u64::from(parts) {
                    let child = TabletView { bytes: parent.bytes / u64::from(parts), ..parent.clone() };
                    self.picture.tablets.insert(TabletId(decision.tablet.0 * 1_000 + part), child);
                }
            }
        }
    }

    /// Runs the plan for so long; `load` gives a tablet's requests at a time in seconds.
    fn run(&mut self, seconds: u64, load: impl Fn(TabletId, f64) -> u64) -> Vec<(Tick, Decision)> {
        let mut planner = Planner::new(PlanSettings::default());
        let mut done = Vec::new();
        for round in 0..seconds * 1_000 / ROUND_MS {
            let now = Tick(round * ROUND_MS);
            for (id, tablet) in &mut self.picture.tablets {
                tablet.requests = load(*id, now.0 as f64 / 1_000.0);
            }
            let decisions = planner.step(now, &mut self.picture());
            decisions.iter().for_each(|decision| self.carry_out(decision));
            done.extend(decisions.into_iter().map(|decision| (now, decision)));
        }
        done
    }

    /// How many of something each server has.
    fn count(&self, of: impl Fn(&TabletView) -> Vec<ServerId>) -> Vec<usize> {
        let mut counts: BTreeMap<ServerId, usize> =
            self.picture.servers.keys().map(|server| (*server, 0)).collect();
        for server in self.picture.tablets.values().flat_map(of) {
            *counts.entry(server).or_default() += 1;
        }
        counts.into_values().collect()
    }

    fn leaders(&self) -> Vec<usize> {
        self.count(|tablet| tablet.leader.into_iter().collect())
    }

    fn copies(&self) -> Vec<usize> {
        self.count(|tablet| tablet.copies.clone())
    }
}

fn idle(_: TabletId, _: f64) -> u64 {
    0
}

/// No tablet goes back to where it was.
fn assert_nothing_returns(done: &[(Tick, Decision)]) {
    let mut left: BTreeSet<(TabletId, ServerId, &str)> = BTreeSet::new();
    for (at, decision) in done {
        let (from, to) = match decision.action {
            Action::HandOver { from, to } | Action::Move { from, to } => (from, to),
            Action::Split { .. } => continue,
        };
        let name = decision.action.name();
        assert!(!left.contains(&(decision.tablet, to, name)), "at {at} {decision:?} returns");
        left.insert((decision.tablet, from, name));
    }
}

#[test]
fn leaders_of_one_server_are_spread_over_all() {
    let mut cluster = Cluster::new(&["", "", "", "", ""]);
    (1..=100).for_each(|tablet| cluster.add(tablet, &[1, 2 + tablet % 4, 2 + (tablet + 1) % 4], 0));
    let done = cluster.run(600, idle);
    assert!(
        done.first().is_some_and(|(at, _)| at.0 == 60_000),
        "not before it has lasted: {:?}",
        done.first()
    );
    let leaders = cluster.leaders();
    assert!(leaders.iter().all(|count| (17..=23).contains(count)), "{leaders:?}");
    assert_nothing_returns(&done);
}

#[test]
fn copies_of_three_servers_are_spread_over_six_and_zones_stay_apart() {
    let zones = ["a", "b", "c", "a", "b", "c"];
    let mut cluster = Cluster::new(&zones);
    (1..=60).for_each(|tablet| cluster.add(tablet, &[1, 2, 3], 10_000_000));
    let done = cluster.run(1_800, idle);
    let copies = cluster.copies();
    assert!(copies.iter().all(|count| (26..=34).contains(count)), "{copies:?}");
    let leaders = cluster.leaders();
    assert!(leaders.iter().all(|count| (7..=13).contains(count)), "{leaders:?}");
    for tablet in cluster.picture.tablets.values() {
        let zone = |server: &ServerId| zones[server.0 as usize - 1];
        assert_eq!(tablet.copies.iter().map(zone).collect::<BTreeSet<_>>().len(), 3);
    }
    assert_nothing_returns(&done);
}

#[test]
fn the_only_copies_follow_bytes() {
    let mut cluster = Cluster::new(&["", ""]);
    (1..=4).for_each(|tablet| cluster.add(tablet, &[1], 500_000_000));
    (5..=8).for_each(|tablet| cluster.add(tablet, &[2], 5_000_000));
    cluster.run(1_800, idle);
    let on = |server: u64| {
        let here = cluster.picture.tablets.values().filter(|tablet| tablet.copies == [ServerId(server)]);
        here.map(|tablet| tablet.bytes).sum::<u64>() / 1_000_000
    };
    assert!(on(1).abs_diff(on(2)) < 50, "{} and {} MB", on(1), on(2));
}

#[test]
fn what_is_even_is_left_alone() {
    let mut cluster = Cluster::new(&["", "", ""]);
    for tablet in 1..=10 {
        let at = |more| 1 + (tablet + more) % 3;
        cluster.add(tablet, &[at(0), at(1), at(2)], 1_000 * tablet);
    }
    assert_eq!(cluster.run(3_600, |tablet, _| tablet.0), []);
}

#[test]
fn a_busy_tablet_makes_room_for_itself() {
    let mut cluster = Cluster::new(&["", "", ""]);
    (1..=30).for_each(|tablet| {
        let at = |more| 1 + (tablet + more) % 3;
        cluster.add(tablet, &[at(0), at(1), at(2)], 0);
    });
    let busy = |tablet: TabletId, _| if tablet.0.is_multiple_of(3) { 1_000 } else { 10 };
    let done = cluster.run(3_600, busy);
    let load = |server: u64| {
        let led =
            cluster.picture.tablets.iter().filter(|(_, tablet)| tablet.leader == Some(ServerId(server)));
        led.map(|(id, _)| busy(*id, 0.0)).sum::<u64>()
    };
    let loads = [load(1), load(2), load(3)];
    assert!(loads.iter().all(|load| (2_000..=6_000).contains(load)), "{loads:?} {:?}", cluster.leaders());
    // The averages reach the load only after a quarter of an hour, so that an idle tablet may
    // go and come back once; it does not go on so.
    for id in cluster.picture.tablets.keys() {
        let moves = done.iter().filter(|(_, decision)| decision.tablet == *id).count();
        assert!(moves <= 2, "{id} was moved {moves} times");
    }
}

/// Requests between 0 and 2,000 in waves of `period` seconds, each server's at another time.
fn wave(tablet: TabletId, seconds: f64, period: f64) -> u64 {
    let phase = (tablet.0 % 3) as f64 / 3.0;
    let turn = (seconds / period + phase) * std::f64::consts::TAU;
    (1_000.0 * (1.0 + turn.sin())) as u64
}

#[test]
fn waves_of_load_do_not_flap_in_an_hour() {
    for period in [30.0, 120.0, 300.0, 600.0] {
        let mut cluster = Cluster::new(&["", "", ""]);
        for tablet in 1..=30 {
            let at = |more| 1 + (tablet + more) % 3;
            cluster.add(tablet, &[at(0), at(1), at(2)], 1_000_000);
        }
        let done = cluster.run(3_600, |tablet, seconds| wave(tablet, seconds, period));
        assert!(done.len() <= 6, "period {period}: {} moves: {done:?}", done.len());
        assert_nothing_returns(&done);
    }
}

#[test]
fn a_tablet_that_grows_is_split_and_its_parts_are_spread() {
    let mut cluster = Cluster::new(&["", "", "", ""]);
    cluster.split_bytes = 100_000_000;
    cluster.add(1, &[1], 3_000_000_000);
    let done = cluster.run(3_600, idle);
    let splits = done.iter().filter(|(_, decision)| matches!(decision.action, Action::Split { .. }));
    assert_eq!(splits.count(), 1, "the parts need no split");
    let copies = cluster.copies();
    assert!(copies.iter().all(|count| (6..=9).contains(count)), "{copies:?}");
    assert_nothing_returns(&done);
}

#[test]
fn a_full_server_takes_nothing() {
    let mut cluster = Cluster::new(&["", ""]);
    (1..=20).for_each(|tablet| cluster.add(tablet, &[1], 0));
    cluster.picture.servers.get_mut(&ServerId(2)).expect("there are two").takes_copies = false;
    assert_eq!(cluster.run(600, idle), []);
}
