//! Bits of runs that are over do not count; here they go, from rows that are led here. Rows are
//! looked through once after runs of servers have changed, some at a time, and then never again
//! until the next change: idle rooms cost nothing.

use super::Rooms;
use crate::limits;
use crate::node::store_error;
use crate::store::scan::{Order, PageLimits, Projection, ScanSpec, scan_page};
use crate::tablets::TabletHandle;
use bytes::Bytes;
use ebla_kernel::ids::TabletId;
use ebla_kernel::range::KeyRange;
use ebla_kernel::room::row::RoomRow;
use ebla_kernel::room::{ROOMS_TABLE, ServerRuns};
use ebla_proto::error::ApiError;
use std::collections::HashMap;
use std::sync::Arc;

/// How far a tablet is looked through.
struct Progress {
    /// The runs that it is looked through for.
    runs: Arc<ServerRuns>,
    /// Where to go on; none when done.
    next: Option<Bytes>,
}

impl Rooms {
    /// Sweeps for ever.
    pub async fn sweep(self: Arc<Self>) {
        let mut tablets: HashMap<TabletId, Progress> = HashMap::new();
        let mut steps = tokio::time::interval(limits::ROOM_SWEEP_EVERY);
        steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            steps.tick().await;
            self.sweep_step(&mut tablets).await;
        }
    }

    async fn sweep_step(&self, known: &mut HashMap<TabletId, Progress>) {
        let Ok(table) = self.node.table(ROOMS_TABLE) else { return };
        let directory = self.node.directory.load_full();
        let mine = directory.table(table.id).into_iter().flat_map(|tablets| tablets.iter());
        let mine: Vec<_> = mine.filter(|tablet| tablet.serving().is_some()).map(Arc::clone).collect();
        known.retain(|id, _| mine.iter().any(|tablet| tablet.id == *id));
        let runs = Arc::clone(&self.servers().runs);
        for tablet in mine {
            let start = || Progress { runs: Arc::clone(&runs), next: Some(tablet.range.start().clone()) };
            let progress = known.entry(tablet.id).or_insert_with(start);
            if progress.runs != runs {
                *progress = start();
            }
            let Some(from) = progress.next.clone() else { continue };
            match self.find_dead(&tablet, from, &runs) {
                Ok((rooms, next)) => {
                    progress.next = next;
                    for some in rooms.chunks(limits::ROOM_BITS_PER_CALL) {
                        self.sweep_rows(some.to_vec()).await;
                    }
                }
                Err(error) => tracing::warn!(tablet = %tablet.id, %error, "rows of rooms cannot be read"),
            }
        }
    }

    /// Rooms among the next rows that have bits of runs that are over, and where to go on.
    fn find_dead(
        &self,
        tablet: &TabletHandle,
        from: Bytes,
        runs: &ServerRuns,
    ) -> Result<(Vec<Bytes>, Option<Bytes>), ApiError> {
        let Ok(range) = KeyRange::new(from, tablet.range.end().cloned()) else {
            return Ok((Vec::new(), None));
        };
        let spec = ScanSpec {
            table: tablet.table,
            range,
            at: self.node.clock.now(),
            order: Order::Forward,
            projection: Projection::Rows,
        };
        let limits = PageLimits {
            rows_max: limits::ROOM_SWEEP_ROWS,
            bytes_max: usize::MAX,
            work_max: limits::ROOM_SWEEP_ROWS,
        };
        let page = scan_page(&*self.node.reader.store, &tablet.tombstones.load(), &spec, &limits);
        let page = page.map_err(store_error)?;
        let has_dead = |body: &ebla_kernel::op::Body| {
            RoomRow::of(Some(body)).bits().any(|(ordinal, stamp)| runs.is_over(ordinal, stamp.incarnation))
        };
        let dead = page.rows.into_iter().filter(|row| row.body.as_ref().is_some_and(has_dead));
        Ok((dead.map(|row| row.key).collect(), page.next))
    }
}
