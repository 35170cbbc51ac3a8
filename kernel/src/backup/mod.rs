//! Backups: what is planned while one is made, brought back, kept or due. Nothing here reads or
//! writes a row.
//!
//! ```text
//!   safe point ─▶ T ─▶ orders ─▶ parts at the target ─▶ they cover every key ─▶ manifest
//!                      ▲    │
//!                      └────┘ refused: the tablet was split, its copy was too late, a server went
//! ```
//!
//! - A *part* is a range of a table whose versions one server has put into files. What is done is
//!   known from the parts that lie at the target, so any master goes on with a backup
//!   ([`run::BackupRun`]).
//! - A manifest is written of parts that cover every key once ([`cover::check_cover`]); parts of two
//!   masters may overlap, and then some of them are left out ([`cover::cover`]).
//! - A restore is done when every copy of every tablet has its rows from the files
//!   ([`import::RestoreRun`]).
//! - A backup that a kept one rests on is never deleted ([`retention::deletable`]).

pub mod cover;
mod effort;
pub mod import;
pub mod retention;
pub mod run;
pub mod schedule;
pub mod site;

/// How an order ended, in the words of the server that had it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Everything is there for good.
    Done,
    /// Not now or not here: why, for people. Somebody is asked again.
    Refused(String),
    /// Nobody can: why, and what to do about it.
    Impossible(String),
}

/// Where a backup or a restore stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// There is something left to do.
    Running,
    /// Everything is done.
    Done,
    /// It comes to nothing: why, and what to do about it.
    GivenUp(String),
}
