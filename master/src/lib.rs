//! The master role: a small group of processes that agrees on who serves which tablet.
//!
//! Decisions are in `ebla_kernel::meta`; this crate is the shell around them: the Raft group
//! that replicates its commands, the sessions of tablet servers, placement, and the gRPC
//! services. Masters are needed to change who serves, not to serve: no call of a client that
//! reads or writes rows comes through here.

mod backup;
mod balancer;
mod clock;
mod config;
mod controller;
mod error;
mod forming;
mod identity;
mod limits;
mod liveness;
mod master;
mod placement;
mod raft;
mod server;
mod service;
mod system_tables;

pub use config::Config;
pub use error::Error;
pub use limits::SNAPSHOT_ENTRIES_DEFAULT;
pub use master::Master;
