//! Watches: the changes of a key, a prefix or a range, over as many tablets as it covers.
//!
//! ```text
//! [piece of tablet 1] --events--\
//! [piece of tablet 2] --events---> coordinator --events--> WatchStream
//! ```
//!
//! - Each change comes at least once, those of a key in order; only what stands.
//! - Splits, merges, moves, failovers and restarts are followed without the caller's doing.
//! - Every event carries a token of the whole watch: it goes on from there, also after a restart
//!   of everything.
//! - `Resolved` says that no change at or below its timestamp follows, in the whole range; the
//!   first one says that the watch has begun.
//! - A caller that does not keep up is told so, with the token: it waits for nobody.

use crate::client::Client;
use crate::error::Error;
use crate::limits::{WATCH_MESSAGES_AHEAD, WATCH_RESOLVED_EVERY};
use crate::row::Value;
use crate::watch_piece::{Piece, Told};
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::key::successor;
use ebla_kernel::limits::WATCH_TOKEN_PIECES_EXACT;
use ebla_kernel::op::{BadRequest, check_key};
use ebla_kernel::range::KeyRange;
use ebla_kernel::watch::{self as kernel, MalformedToken, Token};
use ebla_proto::convert::scan_range;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::watch_request::Begin;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll, ready};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What to watch, and from where.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Watch {
    /// Only this key; excludes the others.
    pub key: Option<Bytes>,
    /// First key; empty for no lower bound.
    pub from: Bytes,
    /// First key above the range; empty for no upper bound.
    pub to: Bytes,
    /// Only keys with this prefix; narrows `from` and `to`.
    pub prefix: Bytes,
    /// Where to begin.
    pub since: Since,
}

/// Where a watch begins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Since {
    /// With what is committed from now on.
    #[default]
    Now,
    /// With every version above this timestamp.
    Ts(Hlc),
    /// After the event that had this token.
    Token(WatchToken),
    /// With the rows as they are, then their changes.
    Snapshot,
}

impl Watch {
    /// Every row of a table.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// One row.
    #[must_use]
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), ..Self::default() }
    }

    /// The rows whose key begins with `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    /// The rows in `[from, to)`; an empty `to` means no upper bound.
    #[must_use]
    pub fn range(from: impl Into<Bytes>, to: impl Into<Bytes>) -> Self {
        Self { from: from.into(), to: to.into(), ..Self::default() }
    }

    /// The same from another beginning.
    #[must_use]
    pub fn since(self, since: Since) -> Self {
        Self { since, ..self }
    }

    /// The keys that it covers.
    fn bounds(&self) -> Result<KeyRange, Error> {
        let Some(key) = &self.key else {
            let range = scan_range(&self.from, &self.to, &self.prefix).map_err(Error::from_api)?;
            let nothing = "prefix and range have no key in common: there is nothing to watch";
            return range.ok_or_else(|| Error::new(Reason::BadRequest, nothing));
        };
        if !(self.from.is_empty() && self.to.is_empty() && self.prefix.is_empty()) {
            return Err(Error::new(Reason::BadRequest, "give a key, or a prefix or range, not both"));
        }
        check_key(key)?;
        KeyRange::new(key.clone(), Some(successor(key))).map_err(|_| BadRequest::InvertedRange.into())
    }
}

/// How far a watch is, as one opaque text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchToken(Token);

impl fmt::Display for WatchToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is no token of a watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MalformedWatchToken;

impl fmt::Display for MalformedWatchToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        MalformedToken.fmt(f)
    }
}

impl std::error::Error for MalformedWatchToken {}

impl FromStr for WatchToken {
    type Err = MalformedWatchToken;

    fn from_str(text: &str) -> Result<Self, MalformedWatchToken> {
        text.parse().map(Self).map_err(|MalformedToken| MalformedWatchToken)
    }
}

/// What a watch tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchEvent {
    /// What happened.
    pub change: WatchChange,
    /// Goes on after this event.
    pub token: WatchToken,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchChange {
    /// A row has a value.
    Set {
        /// The row.
        key: Bytes,
        /// Its value.
        value: Value,
        /// When it was written.
        ts: Hlc,
    },
    /// A row is gone: somebody deleted it, or it made room for others.
    Delete {
        /// The row.
        key: Bytes,
        /// When.
        ts: Hlc,
        /// Whether it made room for others in a table of limited memory.
        is_evicted: bool,
    },
    /// A row is gone because its time was over.
    Expire {
        /// The row.
        key: Bytes,
        /// When that was noticed; reads see it gone from its expiry on.
        ts: Hlc,
    },
    /// Every row of a range is gone.
    DeleteRange {
        /// First key; empty for the first of the table.
        from: Bytes,
        /// First key above; empty for none.
        to: Bytes,
        /// When.
        ts: Hlc,
    },
    /// No change at or below `ts` follows.
    Resolved {
        /// Up to when everything was told.
        ts: Hlc,
    },
    /// What was told of a range may never have stood: forget it. Its rows follow.
    Break {
        /// First key; empty for the first of the table.
        from: Bytes,
        /// First key above; empty for none.
        to: Bytes,
        /// Why.
        reason: String,
    },
}

impl Client {
    /// Watches a key, a prefix or a range until the stream is dropped.
    ///
    /// # Errors
    /// `BAD_REQUEST` for an inverted range or a token of another watch; everything else comes
    /// through the stream: `TABLE_NOT_FOUND`, `WATCH_TOO_OLD`, `WATCH_TOO_SLOW`.
    pub fn watch(&self, table: &str, watch: Watch) -> Result<WatchStream, Error> {
        let range = watch.bounds()?;
        let begin = match &watch.since {
            Since::Now => None,
            Since::Ts(ts) => Some(Begin::SinceTs(ts.0)),
            Since::Snapshot => Some(Begin::SnapshotTs(0)),
            Since::Token(WatchToken(token)) if token.covers(&range) => {
                Some(Begin::Token(token.encode().into()))
            }
            Since::Token(_) => {
                let hint = "the token is one of a watch of other keys: give it to a watch of the same keys";
                return Err(Error::new(Reason::BadRequest, hint));
            }
        };
        let (out, events) = mpsc::channel(WATCH_MESSAGES_AHEAD);
        let coordinator = Coordinator::new(self.clone(), table.to_owned(), range, watch.since);
        let mut tasks = JoinSet::new();
        tasks.spawn(coordinator.run(begin, out));
        Ok(WatchStream { events, ready: VecDeque::new(), ended: false, _tasks: tasks })
    }
}

type Events = Result<Vec<WatchEvent>, Error>;

/// The changes of a watch. A stream of `Result<WatchEvent, Error>`; after an error it ends.
#[derive(Debug)]
pub struct WatchStream {
    events: mpsc::Receiver<Events>,
    ready: VecDeque<WatchEvent>,
    ended: bool,
    _tasks: JoinSet<()>,
}

impl futures::Stream for WatchStream {
    type Item = Result<WatchEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.events.poll_recv(context)) {
                Some(Ok(events)) => self.ready = events.into(),
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.ended = true,
            }
        }
    }
}

/// Brings the pieces of a watch together.
struct Coordinator {
    client: Client,
    table: String,
    range: KeyRange,
    since: Since,
    /// How far the whole watch is; none before its first piece has begun.
    token: Option<Token>,
    /// Pieces that have not begun.
    waiting: usize,
    resolved: Hlc,
    told_resolved: Option<Instant>,
    pieces: JoinSet<()>,
    told: mpsc::Sender<Told>,
    hearing: mpsc::Receiver<Told>,
    go: watch::Sender<bool>,
}

impl Coordinator {
    fn new(client: Client, table: String, range: KeyRange, since: Since) -> Self {
        let (told, hearing) = mpsc::channel(WATCH_MESSAGES_AHEAD);
        let go = watch::Sender::new(since != Since::Snapshot);
        let token = match &since {
            Since::Token(WatchToken(token)) => Some(token.clone()),
            Since::Now | Since::Ts(_) | Since::Snapshot => None,
        };
        Self {
            client,
            table,
            range,
            since,
            token,
            waiting: 0,
            resolved: Hlc::MIN,
            told_resolved: None,
            pieces: JoinSet::new(),
            told,
            hearing,
            go,
        }
    }

    async fn run(mut self, begin: Option<Begin>, out: mpsc::Sender<Events>) {
        self.spawn(self.range.clone(), begin);
        while let Some(told) = self.hearing.recv().await {
            let events = self.hear(told);
            let is_over = events.is_err();
            if events.as_ref().is_ok_and(Vec::is_empty) {
                continue;
            }
            if out.send(events).await.is_err() || is_over {
                return;
            }
        }
    }

    fn spawn(&mut self, range: KeyRange, begin: Option<Begin>) {
        self.waiting += 1;
        let piece = Piece {
            client: self.client.clone(),
            table: self.table.clone(),
            range,
            begin,
            out: self.told.clone(),
            go: self.go.subscribe(),
            has_begun: false,
        };
        self.pieces.spawn(piece.run());
    }

    fn hear(&mut self, told: Told) -> Events {
        match told {
            Told::Failed(error) => Err(self.name_token(error)),
            Told::Covered { cover, rest, is_first } => {
                self.begin(&cover);
                self.waiting -= usize::from(is_first);
                if let Some((range, begin)) = rest {
                    self.spawn(range, begin);
                }
                Ok(self.resolve().into_iter().collect())
            }
            Told::Events(range, events) => {
                let mut told = Vec::with_capacity(events.len());
                for event in events {
                    told.extend(self.take(&range, event)?);
                }
                Ok(told)
            }
        }
    }

    /// Where the watch is when its first piece begins.
    fn begin(&mut self, cover: &v1::WatchCover) {
        let begin = Hlc(cover.begin_ts);
        let place = match &self.since {
            Since::Now => kernel::Place::Time(begin),
            Since::Ts(ts) => kernel::Place::Time(*ts),
            Since::Snapshot | Since::Token(_) => kernel::Place::Rows(begin),
        };
        let (table, range) = (TableId(cover.table_id), &self.range);
        self.token.get_or_insert_with(|| Token::new(table, range.clone(), place));
    }

    /// An event for the caller; none when it tells of a piece only.
    fn take(&mut self, range: &KeyRange, event: v1::WatchEvent) -> Result<Option<WatchEvent>, Error> {
        let of_piece = Token::decode(&event.token).map_err(|error| malformed(&error.to_string()))?;
        if let Some(token) = &mut self.token {
            of_piece.pieces().iter().for_each(|piece| token.put(piece.clone()));
        }
        match change(event)? {
            WatchChange::Resolved { .. } => Ok(self.resolve()),
            change => Ok(self.token(range).map(|token| WatchEvent { change, token })),
        }
    }

    fn token(&self, exact: &KeyRange) -> Option<WatchToken> {
        self.token.as_ref().map(|token| WatchToken(token.joined(exact, WATCH_TOKEN_PIECES_EXACT)))
    }

    /// What is resolved in the whole range, if there is news.
    fn resolve(&mut self) -> Option<WatchEvent> {
        let ts = self.token.as_ref()?.resolved().filter(|ts| *ts > self.resolved && self.waiting == 0)?;
        if self.told_resolved.is_some_and(|at| at.elapsed() < WATCH_RESOLVED_EVERY) {
            return None;
        }
        self.resolved = ts;
        self.told_resolved = Some(Instant::now());
        self.go.send_replace(true);
        let nowhere = KeyRange::new(Bytes::new(), Some(Bytes::from_static(&[0]))).unwrap_or_default();
        let token = self.token(&nowhere)?;
        Some(WatchEvent { change: WatchChange::Resolved { ts }, token })
    }

    /// Tells a caller that was cut off where to go on.
    fn name_token(&self, error: Error) -> Error {
        if error.reason() != Reason::WatchTooSlow {
            return error;
        }
        let Some(WatchToken(token)) = self.token(&self.range) else { return error };
        let message = format!("{}; the token is {token}", error.message());
        Error::from_api(ApiError::new(Reason::WatchTooSlow, message).with("token", token))
    }
}

fn malformed(what: &str) -> Error {
    Error::new(Reason::Internal, format!("the server sent a broken event ({what}): report this as a bug"))
}

fn change(event: v1::WatchEvent) -> Result<WatchChange, Error> {
    let (ts, kind) = (Hlc(event.ts), event.r#type());
    let v1::WatchEvent { key, value, counter, from, to, reason, .. } = event;
    Ok(match kind {
        v1::WatchEventType::Set => {
            WatchChange::Set { key, value: Value::from_wire(value, counter, false)?, ts }
        }
        v1::WatchEventType::Delete => WatchChange::Delete { key, ts, is_evicted: reason == "evicted" },
        v1::WatchEventType::Expire => WatchChange::Expire { key, ts },
        v1::WatchEventType::DeleteRange => WatchChange::DeleteRange { from, to, ts },
        v1::WatchEventType::Resolved => WatchChange::Resolved { ts },
        v1::WatchEventType::Break => WatchChange::Break { from, to, reason },
        v1::WatchEventType::Unspecified => return Err(malformed("an unknown kind: use a newer ebla")),
    })
}
