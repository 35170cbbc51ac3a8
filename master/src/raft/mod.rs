//! The Raft group of the masters: nothing outside of this folder knows the library.
//!
//! One thread owns the library's node, its log and the applied state; others send it
//! [`node::Input`]s and read what it publishes in [`view::View`].

mod logging;
pub(crate) mod node;
mod pending;
pub(crate) mod storage;
pub(crate) mod transport;
pub(crate) mod view;

pub(crate) use pending::NoAnswer;
