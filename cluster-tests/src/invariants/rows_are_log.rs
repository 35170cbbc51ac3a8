//! I12: the rows of the stores, all versions, are what the log says.

use super::{End, Invariant};
use crate::sim::disk::Rows;

/// Nothing to remember.
#[derive(Debug)]
pub struct RowsAreLog;

impl Invariant for RowsAreLog {
    fn name(&self) -> &'static str {
        "I12 rows are the fold of the log"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let expected = end.oracle.rows();
        let mut actual = Rows::new();
        for rows in &end.stores {
            for (key, versions) in *rows {
                let clash = actual.insert(key.clone(), versions.clone()).is_some();
                if clash {
                    return Err(format!("{} is on two servers", key.escape_ascii()));
                }
            }
        }
        for key in expected.keys().chain(actual.keys()) {
            let (log, rows) = (expected.get(key), actual.get(key));
            if log != rows {
                return Err(format!("{}: the log gives {log:?}, the rows are {rows:?}", key.escape_ascii()));
            }
        }
        Ok(())
    }
}
