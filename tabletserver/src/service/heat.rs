//! `HeatService`: which tablets and keys of this server are busy.

use crate::heat::{Counts, HotKey};
use crate::limits;
use crate::node::Node;
use ebla_kernel::ids::{TableId, TabletId};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::heat_service_server::HeatService;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// Windows that can be asked for, in milliseconds, and the usual one.
const WINDOW_MS: (RangeInclusive<u64>, u64) = (100..=60_000, 1_000);

/// Numbers of tablets and keys that can be asked for, and the usual one.
const LIMIT: (RangeInclusive<u64>, u64) = (1..=1_000, 20);

/// The service.
pub struct Heat {
    /// The server behind it.
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl HeatService for Heat {
    async fn get_heat(
        &self,
        request: Request<v1::GetHeatRequest>,
    ) -> Result<Response<v1::GetHeatResponse>, Status> {
        let request = request.into_inner();
        let window_ms = within("window_ms", request.window_ms, &WINDOW_MS)?;
        let limit = within("limit", u64::from(request.limit), &LIMIT)?;
        let limit = usize::try_from(limit).expect("it is at most 1,000");
        let watching = self.node.heat.watch().ok_or_else(|| {
            let hint = format!(
                "{} others watch this server already: try again when one has ended",
                limits::HEAT_WATCHES_MAX
            );
            ApiError::new(Reason::Overloaded, hint)
        })?;
        let before: HashMap<TabletId, Counts> = self.loads().map(|(id, _, counts)| (id, counts)).collect();
        let began = Instant::now();
        tokio::time::sleep(Duration::from_millis(window_ms)).await;
        let window = began.elapsed();
        let (total, tablets) = self.changes(&before, limit);
        let keys = watching.hottest(limit).into_iter().map(|hot| self.key_to_wire(hot)).collect();
        Ok(Response::new(v1::GetHeatResponse {
            server_id: self.node.peers.identity().map_or(0, |own| own.run.server.0),
            window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
            total: Some(to_wire(total)),
            tablets,
            keys,
        }))
    }
}

impl Heat {
    fn loads(&self) -> impl Iterator<Item = (TabletId, TableId, Counts)> {
        let directory = self.node.directory.load_full();
        let loads: Vec<_> =
            directory.tablets().map(|tablet| (tablet.id, tablet.table, tablet.load.get())).collect();
        loads.into_iter()
    }

    /// What came since `before`: in all, and to the busiest tablets.
    fn changes(&self, before: &HashMap<TabletId, Counts>, limit: usize) -> (Counts, Vec<v1::TabletHeat>) {
        let since = |(id, table, counts): (TabletId, TableId, Counts)| {
            (id, table, counts.since(before.get(&id).copied().unwrap_or_default()))
        };
        let mut busy: Vec<_> =
            self.loads().map(since).filter(|(_, _, counts)| counts.requests() > 0).collect();
        busy.sort_by_key(|(id, _, counts)| (u64::MAX - counts.requests(), *id));
        let mut total = Counts::default();
        busy.iter().for_each(|(_, _, counts)| total.add(*counts, 1));
        let heat = |(id, table, counts): (TabletId, TableId, Counts)| v1::TabletHeat {
            tablet_id: id.0,
            table: self.table_name(table),
            counts: Some(to_wire(counts)),
        };
        (total, busy.into_iter().take(limit).map(heat).collect())
    }

    fn key_to_wire(&self, hot: HotKey) -> v1::KeyHeat {
        v1::KeyHeat {
            table: self.table_name(hot.table),
            key: hot.key,
            tablet_id: hot.tablet.0,
            counts: Some(to_wire(hot.counts)),
        }
    }

    /// Empty for a table that is dropped.
    fn table_name(&self, id: TableId) -> String {
        let routes = self.node.routes.now();
        routes.tables().find(|info| info.id == id).map(|info| info.table.name.clone()).unwrap_or_default()
    }
}

fn within(name: &str, asked: u64, (range, usual): &(RangeInclusive<u64>, u64)) -> Result<u64, ApiError> {
    let asked = if asked == 0 { *usual } else { asked };
    if range.contains(&asked) {
        return Ok(asked);
    }
    let hint = format!("{name} {asked} is not within {} to {}: give another", range.start(), range.end());
    Err(ApiError::new(Reason::BadRequest, hint))
}

fn to_wire(counts: Counts) -> v1::HeatCounts {
    v1::HeatCounts {
        reads: counts.reads,
        writes: counts.writes,
        read_bytes: counts.read_bytes,
        written_bytes: counts.written_bytes,
    }
}
