//! The copies that are being built here: a task each, few of them at work at once.

use crate::error::Error;
use crate::registry::ReplicaRecord;
use ebla_kernel::ids::{ReplicaId, TabletId};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The copies that are being built.
#[derive(Default)]
pub struct Arrivals {
    tasks: Mutex<BTreeMap<TabletId, Arrival>>,
}

/// How much of a copy has come in.
#[derive(Default)]
pub struct Received {
    bytes: AtomicU64,
    /// About; zero while nothing is known.
    total: AtomicU64,
}

impl Received {
    /// Notes that so many bytes of about `total` are here.
    pub fn set(&self, bytes: u64, total: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        // What a source counts are the newest versions; older ones come with them.
        self.total.store(total.max(bytes), Ordering::Relaxed);
    }
}

struct Arrival {
    replica: ReplicaId,
    received: Arc<Received>,
    cancel: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Arrivals {
    /// Whether this copy is being built.
    #[must_use]
    pub fn has(&self, tablet: TabletId) -> bool {
        self.lock().contains_key(&tablet)
    }

    /// Begins to build a copy; `begin` is told when to give up.
    pub fn begin(
        &self,
        record: &ReplicaRecord,
        begin: impl FnOnce(watch::Receiver<bool>, Arc<Received>) -> JoinHandle<()>,
    ) {
        let (cancel, cancelled) = watch::channel(false);
        let received = Arc::<Received>::default();
        let task = begin(cancelled, Arc::clone(&received));
        let arrival = Arrival { replica: record.replica, received, cancel, task };
        self.lock().insert(record.tablet, arrival);
    }

    /// The copies whose versions come in now: replica, bytes here, bytes in all. As few as are
    /// built at once.
    #[must_use]
    pub fn received(&self) -> Vec<(ReplicaId, u64, u64)> {
        let tasks = self.lock();
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let all = tasks
            .values()
            .map(|arrival| (arrival.replica, load(&arrival.received.bytes), load(&arrival.received.total)));
        all.filter(|(_, _, total)| *total > 0).collect()
    }

    /// Forgets a copy that has arrived.
    pub fn arrived(&self, tablet: TabletId, replica: ReplicaId) {
        let mut tasks = self.lock();
        if tasks.get(&tablet).is_some_and(|arrival| arrival.replica == replica) {
            tasks.remove(&tablet);
        }
    }

    /// Gives a copy up and waits until nothing of it is at work any more.
    pub async fn cancel(&self, tablet: TabletId) {
        let arrival = self.lock().remove(&tablet);
        if let Some(Arrival { cancel, task, .. }) = arrival {
            let _ = cancel.send(true);
            let _ = task.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TabletId, Arrival>> {
        self.tasks.lock().expect("no holder of this lock panics")
    }
}

/// The directory of one try.
pub(super) fn dir_name(record: &ReplicaRecord) -> String {
    let attempt = match record.state {
        crate::registry::ReplicaState::Bootstrapping { attempt } => attempt,
        crate::registry::ReplicaState::Active | crate::registry::ReplicaState::Tombstoned => 0,
    };
    format!("tablet-{}-{attempt}", record.tablet.0)
}

/// Removes the directories of `dir` that a crash left, by their names; others are left alone.
///
/// # Errors
/// When the directory cannot be read or a file not removed.
pub fn clear_leftovers(dir: &Path, is_ours: fn(&str) -> bool) -> Result<(), Error> {
    let cannot = |source| Error::CreateDirectory { path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot(error)),
    };
    for entry in entries {
        let entry = entry.map_err(cannot)?;
        if is_ours(&entry.file_name().to_string_lossy()) {
            std::fs::remove_dir_all(entry.path()).map_err(cannot)?;
        }
    }
    Ok(())
}

/// Whether a name is that of the directory of a try.
pub fn is_of_a_try(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = name.strip_prefix("tablet-").and_then(|rest| rest.split_once('-'));
    numbers.is_some_and(|(tablet, attempt)| is_number(tablet) && is_number(attempt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_tries_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tablet-7-1", "tablet-7-12", "tablet-x-1", "tablet-7", "kept"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("tablet-7-1/000000.sst"), "x").unwrap();
        clear_leftovers(dir.path(), is_of_a_try).unwrap();
        let left = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<String> = left.map(|name| name.to_string_lossy().into_owned()).collect();
        left.sort();
        assert_eq!(left, ["kept", "tablet-7", "tablet-x-1"]);
        clear_leftovers(&dir.path().join("nowhere"), is_of_a_try).unwrap();
    }
}
