//! A part of what is watched: a stream of one tablet's changes, opened again wherever the tablet,
//! or what took its place, is served.
//!
//! A piece knows how far it is by the token of its last event. When a stream covers less of it
//! than it asked for, because a tablet ends there, the rest becomes a piece of its own.

use crate::channel::Lane;
use crate::client::{Client, Place, Tries};
use crate::error::Error;
use crate::limits::{MESSAGE_BYTES_MAX, WATCH_SILENCE};
use crate::retry::Deadline;
use bytes::Bytes;
use ebla_kernel::range::KeyRange;
use ebla_proto::convert::non_empty;
use ebla_proto::error::Reason;
use ebla_proto::v1;
use ebla_proto::v1::watch_request::Begin;
use ebla_proto::v1::watch_service_client::WatchServiceClient;
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;

/// What pieces tell.
#[derive(Debug)]
pub(crate) enum Told {
    /// A piece began; the rest of its range is for another.
    Covered {
        /// What the server says of it.
        cover: v1::WatchCover,
        /// What it does not cover, and how to begin there.
        rest: Option<(KeyRange, Option<Begin>)>,
        /// Whether it is the first time.
        is_first: bool,
    },
    /// Changes, in order.
    Events(KeyRange, Vec<v1::WatchEvent>),
    /// A piece cannot go on.
    Failed(Error),
}

/// One piece.
pub(crate) struct Piece {
    pub(crate) client: Client,
    pub(crate) table: String,
    pub(crate) range: KeyRange,
    /// Where to begin; none for now.
    pub(crate) begin: Option<Begin>,
    pub(crate) out: mpsc::Sender<Told>,
    /// Becomes true when every piece has shown its rows.
    pub(crate) go: watch::Receiver<bool>,
    pub(crate) has_begun: bool,
}

/// Nobody wants more.
struct Enough;

impl Piece {
    pub(crate) async fn run(mut self) {
        let mut tries = self.tries();
        loop {
            let error = match self.stream(&mut tries).await {
                Ok(Enough) => return,
                Err(error) => error,
            };
            let is_held = !*self.go.borrow() && error.reason() == Reason::WatchTooSlow;
            if !error.is_worth_a_retry() && !is_held {
                let _ = self.out.send(Told::Failed(error)).await;
                return;
            }
            tracing::debug!(table = self.table, %error, "a watch goes on elsewhere");
            if tries.again(&self.client.shared, &self.table, &error).await {
                continue;
            }
            if !self.has_begun {
                let error = Error::timed_out("the watch", self.client.timeout, Some(&error));
                let _ = self.out.send(Told::Failed(error)).await;
                return;
            }
            // Whoever watches wants to go on when the cluster is back, however long that takes.
            tries = self.tries();
        }
    }

    fn tries(&self) -> Tries {
        Tries::new(Deadline::after(self.client.timeout))
    }

    async fn stream(&mut self, tries: &mut Tries) -> Result<Enough, Error> {
        let address = self.client.leader(&self.table, Place::At(self.range.start()), tries).await?;
        let mut client = self.service(&address)?;
        let opening = tokio::time::timeout(WATCH_SILENCE, client.watch(self.request()));
        let mut messages = heard(opening.await)?.into_inner();
        loop {
            let message = heard(tokio::time::timeout(WATCH_SILENCE, messages.message()).await)?;
            let Some(message) = message else {
                return Err(Error::new(Reason::Unavailable, "the server ended the watch"));
            };
            *tries = self.tries();
            if !self.take(message).await {
                return Ok(Enough);
            }
        }
    }

    fn service(&self, address: &str) -> Result<WatchServiceClient<Channel>, Error> {
        let client = WatchServiceClient::new(self.client.shared.channels.get(address, Lane::Watches)?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn request(&self) -> v1::WatchRequest {
        v1::WatchRequest {
            table: self.table.clone(),
            key: Bytes::new(),
            prefix: Bytes::new(),
            from: self.range.start().clone(),
            to: self.range.end().cloned().unwrap_or_default(),
            begin: self.begin.clone(),
        }
    }

    /// Passes a message on. False when nobody wants more.
    async fn take(&mut self, message: v1::WatchResponse) -> bool {
        if let Some(cover) = message.cover
            && !self.cover(cover).await
        {
            return false;
        }
        let Some(last) = message.events.last() else { return true };
        self.begin = Some(Begin::Token(last.token.clone()));
        let is_resolved = message.events.iter().any(|event| event.r#type() == v1::WatchEventType::Resolved);
        if self.out.send(Told::Events(self.range.clone(), message.events)).await.is_err() {
            return false;
        }
        // Rows come before changes, those of other pieces too.
        !is_resolved || self.go.wait_for(|go| *go).await.is_ok()
    }

    async fn cover(&mut self, cover: v1::WatchCover) -> bool {
        let covered = KeyRange::new(cover.from.clone(), non_empty(cover.to.clone())).unwrap_or_default();
        let above = covered.end().and_then(|end| KeyRange::new(end.clone(), self.range.end().cloned()).ok());
        let begin = match &self.begin {
            // The rest begins at the time at which this piece began, so that it has one.
            None => Some(Begin::SinceTs(cover.begin_ts)),
            Some(Begin::SnapshotTs(0)) => Some(Begin::SnapshotTs(cover.begin_ts)),
            Some(begin) => Some(begin.clone()),
        };
        self.begin = begin.clone();
        if let Some(within) = self.range.intersect(&covered) {
            self.range = within;
        }
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let rest = above.map(|above| (above, begin));
        self.out.send(Told::Covered { cover, rest, is_first }).await.is_ok()
    }
}

fn heard<T>(result: Result<Result<T, tonic::Status>, tokio::time::error::Elapsed>) -> Result<T, Error> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(status)) => Err(Error::from_status(&status)),
        Err(_) => Err(Error::new(Reason::Unavailable, "the server fell silent")),
    }
}
