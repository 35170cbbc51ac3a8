//! Failures on demand: named places between durable steps, where a chaos build dies, fails or waits.
//!
//! A place is one line, `failpoint!("cut.flush");`. Without the feature `enabled` that line is
//! nothing at all, also where it ends with `, if CONDITION`; with it, `arm_from_environment` says what happens there. A name says the step
//! that is about to be taken; the last one of a row ends with what has just been done. So
//! the places of a row stand before and after each of its durable steps.
//!
//! [`ALL`] lists every name. The tests of `cluster-tests` hold it against the sources, and go
//! through it in the crash matrix. Only servers are armed, and never a release build.

#[cfg(all(feature = "enabled", not(debug_assertions)))]
compile_error!("failpoints are for chaos builds: build a release without the feature `failpoints`");

#[cfg(any(feature = "enabled", test))]
mod armed;

#[cfg(any(feature = "enabled", test))]
pub use armed::{ArmError, VARIABLE, arm_from_environment, hit};

/// Every place, in the order of its row.
pub const ALL: &[&str] = &[
    // A server's log, whatever is written to it.
    "log.append",
    "log.appended",
    // A split, on every server that has a copy; the middle two on masters.
    "split.seal",
    "split.sealed",
    "split.stage",
    "split.staged",
    "split.commit",
    "split.committed",
    "split.switch",
    "split.switched",
    // The log of a tablet whose place others have taken.
    "retired.flushed",
    "retired.log",
    "retired.forget",
    "retired.forgotten",
    // A copy that is built from another's rows.
    "bootstrap.record",
    "bootstrap.recorded",
    "bootstrap.clear",
    "bootstrap.ingest",
    "bootstrap.flush",
    "bootstrap.log_clear",
    "bootstrap.log_append",
    "bootstrap.whole",
    "bootstrap.done",
    // A range that is cleared, for a copy that is built or one that goes.
    "clear.files",
    "clear.rows",
    "clear.flush",
    // A copy that goes.
    "remove.tombstone",
    "remove.log",
    "remove.clear",
    "remove.forget",
    "remove.forgotten",
    // The tail of a deposed leader.
    "cut.note",
    "cut.ledger",
    "cut.undo",
    "cut.flush",
    "cut.log",
    "cut.clear",
    "cut.done",
    // A promise to take nothing of an earlier epoch.
    "promise.record",
    "promise.recorded",
    // A range that goes into a backup, on a server.
    "export.file",
    "export.part",
    "export.done",
    // A copy that is filled from a backup.
    "import.install",
    "import.size",
    "import.done",
    // A backup, on the leading master.
    "backup.choose",
    "backup.export",
    "backup.commit",
    "backup.manifest",
    "backup.finish",
    "backup.done",
    // A restore, on the leading master.
    "restore.create",
    "restore.ledger",
    "restore.activate",
    "restore.done",
    // Rows made durable.
    "flush.store",
    "flush.record",
    "flush.purge",
    "flush.done",
    // The masters' log, state and snapshots.
    "master.append",
    "master.appended",
    "master.apply",
    "master.applied",
    "master.snapshot.write",
    "master.snapshot.mark",
    "master.snapshot.tidy",
    "master.snapshot.done",
    // The leader's snapshot in place of a master's log.
    "master.install.write",
    "master.install.mark",
    "master.install.done",
];

/// A failure that was asked for; what it stands for is the failure of the step that follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("failpoint {0}: this failure was asked for")]
pub struct Failed(
    /// The place.
    pub &'static str,
);

/// Whether this is a chaos build.
pub const IS_ENABLED: bool = cfg!(feature = "enabled");

/// A place. With an action armed there, the process dies, waits, or the function around it
/// returns an error made of [`Failed`].
#[cfg(feature = "enabled")]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        if let Some(failed) = $crate::hit($name) {
            return Err(failed.into());
        }
    };
    ($name:literal, if $when:expr) => {
        if $when {
            $crate::failpoint!($name);
        }
    };
}

/// A place; nothing at all in this build.
#[cfg(not(feature = "enabled"))]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {};
    ($name:literal, if $when:expr) => {
        // Never called: what the condition names counts as used.
        let _ = || $when;
    };
}

#[cfg(test)]
mod tests {
    use super::ALL;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_is_there_once() {
        assert_eq!(ALL.iter().collect::<BTreeSet<_>>().len(), ALL.len());
    }
}
