//! The two stores of a server behind one: tables on disk and tables in memory.
//!
//! Where a table's rows are is a property of the table, told by the masters with every
//! assignment and never changed. A table that nobody has called a memory table is on disk.

use super::memory::MemoryStore;
use super::memory_tables::MemoryTables;
use super::rocks::RocksStore;
use super::{Applied, Cursor, Incoming, Store, StoreError, StoreHealth, VersionName};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::op::Version;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstone;
use std::path::Path;
use std::sync::Arc;

/// The rows of a server.
pub struct BothStores {
    disk: RocksStore,
    memory: Arc<MemoryStore>,
    tables: Arc<MemoryTables>,
}

impl BothStores {
    /// The tables of `memory` are there, all others on `disk`.
    #[must_use]
    pub fn new(disk: RocksStore, memory: Arc<MemoryStore>) -> Self {
        let tables = Arc::clone(memory.tables());
        Self { disk, memory, tables }
    }

    fn of(&self, table: TableId) -> &dyn Store {
        if self.tables.has(table) { &*self.memory } else { &self.disk }
    }
}

impl VersionName {
    pub(super) fn table(&self) -> TableId {
        match self {
            Self::Row { table, .. } | Self::RangeTombstone { table, .. } => *table,
        }
    }
}

impl Store for BothStores {
    fn get(&self, table: TableId, key: &[u8], at: Hlc) -> Result<Option<Version>, StoreError> {
        self.of(table).get(table, key, at)
    }

    fn apply(&self, changes: &[Applied<'_>]) -> Result<(), StoreError> {
        let tables = self.tables.known();
        let is_in_memory = |change: &&Applied<'_>| tables.contains_key(&change.table);
        if !changes.iter().any(|change| is_in_memory(&change)) {
            return self.disk.apply(changes);
        }
        let (memory, disk): (Vec<Applied<'_>>, Vec<Applied<'_>>) = changes.iter().partition(is_in_memory);
        if !memory.is_empty() {
            self.memory.apply(&memory)?;
        }
        if disk.is_empty() { Ok(()) } else { self.disk.apply(&disk) }
    }

    fn remove(&self, versions: &[VersionName]) -> Result<(), StoreError> {
        let (memory, disk): (Vec<VersionName>, Vec<VersionName>) =
            versions.iter().cloned().partition(|name| self.tables.has(name.table()));
        if !memory.is_empty() {
            self.memory.remove(&memory)?;
        }
        if disk.is_empty() { Ok(()) } else { self.disk.remove(&disk) }
    }

    fn cursor(&self, table: TableId, range: &KeyRange) -> Result<Box<dyn Cursor + '_>, StoreError> {
        self.of(table).cursor(table, range)
    }

    fn cold_cursor(&self, table: TableId, range: &KeyRange) -> Result<Box<dyn Cursor + '_>, StoreError> {
        self.of(table).cold_cursor(table, range)
    }

    fn load_range_tombstones(
        &self,
        table: TableId,
        range: &KeyRange,
    ) -> Result<Vec<RangeTombstone>, StoreError> {
        self.of(table).load_range_tombstones(table, range)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.disk.flush()
    }

    fn clear_range(&self, table: TableId, range: &KeyRange) -> Result<(), StoreError> {
        self.of(table).clear_range(table, range)
    }

    fn take_in(
        &self,
        table: TableId,
        range: &KeyRange,
        dir: &Path,
    ) -> Result<Box<dyn Incoming + '_>, StoreError> {
        self.of(table).take_in(table, range, dir)
    }

    fn compact(&self, table: TableId, range: &KeyRange) {
        self.of(table).compact(table, range);
    }

    fn approximate_bytes(&self, table: TableId, range: &KeyRange) -> u64 {
        self.of(table).approximate_bytes(table, range)
    }

    /// That of the disk: memory has no compaction to fall behind with, and no flush to wait for.
    fn health(&self) -> StoreHealth {
        self.disk.health()
    }
}
