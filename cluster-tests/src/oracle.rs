//! What truly happened: the log as it became durable, the rows that follow from it, and the
//! history of what clients asked and were told.
//!
//! The oracle sees what no node sees, and decides nothing: `invariants` and the checks in
//! `history` judge by it.

use crate::sim::disk::{Rows, fold};
use bytes::Bytes;
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TabletId;
use ebla_kernel::op::{Action, Committed, Op, Token, Version};
use ebla_kernel::sequence::Reject;
use std::collections::BTreeMap;

/// What a client asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// An atomic batch.
    Write {
        /// Its operations.
        ops: Vec<Op>,
        /// Its name.
        token: Token,
    },
    /// The newest version of a row.
    Get {
        /// The row.
        key: Bytes,
    },
    /// A row at a timestamp that the server picks.
    Snapshot {
        /// The row.
        key: Bytes,
    },
}

impl Asked {
    /// A row that says which tablet is meant.
    ///
    /// # Panics
    /// For a batch without operations, which nobody invents.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Get { key } | Self::Snapshot { key } => key,
            Self::Write { ops, .. } => match &ops.first().expect("a batch has operations").action {
                Action::DeleteRange { from, .. } => from,
                Action::Set { key, .. } | Action::Delete { key } | Action::Add { key, .. } => key,
            },
        }
    }
}

/// What a client was told in the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The write stands.
    Committed(Committed),
    /// The write never ran and never will.
    Reverted,
    /// A condition failed, or an add was impossible.
    Rejected(Reject),
    /// Nobody said.
    Unknown,
    /// The token is older than what is remembered: nobody can say any more.
    TokenTooOld,
    /// A row.
    Row {
        /// Its version, a tombstone included; none where there never was one.
        version: Option<Version>,
        /// The timestamp of the snapshot; none for the newest.
        at: Option<Hlc>,
    },
}

/// One operation of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Who asked.
    pub client: usize,
    /// When, in microseconds of simulated time.
    pub invoked_us: u64,
    /// The tablet that was meant.
    pub tablet: TabletId,
    /// What was asked.
    pub asked: Asked,
    /// When the client was told, and what; none while it waits.
    pub ended: Option<(u64, Outcome)>,
    /// Copies of the request that reached, or will reach, a server.
    pub copies: usize,
}

impl Operation {
    /// What the client was told.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.ended.as_ref().map(|(_, outcome)| outcome)
    }
}

/// What clients asked and were told, in the order of asking.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Every operation.
    pub operations: Vec<Operation>,
}

impl History {
    /// A client asks; gives the operation's number.
    pub fn invoke(&mut self, client: usize, now_us: u64, tablet: TabletId, asked: Asked) -> usize {
        let operation = Operation { client, invoked_us: now_us, tablet, asked, ended: None, copies: 0 };
        self.operations.push(operation);
        self.operations.len() - 1
    }

    /// The network takes copies of a request.
    pub fn sent(&mut self, op: usize, copies: usize) {
        self.operations[op].copies += copies;
    }

    /// A client is told.
    pub fn end(&mut self, op: usize, now_us: u64, outcome: Outcome) {
        self.operations[op].ended = Some((now_us, outcome));
    }
}

/// The durable log of every tablet, in order, nothing purged.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    /// Entries by tablet.
    pub logs: BTreeMap<TabletId, Vec<Entry>>,
}

impl Oracle {
    /// All versions of all rows of all tablets.
    #[must_use]
    pub fn rows(&self) -> Rows {
        let mut rows = Rows::new();
        self.logs.values().flatten().for_each(|entry| fold(&mut rows, entry));
        rows
    }

    /// Every write with a token, by token.
    #[must_use]
    pub fn writes(&self) -> BTreeMap<Token, Vec<&Entry>> {
        let mut writes: BTreeMap<Token, Vec<&Entry>> = BTreeMap::new();
        for entry in self.logs.values().flatten() {
            if let Payload::Write(write) = &entry.payload
                && let Some(token) = write.token
            {
                writes.entry(token).or_default().push(entry);
            }
        }
        writes
    }
}
