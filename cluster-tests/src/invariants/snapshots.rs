//! A read at a timestamp gives what the log says for that timestamp, for ever.

use super::{End, Invariant};
use crate::oracle::{Asked, Outcome};

/// Nothing to remember.
#[derive(Debug)]
pub struct Snapshots;

impl Invariant for Snapshots {
    fn name(&self) -> &'static str {
        "reads at a timestamp are repeatable"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let rows = end.oracle.rows();
        for operation in &end.history.operations {
            let (Asked::Snapshot { key }, Some(Outcome::Row { version, at: Some(at) })) =
                (&operation.asked, operation.outcome())
            else {
                continue;
            };
            let versions = rows.get(key).and_then(|versions| versions.range(..=*at).next_back());
            let expected = versions.map(|(_, version)| version);
            if expected != version.as_ref() {
                return Err(format!("{operation:?} should have been {expected:?}"));
            }
        }
        Ok(())
    }
}
