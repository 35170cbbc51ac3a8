//! Reads of copies: on any server that has what they must see.
//!
//! A copy may be read at its *closed* timestamp, that of its last applied entry, once nothing
//! of what it applied can be cut any more. If that is too old, the leader is asked to close a
//! later one. Whoever waits too long is sent to the leader.

use crate::limits;
use crate::node::{Node, get_response, store_error};
use crate::pipeline::Control;
use crate::routes::TableInfo;
use crate::tablets::TabletHandle;
use ebla_kernel::ancestry::Seen;
use ebla_kernel::entry::LogEnd;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Lineage, Seq};
use ebla_kernel::op;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What must be visible.
struct Wanted {
    /// Nothing at or below may follow.
    closed: Hlc,
    /// This entry must be there.
    written: Option<v1::SessionToken>,
}

impl Node {
    /// Reads a row from the copy here, whoever leads.
    ///
    /// # Errors
    /// As the API says of `Get`; `WRITE_LOST` when what the session saw is gone.
    pub async fn get_from_copy(&self, request: &v1::GetRequest) -> Result<v1::GetResponse, ApiError> {
        self.meters.get();
        op::check_key(&request.key)?;
        let table = self.table(&request.table)?;
        let tablet = self.copy_of(&table, &request.key)?;
        let wanted = wanted(request, &tablet)?;
        // Below the floor nothing can be read: a tablet that rests is asked for a later close.
        let wanted = Wanted { closed: wanted.closed.max(self.floors.floor(table.id)), ..wanted };
        let patience = Instant::now() + limits::COPY_READ_PATIENCE;
        let mut asked = None;
        loop {
            if let Some(session) = &wanted.written {
                check_session(session, &tablet)?;
            }
            if let Some(end) = tablet.closed().filter(|end| wanted.is_met(end)) {
                return self.read_copy(&table, &tablet, request, end.ts);
            }
            if Instant::now() >= patience {
                return Err(self.too_slow(&table, &request.key));
            }
            let is_due = asked.is_none_or(|at: Instant| at.elapsed() >= limits::COPY_READ_PATIENCE / 4);
            if is_due {
                asked = Some(Instant::now());
                let _ = self.sequencer.control.send(Control::CloseWanted(tablet.id, wanted.closed));
            }
            tokio::time::sleep(limits::COPY_READ_LOOK_EVERY).await;
        }
    }

    /// Waits until the copy here has everything up to `ts`, and nothing of that can be cut any more.
    ///
    /// # Errors
    /// `STALE_ROUTE` when the copy goes meanwhile, `UNAVAILABLE` with who leads when it takes longer
    /// than `patience`.
    pub(crate) async fn wait_closed(
        &self,
        tablet: &Arc<TabletHandle>,
        ts: Hlc,
        patience: Duration,
    ) -> Result<(), ApiError> {
        let began = Instant::now();
        let mut asked = None;
        while tablet.closed().is_none_or(|end| end.ts < ts) {
            self.check_copy(tablet)?;
            if began.elapsed() >= patience {
                return Err(self.not_closed(tablet, ts));
            }
            if asked.is_none_or(|at: Instant| at.elapsed() >= limits::COPY_READ_PATIENCE) {
                asked = Some(Instant::now());
                let _ = self.sequencer.control.send(Control::CloseWanted(tablet.id, ts));
            }
            tokio::time::sleep(limits::BACKUP_LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Whether this is still the copy here of its tablet, with all its rows.
    ///
    /// # Errors
    /// `STALE_ROUTE` when it has gone, or others have taken its tablet's place.
    pub(crate) fn check_copy(&self, tablet: &Arc<TabletHandle>) -> Result<(), ApiError> {
        let directory = self.directory.load();
        if directory.tablet(tablet.id).is_some_and(|known| Arc::ptr_eq(known, tablet)) {
            return Ok(());
        }
        let hint = format!(
            "tablet {} is no longer here, or others have taken its place: fetch the route again",
            tablet.id.0
        );
        Err(ApiError::new(Reason::StaleRoute, hint).with("tablet", tablet.id.0))
    }

    fn not_closed(&self, tablet: &TabletHandle, ts: Hlc) -> ApiError {
        let routes = self.routes.now();
        let leader = routes.tablet(tablet.id).and_then(|known| routes.server(known.leader_server_id));
        let led =
            leader.map_or("nobody leads it now".to_owned(), |server| format!("{} leads it", server.address));
        let hint = format!(
            "the copy of tablet {} here does not have everything up to {} yet; {led}: try there",
            tablet.id.0, ts.0
        );
        ApiError::new(Reason::Unavailable, hint).with("tablet", tablet.id.0)
    }

    fn copy_of(&self, table: &TableInfo, key: &[u8]) -> Result<Arc<TabletHandle>, ApiError> {
        let directory = self.directory.load();
        let handle = directory.table(table.id).and_then(|tablets| tablets.find(key));
        handle.map(Arc::clone).ok_or_else(|| self.elsewhere(table, key))
    }

    fn read_copy(
        &self,
        table: &TableInfo,
        tablet: &TabletHandle,
        request: &v1::GetRequest,
        at: Hlc,
    ) -> Result<v1::GetResponse, ApiError> {
        let _pin = self.pin(table, at)?;
        let version = self.reader.at(tablet, &request.key, at).map_err(store_error)?;
        self.note_read(tablet, &request.key, version.as_ref());
        self.check_floor(table, at)?;
        // The copy may have gone meanwhile, and its rows been cleared under the read.
        let directory = self.directory.load();
        if directory.tablet(tablet.id).is_none_or(|known| known.generation != tablet.generation) {
            return Err(self.elsewhere(table, &request.key));
        }
        Ok(v1::GetResponse { at_ts: at.0, ..get_response(version, at) })
    }

    fn too_slow(&self, table: &TableInfo, key: &[u8]) -> ApiError {
        let waited_ms = limits::COPY_READ_PATIENCE.as_millis();
        let elsewhere = self.elsewhere(table, key);
        let message = format!(
            "the copy here did not get what the read must see within {waited_ms} ms; {}",
            elsewhere.message
        );
        ApiError { message, ..elsewhere }
    }
}

impl Wanted {
    fn is_met(&self, end: &LogEnd) -> bool {
        let has_written = self.written.is_none_or(|session| end.pos.seq >= Seq(session.seq));
        end.ts >= self.closed && has_written
    }
}

fn wanted(request: &v1::GetRequest, tablet: &TabletHandle) -> Result<Wanted, ApiError> {
    if request.consistency == v1::Consistency::Bounded as i32 {
        let now_ms = crate::clock::Clock::wall_ms();
        let closed = Hlc::new(now_ms.saturating_sub(request.staleness_ms), 0);
        return Ok(Wanted { closed, written: None });
    }
    let hint = "a session read names what it must see: give the session token of a write";
    let session = request.session.ok_or_else(|| ApiError::new(Reason::BadRequest, hint))?;
    let closed = Hlc(session.ts);
    match tablet.ancestry.judge(Lineage(session.lineage), closed) {
        Seen::Here => Ok(Wanted { closed, written: Some(session) }),
        Seen::InAncestor => Ok(Wanted { closed, written: None }),
        Seen::Elsewhere => Err(write_lost(tablet, &session)),
    }
}

/// Whether the entry that the session saw is still part of the tablet's history, as far as the
/// copy here knows it.
fn check_session(session: &v1::SessionToken, tablet: &TabletHandle) -> Result<(), ApiError> {
    let Some(end) = tablet.closed().filter(|end| end.pos.seq >= Seq(session.seq)) else { return Ok(()) };
    let is_ours = match tablet.epoch_at(Seq(session.seq)) {
        Some(epoch) => epoch == Epoch(session.epoch),
        // Older than the list of epochs reaches: as old as that, its time says enough.
        None => end.ts >= Hlc(session.ts),
    };
    if is_ours { Ok(()) } else { Err(write_lost(tablet, session)) }
}

fn write_lost(tablet: &TabletHandle, session: &v1::SessionToken) -> ApiError {
    let hint = format!(
        "the write that the session saw (epoch {}, position {}) is no longer part of tablet {}: a failover lost \
         it; `ebla lost list` shows what was lost, read without the session to go on",
        session.epoch, session.seq, tablet.id.0
    );
    ApiError::new(Reason::WriteLost, hint).with("tablet", tablet.id.0)
}
