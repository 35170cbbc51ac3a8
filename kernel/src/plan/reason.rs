//! Decisions and their reasons, as values that print themselves.

use super::balance::UNIT;
use crate::ids::{ServerId, TabletId};
use std::fmt;

/// What a tablet has too much of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    /// Bytes: the parts get the same bytes.
    Bytes,
    /// Requests: the parts get the same requests, as far as a sample tells.
    Load,
}

/// What to do with a tablet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Split it into so many.
    Split {
        /// How many.
        parts: u32,
        /// By what.
        by: Measure,
    },
    /// Make one of it and the tablet after it.
    Merge {
        /// The tablet after it.
        right: TabletId,
    },
    /// Let another copy lead.
    HandOver {
        /// The server that leads.
        from: ServerId,
        /// The server that is to lead.
        to: ServerId,
    },
    /// Take a copy to another server.
    Move {
        /// Where it lies.
        from: ServerId,
        /// Where it goes.
        to: ServerId,
    },
}

impl Action {
    /// The word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Split { .. } => "split",
            Self::Merge { .. } => "merge",
            Self::HandOver { .. } => "hand over",
            Self::Move { .. } => "move",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Split { parts, by: Measure::Bytes } => write!(f, "split into {parts}"),
            Self::Split { parts, by: Measure::Load } => write!(f, "split into {parts} by load"),
            Self::Merge { right } => write!(f, "merge with {right}"),
            Self::HandOver { from, to } => write!(f, "hand leadership over from {from} to {to}"),
            Self::Move { from, to } => write!(f, "move the copy on {from} to {to}"),
        }
    }
}

/// Why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It has more bytes than its table wants.
    TooLarge {
        /// How many it has.
        bytes: u64,
        /// How many are wanted at most.
        limit: u64,
    },
    /// It has more requests than its table wants.
    TooBusy {
        /// How many a second it has.
        requests: u64,
        /// How many are wanted at most.
        limit: u64,
    },
    /// It and the tablet after it have been small and idle for long.
    Idle {
        /// Bytes of both.
        bytes: u64,
        /// How many one tablet may have.
        limit: u64,
    },
    /// One server leads more than another, by number and load together. In thousandths of an
    /// idle tablet.
    LeadersUneven {
        /// What the one leads.
        from: u64,
        /// What the other leads.
        to: u64,
    },
    /// One server holds more than another, by number and bytes together. In thousandths of a
    /// tablet of the mean size.
    CopiesUneven {
        /// What the one holds.
        from: u64,
        /// What the other holds.
        to: u64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |weight: &u64| *weight as f64 / UNIT as f64;
        match self {
            Self::TooLarge { bytes, limit } => {
                write!(f, "it has {bytes} bytes and its table wants at most {limit} in a tablet")
            }
            Self::TooBusy { requests, limit } => {
                write!(
                    f,
                    "it has {requests} requests a second and its table wants at most {limit} in a tablet"
                )
            }
            Self::Idle { bytes, limit } => write!(
                f,
                "both have long been idle and have {bytes} bytes together, of {limit} that one tablet may have"
            ),
            Self::LeadersUneven { from, to } => write!(
                f,
                "the one server leads {:.1}, the other {:.1}, counted by number and requests together",
                share(from),
                share(to)
            ),
            Self::CopiesUneven { from, to } => write!(
                f,
                "the one server holds {:.1}, the other {:.1}, counted by number and bytes together",
                share(from),
                share(to)
            ),
        }
    }
}

/// What to do, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// With which tablet.
    pub tablet: TabletId,
    /// What.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}
