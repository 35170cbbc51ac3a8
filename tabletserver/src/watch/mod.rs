//! Watches: the changes of a tablet, for as many as want them.
//!
//! ```text
//!   commit ──moved──▶ Progress ──wakes──▶ Feed: entries at or below Q, out of memory or the log
//!                                           │
//!   Session: token ─▶ rows or versions ─▶ events of its range ─▶ bounded messages ─▶ consumer
//! ```
//!
//! - What may be shown and where a watch goes on is decided in `kernel::watch`.
//! - A watch reads: it holds a place in the log and no queue, so that a slow one costs a few
//!   messages, and nothing to others. One that takes nothing for long is cut off.
//! - A tablet that nobody watches pays one look at a number per commit.
//! - A watch ends where its tablet does; whoever watches goes on with the token, elsewhere.

mod begin;
pub mod feed;
mod messages;
mod past;
mod progress;
mod session;

pub use begin::Watches;
pub use progress::Progress;
pub use session::{Responses, watch};
