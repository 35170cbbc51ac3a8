//! What a replica asks of its shell.

use super::input::{PeerMessage, PeerRun};
use super::progress::Change;
use crate::entry::{Entry, LogEnd, SealRecord};
use crate::ids::{Attempt, ConfigVersion, Epoch, Pos, ReplicaId, RequestId, Seq, ServerRun, TabletId};
use crate::lease::LeaseTerms;
use crate::op::Committed;
use crate::sequence::Reject;

/// What a shell has to do, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// From now on list this tablet in every promise to that process (m20).
    Except {
        /// This tablet, or the one that it was made of: its leader may not know of that yet.
        tablet: TabletId,
        /// The process that led.
        to: ServerRun,
        /// The higher epoch.
        epoch: Epoch,
    },
    /// Make the promise durable, then say `PromisePersisted`.
    PersistPromise {
        /// The epoch below which everything is refused.
        epoch: Epoch,
    },
    /// Answer metadata's fence.
    AnswerFence(FenceAnswer),
    /// Append to the log, then say `Persisted`.
    Append {
        /// The entry.
        entry: Entry,
        /// When its rows may be put into the store.
        when: ApplyWhen,
    },
    /// Append a leader's entries to the log, then say `Persisted`; their rows wait for `Apply`.
    AppendCopies {
        /// Consecutive, at least one.
        entries: Vec<Entry>,
    },
    /// Put the rows of every durable entry up to here into the store, in order, those that a
    /// revert takes back left out, then say `Settled`. One at a time.
    Apply {
        /// Index of the last of them.
        upto: Seq,
    },
    /// Send entries to a copy, as many as fit, then say `Sent`. One at a time for each copy.
    Stream(Stream),
    /// Say something to a copy.
    Send {
        /// The copy.
        to: ReplicaId,
        /// The epoch that it is about.
        epoch: Epoch,
        /// What to say.
        message: PeerMessage,
    },
    /// Read position, hash and timestamp of an entry, then say `Located`.
    Locate {
        /// Its index; 0 for the empty log.
        seq: Seq,
    },
    /// Cut the log after `keep`: intent, loss ledger, undo, flush, cut; then say `Truncated`.
    Truncate {
        /// The last entry that stays.
        keep: LogEnd,
    },
    /// The log disagrees with its leader's below what was safe. The copy is of no use.
    Diverged {
        /// The last entry that both have.
        keep: Seq,
        /// What stands here behind it.
        at: Pos,
    },
    /// Ask metadata for a change of the in-sync set.
    ProposeInSync(Proposal),
    /// The seal is applied: cut range tombstones that span children, make the children known to
    /// the registry, then say `Staged`. They neither serve nor answer (m26).
    Stage {
        /// What is to take this tablet's place.
        seal: SealRecord,
        /// Where the seal stands.
        end: LogEnd,
    },
    /// The seal was taken back: forget what was staged for it, then say `Staged` with none.
    Unstage,
    /// Ask metadata to commit a split.
    ProposeSplit(SplitProposal),
    /// Readers and the lease: under these terms it is held.
    Lease(LeaseTerms),
    /// Reads and writes may come: the epoch has begun.
    Serve {
        /// The epoch.
        epoch: Epoch,
    },
    /// Reads and writes must not be answered any more.
    StopServing {
        /// The epoch that was given up.
        epoch: Epoch,
        /// The copy that has everything of it and may lead next.
        successor: Option<ReplicaId>,
    },
    /// Answer a client.
    Reply {
        /// Who asked.
        request: RequestId,
        /// What to say.
        answer: Answer,
    },
}

/// When the rows of an entry may be put into the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApplyWhen {
    /// As soon as it is durable here.
    Durable,
    /// When an `Apply` reaches it: until then nobody may see them.
    Safe,
}

/// Entries for a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stream {
    /// The copy.
    pub to: ReplicaId,
    /// The leader's epoch.
    pub epoch: Epoch,
    /// What stands before the first entry.
    pub prev: Pos,
    /// Index of the first entry.
    pub from: Seq,
    /// Index of the last entry; below `from` when only Q moved.
    pub upto: Seq,
    /// The published Q.
    pub q: Pos,
}

/// A change of the in-sync set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// The leader's epoch.
    pub epoch: Epoch,
    /// The version that is to be changed.
    pub version: ConfigVersion,
    /// What is to come of it.
    pub change: Change,
    /// The process and data that the leader knows it by; none for one that goes out unheard.
    pub run: Option<PeerRun>,
}

/// The commit of a split, as the leader of the sealed tablet asks for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SplitProposal {
    /// The leader's epoch.
    pub epoch: Epoch,
    /// The attempt that the tablet is sealed for.
    pub attempt: Attempt,
    /// The seal.
    pub seal: LogEnd,
    /// The copies that are ready and how the leader knows them; none for its own.
    pub ready: Vec<(ReplicaId, Option<PeerRun>)>,
}

/// What a replica's log ends in, as metadata's election wants to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FenceAnswer {
    /// The epoch that was promised.
    pub epoch: Epoch,
    /// Durable end of the log; nothing of a lower epoch will follow.
    pub end: LogEnd,
}

/// What a client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The write stands at its level.
    Committed(Committed),
    /// The write is gone and was never shown, and will never run.
    Reverted,
    /// Nobody can say yet.
    Unknown,
    /// Everything sequenced before the question is applied.
    Reached,
    /// Nothing was written, and why.
    Refused(Refusal),
}

/// Why nothing was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// This replica does not lead, or does not serve yet.
    NotLeader,
    /// The leader has lost touch with the other copies and must not answer for the tablet.
    NoLease,
    /// Leadership is being handed over.
    Transferring,
    /// The tablet is sealed: others are about to take its place.
    Sealed,
    /// Others have taken the tablet's place.
    Retired,
    /// A key lies outside of the tablet.
    OutOfRange,
    /// The in-sync copies that can be reached are too few for the level.
    NotEnoughReplicas,
    /// Too many writes wait for copies.
    Busy,
    /// A pending write of the same row was not decided in time.
    WaitTimedOut,
    /// The token is older than what is remembered.
    TokenTooOld,
    /// A question for the token's outcome was answered with "it never ran".
    TokenFenced,
    /// The batch itself.
    Rejected(Reject),
}
