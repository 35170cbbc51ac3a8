//! Leaders and copies spread over servers.
//!
//! A leadership weighs one unit, and one more on average for its requests; a copy weighs a
//! quarter of a unit, and one on average for its bytes. With little load the number of tablets
//! decides, with much both do, and nothing jumps in between. A server is *heavy* or *light* when it is so many percent, and
//! at least a unit, off the mean. A step takes the tablet whose move makes source and target
//! most equal, and never one that would leave the target nearly as heavy as the source was.

use super::picture::{Picture, TabletView, Work};
use super::reason::{Action, Decision, Reason};
use super::steadiness::Side;
use crate::ids::{ServerId, TabletId};
use crate::limits::{
    AUTOMATIC_MOVES_MAX, BALANCE_TOLERANCE_PERCENT, BYTES_MEAN_FLOOR, HAND_OVERS_PER_SERVER_MAX,
    MOVE_TARGETS_TRIED_MAX, REQUESTS_MEAN_FLOOR,
};
use std::collections::{BTreeMap, BTreeSet};

/// What a tablet without load weighs.
pub(super) const UNIT: u64 = 1_000;

/// What every server has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Weights {
    of: BTreeMap<ServerId, u64>,
    total: u64,
}

impl Weights {
    fn none(picture: &Picture) -> Self {
        Self { of: picture.servers.keys().map(|server| (*server, 0)).collect(), total: 0 }
    }

    /// More for a server; one that is not up counts for nothing.
    fn add(&mut self, server: ServerId, weight: u64) {
        if let Some(all) = self.of.get_mut(&server) {
            *all += weight;
            self.total += weight;
        }
    }

    fn shift(&mut self, from: ServerId, to: ServerId, weight: u64) {
        self.add(to, weight);
        if let Some(all) = self.of.get_mut(&from) {
            let gone = weight.min(*all);
            *all -= gone;
            self.total -= gone;
        }
    }

    /// What a server has; none for one that is not up.
    pub fn of(&self, server: ServerId) -> Option<u64> {
        self.of.get(&server).copied()
    }

    pub fn mean(&self) -> u64 {
        self.total / (self.of.len() as u64).max(1)
    }

    /// Servers that are clearly off the mean.
    pub fn sides(&self) -> BTreeMap<ServerId, Side> {
        let mean = self.mean();
        let tolerance = (mean * BALANCE_TOLERANCE_PERCENT / 100).max(UNIT);
        let side = |weight: u64| {
            let light = weight + tolerance <= mean;
            let heavy = weight >= mean + tolerance;
            heavy.then_some(Side::Heavy).or(light.then_some(Side::Light))
        };
        self.of.iter().filter_map(|(server, weight)| Some((*server, side(*weight)?))).collect()
    }

    /// Servers from the heaviest on.
    fn falling(&self) -> Vec<ServerId> {
        let mut servers: Vec<_> = self.of.iter().collect();
        servers.sort_by_key(|(server, weight)| (u64::MAX - **weight, **server));
        servers.into_iter().map(|(server, _)| *server).collect()
    }
}

/// Turns loads into weights: a unit, and so much as the load is to the mean load, or to `floor`.
#[derive(Clone, Copy)]
struct Scale {
    mean: u64,
}

impl Scale {
    fn new(picture: &Picture, load: impl Fn(&TabletView) -> u64, floor: u64) -> Self {
        let total: u128 = picture.tablets.values().map(|tablet| u128::from(load(tablet))).sum();
        let mean = total / (picture.tablets.len() as u128).max(1);
        Self { mean: u64::try_from(mean).unwrap_or(u64::MAX).max(floor) }
    }

    fn share(self, load: u64) -> u64 {
        let share = u128::from(load) * u128::from(UNIT) / u128::from(self.mean.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }
}

fn by_requests(picture: &Picture) -> Scale {
    Scale::new(picture, |tablet| tablet.requests, REQUESTS_MEAN_FLOOR)
}

/// Weights of copies: by bytes, and by requests where the one copy must lead.
struct CopyScale {
    bytes: Scale,
    requests: Scale,
}

impl CopyScale {
    fn new(picture: &Picture) -> Self {
        let bytes = Scale::new(picture, |tablet| tablet.bytes, BYTES_MEAN_FLOOR);
        Self { bytes, requests: by_requests(picture) }
    }

    fn weight(&self, tablet: &TabletView) -> u64 {
        let leads = if tablet.wanted == 1 { self.requests.share(tablet.requests) } else { 0 };
        UNIT / 4 + self.bytes.share(tablet.bytes) + leads
    }
}

/// What every server leads.
pub(super) fn leader_weights(picture: &Picture) -> Weights {
    let scale = by_requests(picture);
    let mut weights = Weights::none(picture);
    for tablet in picture.tablets.values() {
        tablet.leader.into_iter().for_each(|leader| weights.add(leader, UNIT + scale.share(tablet.requests)));
    }
    weights
}

/// What every server holds, once the copies that are on their way have arrived.
pub(super) fn copy_weights(picture: &Picture) -> Weights {
    let scale = CopyScale::new(picture);
    let mut weights = Weights::none(picture);
    for tablet in picture.tablets.values() {
        let (from, to) = match tablet.work {
            Some(Work::Move { from, to }) => (from, Some(to)),
            Some(Work::Split | Work::Merge) | None => (None, None),
        };
        let weight = scale.weight(tablet);
        let stays = tablet.copies.iter().filter(|server| Some(**server) != from && Some(**server) != to);
        stays.chain(&to).for_each(|server| weights.add(*server, weight));
    }
    weights
}

/// A tablet that could go from one server to another.
#[derive(Clone, Copy)]
struct Candidate {
    tablet: TabletId,
    from: ServerId,
    to: ServerId,
    weight: u64,
}

/// Whether so much lasts that something may go from one server to another.
fn is_uneven(lasting: &BTreeMap<ServerId, Side>, from: ServerId, to: ServerId) -> bool {
    lasting.get(&from) == Some(&Side::Heavy) || lasting.get(&to) == Some(&Side::Light)
}

/// By how much one server has more than another, if so much lasts that something may go.
fn gap(weights: &Weights, lasting: &BTreeMap<ServerId, Side>, from: ServerId, to: ServerId) -> Option<u64> {
    let (more, less) = (weights.of(from)?, weights.of(to)?);
    let mean = weights.mean();
    let heavy = lasting.get(&from) == Some(&Side::Heavy) && more > mean && less <= mean;
    let light = lasting.get(&to) == Some(&Side::Light) && less < mean && more >= mean;
    more.checked_sub(less).filter(|gap| *gap >= 2 * UNIT && (heavy || light))
}

/// How much more equal two servers become when so much goes; none when that is not clear: what
/// is left of the gap must be at most half of it, on either side.
fn gain(gap: u64, weight: u64) -> Option<u128> {
    let is_clear = weight.saturating_mul(4) <= gap.saturating_mul(3);
    is_clear.then(|| u128::from(weight) * u128::from(gap.saturating_sub(weight)))
}

/// The best of some candidates and their gaps; of equal ones the first.
fn best(candidates: impl Iterator<Item = (Candidate, u64)>) -> Option<Candidate> {
    let mut best: Option<(u128, Candidate)> = None;
    for (candidate, gap) in candidates {
        if let Some(gain) = gain(gap, candidate.weight)
            && best.is_none_or(|(most, _)| gain > most)
        {
            best = Some((gain, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Leaderships to hand over now.
pub(super) fn leaders(
    picture: &Picture,
    lasting: &BTreeMap<ServerId, Side>,
    rests: impl Fn(TabletId) -> bool,
) -> Vec<Decision> {
    if lasting.is_empty() {
        return Vec::new();
    }
    let scale = by_requests(picture);
    let mut weights = leader_weights(picture);
    let mut led: BTreeMap<ServerId, Vec<(TabletId, &TabletView)>> = BTreeMap::new();
    for (id, tablet) in picture.tablets.iter().filter(|(id, tablet)| tablet.work.is_none() && !rests(**id)) {
        tablet.leader.into_iter().for_each(|leader| led.entry(leader).or_default().push((*id, tablet)));
    }
    let (mut decisions, mut taken) = (Vec::new(), BTreeSet::new());
    let mut received: BTreeMap<ServerId, usize> = BTreeMap::new();
    for from in weights.falling() {
        for _ in 0..HAND_OVERS_PER_SERVER_MAX {
            let tablets = led.get(&from).into_iter().flatten().filter(|(id, _)| !taken.contains(id));
            let candidates = tablets.flat_map(|(id, tablet)| {
                let weight = UNIT + scale.share(tablet.requests);
                let heirs = tablet.in_sync.iter().copied().filter(|to| {
                    is_uneven(lasting, from, *to)
                        && received.get(to).copied().unwrap_or(0) < HAND_OVERS_PER_SERVER_MAX
                });
                let gaps = heirs.filter_map(|to| Some((to, gap(&weights, lasting, from, to)?)));
                gaps.map(move |(to, gap)| (Candidate { tablet: *id, from, to, weight }, gap))
            });
            let Some(one) = best(candidates) else { break };
            let reason = Reason::LeadersUneven { from: weights.of[&one.from], to: weights.of[&one.to] };
            let action = Action::HandOver { from, to: one.to };
            decisions.push(Decision { tablet: one.tablet, action, reason });
            taken.insert(one.tablet);
            *received.entry(one.to).or_default() += 1;
            weights.shift(from, one.to, one.weight);
        }
    }
    decisions
}

/// Copies to move now: one to and one from each server at a time.
pub(super) fn copies(
    picture: &Picture,
    lasting: &BTreeMap<ServerId, Side>,
    rests: impl Fn(TabletId) -> bool,
) -> Vec<Decision> {
    if lasting.is_empty() {
        return Vec::new();
    }
    let scale = CopyScale::new(picture);
    let mut weights = copy_weights(picture);
    let mut moves = Moves::under_way(picture);
    let mut held: BTreeMap<ServerId, Vec<(TabletId, &TabletView)>> = BTreeMap::new();
    for (id, tablet) in picture.tablets.iter().filter(|(id, tablet)| tablet.is_at_rest() && !rests(**id)) {
        // A copy that leads is first let off leading, unless it is the only one.
        let may_go = tablet.copies.iter().filter(|copy| tablet.wanted == 1 || tablet.leader != Some(**copy));
        may_go.for_each(|server| held.entry(*server).or_default().push((*id, tablet)));
    }
    let (mut decisions, mut taken) = (Vec::new(), BTreeSet::new());
    let mut targets = moves.targets(picture, &weights);
    for from in weights.falling() {
        if moves.count >= AUTOMATIC_MOVES_MAX || moves.from.contains(&from) {
            continue;
        }
        // Most servers have no use for any target: they are not looked at further.
        let of_use: Vec<(ServerId, u64)> =
            targets.iter().filter_map(|to| Some((*to, gap(&weights, lasting, from, *to)?))).collect();
        if of_use.is_empty() {
            continue;
        }
        let tablets = held.get(&from).into_iter().flatten().filter(|(id, _)| !taken.contains(id));
        let candidates = tablets.flat_map(|(id, tablet)| {
            let weight = scale.weight(tablet);
            let clear = of_use.iter().filter(move |(_, gap)| gain(*gap, weight).is_some());
            let free = clear.filter(|(to, _)| fits(picture, tablet, from, *to));
            free.map(move |(to, gap)| (Candidate { tablet: *id, from, to: *to, weight }, *gap))
        });
        let Some(one) = best(candidates) else { continue };
        let reason = Reason::CopiesUneven { from: weights.of[&one.from], to: weights.of[&one.to] };
        let action = Action::Move { from, to: one.to };
        decisions.push(Decision { tablet: one.tablet, action, reason });
        taken.insert(one.tablet);
        moves.begin(from, one.to);
        weights.shift(from, one.to, one.weight);
        targets = moves.targets(picture, &weights);
    }
    decisions
}

/// Whether a copy may go there: no other copy is there, and as many zones have one as before.
fn fits(picture: &Picture, tablet: &TabletView, from: ServerId, to: ServerId) -> bool {
    let zone = |server: ServerId| picture.servers.get(&server).map(|view| view.zone.as_str());
    let others = || tablet.copies.iter().copied().filter(|server| *server != from);
    let is_used = |zone_of: Option<&str>| others().any(|server| zone(server) == zone_of);
    !tablet.copies.contains(&to) && (!is_used(zone(to)) || is_used(zone(from)))
}

/// Moves that are under way.
#[derive(Default)]
struct Moves {
    count: usize,
    from: BTreeSet<ServerId>,
    to: BTreeSet<ServerId>,
}

impl Moves {
    fn under_way(picture: &Picture) -> Self {
        let mut moves = Self::default();
        for tablet in picture.tablets.values() {
            match tablet.work {
                Some(Work::Move { from, to }) => {
                    moves.count += 1;
                    moves.from.extend(from);
                    moves.to.insert(to);
                }
                Some(Work::Split | Work::Merge) | None => {}
            }
        }
        moves
    }

    fn begin(&mut self, from: ServerId, to: ServerId) {
        self.count += 1;
        self.from.insert(from);
        self.to.insert(to);
    }

    /// The lightest servers to which nothing is on its way.
    fn targets(&self, picture: &Picture, weights: &Weights) -> Vec<ServerId> {
        let falling = weights.falling();
        let free = falling.into_iter().rev().filter(|server| {
            !self.to.contains(server) && picture.servers.get(server).is_some_and(|view| view.takes_copies)
        });
        free.take(MOVE_TARGETS_TRIED_MAX).collect()
    }
}
