//! I12, E1: the rows of every copy, all versions of them, are what the surviving log says.

use super::{End, Invariant};
use crate::oracle::{Trust, Truth};
use crate::sim::disk::Rows;
use ebla_kernel::range::KeyRange;

/// Nothing to remember.
#[derive(Debug)]
pub struct RowsAreLog;

impl Invariant for RowsAreLog {
    fn name(&self) -> &'static str {
        "I12, E1 the rows of every copy are the log"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let owed = |truth: &&Truth<'_>| truth.fate.trust > Trust::Nothing;
        for truth in end.truths.iter().filter(owed) {
            let tablet = truth.fate.tablet;
            for server in &truth.fate.copies {
                if let Some(key) = difference(&truth.rows, end.stores[*server], &truth.fate.range) {
                    let of = |rows: &Rows| rows.get(&key).cloned().unwrap_or_default();
                    let (mut log, mut rows) = (of(&truth.rows), of(end.stores[*server]));
                    let both: Vec<_> = log.keys().filter(|ts| rows.contains_key(ts)).copied().collect();
                    both.iter().for_each(|ts| drop((log.remove(ts), rows.remove(ts))));
                    let key = key.escape_ascii();
                    return Err(format!(
                        "{tablet} server {server} {key}: only the log gives {log:?}, only the rows {rows:?}"
                    ));
                }
            }
        }
        for (server, rows) in end.stores.iter().enumerate() {
            let is_known = |key: &bytes::Bytes| {
                let mut truths = end.truths.iter();
                truths.any(|truth| truth.fate.range.contains(key) && truth.fate.copies.contains(&server))
            };
            if let Some(key) = rows.keys().find(|key| !is_known(key)) {
                return Err(format!("server {server} has {}, of which it holds no copy", key.escape_ascii()));
            }
        }
        Ok(())
    }
}

/// The first key of `range` on which the two differ. A row without versions is no row.
fn difference(expected: &Rows, actual: &Rows, range: &KeyRange) -> Option<bytes::Bytes> {
    let inside = |rows: &Rows| -> Vec<bytes::Bytes> {
        rows.iter().filter(|(key, _)| range.contains(key)).map(|(key, _)| key.clone()).collect()
    };
    let versions =
        |rows: &Rows, key: &bytes::Bytes| rows.get(key).filter(|versions| !versions.is_empty()).cloned();
    let mut keys = inside(expected);
    keys.extend(inside(actual));
    keys.into_iter().find(|key| versions(expected, key) != versions(actual, key))
}
