//! What the cluster does by itself: it splits tablets that grew or are busy, merges neighbours
//! that have long been idle, and spreads leaders and copies.
//!
//! ```text
//!   picture (who is up, what each tablet weighs) ──▶ plan ──▶ decisions, each with its reason
//! ```
//!
//! - A round plans from what is there, not from what an earlier round wanted; what it remembers
//!   ([`Planner`]) only slows it down. Losing it costs a minute, and an hour before anything is
//!   merged.
//! - An imbalance must last before anything is moved, and a tablet that was moved stays where it
//!   is for a while, so that a load that comes and goes moves nothing to and fro.
//! - Nothing is moved that would not make the two servers clearly more equal.
//!
//! Knows nothing of jobs' records, connections and clocks: whoever runs it carries the
//! decisions out by the ways that operators use.

mod balance;
mod busy;
mod load_cut;
mod merge;
mod picture;
mod rates;
mod reason;
#[cfg(test)]
mod simulated;
mod split;
mod steadiness;
mod why;

pub use load_cut::{LoadCut, LoadSample, cut_load};
pub use picture::{Observed, Picture, Room, Seam, ServerView, Size, TabletView, Work};
pub use reason::{Action, Decision, Measure, Reason};
pub use why::Neighbours;

use crate::ids::{ServerId, TabletId, Tick};
use crate::limits::{
    BALANCE_CALM_TIMES, BALANCE_LASTS_MS_DEFAULT, HAND_OVER_PATIENCE_MS, LOAD_SAMPLE_RETRY_MS,
    SPLIT_REFUSED_PAUSE_MS, SPLIT_START_PATIENCE_MS,
};
use busy::Busy;
use merge::Calm;
use rates::Rates;
use std::collections::BTreeMap;
use steadiness::Steadiness;

/// What may be set of the planner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlanSettings {
    /// How long an imbalance must last before something is moved, in milliseconds. A tablet
    /// that was moved stays for [`BALANCE_CALM_TIMES`] times as long.
    pub lasts_ms: u64,
}

/// Why something that was decided was not begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It could not be done, as the decision's outcome says.
    Failed,
    /// One key has most of the requests.
    HotKey,
    /// The requests go along the keys, so that no cut would halve them.
    Wandering,
    /// Too few requests were sampled so far.
    TooEarly,
}

impl Default for PlanSettings {
    fn default() -> Self {
        Self { lasts_ms: BALANCE_LASTS_MS_DEFAULT }
    }
}

/// What paces the plan. Everything in it can be forgotten.
#[derive(Clone, Debug, Default)]
pub struct Planner {
    settings: PlanSettings,
    rates: Rates,
    busy: Busy,
    calm: Calm,
    leaders: Steadiness,
    copies: Steadiness,
    /// Tablets that were moved, and until when they stay.
    resting: BTreeMap<TabletId, Tick>,
    /// Splits and merges that were decided and have no job yet.
    begun: BTreeMap<TabletId, (Work, Tick)>,
    /// Tablets with which something could not be done, and until when that is not tried again.
    refused: BTreeMap<TabletId, (Refusal, Tick)>,
    /// Tablets whose leadership is being handed over, and to whom.
    handed: BTreeMap<TabletId, (ServerId, Tick)>,
}

impl Planner {
    /// A planner that has seen nothing.
    #[must_use]
    pub fn new(settings: PlanSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Forgets everything: another master led meanwhile.
    pub fn reset(&mut self) {
        *self = Self::new(self.settings);
    }

    /// Takes a picture and says what to do now.
    pub fn step(&mut self, now: Tick, picture: &mut Picture) -> Vec<Decision> {
        self.observe(now, picture);
        self.decide(now, picture)
    }

    /// What it would do now. Nothing is remembered of it.
    #[must_use]
    pub fn dry_run(&self, now: Tick, mut picture: Picture) -> Vec<Decision> {
        let mut planner = self.clone();
        planner.rates.fill(&mut picture);
        planner.show_known(&mut picture);
        planner.decide(now, &mut picture)
    }

    fn decide(&mut self, now: Tick, picture: &mut Picture) -> Vec<Decision> {
        let mut decisions = self.plan_splits(now, picture);
        self.begin(now, picture, &decisions);
        let merges = self.plan_merges(now, picture);
        self.begin(now, picture, &merges);
        let rests = |tablet: TabletId| self.resting.contains_key(&tablet);
        let lasts_ms = self.settings.lasts_ms;
        let mut moves = balance::copies(picture, &self.copies.lasting(now, lasts_ms), rests);
        for decision in &moves {
            self.rest(now, decision);
        }
        let rests = |tablet: TabletId| self.resting.contains_key(&tablet);
        let handed = balance::leaders(picture, &self.leaders.lasting(now, lasts_ms), rests);
        for decision in &handed {
            self.rest(now, decision);
        }
        decisions.extend(merges);
        decisions.append(&mut moves);
        decisions.extend(handed);
        decisions
    }

    fn plan_splits(&self, now: Tick, picture: &Picture) -> Vec<Decision> {
        let patience_ms = busy::patience_ms(self.settings.lasts_ms);
        let is_busy = |tablet: TabletId| {
            let is_now = picture.tablets.get(&tablet).is_some_and(busy::is_too_busy);
            is_now && self.busy.lasting_ms(now, tablet).is_some_and(|ms| ms >= patience_ms)
        };
        split::plan(picture, is_busy, |tablet| self.refused.contains_key(&tablet))
    }

    fn plan_merges(&self, now: Tick, picture: &Picture) -> Vec<Decision> {
        let patience_ms = merge::patience_ms(self.settings.lasts_ms);
        let is_calm = |tablet| self.calm.lasting_ms(now, tablet).is_some_and(|ms| ms >= patience_ms);
        merge::plan(picture, is_calm, |tablet| self.refused.contains_key(&tablet))
    }

    /// Remembers splits and merges until their jobs are there, and shows them in the picture.
    fn begin(&mut self, now: Tick, picture: &mut Picture, decisions: &[Decision]) {
        let until = now.plus_ms(SPLIT_START_PATIENCE_MS);
        for decision in decisions {
            match decision.action {
                Action::Split { .. } => {
                    self.begun.insert(decision.tablet, (Work::Split, until));
                }
                Action::Merge { right } => {
                    self.begun.insert(decision.tablet, (Work::Merge, until));
                    self.begun.insert(right, (Work::Merge, until));
                }
                Action::HandOver { .. } | Action::Move { .. } => {}
            }
        }
        self.show_begun(picture);
    }

    /// Takes a picture in without deciding anything: somebody has paused what the cluster
    /// does by itself.
    pub fn look(&mut self, now: Tick, picture: &mut Picture) {
        self.observe(now, picture);
    }

    fn observe(&mut self, now: Tick, picture: &mut Picture) {
        self.resting.retain(|_, until| *until > now);
        self.refused.retain(|_, (_, until)| *until > now);
        self.handed.retain(|_, (_, until)| *until > now);
        let has_no_job = |id: &TabletId| picture.tablets.get(id).is_some_and(|tablet| tablet.work.is_none());
        self.begun.retain(|id, (_, until)| *until > now && has_no_job(id));
        self.rates.smooth(now, picture, self.settings.lasts_ms);
        self.show_known(picture);
        self.busy.note(now, picture);
        self.calm.note(now, picture);
        self.leaders.note(now, balance::leader_weights(picture).sides());
        self.copies.note(now, balance::copy_weights(picture).sides());
    }

    /// Lets the picture show what was decided and is not to be seen yet.
    fn show_known(&self, picture: &mut Picture) {
        for (id, (to, _)) in &self.handed {
            if let Some(tablet) = picture.tablets.get_mut(id) {
                tablet.leader = tablet.leader.map(|_| *to);
            }
        }
        self.show_begun(picture);
    }

    /// Lets the picture show splits and merges that have no job yet.
    fn show_begun(&self, picture: &mut Picture) {
        for (id, (work, _)) in &self.begun {
            if let Some(tablet) = picture.tablets.get_mut(id) {
                tablet.work = Some(*work);
            }
        }
    }

    /// Whether a tablet has more requests than its table wants.
    #[must_use]
    pub fn is_too_busy(&self, tablet: TabletId) -> bool {
        self.busy.is_noted(tablet)
    }

    /// What was decided could not be begun.
    pub fn not_begun(&mut self, now: Tick, decision: &Decision, why: Refusal) {
        self.begun.remove(&decision.tablet);
        match decision.action {
            Action::Merge { right } => drop(self.begun.remove(&right)),
            Action::Split { .. } => {}
            Action::HandOver { .. } | Action::Move { .. } => return,
        }
        let pause_ms = match why {
            Refusal::Failed | Refusal::HotKey | Refusal::Wandering => SPLIT_REFUSED_PAUSE_MS,
            Refusal::TooEarly => LOAD_SAMPLE_RETRY_MS,
        };
        self.refused.insert(decision.tablet, (why, now.plus_ms(pause_ms)));
    }

    fn rest(&mut self, now: Tick, decision: &Decision) {
        let calm_ms = self.settings.lasts_ms.saturating_mul(BALANCE_CALM_TIMES);
        self.resting.insert(decision.tablet, now.plus_ms(calm_ms));
        if let Action::HandOver { to, .. } = decision.action {
            self.handed.insert(decision.tablet, (to, now.plus_ms(HAND_OVER_PATIENCE_MS)));
        }
    }
}
