//! What must always hold, one property per file, with the ids of `docs/invariants.md`.
//!
//! The simulator shows every invariant what happens ([`Observation`]) and at the end what
//! came of it ([`End`]). An invariant judges; it changes nothing and asks nobody.

mod acked_durable;
mod fence_is_final;
mod linearizable;
mod log_matching;
mod monotone;
mod one_leader;
mod q_is_durable;
mod range_map;
mod rows_are_log;
mod semantics;
mod snapshots;
mod tokens_once;
mod ts_rises;

#[cfg(test)]
mod bad_histories;

use crate::oracle::{History, Oracle};
use crate::sim::disk::Rows;
use crate::sim::env::Route;
use ebla_kernel::entry::Entry;
use ebla_kernel::ids::{Epoch, Incarnation, Pos, Seq, TabletId};
use ebla_kernel::meta::State;
use ebla_kernel::tablet::FenceAnswer;
use std::fmt;

/// Something that happened.
#[derive(Debug)]
pub enum Observation<'a> {
    /// A core appended an entry; it is not durable yet.
    Appended {
        /// The tablet.
        tablet: TabletId,
        /// The entry.
        entry: &'a Entry,
    },
    /// An entry is durable.
    Durable {
        /// The tablet.
        tablet: TabletId,
        /// The entry.
        entry: &'a Entry,
    },
    /// A core answered a fence.
    FenceAnswered {
        /// The tablet.
        tablet: TabletId,
        /// What it said.
        answer: FenceAnswer,
    },
    /// A core took a step.
    Stepped(CoreView),
    /// The metadata changed.
    Metadata(&'a State),
}

/// What a tablet's core says of itself, and what truly is on its disk.
#[derive(Clone, Copy, Debug)]
pub struct CoreView {
    /// The tablet.
    pub tablet: TabletId,
    /// The process.
    pub incarnation: Incarnation,
    /// The epoch below which it refuses everything.
    pub promised: Epoch,
    /// Durable end of the log, as it believes.
    pub durable: Pos,
    /// Last entry in the rows.
    pub applied: Seq,
    /// Its Q.
    pub q: Option<Pos>,
    /// The epoch that it serves.
    pub serving: Option<Epoch>,
    /// Durable end of the log on the disk.
    pub on_disk: Pos,
}

/// What came of a simulation after everything was healed and had come to rest.
#[derive(Debug)]
pub struct End<'a> {
    /// What truly happened.
    pub oracle: &'a Oracle,
    /// What clients were told.
    pub history: &'a History,
    /// The rows of each server.
    pub stores: Vec<&'a Rows>,
    /// Where the tablets are.
    pub routes: &'a [Route],
}

/// An invariant that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which, with its id.
    pub invariant: String,
    /// How.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.detail)
    }
}

/// A property of the whole system.
pub trait Invariant: fmt::Debug {
    /// Its id and name.
    fn name(&self) -> &'static str;

    /// Looks at something that happened.
    ///
    /// # Errors
    /// How the property is broken.
    fn observe(&mut self, _: &Observation<'_>) -> Result<(), String> {
        Ok(())
    }

    /// Looks at the end.
    ///
    /// # Errors
    /// How the property is broken.
    fn finish(&self, _: &End<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// All invariants, and what truly happened so far.
#[derive(Debug)]
pub struct Watch {
    invariants: Vec<Box<dyn Invariant>>,
    /// What truly happened.
    pub oracle: Oracle,
    /// The first invariant that was broken.
    pub failure: Option<Violation>,
}

impl Watch {
    /// A watch that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        let invariants: Vec<Box<dyn Invariant>> = vec![
            Box::new(one_leader::OneLeader::default()),
            Box::new(log_matching::LogMatching::default()),
            Box::new(monotone::Monotone::default()),
            Box::new(ts_rises::TsRises::default()),
            Box::new(fence_is_final::FenceIsFinal::default()),
            Box::new(q_is_durable::QIsDurable),
            Box::new(tokens_once::TokensOnce::default()),
            Box::new(range_map::RangeMap),
            Box::new(rows_are_log::RowsAreLog),
            Box::new(acked_durable::AckedDurable),
            Box::new(semantics::Semantics),
            Box::new(snapshots::Snapshots),
            Box::new(linearizable::Linearizable),
        ];
        Self { invariants, oracle: Oracle::default(), failure: None }
    }

    /// Shows something to every invariant.
    pub fn observe(&mut self, observation: &Observation<'_>) {
        for invariant in &mut self.invariants {
            if let Err(detail) = invariant.observe(observation) {
                let invariant = invariant.name().to_string();
                self.failure.get_or_insert(Violation { invariant, detail });
            }
        }
        if let Observation::Durable { tablet, entry } = observation {
            self.oracle.logs.entry(*tablet).or_default().push((*entry).clone());
        }
    }

    /// Notes a broken rule that has no file of its own.
    pub fn fail(&mut self, invariant: &str, detail: &str) {
        let violation = Violation { invariant: invariant.into(), detail: detail.into() };
        self.failure.get_or_insert(violation);
    }

    /// Shows the end to every invariant.
    #[must_use]
    pub fn finish(&self, history: &History, stores: Vec<&Rows>, routes: &[Route]) -> Option<Violation> {
        let end = End { oracle: &self.oracle, history, stores, routes };
        self.invariants.iter().find_map(|invariant| {
            let detail = invariant.finish(&end).err()?;
            Some(Violation { invariant: invariant.name().to_string(), detail })
        })
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}
