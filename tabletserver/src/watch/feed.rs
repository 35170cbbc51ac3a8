//! The entries of one tablet as they become definite.

use crate::limits;
use crate::oplog::{Logged, Oplog, OplogError};
use crate::replication::entries;
use crate::tablets::TabletHandle;
use ebla_kernel::entry::LogEnd;
use ebla_kernel::ids::Seq;
use ebla_kernel::watch::{Shown, Window};
use std::sync::Arc;
use std::time::Duration;

/// A place in a tablet's log that moves on with its commits.
pub struct Feed {
    oplog: Arc<Oplog>,
    tablet: Arc<TabletHandle>,
    window: Window,
    /// Read while looking ahead, to be shown next.
    ahead: Vec<Arc<Logged>>,
}

/// Some entries of a feed.
#[derive(Default)]
pub struct Batch {
    /// Those that stand, in log order.
    pub entries: Vec<Arc<Logged>>,
    /// Everything up to here was shown or is void; none when there was nothing new.
    pub upto: Option<LogEnd>,
}

/// Why a feed cannot go on.
#[derive(Debug)]
pub enum FeedError {
    /// The log no longer has the next entry.
    Purged,
    /// The log cannot be read.
    Failed(OplogError),
}

impl From<OplogError> for FeedError {
    fn from(error: OplogError) -> Self {
        match error {
            OplogError::Purged { .. } => Self::Purged,
            other @ (OplogError::Damaged { .. }
            | OplogError::NotContiguous { .. }
            | OplogError::GroupTooLarge { .. }
            | OplogError::Write { .. }
            | OplogError::SyncFailed { .. }
            | OplogError::NewerFormat { .. }
            | OplogError::Open { .. }) => Self::Failed(other),
        }
    }
}

impl Feed {
    /// A feed that shows what comes after `seen`.
    #[must_use]
    pub fn after(oplog: Arc<Oplog>, tablet: Arc<TabletHandle>, seen: Seq) -> Self {
        tablet.progress.begin();
        Self { oplog, tablet, window: Window::after(seen), ahead: Vec::new() }
    }

    /// What can be shown now, some of it.
    ///
    /// # Errors
    /// When the log no longer has it or cannot be read.
    pub async fn next(&mut self) -> Result<Batch, FeedError> {
        if let Some(upto) = self.window.wants(self.tablet.safe_seq()) {
            self.look_through(upto).await?;
        }
        let applied = self.tablet.applied_seq();
        let mut batch = Batch::default();
        if self.window.next() > applied.min(self.tablet.safe_seq()) {
            return Ok(batch);
        }
        let mut read = std::mem::take(&mut self.ahead);
        if read.first().is_none_or(|first| first.entry.seq() != self.window.next()) {
            read = self.read(self.window.next(), applied).await?;
        }
        let mut rest = read.into_iter();
        for logged in rest.by_ref() {
            match self.window.show(&logged.entry, applied) {
                Shown::NotYet => {
                    self.ahead = std::iter::once(logged).chain(rest).collect();
                    break;
                }
                Shown::Void => batch.upto = Some(logged.entry.end()),
                Shown::Yes => {
                    batch.upto = Some(logged.entry.end());
                    batch.entries.push(logged);
                }
            }
        }
        Ok(batch)
    }

    /// Waits until the tablet moves, but not for longer than `patience`.
    pub async fn wait(&self, patience: Duration) {
        let moved = self.tablet.progress.next_move();
        tokio::pin!(moved);
        moved.as_mut().enable();
        let can_go_on = self.window.next() <= self.tablet.applied_seq().min(self.tablet.safe_seq());
        if can_go_on {
            // It moved meanwhile, or its log is not all here: neither is worth a busy loop.
            tokio::time::sleep(limits::WATCH_LOOK_AGAIN).await;
        } else {
            let _ = tokio::time::timeout(patience, moved).await;
        }
    }

    /// Learns what the entries up to a Q take back, before any of them is shown.
    async fn look_through(&mut self, upto: Seq) -> Result<(), FeedError> {
        let mut from = self.window.next();
        self.ahead.clear();
        while from <= upto {
            let read = self.read(from, upto).await?;
            let Some(last) = read.last() else { return Ok(()) };
            from = last.entry.seq().next();
            read.iter().for_each(|logged| self.window.look(&logged.entry));
            if self.ahead.is_empty() {
                self.ahead = read;
            }
        }
        self.window.looked(upto);
        Ok(())
    }

    async fn read(&self, from: Seq, upto: Seq) -> Result<Vec<Arc<Logged>>, FeedError> {
        Ok(entries(&self.oplog, &self.tablet, (from, upto), limits::WATCH_READ_BYTES).await?)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.tablet.progress.end();
    }
}
