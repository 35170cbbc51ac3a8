//! One watch, from its first message to its end.

use super::Watches;
use super::begin::{Plan, Slot, log_error, plan, reason_of, upper_bound};
use super::feed::{Batch, Feed, FeedError};
use super::messages::{self, Messages, Responses, Unsent, to_wire, too_slow};
use super::past::{Page, Pages, Past};
use crate::clock::Clock;
use crate::limits;
use crate::oplog::Logged;
use crate::pipeline::Control;
use crate::store::gc::ReadPin;
use ebla_kernel::entry::{Entry, LogEnd};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::Seq;
use ebla_kernel::range::KeyRange;
use ebla_kernel::watch::{Event, Piece, Place, Token, close_every_ms, events_of};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::{WatchCover, WatchEvent, WatchEventType, WatchRequest};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Begins a watch; its messages come out of the stream.
///
/// # Errors
/// As the API says of `Watch`, for everything that can be known before the first event.
pub async fn watch(watches: &Arc<Watches>, request: &WatchRequest) -> Result<Responses, ApiError> {
    let plan = plan(watches, request).await?;
    let (messages, responses) = messages::channel();
    tokio::spawn(Session::run(plan, messages));
    Ok(responses)
}

/// Why a watch ends.
enum End {
    /// Its consumer is gone or too slow.
    Unsent(Unsent),
    /// Something else that its consumer is told.
    Failed(ApiError),
}

impl From<Unsent> for End {
    fn from(unsent: Unsent) -> Self {
        Self::Unsent(unsent)
    }
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// A part of what is watched, and up to when its changes were seen before the log went on.
struct Part {
    range: KeyRange,
    seen_upto: Hlc,
}

/// What an entry says to a watch.
fn unseen_events(entry: &Entry, parts: &[Part]) -> Vec<Event> {
    let unseen = parts.iter().filter(|part| entry.ts > part.seen_upto);
    unseen.flat_map(|part| events_of(entry, &part.range)).collect()
}

struct Session {
    pages: Pages,
    range: KeyRange,
    /// How far the watch is.
    token: Token,
    /// What its consumer knows to be resolved.
    resolved: Hlc,
    /// When it was last told.
    beat: Instant,
    /// When the tablet was last asked to close its past, or moved.
    closed: Instant,
    /// Since when the lease is not held.
    lapsed: Option<Instant>,
    messages: Messages,
    _slot: Slot,
}

impl Session {
    async fn run(plan: Plan, messages: Messages) {
        let Plan { slot, table, tablet, range, token, begin, past, log_after } = plan;
        let cover = WatchCover {
            from: range.start().clone(),
            to: upper_bound(&range),
            tablet_id: tablet.id.0,
            table_id: table.id.0,
            begin_ts: begin.0,
        };
        let now = Instant::now();
        let mut session = Self {
            pages: Pages { watches: Arc::clone(&slot.0), table, tablet },
            range,
            token,
            resolved: Hlc::MIN,
            beat: now,
            closed: now,
            lapsed: None,
            messages,
            _slot: slot,
        };
        session.messages.cover(cover);
        let error = match session.go(past, log_after).await {
            End::Unsent(Unsent::Gone) => return,
            End::Unsent(Unsent::TooSlow) => too_slow(),
            End::Failed(error) => error,
        };
        session.messages.fail(error, &session.token);
    }

    async fn go(&mut self, past: Vec<(Past, ReadPin)>, log_after: Seq) -> End {
        if let Err(end) = self.show_all_past(past).await {
            return end;
        }
        let mut feed =
            Feed::after(Arc::clone(&self.pages.watches.oplog), Arc::clone(&self.pages.tablet), log_after);
        let part =
            |piece: &Piece| Some(Part { range: piece.range.clone(), seen_upto: piece.place.seen_upto()? });
        let parts: Vec<Part> = self.token.pieces().iter().filter_map(part).collect();
        loop {
            if let Err(end) = self.follow(&mut feed, &parts).await {
                return end;
            }
        }
    }

    /// Shows what comes before the log.
    async fn show_all_past(&mut self, past: Vec<(Past, ReadPin)>) -> Result<(), End> {
        self.tell_resolved().await?;
        self.messages.send().await?;
        for (past, _pin) in past {
            if let Past::Break { range, why } = &past {
                let event = WatchEvent {
                    r#type: WatchEventType::Break as i32,
                    from: range.start().clone(),
                    to: upper_bound(range),
                    reason: reason_of(*why),
                    token: self.token.encode().into(),
                    ..WatchEvent::default()
                };
                self.messages.add(event).await?;
                continue;
            }
            let mut begun = None;
            loop {
                let page = self.pages.read(&past, begun).await?;
                begun = page.next.clone();
                self.show_page(page).await?;
                if self.beat.elapsed() >= limits::WATCH_BEAT {
                    self.beat = Instant::now();
                    self.check_lease()?;
                    self.messages.send().await?;
                }
                if begun.is_none() {
                    break;
                }
            }
            self.tell_resolved().await?;
            self.messages.flush().await?;
        }
        Ok(())
    }

    /// The token of a page counts with its last event: of the rows before, nobody can say more
    /// than that the page had begun.
    async fn show_page(&mut self, page: Page) -> Result<(), End> {
        let Page { events, places, .. } = page;
        let before = self.token.clone();
        places.into_iter().for_each(|piece| self.token.put(piece));
        let last = events.len().saturating_sub(1);
        for (at, (ts, event)) in events.into_iter().enumerate() {
            let token = if at == last { &self.token } else { &before };
            self.messages.add(to_wire(event, ts, token)).await?;
        }
        self.messages.flush().await?;
        Ok(())
    }

    /// Shows what is new, or waits for it.
    async fn follow(&mut self, feed: &mut Feed, parts: &[Part]) -> Result<(), End> {
        if self.beat.elapsed() >= limits::WATCH_BEAT {
            self.tick().await?;
        }
        let Batch { entries, upto } = feed.next().await.map_err(|error| self.feed_error(error))?;
        if let Some(upto) = upto {
            self.closed = Instant::now();
            return self.show_entries(&entries, upto, parts).await;
        }
        self.check_serving()?;
        let is_sealed = self.pages.tablet.is_sealed();
        let until_beat = limits::WATCH_BEAT.saturating_sub(self.beat.elapsed());
        feed.wait(if is_sealed { limits::WATCH_SEALED_LOOK } else { until_beat }).await;
        Ok(())
    }

    async fn show_entries(
        &mut self,
        entries: &[Arc<Logged>],
        upto: LogEnd,
        parts: &[Part],
    ) -> Result<(), End> {
        let mut is_shown = false;
        for logged in entries {
            let entry = &logged.entry;
            let events = unseen_events(entry, parts);
            let last = events.len().saturating_sub(1);
            is_shown |= !events.is_empty();
            for (at, event) in events.into_iter().enumerate() {
                // The place after an entry counts with the last of its events.
                if at == last {
                    self.move_to(entry.end(), parts);
                }
                self.messages.add(to_wire(event, entry.ts, &self.token)).await?;
            }
        }
        self.move_to(upto, parts);
        if let Some(first) = entries.first().filter(|_| is_shown) {
            let lag_ms = Clock::wall_ms().saturating_sub(first.entry.ts.ms());
            metrics::histogram!("ebla_watch_lag_seconds").record(lag_ms as f64 / 1_000.0);
        } else if self.beat.elapsed() >= limits::WATCH_BEAT * 9 / 10 {
            self.beat = Instant::now();
            self.tell_resolved().await?;
        }
        Ok(self.messages.flush().await?)
    }

    fn move_to(&mut self, end: LogEnd, parts: &[Part]) {
        let place = Place::Entry { lineage: self.pages.tablet.ancestry.lineage, pos: end.pos, ts: end.ts };
        if parts.iter().all(|part| end.ts >= part.seen_upto) {
            self.token = Token::new(self.token.table, self.range.clone(), place);
            return;
        }
        for part in parts.iter().filter(|part| end.ts >= part.seen_upto) {
            self.token.put(Piece { range: part.range.clone(), place });
        }
    }

    /// Says once in a while that the watch lives and what it has not missed; an idle tablet is
    /// asked to close its past.
    async fn tick(&mut self) -> Result<(), End> {
        self.beat = Instant::now();
        self.check_lease()?;
        self.tell_resolved().await?;
        let close_every = Duration::from_millis(close_every_ms(self.pages.watches.count()));
        if self.closed.elapsed() >= close_every * 9 / 10 {
            self.closed = Instant::now();
            // Others may have asked for it less than a second ago.
            let beat_ms = u64::try_from(limits::WATCH_BEAT.as_millis()).unwrap_or(u64::MAX);
            let wanted = Hlc::new(Clock::wall_ms().saturating_sub(beat_ms / 2), 0);
            let control = &self.pages.watches.node.sequencer.control;
            let _ = control.send(Control::CloseWanted(self.pages.tablet.id, wanted));
        }
        Ok(self.messages.send().await?)
    }

    async fn tell_resolved(&mut self) -> Result<(), End> {
        let Some(ts) = self.token.resolved().filter(|ts| *ts > self.resolved) else { return Ok(()) };
        self.resolved = ts;
        self.messages.add(messages::resolved(ts, &self.token)).await?;
        Ok(())
    }

    /// Whether the tablet is still served here. What was shown stands either way.
    fn check_serving(&self) -> Result<(), End> {
        let node = &self.pages.watches.node;
        if node.draining.load(Ordering::Relaxed) {
            let hint = "this server is stopping: go on with the token elsewhere";
            return Err(ApiError::new(Reason::Draining, hint).into());
        }
        let (tablet, directory) = (&self.pages.tablet, node.directory.load());
        let is_here = directory.tablet(tablet.id).is_some_and(|known| Arc::ptr_eq(known, tablet));
        if is_here && tablet.serving().is_some() {
            return Ok(());
        }
        Err(node.elsewhere(&self.pages.table, self.range.start()).into())
    }

    /// A leader that has lost touch with the other copies may have been replaced: after a while
    /// the consumer had better look elsewhere.
    fn check_lease(&mut self) -> Result<(), End> {
        self.check_serving()?;
        let node = &self.pages.watches.node;
        let Err(error) = node.check_serving(&self.pages.table, &self.pages.tablet, self.range.start()) else {
            self.lapsed = None;
            return Ok(());
        };
        let since = *self.lapsed.get_or_insert_with(Instant::now);
        if since.elapsed() < limits::WATCH_BEAT { Ok(()) } else { Err(error.into()) }
    }

    fn feed_error(&self, error: FeedError) -> End {
        match error {
            FeedError::Purged => {
                let hint = "the log no longer has what comes next: go on with the token, from old versions";
                ApiError::new(Reason::Unavailable, hint).into()
            }
            FeedError::Failed(error) => log_error(&error.to_string()).into(),
        }
    }
}
