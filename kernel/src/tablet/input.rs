//! What happens to a replica.

use crate::entry::{Entry, LogEnd, SealRecord};
use crate::hlc::Hlc;
use crate::ids::{
    Attempt, ConfigVersion, Epoch, Generation, Incarnation, Pos, ReplicaId, RequestId, Seq, ServerId,
    ServerRun, Tick,
};
use crate::op::{AckLevel, Op, Token};
use crate::sequence::Evidence;
use std::collections::{BTreeMap, BTreeSet};

/// What happened to a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Metadata asks for a promise to refuse every epoch below `epoch`.
    Fence {
        /// The epoch to come.
        epoch: Epoch,
        /// Every leader of an epoch up to this has released the tablet or is over: a promise
        /// to it binds nobody.
        gone: Epoch,
    },
    /// Metadata named a leader.
    Appoint(Appointment),
    /// Metadata tells the in-sync set of the epoch that this replica leads.
    InSync {
        /// The epoch.
        epoch: Epoch,
        /// The set and who holds the copies.
        membership: Membership,
    },
    /// Metadata refused for good the change of the set of this version.
    ProposalRefused {
        /// The epoch.
        epoch: Epoch,
        /// The version that was to be changed.
        version: ConfigVersion,
    },
    /// The promise of `epoch` is durable.
    PromisePersisted {
        /// The promised epoch.
        epoch: Epoch,
    },
    /// Another copy of the tablet says something.
    Peer(PeerInput),
    /// The way to a server is open again.
    Connected {
        /// The server.
        server: ServerId,
    },
    /// Nothing was heard from a server for `IN_SYNC_LAG_MS`.
    Silent {
        /// The server.
        server: ServerId,
    },
    /// A promise told that its giver knows a higher epoch (m20).
    Superseded {
        /// The higher epoch.
        epoch: Epoch,
    },
    /// A batch of inputs is over: what gathered for others leaves together.
    Flush,
    /// Entries are on their way to a copy.
    Sent {
        /// The copy.
        to: ReplicaId,
        /// Index of the last of them, or the one before the first if none went.
        upto: Seq,
    },
    /// Entries could not be sent: the log has them no longer, or there is no way to the copy.
    StreamFailed {
        /// The copy.
        to: ReplicaId,
    },
    /// The next entries for a copy are no longer in the log.
    Purged {
        /// The copy.
        to: ReplicaId,
    },
    /// A client's batch, already checked against the limits.
    Write(WriteRequest),
    /// A reader wants to know that everything sequenced so far is applied. The shell has
    /// raised its clock to the reader's timestamp before.
    Barrier {
        /// Who asks.
        request: RequestId,
        /// The reader's timestamp, or a later one: no write that comes later is at or below it.
        ts: Hlc,
        /// When to give up.
        deadline: Tick,
    },
    /// A reader wants that nothing at or below `ts` can follow.
    CloseWanted {
        /// The reader's timestamp.
        ts: Hlc,
        /// A fresh one, above it, for the entry that may be needed.
        fresh: Hlc,
    },
    /// A client asks how a write ended.
    GetOutcome {
        /// Who asks.
        request: RequestId,
        /// The write.
        token: Token,
        /// Wall time in milliseconds since 1970.
        wall_ms: u64,
        /// A fresh timestamp, for the fence if one is needed.
        ts: Hlc,
        /// When to give up.
        deadline: Tick,
    },
    /// Hand the epoch over to another copy.
    Transfer {
        /// The epoch.
        epoch: Epoch,
        /// The copy that is to lead.
        to: ReplicaId,
        /// When to go on leading instead.
        until: Tick,
    },
    /// Metadata wants the tablet sealed, so that others can take its place.
    Seal {
        /// The epoch.
        epoch: Epoch,
        /// What is to be.
        seal: SealRecord,
        /// Not later: the masters may be out of reach by then.
        until: Tick,
    },
    /// What the seal names is known to the registry, or nothing is staged any more.
    Staged {
        /// The attempt; none when a seal was taken back.
        attempt: Option<Attempt>,
    },
    /// Metadata refused for good the commit that was asked for.
    SplitRefused {
        /// The epoch.
        epoch: Epoch,
        /// The attempt.
        attempt: Attempt,
    },
    /// Metadata shows that no attempt up to this one will ever be committed.
    SplitAborted {
        /// The attempt.
        attempt: Attempt,
    },
    /// Others have taken the tablet's place; nothing follows.
    Retire,
    /// Appended entries up to here are durable.
    Persisted {
        /// Index of the last of them.
        upto: Seq,
    },
    /// Every entry up to here that was to be applied when durable is in the store.
    Applied {
        /// Index of the last of them.
        upto: Seq,
    },
    /// Every entry up to here is in the store, those that were taken back left out.
    Settled {
        /// Index of the last of them.
        upto: Seq,
    },
    /// The log's entry that was asked for.
    Located {
        /// Its position, hash and timestamp.
        end: LogEnd,
    },
    /// The tail was cut, in every place.
    Truncated {
        /// The end of the log now.
        end: LogEnd,
        /// Nothing above this counts as applied.
        applied: Seq,
    },
    /// An append was refused or failed; nothing from here on was written.
    AppendFailed {
        /// Index of the first entry that was not written.
        from: Seq,
    },
    /// Tokens issued before this are no longer remembered.
    ForgetTokens {
        /// Milliseconds since 1970.
        issued_before_ms: u64,
    },
    /// Give up leading for good: the server stops or its disk is sick.
    StepDown,
    /// Time passed.
    Tick,
}

/// The copies of a tablet and which of them are in sync.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    /// Version of the in-sync set.
    pub version: ConfigVersion,
    /// The in-sync set.
    pub in_sync: BTreeSet<ReplicaId>,
    /// Every copy that holds its data, and its server.
    pub members: BTreeMap<ReplicaId, ServerId>,
    /// A copy whose place another has taken: it is to leave the set for good.
    pub leaving: Option<ReplicaId>,
}

/// A leader as metadata named it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appointment {
    /// The term.
    pub epoch: Epoch,
    /// The replica that leads.
    pub replica: ReplicaId,
    /// The process that leads.
    pub incarnation: Incarnation,
    /// The copies.
    pub membership: Membership,
    /// Durability factor D.
    pub min_in_sync: u8,
    /// The in-sync set never shrinks below this: min(D, R) of a strict table, 1 of a
    /// degraded one.
    pub shrink_floor: u8,
    /// A fresh timestamp, above everything in the log and every floor.
    pub ts: Hlc,
}

/// A client's batch on its way to the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteRequest {
    /// Who asks.
    pub request: RequestId,
    /// At least one, within the limits.
    pub ops: Vec<Op>,
    /// How many copies to wait for.
    pub level: AckLevel,
    /// The write's name for retries.
    pub token: Option<Token>,
    /// What was read for it.
    pub evidence: Evidence,
    /// A fresh timestamp.
    pub ts: Hlc,
    /// Wall time in milliseconds since 1970.
    pub wall_ms: u64,
    /// When to answer `Unknown`.
    pub deadline: Tick,
}

/// Who another copy is: progress counts for exactly this process and this data (m15).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PeerRun {
    /// The process.
    pub server: ServerRun,
    /// What the copy's data lives and dies with.
    pub generation: Generation,
}

/// A message of another copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerInput {
    /// The copy.
    pub from: ReplicaId,
    /// Its process and data.
    pub run: PeerRun,
    /// The epoch that it is about.
    pub epoch: Epoch,
    /// What it says.
    pub message: PeerMessage,
}

/// What copies say to each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerMessage {
    /// Leader: where does your log end?
    Probe,
    /// Follower: durably there, and so it grew.
    Hello {
        /// Durable end of the log.
        end: Pos,
        /// Which epoch began where, oldest first.
        epochs: Vec<(Epoch, Seq)>,
    },
    /// Leader: entries, and how far they are safe.
    Append {
        /// What stands before them in the leader's log.
        prev: Pos,
        /// Consecutive; none when only Q moved.
        entries: Vec<Entry>,
        /// Q of the epoch; zero while nothing of it is safe.
        q: Pos,
    },
    /// Follower: what it has durably of the leader's log, and the Q that it has heard.
    Ack {
        /// The last durable entry that is the leader's too (m35).
        pos: Pos,
        /// Index of the Q.
        q: Seq,
        /// The attempt whose children are staged there, 0 for none (m28).
        ready: Attempt,
    },
    /// Follower: the message's epoch is promised, yours is over.
    Refuse,
    /// Follower: a reader wants everything up to a timestamp.
    CloseWanted {
        /// The timestamp.
        ts: Hlc,
    },
}
