//! From a data directory to replicas: open the stores, look through the log.
//!
//! Cuts that a crash cut short are ended first. Rows are not replayed here: what of the log
//! above a tablet's flushed position may be applied is for its core to say (a leader applies
//! all of it, a follower what is safe), but for a sealed tablet, whose core may never be asked; applying exact versions again is idempotent, so it
//! does not matter how much of it the data store had flushed by itself. The whole retained log
//! is read for its tokens (`docs/decisions/0009-token-floor.md`). What does not fit together is
//! an error and is left as it is (`docs/decisions/0008-damage-refuses-to-start.md`). Nothing
//! here deletes what it does not know.

use crate::clock::Clock;
use crate::config::Config;
use crate::error::Error;
use crate::identity::DataDir;
use crate::ledger::Ledger;
use crate::limits;
use crate::oplog::{Oplog, OplogConfig};
use crate::pipeline::{CutStores, finish_cuts};
use crate::registry::{Built, EpochSpan, Registry, ReplicaRecord, ReplicaState, StagedRecord};
use crate::replicas::Replicas;
use crate::store::both::BothStores;
use crate::store::gc::Floors;
use crate::store::memory::MemoryStore;
use crate::store::rocks::{RocksConfig, RocksStore};
use crate::store::{Applied, Store};
use crate::succession::{Inherited, apply_sealed, cut_again};
use ebla_kernel::entry::{Entry, LogEnd, Payload};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::Seq;
use ebla_kernel::limits::TOKEN_CLOCK_SLACK_MS;
use ebla_kernel::op::Change;
use ebla_kernel::range_tombstones::RangeTombstones;
use ebla_kernel::tablet::Seals;
use ebla_kernel::tablet::token::TokenTable;
use std::path::Path;
use std::sync::Arc;
use tracing::info;

/// The stores of a data directory.
const STORES: [&str; 3] = ["registry", "data", "oplog"];

/// An opened data directory.
pub struct Opened {
    /// Holds the lock on the directory.
    pub dir: DataDir,
    /// The synced records.
    pub registry: Arc<Registry>,
    /// All records of replicas, tombstoned ones too.
    pub replicas: Arc<Replicas>,
    /// No timestamp above this was ever issued here.
    pub hlc_bound: Hlc,
    /// The rows.
    pub store: Arc<BothStores>,
    /// The rows in memory; none at first, for all of them are lost.
    pub memory: Arc<MemoryStore>,
    /// What garbage collection may take.
    pub floors: Arc<Floors>,
    /// The log.
    pub oplog: Arc<Oplog>,
    /// What failovers took.
    pub ledger: Arc<Ledger>,
    /// The longest lease that was ever promised here, in milliseconds.
    pub lease_ms_max: u64,
    /// The replicas that are to serve.
    pub recovered: Vec<RecoveredReplica>,
}

/// A replica as the stores have it.
pub struct RecoveredReplica {
    /// The registry's record.
    pub record: ReplicaRecord,
    /// Durable end of its log.
    pub end: LogEnd,
    /// Which epoch began where.
    pub epochs: Vec<EpochSpan>,
    /// The tokens of its log.
    pub tokens: TokenTable,
    /// Its range tombstones.
    pub tombstones: RangeTombstones,
    /// The seals of its log.
    pub seals: Seals,
    /// What is to take its place.
    pub staged: Option<StagedRecord>,
}

/// Opens `config.data_dir` and looks through its log.
///
/// # Errors
/// When the directory is in use, of a newer format, or damaged.
pub fn open(config: &Config) -> Result<Opened, Error> {
    let dir = DataDir::open(&config.data_dir)?;
    if dir.identity().registered.is_some() {
        STORES.iter().try_for_each(|store| check_present(&config.data_dir, store))?;
    }
    let (registry, content) = Registry::open(&config.data_dir.join("registry"))?;
    let floors = Arc::new(Floors::new());
    let rocks = RocksConfig {
        write_buffer_bytes: config.write_buffer_bytes,
        block_cache_bytes: config.block_cache_bytes,
        ..RocksConfig::default()
    };
    let disk = RocksStore::open(&config.data_dir.join("data"), &rocks, Arc::clone(&floors))?;
    let memory = Arc::new(MemoryStore::new());
    let store = Arc::new(BothStores::new(disk, Arc::clone(&memory)));
    let oplog = Arc::new(Oplog::open(&config.data_dir.join("oplog"), &OplogConfig::default())?);
    let ledger = Arc::new(Ledger::open(&config.data_dir.join("lost"))?);
    let registry = Arc::new(registry);
    let (hlc_bound, lease_ms_max) = (content.hlc_bound, content.lease_ms_max);
    let replicas = Arc::new(Replicas::new(Arc::clone(&registry), content));
    let mut opened = Opened {
        dir,
        registry,
        replicas,
        hlc_bound,
        lease_ms_max,
        store,
        memory,
        floors,
        oplog,
        ledger,
        recovered: Vec::new(),
    };
    finish_cuts(&opened.cut_stores())?;
    for record in opened.replicas.all().iter().filter(|record| record.state == ReplicaState::Active) {
        let recovered = recover(record, &opened.replicas, &opened.oplog, &*opened.store)?;
        opened.recovered.push(recovered);
    }
    Clock::catch_up(opened.hlc_bound);
    info!(replicas = opened.recovered.len(), "the data directory is open");
    Ok(opened)
}

impl Opened {
    /// The stores that the end of a log is cut through.
    #[must_use]
    pub fn cut_stores(&self) -> CutStores {
        CutStores {
            oplog: Arc::clone(&self.oplog),
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            replicas: Arc::clone(&self.replicas),
            ledger: Arc::clone(&self.ledger),
        }
    }
}

/// A store of a server that has registered once is there, or was lost: to start without it
/// would tell clients that their rows never were.
fn check_present(data_dir: &Path, store: &str) -> Result<(), Error> {
    let mut files = std::fs::read_dir(data_dir.join(store)).into_iter().flatten();
    if files.next().is_some() {
        return Ok(());
    }
    Err(Error::Damaged { what: format!("{store}/ is missing or empty in {}", data_dir.display()) })
}

/// Looks through the log of one replica, those that it goes on from first.
fn recover(
    record: &ReplicaRecord,
    replicas: &Replicas,
    oplog: &Oplog,
    store: &dyn Store,
) -> Result<RecoveredReplica, Error> {
    let inherited = Inherited::of(record, &replicas.ancestors(record), oplog, store)?;
    let mut replay = Replay::new(record, oplog.bounds(record.tablet), inherited)?;
    while let Some(from) = replay.next {
        let entries = oplog.read(record.tablet, from, limits::REPLAY_BATCH_BYTES)?;
        for entry in &entries {
            replay.take(record, entry)?;
        }
        replay.next = entries.last().map(|last| last.seq().next());
    }
    let end = replay.finish(record)?;
    let staged = replicas.staged(record.tablet);
    if let Some(staged) = &staged {
        apply_sealed(record, staged, oplog, store)?;
    }
    let mut tombstones = load_tombstones(record, store)?;
    if let Some(staged) = &staged {
        cut_again(record, staged, store, &mut tombstones)?;
    }
    let known = staged.as_ref().map(|staged| Seals::staged(staged.seal.clone(), staged.end));
    // The seal itself may be purged; what is staged names it.
    let seals = if replay.seals == Seals::default() { known.unwrap_or_default() } else { replay.seals };
    Ok(RecoveredReplica {
        record: record.clone(),
        end,
        epochs: replay.epochs,
        tokens: replay.tokens,
        tombstones,
        seals,
        staged,
    })
}

/// The range tombstones of a replica. One that reaches beyond it is left of a tablet that it was
/// made of, and is cut now, should a crash have taken the cut.
fn load_tombstones(record: &ReplicaRecord, store: &dyn Store) -> Result<RangeTombstones, Error> {
    let mut tombstones = RangeTombstones::new();
    for tombstone in store.load_range_tombstones(record.table, &record.range)? {
        let Some(own) = tombstone.range.intersect(&record.range) else { continue };
        let (from, to) = (own.start().clone(), own.end().cloned());
        if own != tombstone.range {
            let change = Change::RangeTombstone { from: from.clone(), to: to.clone() };
            store.apply(&[Applied { table: record.table, ts: tombstone.ts, change: &change }])?;
        }
        tombstones.insert(from, to, tombstone.ts);
    }
    Ok(tombstones)
}

/// A log on its way through the checks of recovery.
struct Replay {
    next: Option<Seq>,
    /// The last entry seen.
    end: Option<LogEnd>,
    epochs: Vec<EpochSpan>,
    tokens: TokenTable,
    seals: Seals,
}

impl Replay {
    fn new(record: &ReplicaRecord, bounds: Option<(Seq, Seq)>, inherited: Inherited) -> Result<Self, Error> {
        let (flushed, base) = (record.flushed.pos.seq, record.base.pos.seq);
        if let Some((first, last)) = bounds {
            if first > flushed.next() {
                return Err(damaged(record, &format!("the log begins at {first}, rows end at {flushed}")));
            }
            if last < flushed {
                return Err(damaged(
                    record,
                    &format!("the log ends at {last}, rows are flushed to {flushed}"),
                ));
            }
        }
        if bounds.is_none() && flushed > base {
            // A purge keeps the last entry.
            return Err(damaged(record, &format!("the log is empty, rows are flushed to {flushed}")));
        }
        let is_whole = bounds.map_or(flushed == base, |(first, _)| first == base.next());
        let goes_on = inherited.end == Some(record.base) || base == Seq(0);
        let (end, tokens) = match is_whole && goes_on {
            true => (inherited.end, inherited.tokens),
            // Tokens of purged entries are forgotten. None of them was issued after this.
            false => (None, TokenTable::complete_from(record.flushed.ts.ms() + TOKEN_CLOCK_SLACK_MS + 1)),
        };
        Ok(Self {
            next: bounds.map(|(first, _)| first),
            end,
            epochs: record.epochs.clone(),
            tokens,
            seals: Seals::default(),
        })
    }

    fn take(&mut self, record: &ReplicaRecord, entry: &Entry) -> Result<(), Error> {
        match self.end {
            // What came before the first entry is purged; its own time bounds theirs.
            None if entry.seq() > Seq(1) => {
                self.tokens = Built::tokens_at(record.built, entry);
            }
            None => {}
            Some(end) if end.is_followed_by(entry) => {}
            Some(end) => {
                let what = format!("entry {} does not follow {}", entry.pos, end.pos);
                return Err(damaged(record, &what));
            }
        }
        if entry.seq() == record.flushed.pos.seq && entry.end() != record.flushed {
            return Err(damaged(record, &format!("entry {} is not the one that was flushed", entry.pos)));
        }
        if let Payload::EpochStart { .. } = entry.payload
            && self.epochs.last().is_none_or(|last| last.epoch < entry.pos.epoch)
        {
            self.epochs.push(EpochSpan { epoch: entry.pos.epoch, first: entry.seq() });
        }
        self.tokens.note_entry(entry);
        self.seals.note(entry);
        self.end = Some(entry.end());
        Ok(())
    }

    fn finish(&self, record: &ReplicaRecord) -> Result<LogEnd, Error> {
        let end = self.end.unwrap_or(record.flushed);
        if end.pos.seq < record.flushed.pos.seq {
            return Err(damaged(record, "the log is shorter than what is flushed"));
        }
        Ok(end)
    }
}

fn damaged(record: &ReplicaRecord, what: &str) -> Error {
    Error::Damaged { what: format!("log of tablet {}: {what}", record.tablet.0) }
}
