//! Messages and what the network does to them: delay, loss, doubling, overtaking, and links
//! cut in one direction.
//!
//! The network knows no sessions: a message is delivered to whatever process runs at its
//! address when it arrives. So late messages of an old session reach new processes, which
//! real streams prevent and the cores must survive all the same.

use super::fault::NetworkFaults;
use super::rng::Rng;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{DiskGeneration, Epoch, Incarnation, ReplicaId, ServerId, TabletId};
use ebla_kernel::meta;
use ebla_kernel::op::{Op, Token, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::tablet::Answer;
use std::collections::BTreeSet;

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
        /// Which.
        server: ServerId,
        /// Its run.
        incarnation: Incarnation,
        /// What it led.
        epochs: Vec<(TabletId, Epoch)>,
    },
    /// The metadata took a server in.
    Registered(Welcome),
    /// The metadata knows a later run of the server than this one.
    Superseded {
        /// The run that is over.
        boot_id: u64,
    },
    /// The metadata asks for promises.
    Fences(Vec<meta::Fence>),
    /// The metadata tells which copies a server holds, and who leads them.
    Assignments(Vec<Assignment>),
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
    /// The number of its run.
    pub boot_id: u64,
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

/// A copy of a tablet on a server.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The tablet.
    pub tablet: TabletId,
    /// Its keys.
    pub range: KeyRange,
    /// The server's copy.
    pub replica: ReplicaId,
    /// The epoch that the copy is created with, should it be new.
    pub epoch: Epoch,
    /// The run that leads the epoch, if it is one of this server.
    pub leader: Option<Incarnation>,
    /// The in-sync set.
    pub in_sync: BTreeSet<ReplicaId>,
    /// Durability factor D.
    pub min_in_sync: u8,
    /// A floor for the leader's clock.
    pub appointed_ts: Hlc,
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
    /// A row as it stands at a timestamp that the server picks.
    Snapshot {
        /// The row.
        key: Bytes,
    },
}

/// A server's answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The operation in the history.
    pub op: usize,
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
    /// Come back later.
    Busy,
}

/// Links and their state.
#[derive(Debug, Default)]
pub struct Network {
    cut: BTreeSet<(Address, Address)>,
}

impl Network {
    /// When copies of a message from `from` to `to` arrive, counted from now; none when lost.
    pub fn deliveries(
        &mut self,
        rng: &mut Rng,
        faults: &NetworkFaults,
        link: (Address, Address),
    ) -> Vec<u64> {
        if self.cut.contains(&link) || rng.chance(faults.drop_pm) {
            return Vec::new();
        }
        let copies = if rng.chance(faults.duplicate_pm) { 2 } else { 1 };
        let delay = |rng: &mut Rng| match rng.chance(faults.late_pm) {
            true => rng.between(faults.late_us),
            false => rng.between(faults.delay_us),
        };
        (0..copies).map(|_| delay(rng)).collect()
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
