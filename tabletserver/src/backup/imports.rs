//! The copies that restores fill here, and have filled.
//!
//! A copy is filled once in the life of the process. A late order of a master that no longer
//! leads is answered with what the first one did, and clears nothing: the table may be in use by
//! then. Whoever removes a copy waits for versions that are just being put into the store.

use ebla_kernel::ids::{ReplicaId, TableId, TabletId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// The copies that are being filled, or were.
#[derive(Default)]
pub struct Imports {
    state: Mutex<State>,
    settled: Notify,
}

#[derive(Default)]
struct State {
    copies: BTreeMap<ReplicaId, (TableId, Option<Imported>)>,
    installing: BTreeSet<TabletId>,
}

/// What was put into a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Imported {
    pub(super) bytes: u64,
    pub(super) rows: u64,
    pub(super) versions: u64,
}

/// How an import stands before it begins.
pub(super) enum Begun {
    /// It is to be done.
    Now(AtWork),
    /// Somebody else is at it.
    Busy,
    /// It was done.
    Done(Imported),
}

/// The right to fill a copy.
pub(super) struct AtWork {
    imports: Arc<Imports>,
    copy: ReplicaId,
}

/// Versions are being put into the store.
pub(super) struct Installing {
    imports: Arc<Imports>,
    tablet: TabletId,
}

impl Imports {
    /// Begins to fill a copy. What is known of tables for which `is_restored` does not hold is
    /// forgotten: nobody fills them any more.
    pub(super) fn begin(
        self: &Arc<Self>,
        table: TableId,
        copy: ReplicaId,
        is_restored: impl Fn(TableId) -> bool,
    ) -> Begun {
        let mut state = self.lock();
        state.copies.retain(|_, (table, done)| done.is_none() || is_restored(*table));
        match state.copies.get(&copy) {
            Some((_, Some(imported))) => Begun::Done(*imported),
            Some((_, None)) => Begun::Busy,
            None => {
                state.copies.insert(copy, (table, None));
                Begun::Now(AtWork { imports: Arc::clone(self), copy })
            }
        }
    }

    /// Keeps the copy of a tablet from being removed while this is held.
    pub(super) fn install(self: &Arc<Self>, tablet: TabletId) -> Installing {
        self.lock().installing.insert(tablet);
        Installing { imports: Arc::clone(self), tablet }
    }

    /// Waits until nothing is being put into the store for these tablets. Their copies have been
    /// taken out of the directory, so nothing begins again.
    pub async fn settled(&self, tablets: &[TabletId]) {
        loop {
            let settled = self.settled.notified();
            if !tablets.iter().any(|tablet| self.lock().installing.contains(tablet)) {
                return;
            }
            settled.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl AtWork {
    /// Notes what was put into the copy.
    pub(super) fn done(self, imported: Imported) {
        let mut state = self.imports.lock();
        if let Some((_, done)) = state.copies.get_mut(&self.copy) {
            *done = Some(imported);
        }
        // Before the end of `self`, which takes the lock again.
        drop(state);
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut state = self.imports.lock();
        if state.copies.get(&self.copy).is_some_and(|(_, done)| done.is_none()) {
            state.copies.remove(&self.copy);
        }
    }
}

impl Drop for Installing {
    fn drop(&mut self) {
        self.imports.lock().installing.remove(&self.tablet);
        self.imports.settled.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COPY: ReplicaId = ReplicaId(3);
    const TABLE: TableId = TableId(1);

    #[test]
    fn a_copy_is_filled_once() {
        let imports = Arc::new(Imports::default());
        let imported = Imported { bytes: 9, rows: 1, versions: 2 };
        let Begun::Now(given_up) = imports.begin(TABLE, COPY, |_| true) else { panic!("busy") };
        assert!(matches!(imports.begin(TABLE, COPY, |_| true), Begun::Busy));
        drop(given_up);
        let Begun::Now(at_work) = imports.begin(TABLE, COPY, |_| true) else { panic!("busy") };
        at_work.done(imported);
        let Begun::Done(known) = imports.begin(TABLE, COPY, |_| true) else { panic!("not known") };
        assert_eq!(known, imported);
        // Of a table in use nothing is kept.
        drop(imports.begin(TableId(2), ReplicaId(4), |_| false));
        assert!(imports.lock().copies.is_empty());
    }

    #[tokio::test]
    async fn a_removal_waits_for_an_installation() {
        let imports = Arc::new(Imports::default());
        imports.settled(&[TabletId(7)]).await;
        let installing = imports.install(TabletId(7));
        imports.settled(&[TabletId(8)]).await;
        let waiting = tokio::spawn({
            let imports = Arc::clone(&imports);
            async move { imports.settled(&[TabletId(7)]).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(installing);
        waiting.await.unwrap();
    }
}
