//! What the benchmarks share: clusters of their own, rows, closed loops and reports.

pub mod brokers;
pub mod closed_loop;
pub mod dev;
pub mod ebla;
pub mod raw;
pub mod report;
pub mod rows;
