//! The flusher: makes applied rows durable, records how far, and lets go of the log below.
//!
//! The order is the point. Positions are noted *before* the flush begins, recorded after it
//! has returned, and only what is recorded is purged from the log. RocksDB's own flushes
//! need no notice: replaying exact versions is idempotent.

use crate::error::Error;
use crate::limits;
use crate::node::Node;
use crate::oplog::Oplog;
use crate::replicas::{Flushed, Replicas};
use crate::tablets::TabletHandle;
use ebla_kernel::ids::{Seq, TabletId};
use ebla_kernel::limits::TOKEN_WINDOW_MS;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

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

impl Flusher {
    /// Runs until the server stops, then flushes a last time.
    ///
    /// # Errors
    /// When the store or the registry fails: the server must end.
    pub fn run(self) -> Result<(), Error> {
        let mut progress = HashMap::new();
        let mut last_flush = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(limits::FLUSHER_PACE);
            self.node.disk.set_unflushed(self.node.reader.store.health().memtable_bytes);
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

    fn flush(&self, progress: &mut HashMap<TabletId, Progress>) -> Result<(), Error> {
        let directory = self.node.directory.load_full();
        progress.retain(|id, _| directory.tablet(*id).is_some());
        let unflushed: Vec<Flushed> = directory
            .tablets()
            .filter(|tablet| {
                let flushed = progress.entry(tablet.id).or_default().flushed;
                tablet.applied_seq() > flushed
            })
            .map(|tablet| noted(tablet))
            .collect();
        if !unflushed.is_empty() {
            let started = Instant::now();
            self.node.reader.store.flush()?;
            self.replicas.flushed(&unflushed)?;
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
        self.purge(progress);
        Ok(())
    }

    /// Lets entries go that are flushed and out of the token window.
    fn purge(&self, progress: &mut HashMap<TabletId, Progress>) {
        let ignore_window = self.oplog.bytes_on_disk() > self.oplog_bytes_max;
        let mut compact = Vec::new();
        for (tablet, progress) in progress.iter_mut() {
            let upto = if ignore_window { Some(progress.flushed) } else { progress.out_of_window() };
            // The last entry stays: it proves where the log ends.
            if let Some(keep) = upto.filter(|keep| *keep > progress.kept) {
                progress.kept = keep;
                compact.push((*tablet, keep));
            }
        }
        let purged = self.oplog.compact_to(&compact).and_then(|()| self.oplog.purge());
        if let Err(error) = purged {
            warn!(%error, "old log entries stay for now");
        }
    }
}

impl Progress {
    /// The last position flushed longer ago than tokens are remembered.
    fn out_of_window(&mut self) -> Option<Seq> {
        let mut upto = None;
        while let Some((at, seq)) = self.marks.front().copied() {
            if at.elapsed() < Duration::from_millis(TOKEN_WINDOW_MS) {
                break;
            }
            upto = Some(seq);
            self.marks.pop_front();
        }
        upto
    }
}

/// What is in the store now, before the flush begins.
fn noted(tablet: &TabletHandle) -> Flushed {
    let (rows, bytes) = tablet.size.get();
    Flushed { tablet: tablet.id, end: tablet.applied_end(), rows, bytes }
}
