//! How a watch begins: what it covers, where it goes on, what it must be shown first.

use super::past::Past;
use crate::limits;
use crate::node::Node;
use crate::oplog::{Oplog, OplogError};
use crate::pipeline::Control;
use crate::routes::TableInfo;
use crate::store::gc::ReadPin;
use crate::tablets::TabletHandle;
use bytes::Bytes;
use ebla_kernel::entry::LogEnd;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::Seq;
use ebla_kernel::key::successor;
use ebla_kernel::op;
use ebla_kernel::range::KeyRange;
use ebla_kernel::watch::{FirstEntry, History, LostWhy, Piece, Place, Start, Token};
use ebla_proto::convert;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::watch_request::Begin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::Semaphore;

/// The watches of a server.
pub struct Watches {
    pub(super) node: Arc<Node>,
    pub(super) oplog: Arc<Oplog>,
    open: AtomicUsize,
    /// Pages of the past that are read at once.
    pub(super) pages: Semaphore,
}

impl Watches {
    /// No watches.
    #[must_use]
    pub fn new(node: Arc<Node>, oplog: Arc<Oplog>) -> Self {
        Self { node, oplog, open: AtomicUsize::new(0), pages: Semaphore::new(limits::WATCH_PAGES_AT_ONCE) }
    }

    /// How many there are.
    #[must_use]
    pub(super) fn count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// Room for one watch; gives it back when dropped.
pub(super) struct Slot(pub(super) Arc<Watches>);

impl Slot {
    fn take(watches: &Arc<Watches>) -> Result<Self, ApiError> {
        let slot = Self(Arc::clone(watches));
        let open = watches.open.fetch_add(1, Ordering::Relaxed) + 1;
        metrics::gauge!("ebla_watches").set(open as f64);
        if open <= limits::WATCHES_MAX {
            return Ok(slot);
        }
        let hint = format!(
            "this server serves {} watches already: end some, or watch ranges instead of keys",
            limits::WATCHES_MAX
        );
        Err(ApiError::new(Reason::LimitReached, hint))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let open = self.0.open.fetch_sub(1, Ordering::Relaxed) - 1;
        metrics::gauge!("ebla_watches").set(open as f64);
    }
}

/// A watch that is about to begin.
pub(super) struct Plan {
    pub(super) slot: Slot,
    pub(super) table: Arc<TableInfo>,
    pub(super) tablet: Arc<TabletHandle>,
    /// What of the asked range lies in the tablet.
    pub(super) range: KeyRange,
    /// How far the watch is.
    pub(super) token: Token,
    /// Changes above this timestamp, or the rows at it, are shown.
    pub(super) begin: Hlc,
    /// What is shown before the log.
    pub(super) past: Vec<(Past, ReadPin)>,
    /// The watch goes on in the log after this.
    pub(super) log_after: Seq,
}

/// Checks a request and finds out where it begins.
///
/// # Errors
/// As the API says of `Watch`, for everything that can be known before the first event.
pub(super) async fn plan(watches: &Arc<Watches>, request: &v1::WatchRequest) -> Result<Plan, ApiError> {
    let node = &watches.node;
    let asked = asked_range(request)?;
    let token = token(request)?;
    let table = node.table(&request.table)?;
    let slot = Slot::take(watches)?;
    let tablet = node.locate(&table, asked.start())?;
    node.check_serving(&table, &tablet, asked.start())?;
    let range = asked.intersect(&tablet.range).ok_or_else(|| node.elsewhere(&table, asked.start()))?;
    let planning = Planning { watches, table: &table, tablet: &tablet, began: Instant::now() };
    let pieces = match &request.begin {
        None => vec![Piece { range: range.clone(), place: Place::Time(planning.now()?) }],
        Some(Begin::SinceTs(ts)) => {
            // As a read at that time would be refused, so is a watch, whatever the log has.
            planning.pin(Hlc(*ts))?;
            vec![Piece { range: range.clone(), place: Place::Time(Hlc(*ts)) }]
        }
        Some(Begin::SnapshotTs(0)) => {
            vec![Piece { range: range.clone(), place: Place::Rows(planning.now()?) }]
        }
        Some(Begin::SnapshotTs(ts)) => vec![Piece { range: range.clone(), place: Place::Rows(Hlc(*ts)) }],
        Some(Begin::Token(_)) => pieces_of(token.as_ref(), &table, &range)?,
    };
    let Planned { pieces, past, log_after } = planning.all(pieces).await?;
    let mut pieces = pieces.into_iter();
    let first = pieces.next().ok_or_else(|| no_token("it says nothing of this range"))?;
    let begin = place_ts(&first.place);
    let mut token = Token::new(table.id, first.range, first.place);
    let begin = pieces.fold(begin, |begin, piece| {
        let ts = place_ts(&piece.place);
        token.put(piece);
        begin.min(ts)
    });
    Ok(Plan { slot, range, token, begin, past, log_after, table: Arc::clone(&table), tablet })
}

fn place_ts(place: &Place) -> Hlc {
    match place {
        Place::Entry { ts, .. } | Place::Time(ts) | Place::Rows(ts) => *ts,
    }
}

/// The keys that a request names.
fn asked_range(request: &v1::WatchRequest) -> Result<KeyRange, ApiError> {
    let is_range = !(request.prefix.is_empty() && request.from.is_empty() && request.to.is_empty());
    if !request.key.is_empty() {
        if is_range {
            let hint = "give a key, or a prefix or range, not both";
            return Err(ApiError::new(Reason::BadRequest, hint));
        }
        op::check_key(&request.key)?;
        let above = Some(successor(&request.key));
        return KeyRange::new(request.key.clone(), above).map_err(|_| op::BadRequest::InvertedRange.into());
    }
    let range = convert::scan_range(&request.from, &request.to, &request.prefix)?;
    range.ok_or_else(|| {
        let hint = "prefix and range have no key in common: there is nothing to watch";
        ApiError::new(Reason::BadRequest, hint)
    })
}

fn token(request: &v1::WatchRequest) -> Result<Option<Token>, ApiError> {
    match &request.begin {
        Some(Begin::Token(bytes)) => Token::decode(bytes)
            .map(Some)
            .map_err(|error| ApiError::new(Reason::BadRequest, error.to_string())),
        Some(Begin::SinceTs(0)) => {
            let hint = "since_ts is 0: give the timestamp of a version, or nothing to watch from now on";
            Err(ApiError::new(Reason::BadRequest, hint))
        }
        Some(Begin::SinceTs(_) | Begin::SnapshotTs(_)) | None => Ok(None),
    }
}

/// What a token says of `range`.
fn pieces_of(token: Option<&Token>, table: &TableInfo, range: &KeyRange) -> Result<Vec<Piece>, ApiError> {
    let token = token.ok_or_else(|| no_token("it is empty"))?;
    if token.table != table.id {
        let name = &table.table.name;
        return Err(no_token(&format!("it was given for another table than {name:?} is now")));
    }
    if !token.covers(range) {
        return Err(no_token("it was given for a watch of other keys"));
    }
    Ok(token.within(range))
}

fn no_token(why: &str) -> ApiError {
    let hint = format!("the watch cannot go on with this token, {why}: begin anew, with a snapshot");
    ApiError::new(Reason::BadRequest, hint)
}

/// What a watch is told for which nothing reaches back far enough.
pub(super) fn too_old(table: &TableInfo, since: Hlc) -> ApiError {
    let hint = format!(
        "changes after {} are no longer kept: table {:?} keeps old versions for {} ms, and the log does not \
         reach back so far; read the rows anew, with --snapshot, and watch from there",
        since.0, table.table.name, table.retention_ms
    );
    ApiError::new(Reason::WatchTooOld, hint).with("since", since.0)
}

struct Planning<'a> {
    watches: &'a Arc<Watches>,
    table: &'a Arc<TableInfo>,
    tablet: &'a Arc<TabletHandle>,
    began: Instant,
}

#[derive(Default)]
struct Planned {
    pieces: Vec<Piece>,
    past: Vec<(Past, ReadPin)>,
    log_after: Seq,
}

impl Planning<'_> {
    /// A timestamp above everything that was answered before.
    fn now(&self) -> Result<Hlc, ApiError> {
        let now = self.watches.node.clock.issue();
        now.map_err(|error| ApiError::new(Reason::Internal, error.to_string()))
    }

    async fn all(&self, pieces: Vec<Piece>) -> Result<Planned, ApiError> {
        let named = pieces.iter().map(|piece| match piece.place {
            Place::Time(ts) | Place::Rows(ts) => ts,
            // What was shown is below what is safe here; if not, it is lost.
            Place::Entry { .. } => Hlc::MIN,
        });
        let end = self.closed(named.max().unwrap_or_default()).await?;
        let mut planned = Planned { log_after: end.pos.seq, ..Planned::default() };
        for piece in pieces {
            self.add(&mut planned, piece, end).await?;
        }
        Ok(planned)
    }

    async fn add(&self, planned: &mut Planned, piece: Piece, end: LogEnd) -> Result<(), ApiError> {
        let Piece { range, mut place } = piece;
        let seen_upto = place.seen_upto().unwrap_or_default();
        match self.start(&place).await? {
            Start::Log(seq) => planned.log_after = planned.log_after.min(seq),
            Start::LogSince(ts) => self.go_on_since(planned, ts).await?,
            Start::Versions(since) => self.versions(planned, &range, since, end)?,
            Start::Rows(at) => place = self.rows(planned, &range, at, end).await?,
            Start::Lost(why) => {
                planned.past.push((Past::Break { range: range.clone(), why }, self.pin(end.ts)?));
                place = self.rows(planned, &range, Hlc::MIN, end).await?;
            }
            Start::Wait => {
                let hint = format!(
                    "the leader of tablet {} does not know yet whether everything up to {} is safe: try again",
                    self.tablet.id.0, seen_upto.0
                );
                return Err(ApiError::new(Reason::Unavailable, hint).with("tablet", self.tablet.id.0));
            }
        }
        planned.pieces.push(Piece { range, place });
        Ok(())
    }

    /// Where a place is in the history of this tablet; waits a little for a new leader to know.
    async fn start(&self, place: &Place) -> Result<Start, ApiError> {
        loop {
            let first = self.first_entry().await?;
            let epochs = self.tablet.epochs.load();
            let history = History {
                ancestry: self.tablet.ancestry,
                base: self.tablet.base,
                epochs: &epochs,
                safe: self.tablet.safe_seq(),
                first,
            };
            match history.start(place) {
                Start::Wait if self.began.elapsed() < limits::WATCH_BEGIN_PATIENCE => {}
                start => return Ok(start),
            }
            tokio::time::sleep(limits::COPY_READ_LOOK_EVERY).await;
        }
    }

    /// The rows as of `at`, zero for now, then what changed after it.
    async fn rows(
        &self,
        planned: &mut Planned,
        range: &KeyRange,
        at: Hlc,
        end: LogEnd,
    ) -> Result<Place, ApiError> {
        let at = if at == Hlc::MIN { end.ts } else { at };
        planned.past.push((Past::Rows { range: range.clone(), at }, self.pin(at)?));
        if let Start::LogSince(since) = self.start(&Place::Time(at)).await? {
            self.go_on_since(planned, since).await?;
        } else {
            self.versions(planned, range, at, end)?;
        }
        Ok(Place::Rows(at))
    }

    fn versions(
        &self,
        planned: &mut Planned,
        range: &KeyRange,
        since: Hlc,
        end: LogEnd,
    ) -> Result<(), ApiError> {
        let past = Past::Versions { range: range.clone(), since, upto: end };
        planned.past.push((past, self.pin(since)?));
        Ok(())
    }

    async fn go_on_since(&self, planned: &mut Planned, ts: Hlc) -> Result<(), ApiError> {
        let seq = self.last_upto(ts).await?;
        planned.log_after = planned.log_after.min(seq);
        Ok(())
    }

    fn pin(&self, at: Hlc) -> Result<ReadPin, ApiError> {
        self.watches.node.pin(self.table, at).map_err(|error| match error.reason {
            Reason::TimestampOutOfRange => too_old(self.table, at),
            _ => error,
        })
    }

    /// The last definite entry, once it closes `ts`.
    async fn closed(&self, ts: Hlc) -> Result<LogEnd, ApiError> {
        let node = &self.watches.node;
        node.observe(ts)?;
        let mut asked: Option<Instant> = None;
        loop {
            if let Some(end) = self.tablet.closed().filter(|end| end.ts >= ts) {
                return Ok(end);
            }
            node.check_serving(self.table, self.tablet, self.tablet.range.start())?;
            if self.began.elapsed() >= limits::WATCH_BEGIN_PATIENCE {
                let hint = format!(
                    "nothing that was written to tablet {} lately is safe on enough copies: try again when \
                     they are back",
                    self.tablet.id.0
                );
                return Err(ApiError::new(Reason::Unavailable, hint).with("tablet", self.tablet.id.0));
            }
            if asked.is_none_or(|at| at.elapsed() >= limits::COPY_READ_PATIENCE / 4) {
                asked = Some(Instant::now());
                let wanted = ts.max(self.tablet.applied_ts().next());
                let _ = node.sequencer.control.send(Control::CloseWanted(self.tablet.id, wanted));
            }
            tokio::time::sleep(limits::COPY_READ_LOOK_EVERY).await;
        }
    }

    async fn first_entry(&self) -> Result<Option<FirstEntry>, ApiError> {
        let Some((first, _)) = self.watches.oplog.bounds(self.tablet.id) else { return Ok(None) };
        let ts = self.ts_at(first).await?;
        Ok(ts.map(|ts| FirstEntry { seq: first, ts }))
    }

    /// Index of the last entry of the log at or below `ts`.
    async fn last_upto(&self, ts: Hlc) -> Result<Seq, ApiError> {
        let base = self.tablet.base.pos.seq;
        let Some((first, last)) = self.watches.oplog.bounds(self.tablet.id) else { return Ok(base) };
        // Everything below `low` is at or below `ts`, everything from `high` on is above it.
        let (mut low, mut high) = (first, last.next());
        while low < high {
            let middle = Seq(low.0 + (high.0 - low.0) / 2);
            match self.ts_at(middle).await? {
                Some(at) if at <= ts => low = middle.next(),
                Some(_) | None => high = middle,
            }
        }
        Ok(Seq(low.0.saturating_sub(1)))
    }

    /// The timestamp of an entry; none when the log does not have it.
    async fn ts_at(&self, seq: Seq) -> Result<Option<Hlc>, ApiError> {
        let (oplog, tablet) = (Arc::clone(&self.watches.oplog), self.tablet.id);
        let read = tokio::task::spawn_blocking(move || oplog.read(tablet, seq, 1)).await;
        match read {
            Ok(Ok(entries)) => Ok(entries.first().map(|entry| entry.ts)),
            Ok(Err(OplogError::Purged { .. })) => Ok(None),
            Ok(Err(error)) => Err(log_error(&error.to_string())),
            Err(error) => Err(log_error(&error.to_string())),
        }
    }
}

/// What a consumer is told of a log that cannot be read.
pub(super) fn log_error(what: &str) -> ApiError {
    tracing::error!(what, "a watch could not read the log");
    ApiError::new(Reason::Internal, format!("the log cannot be read: {what}"))
}

/// What is told of a break.
pub(super) fn reason_of(why: LostWhy) -> String {
    why.as_str().to_owned()
}

/// An empty key means "no bound".
pub(super) fn upper_bound(range: &KeyRange) -> Bytes {
    range.end().cloned().unwrap_or_default()
}
