//! Tests of whole clusters, in two worlds.
//!
//! Real processes: [`binary`] finds the program, [`process`] runs it as child processes and
//! treats them badly, [`cluster`] puts masters and tablet servers together, [`cli`] calls
//! commands and reads their JSON. Nothing there looks inside a server: what a test cannot
//! see from outside, a user cannot rely on.
//!
//! Simulation: [`sim`] runs a cluster on a single thread out of a seed, with [`oracle`] as
//! the truth and [`invariants`] as the law.

pub mod binary;
pub mod cli;
pub mod cluster;
pub mod invariants;
pub mod oracle;
pub mod process;
pub mod sim;
