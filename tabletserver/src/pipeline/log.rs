//! The log thread: a group in, one append with one fsync, the group out to be applied.

use super::sequencer::Control;
use super::{Group, TabletEntries};
use crate::disk::DiskGauge;
use crate::oplog::{Append, Fsync, Oplog, OplogError, Tail};
use crossbeam::channel::{Receiver, Sender};
use ebla_kernel::entry::Payload;
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
    /// Told of every group, so that the disk never fills unseen between two looks.
    pub disk: Arc<DiskGauge>,
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
        while let Ok(group) = self.groups.recv() {
            let parts: Vec<_> = group.parts.iter().map(append).collect();
            self.disk.add_unflushed(group.bytes as u64);
            self.disk.read();
            match self.oplog.append_group(&parts, Fsync::Now) {
                Ok(_) => {
                    // m38: said before the rows of the group can be applied.
                    let told = self.control.send(Control::Persisted(group.ends()));
                    if told.is_err() || self.durable.send(group).is_err() {
                        break;
                    }
                }
                Err(error @ OplogError::SyncFailed { .. }) => return Err(error),
                Err(error) => {
                    error!(%error, "an append failed; the tablets of the group give up their epochs");
                    if self.control.send(Control::AppendFailed(group.starts())).is_err() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

fn append(part: &TabletEntries) -> Append<'_> {
    // After a failed append the next epoch begins at the end of what was written: a cut there
    // drops whatever the failure left behind.
    let starts_epoch = matches!(part.entries[0].payload, Payload::EpochStart { .. });
    let tail = if starts_epoch { Tail::Cut } else { Tail::Continue };
    Append { tablet: part.handle.id, tail, entries: part.entries.iter().collect() }
}
