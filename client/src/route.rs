//! Where tablets are, as this client believes: fetched per table on demand, kept fresh by
//! pushes, corrected when a server says that it is no longer right.
//!
//! - A tablet id names one range for ever, and its epoch only rises, so a late message never
//!   puts an older leader over a newer one.
//! - A wrong route costs a round trip, never a wrong answer: servers check.

use crate::limits::TABLES_CACHED_MAX;
use bytes::Bytes;
use ebla_proto::v1;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

/// Where one tablet is.
#[derive(Clone, Debug)]
pub struct TabletRoute {
    /// Names the tablet.
    pub tablet_id: u64,
    /// First key; empty when unbounded.
    pub start: Bytes,
    /// First key above the range; empty when unbounded.
    pub end: Bytes,
    /// HOST:PORT of the server that leads it; none while there is none.
    pub leader: Option<String>,
    /// HOST:PORT of every server that has an in-sync copy of it, the leader's included.
    pub copies: Vec<String>,
}

/// What a table is made of, in key order.
#[derive(Clone, Debug)]
struct TableRoutes {
    id: u32,
    /// What the table promises; none when the map does not say.
    spec: Option<v1::TableSpec>,
    version: u64,
    by_start: BTreeMap<Bytes, v1::Tablet>,
    start_of: HashMap<u64, Bytes>,
    /// Count of the use before which this table was used last.
    used: u64,
}

impl TableRoutes {
    fn new(id: u32, version: u64) -> Self {
        Self { id, spec: None, version, by_start: BTreeMap::new(), start_of: HashMap::new(), used: 0 }
    }

    fn put(&mut self, tablet: v1::Tablet) {
        let older = |have: &v1::Tablet| have.id == tablet.id && have.epoch > tablet.epoch;
        if self.by_start.get(&tablet.start).is_some_and(older) {
            return;
        }
        if let Some(replaced) = self.by_start.get(&tablet.start) {
            self.start_of.remove(&replaced.id);
        }
        self.start_of.insert(tablet.id, tablet.start.clone());
        self.by_start.insert(tablet.start.clone(), tablet);
    }

    fn remove(&mut self, tablet_id: u64) {
        let Some(start) = self.start_of.remove(&tablet_id) else { return };
        if self.by_start.get(&start).is_some_and(|tablet| tablet.id == tablet_id) {
            self.by_start.remove(&start);
        }
    }

    /// The last tablet that starts at or before `key` (before it when `below`) and reaches it.
    fn find(&self, key: &Bytes, below: bool) -> Option<&v1::Tablet> {
        let bound = if below { Bound::Excluded(key) } else { Bound::Included(key) };
        let (_, tablet) = self.by_start.range::<Bytes, _>((Bound::Unbounded, bound)).next_back()?;
        let reaches = tablet.end.is_empty() || *key < tablet.end || (below && *key == tablet.end);
        reaches.then_some(tablet)
    }
}

#[derive(Default, Debug)]
struct Map {
    cluster_id: String,
    tables: HashMap<String, TableRoutes>,
    servers: HashMap<u64, String>,
    masters: Vec<String>,
    uses: u64,
}

impl Map {
    fn route(&self, tablet: &v1::Tablet) -> TabletRoute {
        let in_sync = tablet.replicas.iter().filter(|copy| copy.in_sync && !copy.lost);
        TabletRoute {
            tablet_id: tablet.id,
            start: tablet.start.clone(),
            end: tablet.end.clone(),
            leader: self.servers.get(&tablet.leader_server_id).cloned(),
            copies: in_sync.filter_map(|copy| self.servers.get(&copy.server_id).cloned()).collect(),
        }
    }

    fn learn_addresses(&mut self, map: &v1::RouteMap) {
        if self.cluster_id != map.cluster_id {
            self.cluster_id.clone_from(&map.cluster_id);
            self.tables.clear();
            self.servers.clear();
        }
        self.servers.extend(map.servers.iter().map(|server| (server.id, server.address.clone())));
        if !map.masters.is_empty() {
            self.masters = map.masters.iter().map(|master| master.address.clone()).collect();
        }
    }

    /// Makes room for one more table.
    fn evict(&mut self) {
        if self.tables.len() < TABLES_CACHED_MAX {
            return;
        }
        let oldest = self.tables.iter().min_by_key(|(_, table)| table.used).map(|(name, _)| name.clone());
        if let Some(oldest) = oldest {
            self.tables.remove(&oldest);
        }
    }
}

/// The routes of one client.
#[derive(Default, Debug)]
pub(crate) struct RouteCache {
    map: Arc<RwLock<Map>>,
}

impl RouteCache {
    /// The tablet of `table` that holds `key`; none when the table is not known or has a hole.
    pub(crate) fn find(&self, table: &str, key: &Bytes) -> Option<TabletRoute> {
        self.look_up(table, key, false)
    }

    /// The tablet that holds the keys just below `key`; with an empty key the last one.
    pub(crate) fn find_below(&self, table: &str, key: &Bytes) -> Option<TabletRoute> {
        if key.is_empty() {
            let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
            let (_, last) = map.tables.get(table)?.by_start.last_key_value()?;
            return last.end.is_empty().then(|| map.route(last));
        }
        self.look_up(table, key, true)
    }

    fn look_up(&self, table: &str, key: &Bytes, below: bool) -> Option<TabletRoute> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let tablet = map.tables.get(table)?.find(key, below)?;
        Some(map.route(tablet))
    }

    pub(crate) fn knows(&self, table: &str) -> bool {
        self.map.read().unwrap_or_else(PoisonError::into_inner).tables.contains_key(table)
    }

    /// What a known table promises.
    pub(crate) fn spec(&self, table: &str) -> Option<v1::TableSpec> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.tables.get(table)?.spec
    }

    /// Addresses that may answer questions for routes: masters, then servers.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.masters.iter().chain(map.servers.values()).cloned().collect()
    }

    /// Addresses of the tablet servers.
    pub(crate) fn servers(&self) -> Vec<String> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).servers.values().cloned().collect()
    }

    /// Addresses of the masters.
    pub(crate) fn masters(&self) -> Vec<String> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).masters.clone()
    }

    /// Takes over a fetched map of one table.
    pub(crate) fn put_table(&self, name: &str, fetched: v1::RouteMap) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.learn_addresses(&fetched);
        let Some(table) = fetched.tables.iter().find(|table| table.name == name) else { return };
        map.uses += 1;
        let uses = map.uses;
        let known =
            map.tables.get(name).filter(|known| known.id == table.id && known.version > fetched.version);
        let mut routes = known.cloned().unwrap_or_else(|| TableRoutes::new(table.id, fetched.version));
        routes.used = uses;
        routes.spec.clone_from(&table.spec);
        for tablet in fetched.tablets.into_iter().filter(|tablet| tablet.table_id == table.id) {
            // An older map may only confirm tablets that are still known.
            if routes.version <= fetched.version || routes.start_of.contains_key(&tablet.id) {
                routes.put(tablet);
            }
        }
        if !map.tables.contains_key(name) {
            map.evict();
        }
        map.tables.insert(name.to_owned(), routes);
    }

    /// Takes over one push about the table `name`. False when the table is gone.
    pub(crate) fn apply_push(&self, name: &str, push: v1::WatchRoutesResponse) -> bool {
        let routes = push.routes.unwrap_or_default();
        if push.full {
            let is_there = routes.tables.iter().any(|table| table.name == name);
            if is_there {
                self.put_table(name, routes);
            } else {
                self.forget(name);
            }
            return is_there;
        }
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.learn_addresses(&routes);
        let Some(table) = map.tables.get_mut(name) else { return false };
        if push.removed_table_ids.contains(&table.id) {
            map.tables.remove(name);
            return false;
        }
        table.version = table.version.max(routes.version);
        for tablet_id in push.removed_tablet_ids {
            table.remove(tablet_id);
        }
        let id = table.id;
        routes
            .tablets
            .into_iter()
            .filter(|tablet| tablet.table_id == id)
            .for_each(|tablet| table.put(tablet));
        true
    }

    /// Forgets a table, so that its next use fetches its routes.
    pub(crate) fn forget(&self, name: &str) {
        self.map.write().unwrap_or_else(PoisonError::into_inner).tables.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tablet(id: u64, start: &'static str, end: &'static str, epoch: u64) -> v1::Tablet {
        v1::Tablet {
            id,
            table_id: 1,
            start: Bytes::from_static(start.as_bytes()),
            end: Bytes::from_static(end.as_bytes()),
            epoch,
            leader_server_id: epoch,
            ..Default::default()
        }
    }

    fn map(version: u64, tablets: Vec<v1::Tablet>) -> v1::RouteMap {
        let server = |id: u64| v1::Server { id, address: format!("h:{id}"), ..Default::default() };
        v1::RouteMap {
            version,
            tables: vec![v1::Table { id: 1, name: "t".into(), ..v1::Table::default() }],
            tablets,
            servers: (1..=3).map(server).collect(),
            ..Default::default()
        }
    }

    fn found(cache: &RouteCache, key: &'static str) -> Option<(u64, String)> {
        let route = cache.find("t", &Bytes::from_static(key.as_bytes()))?;
        Some((route.tablet_id, route.leader.unwrap_or_default()))
    }

    #[test]
    fn keys_find_their_tablet_from_both_sides() {
        let cache = RouteCache::default();
        cache.put_table("t", map(1, vec![tablet(1, "", "m", 1), tablet(2, "m", "", 2)]));
        assert_eq!(found(&cache, "a"), Some((1, "h:1".into())));
        assert_eq!(found(&cache, "m"), Some((2, "h:2".into())));
        let below =
            |key: &'static [u8]| cache.find_below("t", &Bytes::from_static(key)).map(|route| route.tablet_id);
        assert_eq!((below(b"m"), below(b"m\0"), below(b"")), (Some(1), Some(2), Some(2)));
    }

    #[test]
    fn an_older_epoch_never_replaces_a_newer_one() {
        let cache = RouteCache::default();
        cache.put_table("t", map(5, vec![tablet(1, "", "", 2)]));
        cache.put_table("t", map(4, vec![tablet(1, "", "", 1)]));
        assert_eq!(found(&cache, "a"), Some((1, "h:2".into())));
        let push = v1::WatchRoutesResponse {
            routes: Some(map(6, vec![tablet(1, "", "", 3)])),
            ..Default::default()
        };
        assert!(cache.apply_push("t", push));
        assert_eq!(found(&cache, "a"), Some((1, "h:3".into())));
    }

    #[test]
    fn a_push_can_replace_tablets_and_remove_the_table() {
        let cache = RouteCache::default();
        cache.put_table("t", map(1, vec![tablet(1, "", "", 1)]));
        let push = v1::WatchRoutesResponse {
            routes: Some(map(2, vec![tablet(2, "", "m", 2), tablet(3, "m", "", 2)])),
            removed_tablet_ids: vec![1],
            ..Default::default()
        };
        assert!(cache.apply_push("t", push));
        assert_eq!(found(&cache, "z"), Some((3, "h:2".into())));
        let push = v1::WatchRoutesResponse { removed_table_ids: vec![1], ..Default::default() };
        assert!(!cache.apply_push("t", push));
        assert_eq!(found(&cache, "z"), None);
    }

    #[test]
    fn tables_in_cache_are_bounded() {
        let cache = RouteCache::default();
        for i in 0..TABLES_CACHED_MAX + 10 {
            let mut fetched = map(1, vec![tablet(1, "", "", 1)]);
            fetched.tables[0].name = format!("t{i}");
            cache.put_table(&format!("t{i}"), fetched);
        }
        assert!(!cache.knows("t0"));
        assert_eq!(cache.map.read().unwrap().tables.len(), TABLES_CACHED_MAX);
    }
}
