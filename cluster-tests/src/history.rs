//! Every version of the rows of a table, as those who wrote them know them; for tests that read
//! the past.
//!
//! A history knows what a read at a timestamp finds: of the versions at or below it the newest,
//! if that is neither a delete nor over by then. Rows that several write must be noted by
//! timestamp alone, such as counters, whose answers say what they came to.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use ebla_client::{Cell, Client, Hlc, Row, Scan, Value};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Gets on their way at once.
const GETS_IN_FLIGHT: usize = 64;

/// A version of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// When it was written.
    pub ts: Hlc,
    /// What the row holds since; none for a delete.
    pub value: Option<Value>,
    /// When it ends by itself, milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

/// All versions of some rows.
#[derive(Default)]
pub struct History(BTreeMap<Bytes, Vec<Version>>);

impl History {
    /// Notes a version.
    pub fn note(&mut self, key: Bytes, version: Version) {
        self.0.entry(key).or_default().push(version);
    }

    /// Notes a range deletion for the rows that are known so far.
    pub fn note_range_deleted(&mut self, from: &[u8], to: &[u8], ts: Hlc) {
        let covered = self.0.range_mut::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        for (_, versions) in covered {
            versions.push(Version { ts, value: None, expires_ms: None });
        }
    }

    /// Takes in what somebody else has noted.
    pub fn append(&mut self, other: Self) {
        for (key, versions) in other.0 {
            let own = self.0.entry(key).or_default();
            own.extend(versions);
            own.sort_by_key(|version| version.ts);
        }
    }

    /// Forgets what was written later.
    pub fn cut(&mut self, upto: Hlc) {
        self.0.retain(|_, versions| {
            versions.retain(|version| version.ts <= upto);
            !versions.is_empty()
        });
    }

    /// How many versions there are.
    #[must_use]
    pub fn versions(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// The rows that a scan at a timestamp finds, in order.
    fn rows(&self, at: Hlc) -> impl Iterator<Item = Row> {
        self.0.iter().filter_map(move |(key, versions)| {
            let Version { ts, value, expires_ms } = seen(versions, at)?.clone();
            Some(Row { key: key.clone(), value: value?, ts, expires_ms })
        })
    }

    /// A table holds these rows and no others at a timestamp; gives how many.
    ///
    /// # Errors
    /// With the first row that differs.
    pub async fn check_rows(&self, client: &Client, table: &str, at: Hlc) -> Result<u64> {
        let place = || format!("table {table} at {}", at.0);
        let mut found = client.scan(table, Scan { at: Some(at), ..Scan::all() })?;
        let mut count = 0;
        for wanted in self.rows(at) {
            let row = found.try_next().await.with_context(place)?;
            ensure!(row.as_ref() == Some(&wanted), "{}: {row:?} instead of {wanted:?}", place());
            count += 1;
        }
        let more = found.try_next().await.with_context(place)?;
        ensure!(more.is_none(), "{}: nobody wrote {more:?}", place());
        Ok(count)
    }

    /// Reads every row that has more than one version at the timestamp of each of them.
    ///
    /// # Errors
    /// With a read that finds something else than was written.
    pub async fn check_versions(&self, client: &Client, table: &str) -> Result<()> {
        let several = self.0.iter().filter(|(_, versions)| versions.len() > 1);
        let reads = several
            .flat_map(|(key, versions)| versions.iter().map(move |at| (key, at.ts, seen(versions, at.ts))));
        stream::iter(reads)
            .map(Ok)
            .try_for_each_concurrent(GETS_IN_FLIGHT, |(key, at, wanted)| async move {
                let found = client.get_at(table, key.clone(), at).await?;
                let wanted = wanted.and_then(cell);
                ensure!(found == wanted, "{table} {key:?} at {}: {found:?} instead of {wanted:?}", at.0);
                Ok(())
            })
            .await
    }
}

/// What a read at a timestamp finds of versions that rise; also a delete.
fn seen(versions: &[Version], at: Hlc) -> Option<&Version> {
    let newest = versions.iter().rev().find(|version| version.ts <= at)?;
    newest.expires_ms.is_none_or(|expires_ms| expires_ms > at.ms()).then_some(newest)
}

fn cell(version: &Version) -> Option<Cell> {
    Some(Cell { value: version.value.clone()?, ts: version.ts })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(ts: u64, value: Option<&'static str>, expires_ms: Option<u64>) -> Version {
        let value = value.map(|value| Value::Bytes(Bytes::from_static(value.as_bytes())));
        Version { ts: Hlc::new(ts, 0), value, expires_ms }
    }

    #[test]
    fn a_read_finds_the_newest_that_is_not_over() {
        let mut history = History::default();
        let mut other = History::default();
        history.note("a".into(), version(30, None, None));
        other.note("a".into(), version(10, Some("x"), None));
        other.note("a".into(), version(20, Some("y"), Some(25)));
        other.note("b".into(), version(10, Some("z"), None));
        other.note_range_deleted(b"b", b"c", Hlc::new(15, 0));
        history.append(other);
        let at = |ms: u64| {
            let rows = history.rows(Hlc::new(ms, 0));
            rows.map(|row| String::from_utf8(row.value.into_bytes().to_vec()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(at(9), [""; 0]);
        assert_eq!(at(10), ["x", "z"]);
        assert_eq!((at(20), at(24), at(25), at(30)), (vec!["y".into()], vec!["y".into()], vec![], vec![]));
        assert_eq!(history.versions(), 5);
        history.cut(Hlc::new(10, 0));
        assert_eq!(history.versions(), 2);
    }
}
