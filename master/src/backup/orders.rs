//! What servers were asked to do for a job and are still at.

use ebla_kernel::backup::Ended;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

/// Orders under way by their names; dropped, all of them end.
pub(super) struct Orders<K, T> {
    tasks: JoinSet<(K, Result<T, Ended>)>,
    under_way: BTreeMap<K, AbortHandle>,
    says: mpsc::UnboundedSender<(K, u64)>,
    said: mpsc::UnboundedReceiver<(K, u64)>,
}

/// What is heard of orders.
pub(super) enum Heard<K, T> {
    /// One has ended.
    Ended(K, Result<T, Ended>),
    /// So many bytes of one are done.
    Bytes(K, u64),
    /// Nothing for a while.
    Nothing,
}

impl<K, T> Orders<K, T>
where
    K: Copy + Ord + Send + Sync + 'static,
    T: Send + 'static,
{
    pub(super) fn new() -> Self {
        let (says, said) = mpsc::unbounded_channel();
        Self { tasks: JoinSet::new(), under_way: BTreeMap::new(), says, said }
    }

    /// Begins an order; `work` is given what to call with the bytes that are done.
    pub(super) fn begin<W>(&mut self, name: K, work: impl FnOnce(Box<dyn Fn(u64) + Send + Sync>) -> W)
    where
        W: Future<Output = Result<T, Ended>> + Send + 'static,
    {
        let says = self.says.clone();
        let note = move |bytes| {
            // Whoever listens has ended the order otherwise.
            let _ = says.send((name, bytes));
        };
        let work = work(Box::new(note));
        let task = self.tasks.spawn(async move { (name, work.await) });
        self.under_way.insert(name, task);
    }

    /// Waits until something is heard, or for so long.
    pub(super) async fn hear(&mut self, longest: Duration) -> Heard<K, T> {
        tokio::select! {
            Some(Ok((name, ended))) = self.tasks.join_next() => {
                self.under_way.remove(&name);
                Heard::Ended(name, ended)
            }
            Some((name, bytes)) = self.said.recv() => Heard::Bytes(name, bytes),
            () = tokio::time::sleep(longest) => Heard::Nothing,
        }
    }

    /// Ends those that are not wanted any more: nobody waits for them.
    pub(super) fn keep(&mut self, wanted: &BTreeSet<K>) {
        for (_, task) in self.under_way.extract_if(.., |name, _| !wanted.contains(name)) {
            task.abort();
        }
    }
}
