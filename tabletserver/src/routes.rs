//! The cached map of the cluster: what this server knows of tables, tablets and servers.
//!
//! It comes from the masters and is replaced as a whole at each change. Requests look tables
//! up in it, redirects are made of it, and clients are served from it, also while every
//! master is down.

use arc_swap::ArcSwap;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{TableId, TabletId};
use ebla_kernel::meta::Eviction;
use ebla_kernel::op::AckLevel;
use ebla_proto::convert;
use ebla_proto::v1;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::broadcast;

/// Changes that a watcher may lag behind before it is sent the whole map again.
const CHANGES_KEPT: usize = 64;

/// What requests need to know of a table.
#[derive(Clone, Debug)]
pub struct TableInfo {
    /// Its id.
    pub id: TableId,
    /// As metadata states it.
    pub table: v1::Table,
    /// Level of a write that names none.
    pub ack: AckLevel,
    /// Replication factor R.
    pub replicas: u32,
    /// Durability factor D.
    pub min_in_sync: u32,
    /// How long old versions are kept.
    pub retention_ms: u64,
    /// Requests per second at which a tablet is split; 0 for never.
    pub split_load: u64,
    /// Whether its changes are published.
    pub publish_changes: bool,
    /// Bytes that it may take in memory on one server.
    pub memory_bytes_max: Option<u64>,
    /// What it does when they are used up.
    pub eviction: Eviction,
}

/// The map at one version.
#[derive(Clone, Default)]
pub struct Routes {
    /// Version of the metadata; 0 before the first map.
    pub version: u64,
    cluster_id: String,
    tables: BTreeMap<u32, Arc<TableInfo>>,
    by_name: HashMap<String, u32>,
    tablets: BTreeMap<u64, v1::Tablet>,
    by_start: BTreeMap<u32, BTreeMap<Bytes, u64>>,
    servers: BTreeMap<u64, v1::Server>,
    masters: Vec<v1::Master>,
    /// No garbage floor may pass this: a backup needs what is above it. The least for none.
    pub safe_ts: Hlc,
}

impl Routes {
    /// The table of this name.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Arc<TableInfo>> {
        self.by_name.get(name).and_then(|id| self.tables.get(id))
    }

    /// The table of this id.
    #[must_use]
    pub fn table_of(&self, id: TableId) -> Option<&Arc<TableInfo>> {
        self.tables.get(&id.0)
    }

    /// What no garbage floor may pass; the greatest timestamp when nothing is held.
    #[must_use]
    pub fn held_at(&self) -> Hlc {
        if self.safe_ts == Hlc::MIN { Hlc::MAX } else { self.safe_ts }
    }

    /// Every table.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableInfo>> {
        self.tables.values()
    }

    /// The tablet of `table` whose range holds `key`.
    #[must_use]
    pub fn tablet_of(&self, table: TableId, key: &[u8]) -> Option<&v1::Tablet> {
        let upto = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        let (_, id) = self.by_start.get(&table.0)?.range::<[u8], _>(upto).next_back()?;
        self.tablets.get(id)
    }

    /// The tablets of a table, in key order.
    pub fn tablets_of(&self, table: TableId) -> impl Iterator<Item = &v1::Tablet> {
        let ids = self.by_start.get(&table.0).into_iter().flat_map(BTreeMap::values);
        ids.filter_map(|id| self.tablets.get(id))
    }

    /// Every server.
    pub fn servers(&self) -> impl Iterator<Item = &v1::Server> {
        self.servers.values()
    }

    /// The tablet of this id.
    #[must_use]
    pub fn tablet(&self, id: TabletId) -> Option<&v1::Tablet> {
        self.tablets.get(&id.0)
    }

    /// The server of this id.
    #[must_use]
    pub fn server(&self, id: u64) -> Option<&v1::Server> {
        self.servers.get(&id)
    }

    /// The map for the wire, of the tables that `wanted` names.
    #[must_use]
    pub fn to_wire(&self, wanted: impl Fn(&TableInfo) -> bool) -> v1::RouteMap {
        let tables: Vec<_> = self.tables.values().filter(|info| wanted(info)).collect();
        let ids = tables.iter().filter_map(|info| self.by_start.get(&info.id.0)).flat_map(BTreeMap::values);
        v1::RouteMap {
            version: self.version,
            cluster_id: self.cluster_id.clone(),
            tablets: ids.filter_map(|id| self.tablets.get(id).cloned()).collect(),
            tables: tables.iter().map(|info| info.table.clone()).collect(),
            servers: self.servers.values().cloned().collect(),
            masters: self.masters.clone(),
            safe_ts: self.safe_ts.0,
        }
    }

    fn take(&mut self, change: &v1::WatchRoutesResponse) {
        if change.full {
            *self = Self::default();
        }
        for id in &change.removed_tablet_ids {
            self.remove_tablet(*id);
        }
        for id in &change.removed_table_ids {
            if let Some(info) = self.tables.remove(id) {
                self.by_name.remove(&info.table.name);
            }
            self.by_start.remove(id);
        }
        let Some(routes) = &change.routes else { return };
        self.version = routes.version;
        self.safe_ts = Hlc(routes.safe_ts);
        if !routes.cluster_id.is_empty() {
            self.cluster_id.clone_from(&routes.cluster_id);
        }
        if !routes.masters.is_empty() {
            self.masters.clone_from(&routes.masters);
        }
        for table in &routes.tables {
            self.by_name.insert(table.name.clone(), table.id);
            self.tables.insert(table.id, Arc::new(table_info(table)));
        }
        for tablet in &routes.tablets {
            self.remove_tablet(tablet.id);
            self.by_start.entry(tablet.table_id).or_default().insert(tablet.start.clone(), tablet.id);
            self.tablets.insert(tablet.id, tablet.clone());
        }
        for server in &routes.servers {
            self.servers.insert(server.id, server.clone());
        }
    }

    fn remove_tablet(&mut self, id: u64) {
        let Some(tablet) = self.tablets.remove(&id) else { return };
        if let Some(starts) = self.by_start.get_mut(&tablet.table_id)
            && starts.get(&tablet.start) == Some(&id)
        {
            starts.remove(&tablet.start);
        }
    }
}

/// What requests need to know of `table`; a spec that cannot be read counts as defaults.
#[must_use]
pub fn table_info(table: &v1::Table) -> TableInfo {
    let spec = table.spec.unwrap_or_default();
    let ack = convert::ack(spec.ack.as_ref()).ok().flatten();
    TableInfo {
        id: TableId(table.id),
        ack: ack.unwrap_or(AckLevel::Leader),
        replicas: spec.replicas,
        min_in_sync: spec.min_in_sync,
        retention_ms: spec.retention_ms,
        split_load: spec.split_load(),
        publish_changes: spec.publish_changes,
        memory_bytes_max: spec.memory_bytes_max,
        // A word of a newer version: the safe one of those that are known.
        eviction: ebla_proto::meta::eviction(spec.eviction).unwrap_or_default(),
        table: table.clone(),
    }
}

/// The map as it is now, and its changes.
pub struct RouteCache {
    now: ArcSwap<Routes>,
    changes: broadcast::Sender<Arc<v1::WatchRoutesResponse>>,
}

impl Default for RouteCache {
    fn default() -> Self {
        Self { now: ArcSwap::default(), changes: broadcast::channel(CHANGES_KEPT).0 }
    }
}

impl RouteCache {
    /// The map as it is now.
    #[must_use]
    pub fn now(&self) -> Arc<Routes> {
        self.now.load_full()
    }

    /// Takes a change from a master. False for a whole map that is older than what is known: that
    /// master has just started and is behind, and what it does not know yet is not gone. Only
    /// one task calls this.
    #[must_use]
    pub fn take(&self, change: v1::WatchRoutesResponse) -> bool {
        let mut routes = Routes::clone(&self.now.load());
        let version = change.routes.as_ref().map_or(0, |routes| routes.version);
        if change.full && version < routes.version {
            return false;
        }
        routes.take(&change);
        self.now.store(Arc::new(routes));
        // No watcher is no error.
        let _ = self.changes.send(Arc::new(change));
        true
    }

    /// The map as it is now and every later change. A change may be seen in both.
    #[must_use]
    pub fn watch(&self) -> (Arc<Routes>, broadcast::Receiver<Arc<v1::WatchRoutesResponse>>) {
        let changes = self.changes.subscribe();
        (self.now(), changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(version: u64, names: &[&str], full: bool) -> v1::WatchRoutesResponse {
        let table = |(id, name): (u32, &&str)| v1::Table { id, name: (*name).into(), ..v1::Table::default() };
        let tables = (1..).zip(names).map(table).collect();
        let routes = v1::RouteMap { version, tables, ..v1::RouteMap::default() };
        v1::WatchRoutesResponse { full, routes: Some(routes), ..v1::WatchRoutesResponse::default() }
    }

    #[test]
    fn a_master_that_is_behind_takes_nothing_away() {
        let cache = RouteCache::default();
        assert!(cache.take(map(7, &["a"], true)));
        assert!(cache.take(map(9, &["a", "b"], false)));
        assert!(!cache.take(map(8, &["a"], true)));
        assert!(cache.now().table("b").is_some());
        assert!(cache.take(map(9, &["a", "b"], true)));
        assert!(cache.take(map(10, &["a"], true)));
        assert!(cache.now().table("b").is_none());
    }
}
