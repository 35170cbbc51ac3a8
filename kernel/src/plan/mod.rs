//! What the cluster does by itself: it splits tablets that grew, and spreads leaders and copies.
//!
//! ```text
//!   picture (who is up, what each tablet weighs) ──▶ plan ──▶ decisions, each with its reason
//! ```
//!
//! - A round plans from what is there, not from what an earlier round wanted; what it remembers
//!   ([`Planner`]) only slows it down. Losing it costs a minute.
//! - An imbalance must last before anything is moved, and a tablet that was moved stays where it
//!   is for a while, so that a load that comes and goes moves nothing to and fro.
//! - Nothing is moved that would not make the two servers clearly more equal.
//!
//! Knows nothing of jobs' records, connections and clocks: whoever runs it carries the
//! decisions out by the ways that operators use.

mod balance;
mod picture;
mod rates;
mod reason;
#[cfg(test)]
mod simulated;
mod split;
mod steadiness;
mod why;

pub use picture::{Observed, Picture, Room, ServerView, Size, TabletView, Work};
pub use reason::{Action, Decision, Reason};

use crate::ids::{ServerId, TabletId, Tick};
use crate::limits::{
    BALANCE_CALM_TIMES, BALANCE_LASTS_MS_DEFAULT, HAND_OVER_PATIENCE_MS, SPLIT_REFUSED_PAUSE_MS,
    SPLIT_START_PATIENCE_MS,
};
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

impl Default for PlanSettings {
    fn default() -> Self {
        Self { lasts_ms: BALANCE_LASTS_MS_DEFAULT }
    }
}

/// What paces the plan. Everything in it can be forgotten.
#[derive(Debug, Default)]
pub struct Planner {
    settings: PlanSettings,
    rates: Rates,
    leaders: Steadiness,
    copies: Steadiness,
    /// Tablets that were moved, and until when they stay.
    resting: BTreeMap<TabletId, Tick>,
    /// Splits that were decided and have no job yet.
    splitting: BTreeMap<TabletId, Tick>,
    /// Tablets that could not be split, and until when that is not tried again.
    refused: BTreeMap<TabletId, Tick>,
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
        let mut decisions = split::plan(picture, |tablet| self.refused.contains_key(&tablet));
        for decision in &decisions {
            self.splitting.insert(decision.tablet, now.plus_ms(SPLIT_START_PATIENCE_MS));
        }
        self.show_splitting(picture);
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
        decisions.append(&mut moves);
        decisions.extend(handed);
        decisions
    }

    /// Takes a picture in without deciding anything: somebody has paused what the cluster
    /// does by itself.
    pub fn look(&mut self, now: Tick, picture: &mut Picture) {
        self.observe(now, picture);
        (self.leaders, self.copies) = (Steadiness::default(), Steadiness::default());
    }

    fn observe(&mut self, now: Tick, picture: &mut Picture) {
        self.resting.retain(|_, until| *until > now);
        self.refused.retain(|_, until| *until > now);
        self.handed.retain(|_, (_, until)| *until > now);
        let has_no_job = |id: &TabletId| picture.tablets.get(id).is_some_and(|tablet| tablet.work.is_none());
        self.splitting.retain(|id, until| *until > now && has_no_job(id));
        self.rates.smooth(now, picture, self.settings.lasts_ms);
        for (id, (to, _)) in &self.handed {
            if let Some(tablet) = picture.tablets.get_mut(id) {
                tablet.leader = tablet.leader.map(|_| *to);
            }
        }
        self.show_splitting(picture);
        self.leaders.note(now, balance::leader_weights(picture).sides());
        self.copies.note(now, balance::copy_weights(picture).sides());
    }

    /// Lets the picture show splits that are decided and have no job yet.
    fn show_splitting(&self, picture: &mut Picture) {
        for id in self.splitting.keys() {
            if let Some(tablet) = picture.tablets.get_mut(id) {
                tablet.work = Some(Work::Split);
            }
        }
    }

    /// A split that was decided could not be begun.
    pub fn split_failed(&mut self, now: Tick, tablet: TabletId) {
        self.splitting.remove(&tablet);
        self.refused.insert(tablet, now.plus_ms(SPLIT_REFUSED_PAUSE_MS));
    }

    fn rest(&mut self, now: Tick, decision: &Decision) {
        let calm_ms = self.settings.lasts_ms.saturating_mul(BALANCE_CALM_TIMES);
        self.resting.insert(decision.tablet, now.plus_ms(calm_ms));
        if let Action::HandOver { to, .. } = decision.action {
            self.handed.insert(decision.tablet, (to, now.plus_ms(HAND_OVER_PATIENCE_MS)));
        }
    }
}
