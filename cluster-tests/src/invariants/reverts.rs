//! m12, m31: a leader takes back writes of its own epoch only, none that it acknowledged, and
//! none that a published Q has reached; and it publishes no Q between a write and its revert.
//! m11: "reverted" is said when the revert, or the fence of the token, is safe.

use super::{CoreView, Invariant, Observation};
use crate::oracle::Oracle;
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::ids::{Epoch, Pos, TabletId};
use ebla_kernel::op::Token;
use std::collections::{BTreeMap, BTreeSet};

type Term = (TabletId, Epoch);

/// What leaders acknowledged, published and took back.
#[derive(Debug, Default)]
pub struct Reverts {
    acked: BTreeMap<Term, BTreeSet<Pos>>,
    q: BTreeMap<Term, Pos>,
    /// Reverts that Q has not passed: their position and that of their first target.
    open: BTreeMap<Term, Vec<(Pos, Pos)>>,
    /// Where each token was decided against.
    denied: BTreeMap<(TabletId, Token), Vec<Pos>>,
}

impl Invariant for Reverts {
    fn name(&self) -> &'static str {
        "m11, m12, m31 reverts"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::Appended { tablet, entry, .. } => self.appended(*tablet, entry),
            Observation::Acked { tablet, epoch, committed, .. } => {
                self.acked.entry((*tablet, *epoch)).or_default().insert(committed.pos);
                Ok(())
            }
            Observation::Stepped(view) => self.stepped(view),
            Observation::SaidReverted { tablet, epoch, token, .. } => {
                self.said(oracle, (*tablet, *epoch), *token)
            }
            Observation::Durable { .. }
            | Observation::Cut { .. }
            | Observation::Wiped { .. }
            | Observation::Applied { .. }
            | Observation::Reshaped(_)
            | Observation::Leases(_)
            | Observation::FenceAnswered { .. }
            | Observation::AckSent { .. }
            | Observation::LeaseHeld { .. }
            | Observation::Opened { .. }
            | Observation::Metadata(_) => Ok(()),
        }
    }
}

impl Reverts {
    fn appended(&mut self, tablet: TabletId, entry: &Entry) -> Result<(), String> {
        let term = (tablet, entry.pos.epoch);
        if let Payload::TokenFence { token } = entry.payload {
            self.denied.entry((tablet, token)).or_default().push(entry.pos);
        }
        let q = self.q.get(&term).copied().unwrap_or(Pos::ZERO);
        for target in entry.reverts() {
            if target.pos.epoch != entry.pos.epoch {
                return Err(format!(
                    "m12: {tablet} {} takes back {} of an older epoch",
                    entry.pos, target.pos
                ));
            }
            if target.pos.seq <= q.seq {
                return Err(format!("m31: {tablet} {} takes back {}, Q is {q}", entry.pos, target.pos));
            }
            // A former leader that wakes up may take back what a later one has acknowledged: its
            // revert never comes to anything.
            if self.acked.get(&term).is_some_and(|acked| acked.contains(&target.pos)) {
                return Err(format!(
                    "{tablet} {} takes back {}, which was acknowledged",
                    entry.pos, target.pos
                ));
            }
            if let Some(token) = target.token {
                self.denied.entry((tablet, token)).or_default().push(entry.pos);
            }
        }
        if let Some(first) = entry.reverts().iter().map(|target| target.pos).min() {
            self.open.entry(term).or_default().push((entry.pos, first));
        }
        Ok(())
    }

    fn stepped(&mut self, view: &CoreView) -> Result<(), String> {
        let Some(q) = view.q else { return Ok(()) };
        let term = (view.tablet, q.epoch);
        if self.q.insert(term, q) == Some(q) {
            return Ok(());
        }
        let Some(open) = self.open.get_mut(&term) else { return Ok(()) };
        open.retain(|(revert, _)| *revert > q);
        match open.iter().find(|(_, first)| *first <= q) {
            Some((revert, first)) => {
                Err(format!("m31: {} publishes {q} between {first} and its revert {revert}", view.tablet))
            }
            None => Ok(()),
        }
    }

    fn said(&self, oracle: &Oracle, (tablet, epoch): Term, token: Token) -> Result<(), String> {
        let q = self.q.get(&(tablet, epoch)).copied().unwrap_or(Pos::ZERO);
        let at = |older: TabletId| {
            self.denied.get(&(older, token)).into_iter().flatten().map(move |pos| (older, *pos))
        };
        let denied: Vec<(TabletId, Pos)> = oracle.family(tablet).into_iter().flat_map(at).collect();
        if denied.iter().any(|denied| oracle.goes_on_from((tablet, q), *denied)) {
            return Ok(());
        }
        Err(format!("m11: {tablet} {epoch} says that {token} is reverted; decided at {denied:?}, Q is {q}"))
    }
}
