//! A tablet server: the shell that keeps rows, logs and replicas around the tablet core.
//!
//! Three stores per server, not per tablet: the data ([`store`]), one log shared by all
//! tablets ([`oplog`]) and a small synced [`registry`]. Decisions are the kernel's.

#[cfg(test)]
mod documented;
mod durable_file;
pub mod identity;
pub mod limits;
pub mod oplog;
pub mod registry;
pub mod store;
