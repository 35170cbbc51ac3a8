//! Messages and what the network does to them: delay, loss, doubling, overtaking, and links
//! cut in one direction.
//!
//! The network knows no sessions: a message is delivered to whatever process runs at its
//! address when it arrives. So late messages of an old session reach new processes, which
//! real streams prevent and the cores must survive all the same. Between two servers messages
//! mostly keep their order, as on a stream; a lost one means that the stream broke, and its
//! sender is told when there is a new one.

use super::copying::{Fetch, Shipment};
use super::fault::NetworkFaults;
use super::rng::Rng;
use super::rooms::RoomMessage;
use crate::oracle::Session;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{
    Attempt, ConfigVersion, DiskGeneration, Epoch, Incarnation, ReplicaId, ServerId, ServerRun, TabletId,
};
use ebla_kernel::lease::Promised;
use ebla_kernel::meta;
use ebla_kernel::op::{AckLevel, Op, Token, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::tablet::{Answer, Membership, PeerInput, Proposal};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Who sends and receives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Address {
    /// The metadata node.
    Meta,
    /// A tablet server, by index.
    Server(usize),
    /// A client, by index.
    Client(usize),
}

/// What travels.
#[derive(Clone, Debug)]
pub enum Message {
    /// A server process presents itself, and again until it has what it needs.
    Register(Registration),
    /// A server answers fences.
    FenceAnswers(FenceAnswers),
    /// A server gave epochs up for good though its process lives.
    GaveUp {
        /// Its run.
        run: ServerRun,
        /// What it led, and which copies may lead next.
        epochs: Vec<(TabletId, Epoch, Option<ReplicaId>)>,
    },
    /// A server does not hear these leaders.
    Silent {
        /// Its run.
        run: ServerRun,
        /// Every leader's process that it has not heard for a while.
        leaders: BTreeSet<(ServerId, Incarnation)>,
    },
    /// A server says which copies of tablets that it leads its log cannot bring up.
    Behind {
        /// Its run.
        run: ServerRun,
        /// They, and the epochs in which they were found behind.
        copies: Vec<(TabletId, Epoch, ReplicaId)>,
    },
    /// A server says which of its copies have diverged from their leaders.
    Diverged {
        /// Its run.
        run: ServerRun,
        /// They.
        copies: Vec<(TabletId, ReplicaId)>,
    },
    /// The leader of a sealed tablet asks for the commit of its split.
    ProposeSplit {
        /// Its run.
        run: ServerRun,
        /// What.
        commit: meta::SplitCommit,
    },
    /// The metadata refuses a commit for good.
    SplitRefused {
        /// Whom.
        run: ServerRun,
        /// The tablet.
        tablet: TabletId,
        /// The epoch.
        epoch: Epoch,
        /// The attempt.
        attempt: Attempt,
    },
    /// The metadata wants a tablet sealed.
    Seal(meta::SealOrder),
    /// A server asks for the rows of a copy.
    Fetch(Fetch),
    /// Rows for a copy.
    Shipment(Rc<Shipment>),
    /// A server asks for changes of in-sync sets that it leads.
    Propose {
        /// Its run.
        run: ServerRun,
        /// What.
        proposals: Vec<(TabletId, Proposal)>,
    },
    /// The metadata refuses a change for good.
    ProposalRefused {
        /// Whom.
        run: ServerRun,
        /// The tablet.
        tablet: TabletId,
        /// The epoch.
        epoch: Epoch,
        /// The version that was to be changed.
        version: ConfigVersion,
    },
    /// The metadata wants another copy to lead.
    Transfer {
        /// The tablet.
        tablet: TabletId,
        /// The epoch.
        epoch: Epoch,
        /// The copy.
        to: ReplicaId,
    },
    /// The metadata took a server in.
    Registered(Welcome),
    /// The metadata knows a later run of the server than this one.
    Superseded {
        /// The run that is over.
        boot_id: u64,
    },
    /// The metadata knows another run of the server than the one that speaks.
    SessionOver(ServerRun),
    /// The metadata asks for promises.
    Fences(Vec<meta::Fence>),
    /// The metadata tells which copies a server holds, and who leads them.
    Assignments(Assignments),
    /// A copy speaks to another.
    Peer {
        /// The tablet.
        tablet: TabletId,
        /// The copy that is meant.
        to: ReplicaId,
        /// Who says what.
        input: PeerInput,
    },
    /// A leader's server asks for a promise.
    Ask {
        /// Its run.
        from: ServerRun,
        /// The run that is asked, if it is known.
        of: Option<Incarnation>,
        /// The question's number.
        number: u64,
        /// Exceptions that it has acted on.
        given_up: Vec<(TabletId, Epoch)>,
    },
    /// The answer, and the greeting of a run.
    Promise {
        /// Its run.
        from: ServerRun,
        /// The run that asked: the answer comes on the stream that it opened.
        to: ServerRun,
        /// The question and what is promised; none if nothing is.
        promised: Option<(u64, Promised)>,
    },
    /// Servers speak about rooms.
    Room(RoomMessage),
    /// A client asks.
    Request(Request),
    /// A server answers.
    Response(Response),
}

/// How a server process presents itself.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Where it runs.
    pub server: usize,
    /// What its directory says.
    pub identity: Option<(meta::ClusterId, ServerId)>,
    /// The number of its directory.
    pub disk_generation: DiskGeneration,
    /// The random number of its run.
    pub boot_id: u64,
    /// How many runs there were with it.
    pub starts: u64,
}

/// The answer to a registration.
#[derive(Clone, Copy, Debug)]
pub struct Welcome {
    /// The run that was registered.
    pub boot_id: u64,
    /// The cluster.
    pub cluster_id: meta::ClusterId,
    /// The server's name.
    pub server: ServerId,
    /// The run's number.
    pub incarnation: Incarnation,
}

/// Answers to fences, of one run.
#[derive(Clone, Debug)]
pub struct FenceAnswers {
    /// Who answers.
    pub server: ServerId,
    /// Its run.
    pub incarnation: Incarnation,
    /// What it says.
    pub answers: Vec<meta::FenceAnswer>,
}

/// What a server holds.
#[derive(Clone, Debug)]
pub struct Assignments {
    /// The process that is meant.
    pub run: ServerRun,
    /// Rises with every message.
    pub number: u64,
    /// Whether these are all.
    pub full: bool,
    /// Its copies.
    pub assignments: Vec<Assignment>,
    /// Tablets of which it holds no copy any more.
    pub removed: Vec<TabletId>,
}

/// A copy of a tablet on a server.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The tablet.
    pub tablet: TabletId,
    /// Its keys.
    pub range: KeyRange,
    /// The server's copy.
    pub replica: ReplicaId,
    /// What the copy's data lives and dies with.
    pub generation: ebla_kernel::ids::Generation,
    /// The epoch that the copy is created with, should it be new.
    pub epoch: Epoch,
    /// Who leads the epoch.
    pub leader: Option<(ReplicaId, ServerRun)>,
    /// The copies.
    pub membership: Membership,
    /// The in-sync set never shrinks below this.
    pub shrink_floor: u8,
    /// Durability factor D.
    pub min_in_sync: u8,
    /// A floor for the leader's clock.
    pub appointed_ts: Hlc,
    /// Whether the copy is in sync.
    pub is_in_sync: bool,
    /// What the tablet was made of, in key order.
    pub parents: Vec<meta::Parent>,
    /// When every copy in memory was lost for the last time, 0 for never.
    pub emptied_ms: u64,
    /// No attempt up to this one to retire the tablet will be committed.
    pub aborted: Attempt,
}

/// A client's request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks.
    pub client: usize,
    /// The operation in the history.
    pub op: usize,
    /// The tablet that the client means.
    pub tablet: TabletId,
    /// What it asks.
    pub body: RequestBody,
}

/// What a client asks.
#[derive(Clone, Debug)]
pub enum RequestBody {
    /// An atomic batch.
    Write {
        /// Its operations.
        ops: Vec<Op>,
        /// Its name.
        token: Token,
        /// How many copies to wait for.
        level: AckLevel,
    },
    /// How a batch ended.
    Outcome {
        /// Its name.
        token: Token,
    },
    /// The newest version of a row.
    Get {
        /// The row.
        key: Bytes,
    },
    /// A row as it stands at a timestamp that the leader picks.
    Snapshot {
        /// The row.
        key: Bytes,
    },
    /// A row from any copy, not older than a bound.
    Bounded {
        /// The row.
        key: Bytes,
        /// The bound in milliseconds.
        stale_ms: u64,
    },
    /// A row from any copy that has what a session wrote.
    InSession {
        /// The row.
        key: Bytes,
        /// What it wrote last.
        session: Session,
    },
}

/// A server's answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The operation in the history.
    pub op: usize,
    /// The tablet that it went to.
    pub tablet: TabletId,
    /// The epoch whose leader answers; none for a copy that does not lead.
    pub epoch: Option<Epoch>,
    /// What it says.
    pub reply: Reply,
}

/// What a client is told.
#[derive(Clone, Debug)]
pub enum Reply {
    /// About a write.
    Answer(Answer),
    /// A row: its newest version, a tombstone included.
    Row {
        /// The version; none where there never was one.
        version: Option<Version>,
        /// The timestamp of the snapshot; none for the newest.
        at: Option<Hlc>,
    },
    /// What the session wrote last was dropped.
    WriteLost,
    /// Come back later.
    Busy,
}

/// Links and their state.
#[derive(Debug, Default)]
pub struct Network {
    cut: BTreeSet<(Address, Address)>,
    /// When the last message that keeps its order arrives.
    last: BTreeMap<(Address, Address), u64>,
}

impl Network {
    /// When copies of a message from `from` to `to` arrive; none when it is lost.
    pub fn deliveries(
        &mut self,
        rng: &mut Rng,
        faults: &NetworkFaults,
        link: (Address, Address),
        now_us: u64,
    ) -> Vec<u64> {
        if self.is_cut(link) || rng.chance(faults.drop_pm) {
            return Vec::new();
        }
        let copies = if rng.chance(faults.duplicate_pm) { 2 } else { 1 };
        (0..copies).map(|_| self.arrival(rng, faults, link, now_us)).collect()
    }

    fn arrival(
        &mut self,
        rng: &mut Rng,
        faults: &NetworkFaults,
        link: (Address, Address),
        now_us: u64,
    ) -> u64 {
        if rng.chance(faults.late_pm) {
            return now_us + rng.between(faults.late_us);
        }
        let at_us = now_us + rng.between(faults.delay_us);
        if !matches!(link, (Address::Server(_), Address::Server(_))) {
            return at_us;
        }
        let last = self.last.entry(link).or_default();
        *last = at_us.max(*last);
        *last
    }

    /// Whether a link is cut.
    #[must_use]
    pub fn is_cut(&self, link: (Address, Address)) -> bool {
        self.cut.contains(&link)
    }

    /// Cuts a link in one direction.
    pub fn cut(&mut self, from: Address, to: Address) {
        self.cut.insert((from, to));
    }

    /// Joins a link again.
    pub fn join(&mut self, from: Address, to: Address) {
        self.cut.remove(&(from, to));
    }

    /// Joins every link.
    pub fn heal(&mut self) {
        self.cut.clear();
    }
}
