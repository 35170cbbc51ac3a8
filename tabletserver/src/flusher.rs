//! The flusher: makes applied rows durable, records how far, and lets go of the log below.
//!
//! The order is the point. Positions are noted *before* the flush begins, recorded after it
//! has returned, and only what is recorded is purged from the log. RocksDB's own flushes
//! need no notice: replaying exact versions is idempotent.
//!
//! The log of a retired tablet goes when a flush that began after the switch has returned and
//! its tokens are out of their window, or when nothing here goes on from it.

use crate::error::Error;
use crate::limits;
use crate::node::Node;
use crate::oplog::Oplog;
use crate::registry::EpochSpan;
use crate::replicas::{Flushed, Replicas};
use crate::tablets::{Directory, TabletHandle};
use ebla_failpoints::failpoint;
use ebla_kernel::ids::{Seq, TabletId};
use ebla_kernel::limits::TOKEN_WINDOW_MS;
use ebla_kernel::meta::TableKind;
use ebla_proto::v1;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// How long writes' tokens are remembered.
const TOKEN_WINDOW: Duration = Duration::from_millis(TOKEN_WINDOW_MS);

/// Marks per tablet that say which entries left the token window.
const MARKS_PER_TABLET_MAX: usize = 16;

/// What the flusher works with.
pub struct Flusher {
    /// The server.
    pub node: Arc<Node>,
    /// Where positions are recorded.
    pub replicas: Arc<Replicas>,
    /// The log that is purged.
    pub oplog: Arc<Oplog>,
    /// Memtable size at which a flush is due.
    pub memtable_bytes: u64,
    /// Longest time between flushes while rows are unflushed; none: no automatic flushes.
    pub interval: Option<Duration>,
    /// Log size above which the token window loses.
    pub oplog_bytes_max: u64,
    /// Set when the server stops.
    pub stop: Arc<AtomicBool>,
}

/// What is known of one tablet's log.
#[derive(Default)]
struct Progress {
    flushed: Seq,
    /// First entry that is still in the log.
    kept: Seq,
    /// When which position had been flushed, oldest first.
    marks: VecDeque<(Instant, Seq)>,
}

/// What is known of logs between flushes.
#[derive(Default)]
struct Marks {
    tablets: HashMap<TabletId, Progress>,
    /// Since when the rows of a retired tablet are known to be durable.
    retired: HashMap<TabletId, Instant>,
}

impl Flusher {
    /// Runs until the server stops, then flushes a last time.
    ///
    /// # Errors
    /// When the store or the registry fails: the server must end.
    pub fn run(self) -> Result<(), Error> {
        let mut progress = Marks::default();
        let mut last_flush = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(limits::FLUSHER_PACE);
            self.node.disk.set_unflushed(self.node.reader.store.health().memtable_bytes);
            if self.memory_log_is_full() {
                self.purge_memory(&mut progress);
            }
            if self.is_due(last_flush) {
                self.flush(&mut progress)?;
                last_flush = Instant::now();
            }
        }
        self.flush(&mut progress)
    }

    fn is_due(&self, last_flush: Instant) -> bool {
        let is_log_full = || {
            last_flush.elapsed() >= Duration::from_secs(1)
                && self.oplog.bytes_on_disk() > self.oplog_bytes_max
        };
        let Some(interval) = self.interval else { return is_log_full() };
        last_flush.elapsed() >= interval
            || self.node.reader.store.health().memtable_bytes >= self.memtable_bytes
            || is_log_full()
    }

    /// Lets entries of tablets in memory go: what is applied there needs no flush.
    fn purge_memory(&self, marks: &mut Marks) {
        let directory = self.node.directory.load_full();
        for tablet in directory.tablets().filter(|tablet| tablet.kind == TableKind::Memory) {
            let progress = marks.tablets.entry(tablet.id).or_default();
            progress.flushed = tablet.applied_seq();
        }
        self.purge(&directory, &mut marks.tablets);
    }

    fn memory_log_is_full(&self) -> bool {
        self.oplog.bytes_in_memory() > limits::MEMORY_LOG_BYTES_MAX
    }

    fn flush(&self, marks: &mut Marks) -> Result<(), Error> {
        self.publish_unfinished();
        let progress = &mut marks.tablets;
        let cuts = self.replicas.cuts();
        let retired = self.replicas.retired();
        let unflushed_retired: Vec<TabletId> =
            retired.iter().filter(|retired| retired.flushed != retired.seal).map(|r| r.tablet).collect();
        let directory = self.node.directory.load_full();
        progress.retain(|id, _| directory.tablet(*id).is_some());
        let unflushed: Vec<Flushed> = directory
            .tablets()
            .filter(|tablet| {
                let progress = progress.entry(tablet.id).or_default();
                let applied = tablet.applied_seq();
                // A cut may have taken back what was applied.
                progress.lower(applied);
                applied > progress.flushed
            })
            .map(|tablet| noted(tablet))
            .collect();
        if !unflushed.is_empty() || !unflushed_retired.is_empty() {
            let started = Instant::now();
            let is_on_disk =
                |id: TabletId| directory.tablet(id).is_none_or(|it| it.kind == TableKind::Durable);
            if unflushed.iter().any(|flushed| is_on_disk(flushed.tablet))
                || retired.iter().any(|it| it.kind == TableKind::Durable && it.flushed != it.seal)
            {
                failpoint!("flush.store");
                self.node.reader.store.flush()?;
            }
            self.replicas.retired_flushed(&unflushed_retired)?;
            if !self.replicas.flushed(cuts, &unflushed)? {
                return Ok(()); // a log was cut meanwhile: noted anew next time
            }
            metrics::histogram!("ebla_store_flush_seconds").record(started.elapsed().as_secs_f64());
            debug!(tablets = unflushed.len(), ms = started.elapsed().as_millis(), "flushed");
        }
        for flushed in &unflushed {
            let progress = progress.entry(flushed.tablet).or_default();
            progress.flushed = flushed.end.pos.seq;
            progress.marks.push_back((Instant::now(), progress.flushed));
            if progress.marks.len() > MARKS_PER_TABLET_MAX {
                progress.marks.remove(1);
            }
        }
        failpoint!("flush.purge");
        self.purge(&directory, progress);
        failpoint!("flush.done");
        if !retired.is_empty() {
            self.release_retired(&mut marks.retired)?;
        }
        Ok(())
    }

    /// What is under way, or was cut short and waits.
    fn publish_unfinished(&self) {
        let (staged, retired, unfinished) = self.replicas.unfinished();
        metrics::gauge!("ebla_tablets_staged_count").set(staged as f64);
        metrics::gauge!("ebla_tablets_retired_count").set(retired as f64);
        metrics::gauge!("ebla_replicas_unfinished_count").set(unfinished as f64);
    }

    /// Lets the logs of retired tablets go that nothing needs.
    fn release_retired(&self, flushed: &mut HashMap<TabletId, Instant>) -> Result<(), Error> {
        let disk_is_over = self.disk_log() != DiskLog::Within;
        let memory_is_over = self.memory_log_is_full();
        let retired = self.replicas.retired();
        for retired in retired.iter().filter(|retired| retired.flushed == retired.seal) {
            flushed.entry(retired.tablet).or_insert_with(Instant::now);
        }
        let in_memory = retired.iter().filter(|retired| retired.kind == TableKind::Memory);
        let in_memory: HashSet<TabletId> = in_memory.map(|retired| retired.tablet).collect();
        let is_out = |id: &TabletId, since: &Instant| {
            let is_over = if in_memory.contains(id) { memory_is_over } else { disk_is_over };
            is_over || since.elapsed() >= TOKEN_WINDOW
        };
        let mut gone: Vec<TabletId> =
            flushed.iter().filter(|(id, since)| is_out(id, since)).map(|(tablet, _)| *tablet).collect();
        gone.extend(self.replicas.retired_without_heirs());
        for tablet in &gone {
            flushed.remove(tablet);
        }
        if gone.is_empty() {
            return Ok(());
        }
        failpoint!("retired.log");
        if let Err(error) = self.oplog.remove(&gone) {
            warn!(%error, "logs of retired tablets stay for now");
            return Ok(());
        }
        debug!(tablets = gone.len(), "let the logs of retired tablets go");
        self.replicas.forget_retired(&gone)?;
        Ok(())
    }

    /// Lets entries go that are flushed, safe, out of the token window, and not needed by any
    /// copy. Above the size limit the window loses, and copies that are away; far above it those
    /// that are there, too; what is not safe stays.
    fn purge(&self, directory: &Directory, progress: &mut HashMap<TabletId, Progress>) {
        let disk = self.disk_log();
        let memory_bytes = self.oplog.bytes_in_memory();
        let routes = self.node.routes.now();
        let mut compact = Vec::new();
        for (id, progress) in progress.iter_mut() {
            let Some(tablet) = directory.tablet(*id) else { continue };
            let needed = needed_by_copies(tablet, routes.tablet(*id));
            let upto = match tablet.kind {
                TableKind::Durable if disk == DiskLog::Full => Some(progress.flushed),
                TableKind::Durable if disk == DiskLog::Over => self.above_limit(tablet, progress),
                TableKind::Memory if memory_bytes > limits::MEMORY_LOG_BYTES_HARD => Some(progress.flushed),
                TableKind::Memory if memory_bytes > limits::MEMORY_LOG_BYTES_MAX => {
                    Some(progress.flushed.min(needed))
                }
                TableKind::Durable | TableKind::Memory => progress.out_of_window(needed, TOKEN_WINDOW),
            };
            // The last entry stays: it proves where the log ends.
            let upto = upto.map(|upto| upto.min(tablet.standing()));
            if let Some(keep) = upto.filter(|keep| *keep > progress.kept) {
                progress.kept = keep;
                compact.push((*id, keep));
            }
        }
        if disk == DiskLog::Full {
            warn!("the log is far above --log-max: what copies still want goes, and they are built anew");
        }
        let purged = self.oplog.compact_to(&compact).and_then(|()| self.oplog.purge());
        if let Err(error) = purged {
            warn!(%error, "old log entries stay for now");
        }
    }

    /// What of a log goes when the limit is passed: all that is flushed and that no copy is about to
    /// be sent. Who follows cannot know what others lack, only that it is young.
    fn above_limit(&self, tablet: &TabletHandle, progress: &mut Progress) -> Option<Seq> {
        let pinned = self.node.log_pins.lowest(tablet.id).unwrap_or(Seq(u64::MAX));
        match tablet.wanted() {
            Some(wanted) => Some(progress.flushed.min(wanted).min(pinned)),
            None => progress.out_of_window(pinned, limits::OPLOG_LIVE_WINDOW),
        }
    }

    fn disk_log(&self) -> DiskLog {
        let (bytes, max) = (self.oplog.bytes_on_disk(), self.oplog_bytes_max);
        let pinned = (max / limits::OPLOG_PINNED_SHARE).max(limits::OPLOG_PINNED_BYTES_MIN);
        if bytes > max.saturating_add(pinned) {
            DiskLog::Full
        } else if bytes > max {
            DiskLog::Over
        } else {
            DiskLog::Within
        }
    }
}

/// How the log on disk stands to its limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DiskLog {
    /// Everything is kept that anybody may want.
    Within,
    /// What is there for those who are away goes.
    Over,
    /// What is there for anybody goes.
    Full,
}

impl Progress {
    /// Rows above `applied` were taken back.
    fn lower(&mut self, applied: Seq) {
        self.flushed = self.flushed.min(applied);
        self.marks.retain(|(_, seq)| *seq <= applied);
    }

    /// The last position that no copy above `needed` wants, flushed longer ago than `window`.
    fn out_of_window(&mut self, needed: Seq, window: Duration) -> Option<Seq> {
        let mut upto = None;
        while let Some((at, seq)) = self.marks.front().copied() {
            if at.elapsed() < window || seq > needed {
                break;
            }
            upto = Some(seq);
            self.marks.pop_front();
        }
        upto
    }
}

/// Entries above this are needed by copies. A leader knows what its in-sync copies have; for
/// one that is not in sync everything is kept, because only the log brings it back.
fn needed_by_copies(tablet: &TabletHandle, known: Option<&v1::Tablet>) -> Seq {
    let replicas = known.map_or(&[][..], |known| &known.replicas);
    if replicas.iter().any(|replica| !replica.in_sync && !replica.lost) {
        return Seq(0);
    }
    tablet.everywhere().unwrap_or(Seq(u64::MAX))
}

/// What is in the store now, before the flush begins.
fn noted(tablet: &TabletHandle) -> Flushed {
    let (rows, bytes) = tablet.size.get();
    let end = tablet.applied_end();
    let begun = tablet.epochs.load();
    let begun = begun.iter().filter(|(_, first)| *first <= end.pos.seq);
    let epochs = begun.map(|(epoch, first)| EpochSpan { epoch: *epoch, first: *first }).collect();
    Flushed { tablet: tablet.id, replica: tablet.replica, end, epochs, rows, bytes }
}
