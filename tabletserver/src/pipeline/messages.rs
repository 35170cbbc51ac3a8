//! What goes into the sequencer and what comes out of it.

use crate::succession::Staging;
use crossbeam::channel::{Sender, TrySendError};
use ebla_kernel::entry::{LogEnd, SealRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{
    Attempt, ConfigVersion, Epoch, Incarnation, ReplicaId, Seq, ServerId, TabletId, Tick,
};
use ebla_kernel::op::{AckLevel, Op, Token};
use ebla_kernel::sequence::Evidence;
use ebla_kernel::tablet::token::TokenTable;
use ebla_kernel::tablet::{Answer, FenceAnswer, Membership, PeerInput, Proposal, SplitProposal, Tablet};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::tablets::TabletHandle;

/// Who waits for an answer.
#[derive(Debug)]
pub enum Reply {
    /// A task of its own.
    Once(oneshot::Sender<Answer>),
    /// A call on a stream.
    Stream {
        /// The call's number.
        call: u64,
        /// The stream's answers.
        to: mpsc::UnboundedSender<(u64, Answer)>,
    },
}

impl Reply {
    /// Answers; a client that went away hears nothing.
    pub fn send(self, answer: Answer) {
        match self {
            Self::Once(to) => drop(to.send(answer)),
            Self::Stream { call, to } => drop(to.send((call, answer))),
        }
    }
}

/// What clients ask.
#[derive(Debug)]
pub enum Ask {
    /// An atomic batch.
    Write {
        /// Its operations, within the limits.
        ops: Vec<Op>,
        /// How many copies to wait for.
        level: AckLevel,
        /// Its name for retries.
        token: Option<Token>,
        /// What was read for it.
        evidence: Evidence,
    },
    /// Tell when everything sequenced so far is applied.
    Barrier,
    /// How did this write end?
    GetOutcome {
        /// The write.
        token: Token,
    },
}

/// A client's request.
#[derive(Debug)]
pub struct Request {
    /// The tablet.
    pub tablet: TabletId,
    /// What is asked.
    pub ask: Ask,
    /// When to answer that nobody knows.
    pub deadline: Tick,
    /// Who waits.
    pub reply: Reply,
}

/// A fence of metadata, for one replica.
#[derive(Clone, Copy, Debug)]
pub struct Fenced {
    /// The tablet.
    pub tablet: TabletId,
    /// The replica that is meant.
    pub replica: ReplicaId,
    /// The epoch to come.
    pub epoch: Epoch,
    /// Leaders of epochs up to this are gone.
    pub gone: Epoch,
}

/// Messages of another server's copies, and the room that they take.
pub struct PeerMessages {
    /// Tablet, the replica that is meant, and what is said.
    pub messages: Vec<(TabletId, ReplicaId, PeerInput)>,
    /// Given back when their entries are durable.
    pub room: OwnedSemaphorePermit,
}

/// What the server tells its sequencer.
pub enum Control {
    /// Take this replica in.
    Install(Box<Tablet>, Arc<TabletHandle>),
    /// Let this replica go; tell when nothing of it is in flight.
    Remove(TabletId, oneshot::Sender<()>),
    /// Metadata asks for promises.
    Fence(Vec<Fenced>),
    /// Metadata named leaders, or in-sync sets of epochs that are led here.
    Appoint(Vec<(TabletId, Appointed)>),
    /// Metadata refused changes of in-sync sets.
    ProposalsRefused(Vec<(TabletId, Epoch, ConfigVersion)>),
    /// Metadata wants leaderships handed over.
    Transfer(Vec<(TabletId, Epoch, ReplicaId)>),
    /// Metadata wants tablets sealed.
    Seal(Vec<(TabletId, Epoch, SealRecord)>),
    /// What is staged is known to the registry.
    Staged(Vec<(TabletId, Option<Attempt>)>),
    /// Metadata refused commits of splits for good.
    SplitRefused(Vec<(TabletId, Epoch, Attempt)>),
    /// Others take this tablet's place: give it up, and hand its core over when nothing of it is
    /// in flight.
    Retire(TabletId, oneshot::Sender<Option<Box<Tablet>>>),
    /// Promises are durable.
    PromisePersisted(Vec<(TabletId, Epoch)>),
    /// Other copies say something.
    Peers(PeerMessages),
    /// The way to a server is open.
    Connected(ServerId),
    /// A server has been silent for too long.
    Silent(ServerId),
    /// Higher epochs are known; tell when the lower ones are given up.
    Superseded(Vec<(TabletId, Epoch)>, oneshot::Sender<()>),
    /// Entries up to these are on their way to copies.
    Sent(Vec<(TabletId, ReplicaId, Seq)>),
    /// Entries could not be sent to copies.
    StreamFailed(Vec<(TabletId, ReplicaId)>),
    /// The next entries for copies are no longer in the log.
    Purged(Vec<(TabletId, ReplicaId)>),
    /// The tokens of the log up to an entry, for a copy that begins there; none when the tablet
    /// is not here.
    Tokens(TabletId, Seq, oneshot::Sender<Option<TokenTable>>),
    /// A reader of a copy wants that nothing up to here can follow.
    CloseWanted(TabletId, Hlc),
    /// Entries up to these are durable.
    Persisted(Vec<(TabletId, Seq)>),
    /// What was to be applied at once is in the store.
    Applied {
        /// How many groups.
        groups: usize,
        /// Last index of each tablet of each.
        ends: Vec<(TabletId, Seq)>,
    },
    /// Everything up to these is in the store.
    Settled(Vec<(TabletId, Seq)>),
    /// Entries that were asked for.
    Located(Vec<(TabletId, LogEnd)>),
    /// Logs were cut: where they end now, and how far they are applied.
    Truncated(Vec<(TabletId, LogEnd, Seq)>),
    /// Entries from these on were not written.
    AppendFailed(Vec<(TabletId, Seq)>),
    /// Hand every epoch over to an in-sync copy elsewhere; tell which can be.
    HandOver(oneshot::Sender<Vec<TabletId>>),
    /// Finish what was asked, then give up every epoch, then tell.
    Drain(oneshot::Sender<()>),
    /// End the thread.
    Stop,
}

/// A leader as metadata names it: an appointment before it has its timestamp, and news of
/// the in-sync set afterwards.
#[derive(Clone, Debug)]
pub struct Appointed {
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
    /// The in-sync set never shrinks below this.
    pub shrink_floor: u8,
    /// No attempt up to this one to retire the tablet will be committed.
    pub aborted: Attempt,
}

/// What cores ask of the rest of the server.
#[derive(Debug)]
pub enum Outward {
    /// Make promises durable, then say `PromisePersisted`.
    PersistPromises(Vec<(TabletId, Epoch)>),
    /// Answer metadata's fences.
    FenceAnswers(Vec<(TabletId, ReplicaId, FenceAnswer)>),
    /// Ask metadata for changes of in-sync sets.
    Proposals(Vec<(TabletId, Proposal)>),
    /// Stage what cores want staged, then say `Staged`.
    Stage(Vec<Staging>),
    /// Ask metadata to commit splits.
    Commits(Vec<(TabletId, SplitProposal)>),
    /// Some tablet began or ceased to serve.
    ServingChanged,
}

/// The request cannot be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubmitError {
    /// Too much is waiting.
    Full,
    /// The server is stopping.
    Stopped,
}

/// The way in, for request tasks.
#[derive(Clone)]
pub struct SequencerHandle {
    /// Requests, bounded.
    pub requests: Sender<Request>,
    /// Completions and orders; bounded by the groups and tablets there are.
    pub control: Sender<Control>,
}

impl SequencerHandle {
    /// Hands a request over without waiting.
    ///
    /// # Errors
    /// `Full` or `Stopped`; nothing was done.
    pub fn submit(&self, request: Request) -> Result<(), SubmitError> {
        self.requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => SubmitError::Full,
            TrySendError::Disconnected(_) => SubmitError::Stopped,
        })
    }
}
