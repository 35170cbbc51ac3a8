//! The log thread: a group in, one append with one fsync, the group out to be applied.

use super::messages::Control;
use super::{Group, TabletEntries};
use crate::disk::{DiskGauge, SyncWatch};
use crate::oplog::{Append, Fsync, Oplog, OplogError, Tail};
use crossbeam::channel::{Receiver, Sender};
use ebla_failpoints::failpoint;
use ebla_kernel::entry::Payload;
use ebla_kernel::ids::TabletId;
use std::collections::HashSet;
use std::sync::Arc;
use tracing::error;

/// What the log thread works with.
pub struct Log {
    /// Where groups come from.
    pub groups: Receiver<Group>,
    /// Where durable groups go.
    pub durable: Sender<Group>,
    /// Where completions go.
    pub control: Sender<Control>,
    /// The log of all tablets.
    pub oplog: Arc<Oplog>,
    /// The disk that groups go to; none for groups of tablets in memory.
    pub disk: Option<LogDisk>,
}

/// Who looks after the disk of the log.
pub struct LogDisk {
    /// Told of every group, so that the disk never fills unseen between two looks.
    pub gauge: Arc<DiskGauge>,
    /// Told of every sync, so that a disk that hangs is noticed.
    pub syncs: Arc<SyncWatch>,
}

impl Log {
    /// Runs until the sequencer is gone.
    ///
    /// An append that fails costs the epochs of its tablets: their cores step down and what
    /// was in flight ends unknown.
    ///
    /// # Errors
    /// A failed fsync is final: nothing unsynced may be acknowledged, the server must end.
    pub fn run(self) -> Result<(), OplogError> {
        let mut uncertain = HashSet::new();
        while let Ok(mut group) = self.groups.recv() {
            let parts: Vec<_> = group.parts.iter().map(|part| append(part, &uncertain)).collect();
            let appended = match &self.disk {
                Some(LogDisk { gauge, syncs }) => {
                    gauge.add_unflushed(group.bytes as u64);
                    gauge.read();
                    syncs.watch(|| self.append(&group, &parts))
                }
                None => self.append(&group, &parts),
            };
            match appended {
                Ok(()) => {
                    group.room.clear();
                    if !uncertain.is_empty() {
                        uncertain.retain(|id| group.parts.iter().all(|part| part.handle.id != *id));
                    }
                    // m38: said before the rows of the group can be applied.
                    let told = self.control.send(Control::Persisted(group.ends()));
                    if told.is_err() || self.durable.send(group).is_err() {
                        break;
                    }
                }
                Err(error @ OplogError::SyncFailed { .. }) => return Err(error),
                Err(error) => {
                    error!(%error, "an append failed; the tablets of the group give up their epochs");
                    uncertain.extend(group.parts.iter().map(|part| part.handle.id));
                    if self.control.send(Control::AppendFailed(group.starts())).is_err() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn append(&self, group: &Group, parts: &[Append<'_>]) -> Result<(), OplogError> {
        failpoint!("log.append");
        failpoint!("split.seal", if has_seal(group));
        self.oplog.append_group(parts, Fsync::Now)?;
        failpoint!("split.sealed", if has_seal(group));
        failpoint!("log.appended");
        Ok(())
    }
}

fn has_seal(group: &Group) -> bool {
    let mut items = group.parts.iter().flat_map(|part| &part.items);
    items.any(|item| matches!(item.logged.entry.payload, Payload::Seal(_)))
}

/// After a failed append nobody knows what of it is in the log: the next one cuts there.
fn append<'a>(part: &'a TabletEntries, uncertain: &HashSet<TabletId>) -> Append<'a> {
    let starts_epoch = matches!(part.items[0].logged.entry.payload, Payload::EpochStart { .. });
    let cuts = starts_epoch || uncertain.contains(&part.handle.id);
    let tail = if cuts { Tail::Cut } else { Tail::Continue };
    Append { tablet: part.handle.id, tail, entries: part.items.iter().map(|item| &item.logged).collect() }
}
