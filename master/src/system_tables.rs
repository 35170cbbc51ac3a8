//! The tables that the cluster keeps for itself: made by the leading master when the first servers
//! are there, given more copies when more come, and fewer when servers are to leave.
//!
//! Everything is looked up anew each time and proposed with its guard, so that a master that has
//! just begun to lead, or one that did not notice that it ceased to, does no harm.

use crate::clock;
use crate::limits::{SYSTEM_TABLES_LOOK_EVERY, SYSTEM_TABLES_SETTLE_LOOKS};
use crate::placement::place;
use crate::service::Shared;
use ebla_kernel::limits::REPLICAS_DEFAULT;
use ebla_kernel::meta::{Command, Duty, NewTablet, TableChange, TableSpec};
use ebla_kernel::range::KeyRange;
use ebla_kernel::room::ROOMS_TABLE;

/// Makes them and looks after them, for ever.
pub(crate) async fn keep(shared: Shared) {
    let mut looks = tokio::time::interval(SYSTEM_TABLES_LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut settling = Settling::default();
    loop {
        looks.tick().await;
        let command = if shared.role().leading { next(&shared, &mut settling) } else { None };
        if let Some(command) = command {
            // What is lost or refused is proposed again after the next look.
            if let Err(why) = shared.raft.propose(command).await {
                tracing::debug!(%why, "a change of the system's tables was not made");
            }
        }
    }
}

/// The number of servers that were up, and since how many looks.
#[derive(Default)]
struct Settling {
    servers: usize,
    looks: u32,
}

impl Settling {
    /// Whether so many servers are all that will come, as it seems. A cluster that starts should
    /// have all copies from the first moment on.
    fn is_over(&mut self, servers: usize) -> bool {
        if self.servers != servers {
            *self = Self { servers, looks: 0 };
        }
        self.looks += 1;
        servers >= usize::from(REPLICAS_DEFAULT) || self.looks > SYSTEM_TABLES_SETTLE_LOOKS
    }
}

/// What is to be done now.
fn next(shared: &Shared, settling: &mut Settling) -> Option<Command> {
    let candidates = shared.candidates();
    let spec = TableSpec::of_rooms(candidates.len());
    let state = shared.raft.view().state();
    match state.table_named(ROOMS_TABLE) {
        Some(table) => {
            let stay = state.servers().filter(|server| server.duty != Duty::Leaves).count();
            let most = TableSpec::of_rooms(stay).replicas.max(table.spec.min_in_sync);
            // Servers that are down come back: only those that leave for good count as fewer.
            let replicas = table.spec.replicas;
            let wanted = if most < replicas { most } else { replicas.max(spec.replicas) };
            let change = TableChange { replicas: Some(wanted), ..TableChange::default() };
            (wanted != replicas).then_some(Command::ChangeTable { table: table.id, change })
        }
        None if candidates.is_empty() || !settling.is_over(candidates.len()) => None,
        None => {
            let servers = place(ROOMS_TABLE, 1, usize::from(spec.replicas), &candidates)?.pop()?;
            let tablets = vec![NewTablet { range: KeyRange::all(), servers }];
            let time_ms = clock::wall_ms();
            Some(Command::CreateTable { name: ROOMS_TABLE.to_owned(), spec, tablets, time_ms })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_starts_is_waited_for_a_while() {
        let mut settling = Settling::default();
        assert!(!settling.is_over(1));
        for _ in 1..SYSTEM_TABLES_SETTLE_LOOKS {
            assert!(!settling.is_over(1));
        }
        assert!(!settling.is_over(2), "another one came");
        assert!(settling.is_over(3), "all copies have a place");
        let mut settling = Settling::default();
        let over = (0..=SYSTEM_TABLES_SETTLE_LOOKS).map(|_| settling.is_over(1)).filter(|over| *over);
        assert_eq!(over.count(), 1);
    }
}
