//! What tests of whole clusters are built of: [`binary`] finds the program, [`process`] runs
//! it as child processes and treats them badly, [`cluster`] puts masters and tablet servers
//! together, [`cli`] calls commands and reads their JSON.
//!
//! Nothing here looks inside a server: what a test cannot see from outside, a user cannot
//! rely on.

pub mod binary;
pub mod cli;
pub mod cluster;
pub mod process;
//! Tests of whole clusters. [`sim`] runs one on a single thread out of a seed, with
//! [`oracle`] as the truth and [`invariants`] as the law.

pub mod invariants;
pub mod oracle;
pub mod sim;
