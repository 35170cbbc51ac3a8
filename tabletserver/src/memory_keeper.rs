//! The keeper of tables in memory: lets what nobody can read any more go, and makes room.
//!
//! Garbage is what was noted when it was made, so a round costs what changed since the last one
//! and nothing for tables that rest. A table near its limit keeps old versions for a moment only
//! ([`limits::MEMORY_HISTORY_MS`]) instead of its retention: memory that is needed is worth more
//! than the past. Reads under way keep theirs, and so does what may yet be taken back.
//!
//! With eviction, whoever leads a tablet removes its coldest rows when the table passes
//! [`limits::MEMORY_EVICT_ABOVE`], and when writes found no room, as much as those need: an
//! ordinary write in the log, a delete that says why, on the condition that nobody has written the
//! row since it was looked at. Copies that follow remove nothing by themselves. Which rows are cold is found by looking at a stretch of them, further on
//! each time, as a clock's hand goes: the coldest of the stretch go.

use crate::limits;
use crate::node::Node;
use crate::pipeline::{Ask, Reply, Request};
use crate::routes::TableInfo;
use crate::store::memory::Evictable;
use crate::store::memory_tables::MemoryTable;
use crate::tablets::TabletHandle;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{TableId, TabletId};
use ebla_kernel::meta::Eviction;
use ebla_kernel::op::{AckLevel, Action, Cause, Condition, Op};
use ebla_kernel::range::KeyRange;
use ebla_kernel::tablet::Answer;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;
use tracing::error;

/// What the keeper works with.
pub struct MemoryKeeper {
    /// The server.
    pub node: Arc<Node>,
    /// Set when the server stops.
    pub stop: Arc<AtomicBool>,
}

/// Where the hand of a table stands, and what is on its way out.
struct Hand {
    next: Bytes,
    /// Bytes of evictions that were asked for.
    asked: u64,
    /// Bytes of rows that are evicted, and take room until the floor has passed their ends.
    freeing: VecDeque<(Hlc, u64)>,
    answers: mpsc::UnboundedReceiver<(u64, Answer)>,
    answer_to: mpsc::UnboundedSender<(u64, Answer)>,
}

impl Default for Hand {
    fn default() -> Self {
        let (answer_to, answers) = mpsc::unbounded_channel();
        Self { next: Bytes::new(), asked: 0, freeing: VecDeque::new(), answers, answer_to }
    }
}

impl Hand {
    fn take_answers(&mut self, floor: Hlc) {
        while let Ok((bytes, answer)) = self.answers.try_recv() {
            self.asked = self.asked.saturating_sub(bytes);
            match answer {
                Answer::Committed(committed) => {
                    let rows = committed.results.len() as u64;
                    metrics::counter!("ebla_memory_evicted_rows_total").increment(rows);
                    self.freeing.push_back((committed.ts, bytes));
                }
                // Somebody wrote a row meanwhile, or another server leads: its rows are as good.
                Answer::Refused(_) | Answer::Reverted | Answer::Unknown | Answer::Reached => {}
            }
        }
        self.freeing.retain(|(ts, _)| *ts > floor);
    }
}

impl MemoryKeeper {
    /// Runs until the server stops.
    pub fn run(self) {
        let begun = Instant::now();
        metrics::counter!("ebla_memory_evicted_rows_total").increment(0);
        let mut hands: HashMap<TableId, Hand> = HashMap::new();
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(limits::MEMORY_KEEPER_PACE);
            let tables = self.node.memory.tables();
            let tick = begun.elapsed().as_millis() / limits::MEMORY_HEAT_TICK_MS;
            tables.set_tick(u32::try_from(tick).unwrap_or(u32::MAX));
            let routes = self.node.routes.now();
            hands.retain(|id, _| routes.table_of(*id).is_some());
            let tables = tables.all();
            let used: u64 = tables.iter().map(|(_, table)| table.used()).sum();
            metrics::gauge!("ebla_memory_used_bytes").set(used as f64);
            for (id, table) in tables {
                let Some(info) = routes.table_of(id) else { continue };
                table.set_limit(info.memory_bytes_max, info.eviction);
                let hand = hands.entry(id).or_default();
                let short = table.short_bytes();
                self.collect(info, &table, short > 0);
                // An eviction on one copy would be undone by the versions that the next one takes in.
                if info.table.restoring_job_id == 0 {
                    self.evict(id, &table, short, hand);
                }
            }
        }
    }

    /// Lets go what no read can see.
    fn collect(&self, info: &TableInfo, table: &MemoryTable, is_short: bool) {
        if !table.has_garbage() {
            return;
        }
        let floor = self.floor(info, table, is_short);
        self.node.floors.raise(info.id, floor);
        while self.node.memory.collect(table, self.node.floors.floor(info.id), limits::GC_STEP_VERSIONS) {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Up to where versions that were replaced may go now.
    fn floor(&self, info: &TableInfo, table: &MemoryTable, is_short: bool) -> Hlc {
        let is_above = |limit| table.used() > part(limit, limits::MEMORY_TIGHT_ABOVE);
        let is_tight = is_short || table.limit().is_some_and(is_above);
        let kept_ms = if is_tight { limits::MEMORY_HISTORY_MS } else { info.retention_ms };
        let kept = Hlc::new(self.node.clock.now().ms().saturating_sub(kept_ms.min(info.retention_ms)), 0);
        let directory = self.node.directory.load();
        let tablets = directory.table(info.id).into_iter().flat_map(|tablets| tablets.iter());
        let undecided = tablets.map(|tablet| tablet.kept_ts()).min().unwrap_or(Hlc::MAX);
        let held = self.held_for_backups();
        // Pins are looked at last: a read that pins later is checked against the floor.
        let oldest_read = self.node.pins.oldest().unwrap_or(Hlc::MAX);
        kept.min(undecided).min(held).min(oldest_read)
    }

    /// What backups still need. Incremental ones want nothing of tables in memory, so what is held
    /// for the next of them is not kept here.
    fn held_for_backups(&self) -> Hlc {
        let oldest_ms = self.node.clock.now().ms().saturating_sub(limits::MEMORY_SAFE_POINT_MS);
        self.node.routes.now().held_at().max(Hlc::new(oldest_ms, 0))
    }

    /// Removes the coldest rows of what is led here while the table takes too much.
    fn evict(&self, id: TableId, table: &MemoryTable, short: u64, hand: &mut Hand) {
        hand.take_answers(self.node.floors.floor(id));
        let Some(limit) = table.limit().filter(|_| table.eviction() != Eviction::None) else { return };
        let used = table.used();
        if hand.asked > 0 || (used <= part(limit, limits::MEMORY_EVICT_ABOVE) && short == 0) {
            return;
        }
        let aim = part(limit, limits::MEMORY_EVICT_TO).min(limit.saturating_sub(short));
        let freeing: u64 = hand.freeing.iter().map(|(_, bytes)| bytes).sum();
        let wanted = used.saturating_sub(freeing).saturating_sub(aim);
        if wanted == 0 {
            return;
        }
        let mut found = BTreeMap::new();
        for _ in 0..limits::MEMORY_EVICT_STRETCHES {
            if hand.asked >= wanted {
                break;
            }
            match self.coldest(id, hand, wanted - hand.asked) {
                Ok(rows) => {
                    hand.asked += rows.iter().map(|(_, row)| row.bytes).sum::<u64>();
                    for (tablet, row) in rows {
                        found.entry(tablet.id).or_insert_with(Vec::new).push(row);
                    }
                    // The hand has gone round: what follows was looked at.
                    if hand.next.is_empty() {
                        break;
                    }
                }
                Err(error) => {
                    error!(error = &error as &dyn std::error::Error, "rows cannot be looked at to make room");
                    break;
                }
            }
        }
        self.ask(found, hand);
    }

    /// The coldest rows of the next stretch of what is led here, up to `wanted` bytes of them.
    fn coldest(
        &self,
        id: TableId,
        hand: &mut Hand,
        wanted: u64,
    ) -> Result<Vec<(Arc<TabletHandle>, Evictable)>, crate::store::StoreError> {
        let range = KeyRange::new(hand.next.clone(), None).unwrap_or_else(|_| KeyRange::all());
        let (rows, next) = self.node.memory.sample(id, &range, limits::MEMORY_SAMPLE_VERSIONS)?;
        let is_all = range.start().is_empty() && next.is_none();
        hand.next = next.unwrap_or_default();
        let directory = self.node.directory.load();
        let tablets = directory.table(id);
        let led = |row: Evictable| {
            let tablet = tablets?.find(&row.key).filter(|tablet| tablet.serving().is_some())?;
            Some((Arc::clone(tablet), row))
        };
        let mut rows: Vec<_> = rows.into_iter().filter_map(led).collect();
        rows.sort_by_key(|(_, row)| row.worth);
        // Never more than a part of a stretch: the rest of it is hotter than what follows, if any does.
        if !is_all {
            rows.truncate(rows.len().div_ceil(limits::MEMORY_EVICT_PART));
        }
        let mut bytes = 0;
        let enough = rows.iter().position(|(_, row)| {
            bytes += row.bytes;
            bytes >= wanted
        });
        rows.truncate(enough.map_or(rows.len(), |at| at + 1));
        Ok(rows)
    }

    fn ask(&self, found: BTreeMap<TabletId, Vec<Evictable>>, hand: &mut Hand) {
        let mut refused = 0;
        for (tablet, rows) in found {
            let Some(handle) = self.node.directory.load().tablet(tablet).cloned() else { continue };
            for batch in rows.chunks(limits::MEMORY_EVICT_BATCH_ROWS) {
                let bytes = batch.iter().map(|row| row.bytes).sum();
                let ops: Vec<Op> = batch.iter().map(eviction).collect();
                let Ok(evidence) = self.node.evidence(&handle, &ops) else { continue };
                let ask = Ask::Write { ops, level: AckLevel::Leader, token: None, evidence };
                let reply = Reply::Stream { call: bytes, to: hand.answer_to.clone() };
                let deadline = self.node.deadline(0);
                if self.node.submit(Request { tablet, ask, deadline, reply }).is_err() {
                    refused += bytes;
                }
            }
        }
        hand.asked = hand.asked.saturating_sub(refused);
    }
}

fn eviction(row: &Evictable) -> Op {
    let action = Action::Delete { key: row.key.clone(), cause: Cause::Evicted };
    Op { condition: Some(Condition::TsIs(row.ts)), action }
}

/// So many thousandths of a limit.
fn part(limit: u64, thousandths: u64) -> u64 {
    (limit / 1_000).saturating_mul(thousandths)
}
