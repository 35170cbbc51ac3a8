//! Wakes those who watch a tablet when it moves on.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Who waits for a tablet to move.
#[derive(Default)]
pub struct Progress {
    watchers: AtomicUsize,
    moved: Notify,
}

impl Progress {
    /// Whether anybody watches.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Something that watchers look at has changed.
    pub fn moved(&self) {
        // Whoever begins to watch looks after it was counted: one of both sees the other.
        fence(Ordering::SeqCst);
        if self.is_watched() {
            self.moved.notify_waiters();
        }
    }

    /// Counts a watcher in.
    pub fn begin(&self) {
        self.watchers.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Counts a watcher out.
    pub fn end(&self) {
        self.watchers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Resolves at the next move after it was enabled.
    pub fn next_move(&self) -> Notified<'_> {
        self.moved.notified()
    }
}
