//! From a request to a durable, visible row: threads that each do one thing to a whole group
//! at a time.
//!
//! ```text
//!  request tasks ──requests──▶ sequencer ──group──▶ log ──group──▶ apply
//!   (bounded, refuse            │   ▲    (one fsync)     (one batch,   │
//!    when full)                 │   └──── Persisted ◀─┘    publish)    │
//!  other servers ──control────▶ │   └──── Applied, Settled ◀───────────┤
//!   (bounded by bytes)          ├──▶ answers                           ▼
//!                               ├──▶ entries to other servers        cut (loss ledger,
//!                               └──▶ orders to apply                  undo, flush, cut)
//! ```
//!
//! The sequencer owns the tablet cores; nobody else touches them. There is no lock over I/O
//! and no latch: order is by construction. A group waits in the sequencer and grows while
//! the log is busy, so the fsync sets the size of groups by itself.
//!
//! Rows of level `leader` are applied with their group. Whatever may still be taken back
//! (writes that wait for copies, everything on a follower) is held by the apply stage until
//! the core orders it to be applied.

mod apply;
mod cut;
mod early;
mod effects;
mod held;
mod lane;
mod log;
mod messages;
mod sequencer;
#[cfg(test)]
mod tests;

pub use apply::Apply;
pub use cut::{CutStores, Cutter, finish as finish_cuts};
pub use log::{Log, LogDisk};
pub use messages::{
    Appointed, Ask, Control, Fenced, Outward, PeerMessages, Reply, Request, SequencerHandle, SubmitError,
};
pub use sequencer::{Sequencer, SequencerParts};

use crate::oplog::Logged;
use crate::tablets::TabletHandle;
use ebla_kernel::ids::{Seq, TabletId};
use ebla_kernel::tablet::ApplyWhen;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// An entry on its way through the stages.
pub struct Item {
    /// The entry.
    pub logged: Arc<Logged>,
    /// When its rows may be applied.
    pub when: ApplyWhen,
}

/// Entries of one tablet in a group, in log order.
pub struct TabletEntries {
    /// The tablet as readers see it.
    pub handle: Arc<TabletHandle>,
    /// At least one, consecutive.
    pub items: Vec<Item>,
}

impl TabletEntries {
    /// Index of the last entry.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.items.last().expect("a group has no empty part").logged.entry.seq()
    }

    /// Index of the first entry.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.items.first().expect("a group has no empty part").logged.entry.seq()
    }
}

/// What becomes durable with one fsync.
#[derive(Default)]
pub struct Group {
    /// One part per tablet.
    pub parts: Vec<TabletEntries>,
    /// Bytes of keys and values.
    pub bytes: usize,
    /// Room that entries from other servers take until they are durable.
    pub room: Vec<OwnedSemaphorePermit>,
}

impl Group {
    /// Last index of each tablet.
    #[must_use]
    pub fn ends(&self) -> Vec<(TabletId, Seq)> {
        self.parts.iter().map(|part| (part.handle.id, part.last())).collect()
    }

    /// First index of each tablet.
    #[must_use]
    pub fn starts(&self) -> Vec<(TabletId, Seq)> {
        self.parts.iter().map(|part| (part.handle.id, part.first())).collect()
    }
}
