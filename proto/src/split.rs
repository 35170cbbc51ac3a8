//! Jobs, splits and merges, to the wire and back.

use crate::backup::backup_work;
use crate::convert;
use crate::error::{ApiError, Reason};
use crate::v1;
use ebla_kernel::entry::{LogEnd, SealRecord, SealedChild};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{
    Attempt, DiskGeneration, Epoch, Generation, Incarnation, Pos, ReplicaId, Seq, TabletId,
};
use ebla_kernel::meta::{
    Job, JobKind, JobState, Origin, PROGRESS_IN_SYNC, Parent, SealOrder, SplitCommit, TableKind,
};
use ebla_kernel::range::KeyRange;

/// The end of a log for the wire.
#[must_use]
pub fn log_end_to_wire(end: LogEnd) -> v1::LogEnd {
    v1::LogEnd { epoch: end.pos.epoch.0, seq: end.pos.seq.0, hash: end.hash, ts: end.ts.0 }
}

/// The end of a log.
#[must_use]
pub fn log_end(wire: v1::LogEnd) -> LogEnd {
    LogEnd { pos: Pos::new(Epoch(wire.epoch), Seq(wire.seq)), hash: wire.hash, ts: Hlc(wire.ts) }
}

/// What a tablet was made of, for the wire.
#[must_use]
pub fn parent_to_wire(parent: &Parent) -> v1::TabletParent {
    v1::TabletParent {
        tablet_id: parent.tablet.0,
        attempt: parent.attempt.0,
        seal: Some(log_end_to_wire(parent.seal)),
        epoch: parent.epoch.0,
    }
}

/// What a tablet was made of.
#[must_use]
pub fn parent(wire: &v1::TabletParent) -> Parent {
    Parent {
        tablet: TabletId(wire.tablet_id),
        attempt: Attempt(wire.attempt),
        epoch: Epoch(wire.epoch),
        seal: wire.seal.map(log_end).unwrap_or_default(),
    }
}

/// How far a move, a backup or a restore is, by the word of who works at it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copied {
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes in all, about.
    pub bytes_total: u64,
    /// What it waits for, if it has not moved for a while.
    pub waits_for: Option<String>,
}

impl Copied {
    /// How much of `share` is done.
    fn part_of(&self, share: u64) -> u64 {
        (self.bytes.saturating_mul(share) / self.bytes_total.max(1)).min(share)
    }
}

/// A job for the wire, as it stands at wall time `now_ms`; `copied` while a move or
/// a merge copies rows.
#[must_use]
pub fn job_to_wire(job: &Job, copied: Option<Copied>, now_ms: u64) -> v1::Job {
    let copied = copied.filter(|_| job.is_running());
    let progress = progress(job, copied.as_ref());
    let kind = match &job.kind {
        JobKind::Split(_) => v1::JobKind::Split,
        JobKind::Move(_) => v1::JobKind::Move,
        JobKind::Merge(_) => v1::JobKind::Merge,
        JobKind::Backup(_) => v1::JobKind::Backup,
        JobKind::Restore(_) => v1::JobKind::Restore,
        JobKind::Transfer(_) => v1::JobKind::Transfer,
    };
    let tablets = job.tablets();
    let tablet = |at: usize| tablets.get(at).map_or(0, |tablet| tablet.0);
    let (from, to) = match &job.kind {
        JobKind::Split(_) | JobKind::Merge(_) | JobKind::Backup(_) | JobKind::Restore(_) => (None, None),
        JobKind::Move(copy) => (copy.from_server, Some(copy.to_server)),
        JobKind::Transfer(transfer) => (transfer.from_server, Some(transfer.to_server)),
    };
    let state = match job.state {
        JobState::Running => v1::JobState::Running,
        JobState::Done => v1::JobState::Done,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
    };
    // What has ended in vain has made none.
    let children = match job.state {
        JobState::Running | JobState::Done => job.children(),
        JobState::Failed | JobState::Cancelled => Vec::new(),
    };
    let (bytes, bytes_total) = copied.as_ref().map_or((0, 0), |copied| (copied.bytes, copied.bytes_total));
    let waits_for = copied.and_then(|copied| copied.waits_for).unwrap_or_default();
    v1::Job {
        id: job.id.0,
        attempt: job.attempt.0,
        kind: kind as i32,
        state: state as i32,
        automatic: job.origin == Origin::Automatic,
        tablet_id: tablet(0),
        other_tablet_id: tablet(1),
        child_tablet_ids: children.iter().map(|child| child.0).collect(),
        from_server_id: from.map_or(0, |server| server.0),
        to_server_id: to.map_or(0, |server| server.0),
        progress_per_mille: u32::try_from(progress).expect("a job has a thousand thousandths"),
        error: job.error.clone().unwrap_or_default(),
        started_ms: job.started_ms,
        ended_ms: job.ended_ms,
        // Of what waits nobody knows.
        expected_ms: if waits_for.is_empty() { expected_ms(job, progress, now_ms) } else { 0 },
        bytes,
        bytes_total,
        backup: backup_work(&job.kind),
        waits_for,
    }
}

/// Thousandths of a job that are done. What copying leaves is the log and the coming into the
/// in-sync set; a merge may bring several copies together, one after another.
fn progress(job: &Job, copied: Option<&Copied>) -> u64 {
    let (noted, whole) = (u64::from(job.progress), u64::from(PROGRESS_IN_SYNC));
    let (before, share) = match &job.kind {
        JobKind::Merge(merge) => (noted, whole / u64::from(merge.moves).max(1)),
        _ => (0, whole),
    };
    let copied = copied.map_or(0, |copied| copied.part_of(share));
    (before + copied).min(whole).max(noted)
}

/// When a job will be done if it goes on as so far; 0 when nothing can be said.
fn expected_ms(job: &Job, progress: u64, now_ms: u64) -> u64 {
    let took_ms = now_ms.saturating_sub(job.started_ms);
    if job.is_running() && progress > 0 {
        job.started_ms.saturating_add(took_ms.saturating_mul(1_000) / progress)
    } else {
        0
    }
}

/// The order to seal a tablet.
#[must_use]
pub fn seal_order_to_wire(order: &SealOrder) -> v1::SealOrder {
    let copy = |(parent, child): (&ReplicaId, &ReplicaId)| v1::SealCopy {
        parent_replica_id: parent.0,
        replica_id: child.0,
    };
    let child = |child: SealedChild| v1::SealChild {
        tablet_id: child.tablet.0,
        start: child.range.start().clone(),
        end: child.range.end().cloned().unwrap_or_default(),
        copies: child.replicas.iter().map(copy).collect(),
    };
    v1::SealOrder {
        tablet_id: order.tablet.0,
        epoch: order.epoch.0,
        attempt: order.attempt.0,
        children: order.seal().children.into_iter().map(child).collect(),
    }
}

/// The tablet that is to be sealed, the epoch that is meant, and the seal.
///
/// # Errors
/// `BAD_REQUEST` for an inverted range.
pub fn seal_order(wire: v1::SealOrder) -> Result<(TabletId, Epoch, SealRecord), ApiError> {
    let child = |child: v1::SealChild| {
        let copy = |copy: v1::SealCopy| (ReplicaId(copy.parent_replica_id), ReplicaId(copy.replica_id));
        let range = KeyRange::new(child.start, convert::non_empty(child.end));
        Ok(SealedChild {
            tablet: TabletId(child.tablet_id),
            range: range.map_err(|_| ApiError::new(Reason::BadRequest, "a child's range is inverted"))?,
            replicas: child.copies.into_iter().map(copy).collect(),
        })
    };
    let children = wire.children.into_iter().map(child).collect::<Result<_, ApiError>>()?;
    let seal = SealRecord { attempt: Attempt(wire.attempt), children };
    Ok((TabletId(wire.tablet_id), Epoch(wire.epoch), seal))
}

/// A commit that a leader asks for, of a table that keeps its rows as `kind` says.
#[must_use]
pub fn split_commit(wire: &v1::SplitCommit, kind: TableKind) -> SplitCommit {
    let ready = |copy: &v1::ReadyCopy| {
        let generation = match kind {
            TableKind::Durable => Generation::Disk(DiskGeneration(copy.disk_generation)),
            TableKind::Memory => Generation::Process(Incarnation(copy.incarnation)),
        };
        (ReplicaId(copy.replica_id), generation)
    };
    SplitCommit {
        tablet: TabletId(wire.tablet_id),
        attempt: Attempt(wire.attempt),
        epoch: Epoch(wire.epoch),
        seal: wire.seal.map(log_end).unwrap_or_default(),
        ready: wire.ready.iter().map(ready).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::ids::JobId;
    use ebla_kernel::meta::MergeJob;

    #[test]
    fn a_merge_that_brings_two_copies_only_goes_forward() {
        let merge = MergeJob {
            left: TabletId(1),
            right: TabletId(2),
            comes: TabletId(2),
            child: TabletId(3),
            range: KeyRange::all(),
            moves: 2,
            tries: 0,
            intent: None,
        };
        let mut job = Job {
            id: JobId(1),
            attempt: Attempt(1),
            origin: Origin::Operator,
            kind: JobKind::Merge(merge),
            state: JobState::Running,
            progress: 0,
            error: None,
            started_ms: 1_000,
            ended_ms: 0,
        };
        let copied = |bytes| Some(Copied { bytes, bytes_total: 100, waits_for: None });
        let shown = |job: &Job, copied| job_to_wire(job, copied, 3_000).progress_per_mille;
        assert_eq!(
            [None, copied(50), copied(100), copied(130)].map(|it| shown(&job, it)),
            [0, 225, 450, 450]
        );
        assert_eq!(job_to_wire(&job, copied(50), 3_000).expected_ms, 1_000 + 2_000 * 1_000 / 225);
        job.progress = 450;
        assert_eq!([None, copied(50), copied(100)].map(|it| shown(&job, it)), [450, 675, 900]);
        job.state = JobState::Cancelled;
        assert_eq!(job_to_wire(&job, None, 3_000).child_tablet_ids, [0; 0]);
    }
}
