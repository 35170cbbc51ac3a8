//! The plainest store: every version in one ordered map.

use super::{Body, Bytes, Change, Hlc, KeyRange, TABLE, VersionName};
use crate::store::scan::{Order, Row};
use ebla_kernel::op::Version;
use ebla_kernel::range_tombstones::RangeTombstones;
use std::collections::BTreeMap;

#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) rows: BTreeMap<Bytes, BTreeMap<Hlc, Version>>,
    pub(crate) tombstones: BTreeMap<(Bytes, Hlc), Option<Bytes>>,
}

impl Model {
    pub(crate) fn apply(&mut self, ts: Hlc, changes: &[Change]) {
        for change in changes {
            match change.clone() {
                Change::Put { key, body, expires_ms } => {
                    self.rows.entry(key).or_default().insert(ts, Version { ts, body, expires_ms });
                }
                Change::RangeTombstone { from, to } => {
                    self.tombstones.insert((from, ts), to);
                }
            }
        }
    }

    pub(crate) fn remove(&mut self, name: &VersionName) {
        match name {
            VersionName::Row { key, ts, .. } => {
                self.rows.get_mut(key).map(|versions| versions.remove(ts));
            }
            VersionName::RangeTombstone { from, ts, .. } => {
                self.tombstones.remove(&(from.clone(), *ts));
            }
        }
    }

    /// Every version there is, by name.
    pub(crate) fn names(&self) -> Vec<VersionName> {
        let mut names = Vec::new();
        for (key, versions) in &self.rows {
            for ts in versions.keys() {
                names.push(VersionName::Row { table: TABLE, key: key.clone(), ts: *ts });
            }
        }
        for (from, ts) in self.tombstones.keys() {
            names.push(VersionName::RangeTombstone { table: TABLE, from: from.clone(), ts: *ts });
        }
        names
    }

    pub(crate) fn get(&self, key: &[u8], at: Hlc) -> Option<Version> {
        self.rows.get(key)?.range(..=at).next_back().map(|(_, version)| version.clone())
    }

    fn is_covered(&self, key: &[u8], since: Hlc, at: Hlc) -> bool {
        self.tombstones.iter().any(|((from, ts), to)| {
            let covers = *from <= key && to.as_ref().is_none_or(|to| key < *to);
            covers && *ts >= since && *ts <= at
        })
    }

    pub(crate) fn scan(&self, range: &KeyRange, at: Hlc, order: Order) -> Vec<Row> {
        let mut rows = Vec::new();
        for key in self.rows.keys().filter(|key| range.contains(key)) {
            let Some(version) = self.get(key, at) else { continue };
            let is_expired = version.expires_ms.is_some_and(|expires_ms| expires_ms <= at.ms());
            let is_gone = matches!(version.body, Body::Tombstone(_)) || is_expired;
            if !is_gone && !self.is_covered(key, version.ts, at) {
                let (ts, body, expires_ms) = (version.ts, Some(version.body), version.expires_ms);
                rows.push(Row { key: key.clone(), ts, body, expires_ms });
            }
        }
        match order {
            Order::Forward => {}
            Order::Reverse => rows.reverse(),
        }
        rows
    }

    pub(crate) fn range_tombstones(&self) -> RangeTombstones {
        let mut tombstones = RangeTombstones::new();
        for ((from, ts), to) in &self.tombstones {
            tombstones.insert(from.clone(), to.clone(), *ts);
        }
        tombstones
    }
}
