//! Copies: streams between this server and the others that share tablets with it.
//!
//! One connection per pair of servers carries all tablets, both ways; the server with the
//! lower id opens it. What a core wants sent is queued as an order and turned into bytes when
//! the connection has room for a frame, so that a slow server costs little memory; what it
//! says comes in as inputs of the sequencer. A message for a copy that is not here is dropped.
//!
//! Not here: what is sent when (the cores decide), and promises ([`crate::promises`]).

mod entries;
mod link;
mod peers;
mod service;
mod tail;

pub use entries::entries;
pub use link::{Links, connect_peer, endpoint, keep_connected};
pub use peers::{Identity, Outgoing, Peer, Peers};
pub use service::Replication;
pub use tail::Tail;
