//! The Raft library logs through slog: this hands its lines to tracing.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

struct TracingDrain;

impl Drain for TracingDrain {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        let message = record.msg();
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{message}"),
            Level::Warning => tracing::warn!(target: "raft", "{message}"),
            // The library tells every vote as information; that is detail here.
            Level::Info | Level::Debug => tracing::debug!(target: "raft", "{message}"),
            Level::Trace => tracing::trace!(target: "raft", "{message}"),
        }
        Ok(())
    }
}

/// A logger for the library.
pub(super) fn logger() -> Logger {
    Logger::root(TracingDrain, o!())
}
