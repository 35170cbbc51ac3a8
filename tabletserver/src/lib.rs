//! A tablet server: the shell that keeps rows, logs and replicas around the tablet core.
//!
//! Three stores per server, not per tablet: the data ([`store`]), one log shared by all
//! tablets ([`oplog`]) and a small synced [`registry`]. Decisions are the kernel's.

mod backup;
mod bootstrap;
mod clock;
mod config;
mod copy_read;
mod copying;
mod counting;
mod disk;
#[cfg(test)]
mod documented;
mod durable_file;
mod elapsed;
mod error;
mod flusher;
mod front_door;
mod handover;
mod heat;
pub mod identity;
mod janitor;
mod ledger;
pub mod limits;
mod load_sample;
mod master_link;
mod memory_keeper;
mod meters;
mod node;
pub mod oplog;
mod pipeline;
mod promises;
mod read;
pub mod registry;
mod replica_set;
mod replicas;
mod replication;
mod rooms;
mod routes;
mod server;
mod service;
pub mod store;
mod succession;
mod sweeper;
mod tablets;
mod watch;

pub use backup::{BackupRow, BackupTable};
pub use config::Config;
pub use error::Error;
pub use server::TabletServer;
