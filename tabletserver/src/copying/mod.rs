//! Copies that are built from another copy's rows instead of its log: new ones, and those of
//! servers that lost everything.
//!
//! ```text
//!   target                                  source: the server that leads
//!     record Bootstrapping (sync)
//!     ── Bootstrap(tablet, copy) ─────────▶ P: the last entry that is safe, and in the store
//!     ◀── manifest: entry P, epochs, .. ─── pin the versions at P
//!     ◀── tokens ──────────────────────────
//!     ◀── versions at or below P, in parts ─ at a bounded rate; each part with its sha256
//!     clear · flush · ingest · range tombstones · flush
//!     the log: entry P alone (sync)
//!     record Active, flushed up to P (sync)
//!     the copy says Hello, and is sent what follows P
//! ```
//!
//! P is at or below a published Q, so nothing of it is ever cut or taken back. The entries behind
//! it stay in the logs of the other copies as long as metadata lists a copy that is not in sync; when
//! those are above their size limit, the source keeps them by a pin (`log_pins.rs`).
//! What follows a broken stream asks for the same P and goes on after the last whole part. A
//! crash anywhere begins anew: until the last step the range is garbage that nobody serves.

mod arrivals;
mod chunk;
mod log_pins;
mod source;
mod target;
#[cfg(test)]
mod tests;

pub use arrivals::{Arrivals, Received, clear_leftovers, is_of_a_try};
pub use log_pins::LogPins;
pub use source::Source;
pub use target::Target;
