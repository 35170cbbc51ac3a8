//! Requests that come while others take a tablet's place here wait for them instead of being
//! sent away: it is a matter of some synced round trips, and a client that is sent away comes
//! back later than that.
//!
//! A handle says until when it is worth waiting. The parent's says so from just before it ceases
//! to serve, the children's from when they are there; both only on the server that led.

use crate::limits;
use crate::node::{Node, Write, first_key};
use crate::routes::TableInfo;
use crate::tablets::TabletHandle;
use ebla_kernel::ids::Tick;
use ebla_kernel::op::{AckLevel, Op, Token};
use ebla_proto::error::ApiError;
use ebla_proto::v1;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Until when requests wait for a tablet here that does not serve, in ticks; zero for never.
#[derive(Default)]
pub struct Handover {
    until: AtomicU64,
}

impl Handover {
    /// Lets requests wait from `now` on.
    pub fn begin(&self, now: Tick) {
        self.until.store(now.plus_ms(limits::HANDOVER_WAIT_MS).0, Ordering::Relaxed);
    }

    /// Whether requests are to wait.
    #[must_use]
    pub fn is_under_way(&self, now: Tick) -> bool {
        now < Tick(self.until.load(Ordering::Relaxed))
    }
}

/// A write that is checked, except for its place.
pub struct Checked {
    /// Its table.
    pub table: Arc<TableInfo>,
    /// Its operations, within the limits.
    pub ops: Vec<Op>,
    /// How many copies to wait for.
    pub level: AckLevel,
    /// Its name.
    pub token: Token,
    /// When to stop waiting.
    pub deadline: Tick,
}

/// A write that has no place here now.
pub struct Unplaced {
    /// Why.
    pub error: ApiError,
    /// The write, if it is worth waiting with it.
    pub write: Option<Checked>,
}

impl From<ApiError> for Box<Unplaced> {
    fn from(error: ApiError) -> Self {
        Self::new(Unplaced { error, write: None })
    }
}

impl Node {
    /// Whether others are about to serve `key` here.
    #[must_use]
    pub fn is_handed_over(&self, table: &TableInfo, key: &[u8]) -> bool {
        let directory = self.directory.load();
        let tablet = directory.table(table.id).and_then(|tablets| tablets.find(key));
        tablet.is_some_and(|tablet| self.is_awaited(tablet))
    }

    /// The same for the row of a read.
    #[must_use]
    pub fn is_handed_over_for(&self, request: &v1::GetRequest) -> bool {
        self.table(&request.table).is_ok_and(|table| self.is_handed_over(&table, &request.key))
    }

    fn is_awaited(&self, tablet: &TabletHandle) -> bool {
        tablet.serving().is_none() && tablet.handover.is_under_way(self.clock.tick())
    }

    /// Waits until whoever takes over serves `key`, or does not in time. Such waits are rare and
    /// end within milliseconds, so they look again and again.
    pub async fn await_handover(&self, table: &TableInfo, key: &[u8]) {
        while self.is_handed_over(table, key) {
            tokio::time::sleep(limits::HANDOVER_LOOK).await;
        }
    }

    /// Finds the place of a write.
    ///
    /// # Errors
    /// `NOT_LEADER` or `UNAVAILABLE`, and whatever else is wrong with the tablet; nothing was
    /// written.
    pub fn place(&self, write: Checked) -> Result<Write, Box<Unplaced>> {
        match self.locate(&write.table, first_key(&write.ops)) {
            Ok(tablet) => Ok(self.admit(tablet, write)?),
            Err(error) => {
                let waits = self.is_handed_over(&write.table, first_key(&write.ops));
                Err(Box::new(Unplaced { error, write: waits.then_some(write) }))
            }
        }
    }

    /// Finds the place of a write that had none, once there is one.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub async fn place_later(&self, unplaced: Box<Unplaced>) -> Result<Write, ApiError> {
        let Some(write) = unplaced.write else { return Err(unplaced.error) };
        self.await_handover(&write.table, first_key(&write.ops)).await;
        self.place(write).map_err(|unplaced| unplaced.error)
    }

    /// Reads the newest version of a row, once somebody serves it here again.
    ///
    /// # Errors
    /// As the API says of `Get`.
    pub async fn get_newest_later(&self, request: &v1::GetRequest) -> Result<v1::GetResponse, ApiError> {
        let table = self.table(&request.table)?;
        self.await_handover(&table, &request.key).await;
        self.get_newest(request)
    }
}
