//! Tests of whole clusters. [`sim`] runs one on a single thread out of a seed, with
//! [`oracle`] as the truth and [`invariants`] as the law.

pub mod invariants;
pub mod oracle;
pub mod sim;
