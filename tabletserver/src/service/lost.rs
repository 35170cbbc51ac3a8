//! `LostService`: what failovers took from this server's logs.

use crate::ledger::{Ledger, LedgerError, LossSummary};
use crate::limits;
use crate::node::Node;
use ebla_kernel::entry::Entry;
use ebla_kernel::op::{Body, Change};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::lost_service_server::LostService;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The service.
pub struct Lost {
    /// The server behind it.
    pub node: Arc<Node>,
    /// Its ledger.
    pub ledger: Arc<Ledger>,
}

type Pages = mpsc::Sender<Result<v1::ShowLostResponse, Status>>;

#[tonic::async_trait]
impl LostService for Lost {
    type ShowLostStream = ReceiverStream<Result<v1::ShowLostResponse, Status>>;

    async fn list_lost(
        &self,
        request: Request<v1::ListLostRequest>,
    ) -> Result<Response<v1::ListLostResponse>, Status> {
        let name = &request.get_ref().table;
        let table = if name.is_empty() { None } else { Some(self.node.table(name)?.id) };
        let server = self.node.peers.identity().map_or(0, |own| own.run.server.0);
        let wanted = |summary: &LossSummary| table.is_none_or(|table| table == summary.table);
        let records = self.ledger.list().into_iter().filter(|(_, summary)| wanted(summary));
        let records = records.map(|(id, summary)| record_to_wire(id, server, &summary)).collect();
        Ok(Response::new(v1::ListLostResponse { records }))
    }

    async fn show_lost(
        &self,
        request: Request<v1::ShowLostRequest>,
    ) -> Result<Response<Self::ShowLostStream>, Status> {
        let (pages, out) = mpsc::channel(limits::SCAN_PAGES_WAITING);
        let entries = self.ledger.read(request.get_ref().id).map_err(ledger_error)?;
        tokio::task::spawn_blocking(move || send(entries, &pages));
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

/// Sends a record in pages, until it or the client's interest ends.
fn send(entries: impl Iterator<Item = Result<Entry, LedgerError>>, pages: &Pages) {
    let mut page = v1::ShowLostResponse::default();
    let mut bytes = 0;
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                // Nobody may be left to hear it.
                let _ = pages.blocking_send(Err(ledger_error(error).into()));
                return;
            }
        };
        bytes += entry.changes().iter().map(Change::bytes).sum::<usize>();
        page.entries.push(entry_to_wire(&entry));
        if bytes >= limits::SCAN_PAGE_BYTES || page.entries.len() >= limits::SCAN_PAGE_ROWS {
            bytes = 0;
            if pages.blocking_send(Ok(std::mem::take(&mut page))).is_err() {
                return;
            }
        }
    }
    if !page.entries.is_empty() {
        let _ = pages.blocking_send(Ok(page));
    }
}

fn record_to_wire(id: u64, server_id: u64, summary: &LossSummary) -> v1::LostRecord {
    v1::LostRecord {
        id,
        tablet_id: summary.tablet.0,
        table_id: summary.table.0,
        replica_id: summary.replica.0,
        server_id,
        first_epoch: summary.first.epoch.0,
        first_seq: summary.first.seq.0,
        last_epoch: summary.last.epoch.0,
        last_seq: summary.last.seq.0,
        writes: summary.writes,
        rows: summary.rows,
        time_ms: summary.time_ms,
    }
}

fn entry_to_wire(entry: &Entry) -> v1::LostEntry {
    v1::LostEntry {
        epoch: entry.pos.epoch.0,
        seq: entry.pos.seq.0,
        ts: entry.ts.0,
        rows: entry.changes().iter().map(row_to_wire).collect(),
    }
}

fn row_to_wire(change: &Change) -> v1::LostRow {
    use v1::lost_row::Change as Wire;
    let (key, change) = match change {
        Change::Put { key, body, .. } => {
            let change = match body {
                Body::Value(value) => Wire::Value(value.clone()),
                Body::Counter(counter) => Wire::Counter(*counter),
                Body::Tombstone(_) => Wire::Deleted(true),
            };
            (key, change)
        }
        Change::RangeTombstone { from, to } => (from, Wire::DeletedTo(to.clone().unwrap_or_default())),
    };
    v1::LostRow { key: key.clone(), change: Some(change) }
}

fn ledger_error(error: LedgerError) -> ApiError {
    let reason = match &error {
        LedgerError::NoRecord { .. } => Reason::RecordNotFound,
        LedgerError::Damaged { .. } => Reason::Corrupt,
        LedgerError::Io { .. } => Reason::Internal,
    };
    ApiError::new(reason, error.to_string())
}
