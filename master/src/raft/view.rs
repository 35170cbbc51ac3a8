//! What the Raft thread shows to the rest of the process: who leads, the applied state, and
//! what changed in it.

use crate::limits::CHANGES_KEPT_MAX;
use ebla_kernel::meta::{Changes, State};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::{broadcast, watch};

/// Who leads the group, as far as this master knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Role {
    /// The leader; none during an election.
    pub leader: Option<u64>,
    /// Whether it is this master.
    pub leading: bool,
    /// The term: leading twice is told apart by it.
    pub term: u64,
}

/// The window into the Raft thread.
pub(crate) struct View {
    state: RwLock<State>,
    role: watch::Sender<Role>,
    changes: broadcast::Sender<Arc<Changes>>,
}

impl View {
    pub fn new(state: State) -> Self {
        Self {
            state: RwLock::new(state),
            role: watch::Sender::new(Role::default()),
            changes: broadcast::Sender::new(CHANGES_KEPT_MAX),
        }
    }

    /// The applied state. Hold it briefly: commands wait for it.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn role(&self) -> Role {
        *self.role.borrow()
    }

    pub fn watch_role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    /// Changes from now on: subscribe before reading the state.
    pub fn watch_changes(&self) -> broadcast::Receiver<Arc<Changes>> {
        self.changes.subscribe()
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn publish_changes(&self, changes: Changes) {
        // Nobody listening is fine.
        let _ = self.changes.send(Arc::new(changes));
    }

    pub(super) fn publish_role(&self, role: Role) {
        self.role.send_if_modified(|present| std::mem::replace(present, role) != role);
    }
}
