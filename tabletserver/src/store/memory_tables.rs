//! Which tables are in memory, and what each takes there.
//!
//! The bytes of a table are those of its versions on this server, each with what the skip list
//! and the allocator add ([`VERSION_BYTES`]), and of the notes about garbage. A write that adds
//! reserves its room before it is sequenced and gives the reservation back when it is answered,
//! and by then its versions count themselves: used and reserved together never pass the limit
//! by more than what deletes and the writes of other leaders add.
//!
//! Besides: the heat of rows, as Redis keeps it. Of `lru` a row remembers when it was read or
//! written last, of `lfu` a counter that grows with the logarithm of the accesses and falls with
//! time. Both fit into 32 bits beside each version.

use crate::limits::{MEMORY_DELETES_UPTO, MEMORY_SHORT_FOR, MEMORY_WAITERS_MAX};
use arc_swap::{ArcSwap, Guard};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::meta::Eviction;
use ebla_kernel::op::Token;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What one version takes beside its key and value: the node of the skip list with its tower
/// (about 56 bytes), three allocations with their heads, the shared parts of version and value,
/// and its row's place among the newest.
pub const VERSION_BYTES: u64 = 192 + super::newest::ROW_BYTES;

/// What a note about garbage takes beside its key.
const NOTE_BYTES: u64 = 48;

/// What a stored key has beside the row's key, and a stored value beside its bytes, at most when
/// nothing is escaped: table, end mark and timestamp; kind and end of life.
const STORED_BYTES: u64 = 32;

/// What one more version of a row adds: itself, and the note that it or what it replaces may go.
#[must_use]
pub const fn version_bytes(key: usize, value: usize) -> u64 {
    VERSION_BYTES + NOTE_BYTES + STORED_BYTES + 2 * key as u64 + value as u64
}

/// A counter of `lfu` begins here, so that a new row is not the first to go.
const FREQUENCY_FIRST: u32 = 5;

/// How much slower a counter of `lfu` grows with each step: it is full after about a million
/// accesses, as in Redis.
const FREQUENCY_FACTOR: u32 = 10;

/// Heat ticks (of 100 ms) in which a counter of `lfu` falls by one: a minute, as in Redis.
const FREQUENCY_FALLS_EVERY: u32 = 600;

/// What is noted of a row that holds versions which may go one day: up to when, and which.
pub type Note = (Hlc, Box<[u8]>);

/// One table in memory.
#[derive(Default)]
pub struct MemoryTable {
    used: AtomicU64,
    reserved: AtomicU64,
    waiting: Mutex<VecDeque<Waiter>>,
    /// How many wait, for those who need not ask who.
    waiters: AtomicUsize,
    /// Bytes that it may take; 0 for as many as there are.
    limit: AtomicU64,
    /// What it took when its limit was lowered below that, or the least since then. Deletes are
    /// bounded by it: they are the way back below the limit.
    excess: AtomicU64,
    eviction: AtomicU8,
    garbage: Mutex<VecDeque<Note>>,
}

/// A write that found no room and tries again.
struct Waiter {
    token: Token,
    bytes: u64,
    tried: Instant,
}

/// Room for a write on its way; given back when dropped.
pub struct Reserved {
    table: Arc<MemoryTable>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.table.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl MemoryTable {
    /// Bytes of its versions here.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that it may take; none for no limit.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// What makes room in it.
    #[must_use]
    pub fn eviction(&self) -> Eviction {
        match self.eviction.load(Ordering::Relaxed) {
            1 => Eviction::LeastRecent,
            2 => Eviction::LeastFrequent,
            _ => Eviction::None,
        }
    }

    /// Whether it takes writes that only delete. They add before they free, a little above the
    /// limit; above a limit that was lowered, a little above what there was.
    #[must_use]
    pub fn takes_deletes(&self) -> bool {
        let upto = self.limit().unwrap_or(u64::MAX).max(self.excess.load(Ordering::Relaxed));
        self.used() / MEMORY_DELETES_UPTO < upto / 1_000
    }

    /// Learns what metadata says of it; again and again, by one thread.
    pub fn set_limit(&self, limit: Option<u64>, eviction: Eviction) {
        let used = self.used();
        let is_lowered = limit.unwrap_or(u64::MAX) < self.limit().unwrap_or(u64::MAX);
        let excess = if is_lowered { used } else { used.min(self.excess.load(Ordering::Relaxed)) };
        self.excess.store(excess, Ordering::Relaxed);
        self.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
        let number = match eviction {
            Eviction::None => 0,
            Eviction::LeastRecent => 1,
            Eviction::LeastFrequent => 2,
        };
        self.eviction.store(number, Ordering::Relaxed);
    }

    /// Room for a write that adds `bytes`; none when there is none, or when it is made for others
    /// that have asked before. A write with a token keeps its place for a second after each try.
    #[must_use]
    pub fn reserve(self: &Arc<Self>, token: Option<Token>, bytes: u64) -> Option<Reserved> {
        let reserved = self.reserved.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let room = Reserved { table: Arc::clone(self), bytes };
        let taken = self.used().saturating_add(reserved);
        let limit = self.limit().unwrap_or(u64::MAX);
        if taken <= limit && self.waiters.load(Ordering::Relaxed) == 0 {
            return Some(room);
        }
        let mut waiting = self.waiting();
        let place = waiting.iter().position(|waiter| Some(waiter.token) == token);
        let before = waiting.iter().take(place.unwrap_or(usize::MAX)).map(|waiter| waiter.bytes);
        let fits = before.fold(taken, u64::saturating_add) <= limit;
        match (place, token) {
            (Some(place), _) if fits => drop(waiting.remove(place)),
            (Some(place), _) => waiting[place].tried = Instant::now(),
            // Nothing makes room for what is larger than the table.
            (None, Some(token)) if !fits && bytes <= limit && waiting.len() < MEMORY_WAITERS_MAX => {
                waiting.push_back(Waiter { token, bytes, tried: Instant::now() });
            }
            (None, _) => {}
        }
        self.waiters.store(waiting.len(), Ordering::Relaxed);
        fits.then_some(room)
    }

    /// What the writes want that found no room, up to half of the table unless the first wants more;
    /// those that did not try again are forgotten.
    pub fn short_bytes(&self) -> u64 {
        if self.waiters.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut waiting = self.waiting();
        waiting.retain(|waiter| waiter.tried.elapsed() < MEMORY_SHORT_FOR);
        self.waiters.store(waiting.len(), Ordering::Relaxed);
        let first = waiting.front().map_or(0, |waiter| waiter.bytes);
        let all = waiting.iter().map(|waiter| waiter.bytes).fold(0, u64::saturating_add);
        all.min(self.limit().unwrap_or(u64::MAX) / 2).max(first)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for a write that is taken whether there is room or not.
    #[must_use]
    pub fn reserve_anyway(self: &Arc<Self>, bytes: u64) -> Reserved {
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        Reserved { table: Arc::clone(self), bytes }
    }

    pub(super) fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that versions of a row may go once the floor has reached `ts`.
    pub(super) fn note_garbage(&self, ts: Hlc, row: &[u8]) {
        self.add(NOTE_BYTES + row.len() as u64);
        self.notes().push_back((ts, row.into()));
    }

    /// Takes up to `count` notes at or below `floor`, oldest first.
    pub(super) fn take_garbage(&self, floor: Hlc, count: usize) -> Vec<Note> {
        let mut notes = self.notes();
        let mut taken = Vec::new();
        while taken.len() < count && notes.front().is_some_and(|(ts, _)| *ts <= floor) {
            taken.extend(notes.pop_front());
        }
        if notes.len() < notes.capacity() / 4 {
            notes.shrink_to_fit();
        }
        let bytes = taken.iter().map(|(_, row)| NOTE_BYTES + row.len() as u64);
        self.sub(bytes.sum());
        taken
    }

    /// Whether something may go one day.
    #[must_use]
    pub fn has_garbage(&self) -> bool {
        !self.notes().is_empty()
    }

    fn notes(&self) -> MutexGuard<'_, VecDeque<Note>> {
        self.garbage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tables that keep their rows in memory, as far as they have copies here. Ids are never
/// given twice, so a table that was dropped costs some bytes until the process ends.
#[derive(Default)]
pub struct MemoryTables {
    tables: ArcSwap<BTreeMap<TableId, Arc<MemoryTable>>>,
    /// Heat ticks, of 100 ms; moved by whoever looks after the tables.
    tick: AtomicU32,
}

impl MemoryTables {
    /// Notes that a table keeps its rows in memory; before its first row.
    pub fn add(&self, table: TableId) -> Arc<MemoryTable> {
        if let Some(known) = self.get(table) {
            return known;
        }
        let new = Arc::<MemoryTable>::default();
        self.tables.rcu(|known| {
            let mut more = BTreeMap::clone(known);
            more.entry(table).or_insert_with(|| Arc::clone(&new));
            more
        });
        self.get(table).unwrap_or(new)
    }

    /// The table, if it keeps its rows in memory.
    #[must_use]
    pub fn get(&self, table: TableId) -> Option<Arc<MemoryTable>> {
        self.tables.load().get(&table).cloned()
    }

    /// Those that are known now, for many looks at once.
    #[must_use]
    pub fn known(&self) -> Guard<Arc<BTreeMap<TableId, Arc<MemoryTable>>>> {
        self.tables.load()
    }

    /// Whether a table keeps its rows in memory.
    #[must_use]
    pub fn has(&self, table: TableId) -> bool {
        self.tables.load().contains_key(&table)
    }

    /// Every table.
    #[must_use]
    pub fn all(&self) -> Vec<(TableId, Arc<MemoryTable>)> {
        self.tables.load().iter().map(|(id, table)| (*id, Arc::clone(table))).collect()
    }

    /// Moves the clock of heat.
    pub fn set_tick(&self, tick: u32) {
        self.tick.store(tick, Ordering::Relaxed);
    }

    /// The heat of a row that is written now, after one whose heat was `before`.
    pub(super) fn heat_of_write(&self, table: &MemoryTable, before: Option<u32>) -> u32 {
        let now = self.tick.load(Ordering::Relaxed);
        match table.eviction() {
            Eviction::None => 0,
            Eviction::LeastRecent => now,
            Eviction::LeastFrequent => match before {
                Some(before) => frequency_read(before, now),
                None => frequency(FREQUENCY_FIRST, now),
            },
        }
    }

    /// Notes that somebody asked for a row of `table`.
    pub(super) fn touch(&self, table: TableId, heat: &AtomicU32) {
        let tables = self.tables.load();
        let Some(table) = tables.get(&table) else { return };
        let now = self.tick.load(Ordering::Relaxed);
        let before = heat.load(Ordering::Relaxed);
        let after = match table.eviction() {
            Eviction::None => before,
            Eviction::LeastRecent => now,
            Eviction::LeastFrequent => frequency_read(before, now),
        };
        if after != before {
            heat.store(after, Ordering::Relaxed);
        }
    }

    /// How dear a row is: the lower, the sooner it goes.
    #[must_use]
    pub fn worth(&self, eviction: Eviction, heat: u32) -> u32 {
        let now = self.tick.load(Ordering::Relaxed);
        match eviction {
            // The clock turns over after thirteen years.
            Eviction::None | Eviction::LeastRecent => u32::MAX - now.wrapping_sub(heat),
            Eviction::LeastFrequent => fallen(heat, now),
        }
    }
}

/// A counter with the time of its last fall, in minutes.
fn frequency(counter: u32, now: u32) -> u32 {
    ((now / FREQUENCY_FALLS_EVERY) << 8) | counter.min(255)
}

/// The counter after the time since it was written.
fn fallen(heat: u32, now: u32) -> u32 {
    let minutes = (now / FREQUENCY_FALLS_EVERY).wrapping_sub(heat >> 8) & 0x00FF_FFFF;
    (heat & 255).saturating_sub(minutes)
}

/// The counter after one more access: it grows by chance, the less the higher it is.
fn frequency_read(heat: u32, now: u32) -> u32 {
    let counter = fallen(heat, now);
    let steps = counter.saturating_sub(FREQUENCY_FIRST) * FREQUENCY_FACTOR + 1;
    let grows = chance().is_multiple_of(steps);
    frequency(counter + u32::from(grows), now)
}

/// A number nobody foresees, for a tenth of the price of a good one.
fn chance() -> u32 {
    thread_local! {
        static STATE: Cell<u32> = const { Cell::new(0x9E37_79B9) };
    }
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        state.set(x);
        x
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(seq: u64) -> Token {
        Token { issued_ms: 1, client: 1, seq }
    }

    #[test]
    fn a_limit_that_is_lowered_leaves_room_for_deletes() {
        let table = Arc::new(MemoryTable::default());
        table.set_limit(Some(100_000), Eviction::None);
        table.used.store(90_000, Ordering::Relaxed);
        assert!(table.takes_deletes() && table.reserve(None, 1_000).is_some());
        table.set_limit(Some(50_000), Eviction::None);
        assert!(table.takes_deletes() && table.reserve(None, 1).is_none());
        table.used.store(93_000, Ordering::Relaxed);
        table.set_limit(Some(50_000), Eviction::None);
        assert!(!table.takes_deletes(), "a little above what there was");
        table.used.store(70_000, Ordering::Relaxed);
        table.set_limit(Some(50_000), Eviction::None);
        table.used.store(73_000, Ordering::Relaxed);
        assert!(!table.takes_deletes(), "what was gained is kept");
        table.set_limit(Some(80_000), Eviction::None);
        assert!(table.takes_deletes() && table.reserve(None, 1_000).is_some());
    }

    #[test]
    fn room_is_what_nobody_uses_or_has_reserved() {
        let table = Arc::new(MemoryTable::default());
        assert!(table.reserve(None, u64::MAX / 2).is_some(), "without a limit there is always room");
        table.set_limit(Some(100), Eviction::None);
        table.add(50);
        let held = table.reserve(None, 40);
        assert!(held.is_some() && table.reserve(None, 20).is_none());
        drop(held);
        assert!(table.reserve(None, 50).is_some() && table.reserve(Some(token(1)), 101).is_none());
        assert_eq!(table.short_bytes(), 0, "no room is made for what can never fit");
    }

    #[test]
    fn whoever_waits_is_not_overtaken() {
        let table = Arc::new(MemoryTable::default());
        table.set_limit(Some(100), Eviction::LeastRecent);
        table.add(90);
        assert!(table.reserve(Some(token(1)), 40).is_none() && table.reserve(Some(token(2)), 30).is_none());
        assert_eq!(table.short_bytes(), 50, "half of the table");
        table.sub(50);
        assert!(table.reserve(Some(token(3)), 5).is_none(), "the room is made for others");
        assert!(table.reserve(None, 5).is_none() && table.reserve(Some(token(2)), 30).is_none());
        let first = table.reserve(Some(token(1)), 40);
        assert!(first.is_some() && table.reserve(Some(token(2)), 30).is_none());
        drop(first);
        assert!(table.reserve(Some(token(2)), 30).is_some() && table.reserve(Some(token(3)), 5).is_some());
        assert!(table.reserve(None, 60).is_some(), "nobody waits");
        assert_eq!(table.short_bytes(), 0);
    }

    #[test]
    fn a_row_that_is_asked_for_often_is_dearer_than_one_that_is_not() {
        let tables = MemoryTables::default();
        let id = TableId(1);
        let table = tables.add(id);
        table.set_limit(Some(100), Eviction::LeastFrequent);
        let cold = AtomicU32::new(tables.heat_of_write(&table, None));
        let hot = AtomicU32::new(cold.load(Ordering::Relaxed));
        (0..1_000).for_each(|_| tables.touch(id, &hot));
        let worth = |heat: &AtomicU32| tables.worth(Eviction::LeastFrequent, heat.load(Ordering::Relaxed));
        assert!(worth(&hot) > worth(&cold) + 3, "{} {}", worth(&hot), worth(&cold));
        tables.set_tick(FREQUENCY_FALLS_EVERY * 300);
        assert_eq!((worth(&hot), worth(&cold)), (0, 0), "what is not asked for falls");
    }

    #[test]
    fn the_row_that_was_read_last_is_the_dearest() {
        let tables = MemoryTables::default();
        let table = tables.add(TableId(1));
        table.set_limit(Some(100), Eviction::LeastRecent);
        let rows = [AtomicU32::new(0), AtomicU32::new(0)];
        for (tick, row) in [(10, 0), (20, 1), (30, 0)] {
            tables.set_tick(tick);
            tables.touch(TableId(1), &rows[row]);
        }
        let worth = |row: usize| tables.worth(Eviction::LeastRecent, rows[row].load(Ordering::Relaxed));
        assert!(worth(0) > worth(1));
    }
}
