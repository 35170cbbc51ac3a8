//! Watches: what of a tablet's log may be shown to whoever watches it, and where a watch that
//! was interrupted goes on.
//!
//! ```text
//!   token ──▶ History::start ──┬─ the log, after an index ────────────┐
//!                              ├─ versions since a time, then the log ─┼──▶ Window ──▶ events
//!                              └─ lost: a break, the rows, then the log┘
//! ```
//!
//! - Only entries at or below a published Q are shown, in log order, so each key's changes come in
//!   the order of their timestamps ([`Window`]).
//! - A write is shown only when every revert that could name it has been looked at. No Q is ever
//!   published between a write and its revert (m31), so these are the entries up to the Q itself.
//! - The timestamp of a shown entry is *resolved*: timestamps rise with positions, so no event at
//!   or below it will follow (decision 0014).
//! - A position counts only in the history that it was given in: a failover may have cut it off,
//!   and then the watcher is told so ([`Start::Lost`], as Kafka does since KIP-320).
//! - Positions are those of a lineage; a history that was merged or began anew is compared by
//!   time.
//!
//! Nothing here knows streams, queues or consumers.

mod event;
mod resume;
mod token;
mod window;

pub use event::{Event, events_of};
pub use resume::{FirstEntry, History, LostWhy, Start};
pub use token::{MalformedToken, Piece, Place, Token};
pub use window::{Shown, Window};

use crate::limits::{WATCH_CLOSE_EVERY_MS, WATCH_CLOSES_PER_S_MAX};

/// How often an idle tablet that is watched closes its past, in milliseconds, on a server that
/// has `watched` such tablets: all of them together cost so many log entries a second at most.
#[must_use]
pub fn close_every_ms(watched: usize) -> u64 {
    let watched = u64::try_from(watched).unwrap_or(u64::MAX);
    WATCH_CLOSE_EVERY_MS.max(watched.saturating_mul(1_000) / WATCH_CLOSES_PER_S_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_idle_tablets_close_their_past_less_often() {
        assert_eq!(close_every_ms(1), WATCH_CLOSE_EVERY_MS);
        assert_eq!(close_every_ms(10 * WATCH_CLOSES_PER_S_MAX as usize), 10_000);
    }
}
