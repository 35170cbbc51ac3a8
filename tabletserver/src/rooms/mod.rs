//! Rooms, the shell: subscribers of this server, messages on their way, and what is said between
//! servers about both. Which bit stands in which row is decided in `ebla_kernel::room`.
//!
//! ```text
//!  service/room.rs ──▶ registry.rs ──▶ bits.rs ──▶ link.rs ──▶ other servers
//!        │               ▲ members.rs                 ▲  │
//!        └──▶ publish.rs ┴────────────────────────────┘  ▼
//!                 ▲─────────────────────── service/room_peer.rs
//! ```
//!
//! - Nothing is kept of a message that was handed over; nobody waits for a subscriber.
//! - Every queue is bounded in bytes; who does not keep up is cut off alone.
//! - An idle room costs its row, its name, and its subscribers: no task, no timer, no message,
//!   but being said again twice a minute with a thousand others in one call.

mod bits;
mod changes;
mod link;
mod mailbox;
mod members;
mod publish;
mod registry;
mod seqs;
mod sweep;
mod who;

pub use link::FRAME;
pub use mailbox::{Frames, Held, Mailbox};
pub use members::{Message, Parcel, Subscriber};
pub use publish::{Publication, Publisher, Unpublished};
pub use registry::{Joined, Registry, RoomLimits};

use crate::node::Node;
use crate::oplog::Oplog;
use arc_swap::ArcSwap;
use ebla_kernel::ids::{Incarnation, Ordinal, ServerId};
use ebla_kernel::room::ServerRuns;
use link::{FailedPublications, Links};
use publish::Servers;
use seqs::Seqs;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Bytes that a thing takes in a queue beside its own: about what the queue and a frame add.
pub const PARCEL_BYTES: usize = 64;

/// How often a write of bits that was taken back is tried before its server hears that it failed.
const ROOM_OP_TRIES: usize = 3;

/// Everything about rooms on one server.
pub struct Rooms {
    pub(crate) node: Arc<Node>,
    registry: Registry,
    links: Links,
    seqs: Seqs,
    servers: ArcSwap<Servers>,
    failed: FailedPublications,
}

impl Rooms {
    /// The rooms of a server, and what runs for them as long as the server does.
    pub fn start(
        node: Arc<Node>,
        oplog: Arc<Oplog>,
        limits: RoomLimits,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send) {
        let (failed, failures) = mpsc::unbounded_channel();
        let jitter = uuid::Uuid::now_v7().as_u64_pair().1;
        let rooms = Arc::new(Self {
            registry: Registry::new(node.clock.tick(), jitter, limits),
            links: Links::new(Arc::clone(&node), failed.clone()),
            seqs: Seqs::default(),
            servers: ArcSwap::default(),
            failed,
            node,
        });
        let parts = {
            let rooms = Arc::clone(&rooms);
            async move {
                tokio::join!(
                    Arc::clone(&rooms).keep_bits(),
                    Arc::clone(&rooms).watch_leaders(),
                    Arc::clone(&rooms).retry_publications(failures),
                    Arc::clone(&rooms).publish_changes(oplog),
                    rooms.sweep(),
                );
            }
        };
        (rooms, parts)
    }

    /// The rooms of this server.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether this is the server of that id.
    fn is_own(&self, server: ServerId) -> bool {
        self.node.peers.identity().is_some_and(|own| own.run.server == server)
    }

    /// Another server said something: it is not down.
    pub fn heard_of(&self, server: ServerId) {
        self.links.heard_of(server);
    }

    /// The servers of the cluster as the map has them now.
    fn servers(&self) -> Arc<Servers> {
        let routes = self.node.routes.now();
        let known = self.servers.load_full();
        if known.version == routes.version {
            return known;
        }
        let own = self.node.peers.identity().map(|own| own.run.server.0);
        let runs = routes.servers().map(|one| (Ordinal(one.ordinal), Incarnation(one.incarnation)));
        let servers = Arc::new(Servers {
            version: routes.version,
            runs: Arc::new(ServerRuns { runs: runs.collect() }),
            by_ordinal: routes.servers().map(|one| (Ordinal(one.ordinal), ServerId(one.id))).collect(),
            own: routes.servers().find(|one| Some(one.id) == own).map(|one| Ordinal(one.ordinal)),
        });
        self.servers.store(Arc::clone(&servers));
        servers
    }
}
