//! A cluster that does what the plan says, for tests: an hour passes in milliseconds.

use super::picture::{Picture, Seam, ServerView, TabletView};
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
    pub split_load: u64,
    /// Which share of the keys each tablet has, for loads that go by keys.
    spans: BTreeMap<TabletId, (f64, f64)>,
    next: u64,
}

impl Cluster {
    /// Servers 1, 2, ... in these zones.
    pub fn new(zones: &[&str]) -> Self {
        let view = |zone: &&str| ServerView { zone: (*zone).to_owned(), takes_copies: true };
        let servers = (1..).zip(zones).map(|(id, zone)| (ServerId(id), view(zone))).collect();
        let picture = Picture { servers, tablets: BTreeMap::new() };
        Self { picture, split_bytes: u64::MAX, split_load: 0, spans: BTreeMap::new(), next: 1_000_000 }
    }

    /// A tablet with copies on these servers, led by the first.
    pub fn add(&mut self, id: u64, servers: &[u64], bytes: u64) {
        let copies: Vec<ServerId> = servers.iter().map(|server| ServerId(*server)).collect();
        let tablet = TabletView {
            split_bytes: self.split_bytes,
            split_load: self.split_load,
            seam: Seam::First,
            wanted: copies.len(),
            bytes,
            requests: 0,
            recent: 0,
            leader: copies.first().copied(),
            in_sync: copies.clone(),
            copies,
            work: None,
        };
        self.picture.tablets.insert(TabletId(id), tablet);
        self.spans.insert(TabletId(id), (0.0, 1.0));
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
            Action::Split { parts, .. } => self.split(decision.tablet, parts),
            Action::Merge { right } => self.merge(decision.tablet, right),
        }
    }

    /// Cuts a tablet into parts of the same bytes and the same share of the keys.
    fn split(&mut self, id: TabletId, parts: u32) {
        let parent = self.picture.tablets.remove(&id).expect("it was found");
        let (from, to) = self.spans.remove(&id).expect("every tablet has a span");
        for part in 0..parts {
            let at = |part: u32| from + (to - from) * f64::from(part) / f64::from(parts);
            let child = TabletView { bytes: parent.bytes / u64::from(parts), ..parent.clone() };
            self.insert(child, (at(part), at(part + 1)));
        }
        self.join_seams();
    }

    /// One tablet of two that lie side by side, where the left one was.
    fn merge(&mut self, left: TabletId, right: TabletId) {
        let mut take = |id| {
            let tablet = self.picture.tablets.remove(&id).expect("both are there");
            (tablet, self.spans.remove(&id).expect("every tablet has a span"))
        };
        let ((first, (from, middle)), (second, (begin, to))) = (take(left), take(right));
        assert!((middle - begin).abs() < 1e-9, "neighbours are merged");
        self.insert(TabletView { bytes: first.bytes + second.bytes, ..first }, (from, to));
        self.join_seams();
    }

    fn insert(&mut self, tablet: TabletView, span: (f64, f64)) {
        self.next += 1;
        self.picture.tablets.insert(TabletId(self.next), tablet);
        self.spans.insert(TabletId(self.next), span);
    }

    /// Every boundary may go.
    fn join_seams(&mut self) {
        let mut order: Vec<_> = self.spans.iter().map(|(id, (from, _))| (*from, *id)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        for pair in order.windows(2) {
            let tablet = self.picture.tablets.get_mut(&pair[1].1).expect("every span has a tablet");
            tablet.seam = Seam::Loose(pair[0].1);
        }
    }

    /// Runs the plan for so long. `load` gives the requests per second of a share of the keys
    /// at a time in seconds.
    fn run_over_keys(
        &mut self,
        seconds: u64,
        load: impl Fn((f64, f64), f64) -> u64,
    ) -> Vec<(Tick, Decision)> {
        self.run_with(seconds, |cluster, seconds| {
            for (id, tablet) in &mut cluster.picture.tablets {
                tablet.requests = load(cluster.spans[id], seconds);
            }
        })
    }

    /// Runs the plan for so long; `load` gives a tablet's requests at a time in seconds.
    fn run(&mut self, seconds: u64, load: impl Fn(TabletId, f64) -> u64) -> Vec<(Tick, Decision)> {
        self.run_with(seconds, |cluster, seconds| {
            for (id, tablet) in &mut cluster.picture.tablets {
                tablet.requests = load(*id, seconds);
            }
        })
    }

    fn run_with(&mut self, seconds: u64, set_load: impl Fn(&mut Self, f64)) -> Vec<(Tick, Decision)> {
        let mut planner = Planner::new(PlanSettings::default());
        let mut done = Vec::new();
        for round in 0..seconds * 1_000 / ROUND_MS {
            let now = Tick(round * ROUND_MS);
            set_load(self, now.0 as f64 / 1_000.0);
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
            Action::Split { .. } | Action::Merge { .. } => continue,
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

fn splits_and_merges(done: &[(Tick, Decision)]) -> (usize, usize) {
    let count = |name| done.iter().filter(|(_, decision)| decision.action.name() == name).count();
    (count("split"), count("merge"))
}

#[test]
fn a_sudden_hot_spot_is_split_within_about_a_minute_and_spread() {
    for factor in [3, 8] {
        let mut cluster = Cluster::new(&["", "", ""]);
        cluster.split_load = 1_000;
        cluster.add(1, &[1, 2, 3], 1_000_000);
        let begins = 300.0;
        let rate = move |seconds: f64| if seconds < begins { 10.0 } else { 500.0 * f64::from(factor) };
        let done = cluster.run_over_keys(1_200, |(from, to), seconds| (rate(seconds) * (to - from)) as u64);
        let first = done.first().map(|(at, decision)| (at.0 / 1_000, decision.action.name()));
        let (at, name) = first.expect("something is done");
        assert!(name == "split" && (330..=375).contains(&at), "{name} at {at}");
        // The parts have less than is wanted at most, and each server leads some.
        let (splits, merges) = splits_and_merges(&done);
        assert!(splits <= 3 && merges == 0, "{done:?}");
        let tablets = cluster.picture.tablets.len();
        assert!((2..=16).contains(&tablets), "{tablets}");
        let leading = cluster.leaders().into_iter().filter(|count| *count > 0).count();
        assert_eq!(leading, tablets.min(3), "{:?}", cluster.leaders());
    }
}

#[test]
fn waves_of_load_do_not_split_and_merge_in_turns() {
    for period in [30.0, 120.0, 300.0, 600.0, 1_800.0] {
        let mut cluster = Cluster::new(&["", "", ""]);
        cluster.split_load = 1_500;
        cluster.add(1, &[1, 2, 3], 1_000_000);
        let wave = |seconds: f64| 4_000.0 * (1.0 + (seconds / period * std::f64::consts::TAU).sin());
        let load = |(from, to): (f64, f64), seconds: f64| (wave(seconds) * (to - from)) as u64;
        let done = cluster.run_over_keys(4 * 3_600, load);
        let (splits, merges) = splits_and_merges(&done);
        assert!((1..=8).contains(&splits) && merges == 0, "{period}: {splits} splits, {merges} merges");
        let late = done.iter().filter(|(at, _)| at.0 > 3_600_000);
        assert_eq!(splits_and_merges(&late.copied().collect::<Vec<_>>()), (0, 0), "{period}");
    }
}

#[test]
fn what_was_split_for_a_load_is_merged_an_hour_after_it_has_gone() {
    let mut cluster = Cluster::new(&["", "", ""]);
    cluster.split_load = 1_000;
    cluster.add(1, &[1, 2, 3], 1_000_000);
    let rate = |seconds: f64| if seconds < 1_800.0 { 6_000.0 } else { 20.0 };
    let done = cluster.run_over_keys(12 * 3_600, |(from, to), seconds| (rate(seconds) * (to - from)) as u64);
    let (splits, merges) = splits_and_merges(&done);
    assert!(splits >= 1 && merges >= 5, "{splits} splits, {merges} merges");
    assert_eq!(cluster.picture.tablets.len(), 1, "one tablet is enough again");
    let first = done.iter().find(|(_, decision)| decision.action.name() == "merge");
    let at = first.map_or(0, |(at, _)| at.0 / 1_000);
    assert!((1_800 + 3_600..1_800 + 3 * 3_600).contains(&at), "the first merge at {at} s");
}
