//! Tests of whole clusters, in two ways.
//!
//! **Real processes**, seen only from outside: [`binary`] finds the program, [`process`] runs
//! it as child processes and treats them badly, [`cluster`] puts masters and tablet servers
//! together, [`cli`] calls commands and reads their JSON, [`observe`] asks a cluster how it
//! is; [`load`], [`writers`] and [`history`] know what must be there. What such a test cannot see,
//! a user cannot rely on.
//!
//! **Simulated**, seen from within: [`sim`] runs a cluster on one thread out of a seed, with
//! [`oracle`] as the truth and [`invariants`] as the law.

pub mod binary;
pub mod chaos;
pub mod cli;
pub mod cluster;
pub mod history;
pub mod invariants;
pub mod load;
pub mod observe;
pub mod oracle;
pub mod process;
pub mod sim;
pub mod writers;
