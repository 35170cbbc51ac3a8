//! The sweeper: tells watchers of rows whose time is over.
//!
//! A row reads as gone from its expiry on, without anything being written. Who watches it must
//! be told, so of tablets that are led here and watched the sweeper deletes what has expired, by
//! writes like any other, under the condition that the expired version is still the newest.
//! Tablets that nobody watches, or that hold no such rows, cost nothing.

use crate::limits;
use crate::node::{Node, Write, store_error};
use crate::store::expired::{Expired, ExpiredSpec, expired};
use crate::tablets::TabletHandle;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TabletId;
use ebla_kernel::op::{AckLevel, Action, Cause, Condition, Op};
use ebla_proto::error::{ApiError, Reason};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tracing::debug;

/// Looks for expired rows of watched tablets.
pub struct Sweeper {
    node: Arc<Node>,
    /// Where to go on in tablets that are too large for one look.
    places: HashMap<TabletId, Place>,
}

/// How far a walk through a tablet is.
#[derive(Default)]
struct Place {
    next: Bytes,
    has_expiry: bool,
}

impl Sweeper {
    /// The sweeper of a server.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, places: HashMap::new() }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(limits::SWEEP_EVERY).await;
            let directory = self.node.directory.load_full();
            let is_due = |tablet: &&Arc<TabletHandle>| {
                let is_led = tablet.serving().is_some() && !tablet.is_sealed();
                is_led && tablet.progress.is_watched() && tablet.size.may_expire.load(Ordering::Relaxed)
            };
            let due: Vec<Arc<TabletHandle>> = directory.tablets().filter(is_due).map(Arc::clone).collect();
            self.places.retain(|id, _| due.iter().any(|tablet| tablet.id == *id));
            for tablet in due {
                if let Err(error) = self.sweep(&tablet).await {
                    debug!(tablet = %tablet.id, %error, "expired rows are left for the next round");
                }
            }
        }
    }

    async fn sweep(&mut self, tablet: &Arc<TabletHandle>) -> Result<(), ApiError> {
        let place = self.places.entry(tablet.id).or_default();
        if place.next.is_empty() {
            // Whoever puts such a row from now on says so again.
            tablet.size.may_expire.store(false, Ordering::Relaxed);
            place.has_expiry = false;
        }
        let from = place.next.clone();
        let found = find(&self.node, tablet, from).await;
        match &found {
            Ok(found) => {
                place.has_expiry |= found.has_expiry;
                place.next = found.next.clone().unwrap_or_default();
            }
            Err(_) => place.has_expiry = true,
        }
        if place.has_expiry || !place.next.is_empty() {
            tablet.size.may_expire.store(true, Ordering::Relaxed);
        }
        for rows in found?.rows.chunks(limits::SWEEP_BATCH_ROWS) {
            delete(&self.node, tablet, rows).await?;
        }
        Ok(())
    }
}

async fn find(node: &Arc<Node>, tablet: &Arc<TabletHandle>, from: Bytes) -> Result<Expired, ApiError> {
    let spec = ExpiredSpec {
        table: tablet.table,
        range: tablet.range.clone(),
        from,
        at: node.clock.now(),
        rows_max: limits::SWEEP_ROWS_MAX,
        work_max: limits::SWEEP_WORK_MAX,
    };
    let (store, tablet) = (Arc::clone(&node.reader.store), Arc::clone(tablet));
    let found = tokio::task::spawn_blocking(move || expired(&*store, &tablet.tombstones.load(), &spec)).await;
    let found =
        found.map_err(|error| ApiError::new(Reason::Internal, format!("a read did not end: {error}")))?;
    found.map_err(store_error)
}

/// Deletes expired rows; one by one when some of them changed meanwhile.
async fn delete(node: &Node, tablet: &Arc<TabletHandle>, rows: &[(Bytes, Hlc)]) -> Result<(), ApiError> {
    match write(node, tablet, rows).await {
        Err(error) if error.reason == Reason::ConditionFailed && rows.len() > 1 => {
            for row in rows {
                match write(node, tablet, std::slice::from_ref(row)).await {
                    Err(error) if error.reason != Reason::ConditionFailed => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(())
        }
        Err(error) if error.reason == Reason::ConditionFailed => Ok(()),
        result => result,
    }
}

async fn write(node: &Node, tablet: &Arc<TabletHandle>, rows: &[(Bytes, Hlc)]) -> Result<(), ApiError> {
    let delete = |(key, ts): &(Bytes, Hlc)| Op {
        condition: Some(Condition::NewestIs(*ts)),
        action: Action::Delete { key: key.clone(), cause: Cause::Expired },
    };
    let write = Write {
        tablet: Arc::clone(tablet),
        ops: rows.iter().map(delete).collect(),
        level: AckLevel::Leader,
        token: node.tokens.make(),
        deadline: node.deadline(0),
        room: None,
    };
    node.write(write).await?;
    metrics::counter!("ebla_expired_rows_total").increment(rows.len() as u64);
    Ok(())
}
