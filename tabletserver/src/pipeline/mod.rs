//! From a request to a durable, visible row: three threads, each doing one thing to a whole
//! group at a time.
//!
//! ```text
//!  request tasks ──requests──▶ sequencer ──group──▶ log ──group──▶ apply
//!   (bounded, refuse            │   ▲    (one fsync)     (one batch,   │
//!    when full)                 │   └──── Persisted ◀─┘    publish)    │
//!                               │   └──── Applied ◀────────────────────┘
//!                               └──▶ answers
//! ```
//!
//! The sequencer owns the tablet cores; nobody else touches them. There is no lock over I/O
//! and no latch: order is by construction. A group waits in the sequencer and grows while
//! the log is busy, so the fsync sets the size of groups by itself.

mod apply;
mod log;
mod sequencer;

pub use apply::{Apply, changes as entry_changes};
pub use log::Log;
pub use sequencer::{
    Appointed, Ask, Control, Outward, Reply, Request, Sequencer, SequencerHandle, SubmitError,
};

use ebla_kernel::entry::Entry;
use ebla_kernel::ids::{Seq, TabletId};
use std::sync::Arc;

use crate::tablets::TabletHandle;

/// Entries of one tablet in a group, in log order.
pub struct TabletEntries {
    /// The tablet as readers see it.
    pub handle: Arc<TabletHandle>,
    /// At least one, consecutive.
    pub entries: Vec<Entry>,
}

impl TabletEntries {
    /// Index of the last entry.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.entries.last().expect("a group has no empty part").seq()
    }

    /// Index of the first entry.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.entries.first().expect("a group has no empty part").seq()
    }
}

/// What becomes durable with one fsync.
#[derive(Default)]
pub struct Group {
    /// One part per tablet.
    pub parts: Vec<TabletEntries>,
    /// Bytes of keys and values.
    pub bytes: usize,
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
