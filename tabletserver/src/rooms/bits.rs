//! Bits in the rows of rooms, from both ends: what this server wants said of its own, in batches to
//! the leaders of the rows, and what others say of theirs in rows that are led here.

use super::publish::Leader;
use super::registry::BitOrder;
use super::{ROOM_OP_TRIES, Rooms};
use crate::handover::Checked;
use crate::limits;
use crate::node::store_error;
use crate::routes::TableInfo;
use crate::tablets::TabletHandle;
use bytes::Bytes;
use ebla_kernel::ids::{Epoch, Incarnation, Lineage, Ordinal, ServerId, TabletId};
use ebla_kernel::op::{AckLevel, Action, Op};
use ebla_kernel::range::KeyRange;
use ebla_kernel::room::row::{BitChange, RoomRow};
use ebla_kernel::room::{ROOMS_TABLE, Stamp, SubSeq, check_name};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::room_call::Call;
use ebla_proto::v1::room_reply::Reply;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;

/// One change of a bit, and where it stands in its call.
struct Wanted {
    at: u32,
    room: Bytes,
    change: BitChange,
}

impl Rooms {
    /// Says what is to be said of this server's bits, for ever.
    pub async fn keep_bits(self: Arc<Self>) {
        loop {
            let (orders, next) = self.registry.look(self.node.clock.tick());
            for (leader, orders) in self.by_leader(orders) {
                tokio::spawn(Arc::clone(&self).say(leader, orders));
            }
            let (subscriptions, rooms) = self.registry.totals();
            metrics::gauge!("ebla_room_subscriptions").set(subscriptions as f64);
            metrics::gauge!("ebla_rooms").set(rooms as f64);
            let ordered = self.registry.ordered.notified();
            let pause = next.map(|at| at.ms_since(self.node.clock.tick())).unwrap_or(u64::MAX);
            let pause = std::time::Duration::from_millis(pause.min(limits::ROOM_JOINS_LOOK_MS));
            let _ = tokio::time::timeout(pause.max(limits::ROOM_LOOK_PAUSE), ordered).await;
        }
    }

    /// Cuts orders into batches to one leader each; those without one under none.
    fn by_leader(&self, orders: Vec<BitOrder>) -> Vec<(Option<ServerId>, Vec<BitOrder>)> {
        let own = self.node.peers.identity().map(|own| own.run.server);
        let mut batches: BTreeMap<Option<ServerId>, Vec<BitOrder>> = BTreeMap::new();
        for order in orders {
            let leader = match self.leader(&order.name) {
                Ok(Leader::Here) => own,
                Ok(Leader::At(server)) => Some(server),
                Err(_) => None,
            };
            batches.entry(leader).or_default().push(order);
        }
        let cut = |(leader, orders): (Option<ServerId>, Vec<BitOrder>)| {
            let parts: Vec<_> = orders.chunks(limits::ROOM_BITS_PER_CALL).map(<[_]>::to_vec).collect();
            parts.into_iter().map(move |part| (leader, part))
        };
        batches.into_iter().flat_map(cut).collect()
    }

    /// Says one batch to its leader.
    async fn say(self: Arc<Self>, leader: Option<ServerId>, orders: Vec<BitOrder>) {
        let refused = match (leader, self.own_bits(&orders)) {
            (Some(leader), Some(bits)) => self.say_to(leader, bits).await,
            (None, _) | (_, None) => None,
        };
        let holds = |at: usize| {
            let at = u32::try_from(at).expect("a batch has few bits");
            refused.as_ref().is_some_and(|refused| !refused.contains(&at))
        };
        let told: Vec<_> = orders.into_iter().enumerate().map(|(at, order)| (order, holds(at))).collect();
        self.registry.told(self.node.clock.tick(), &told);
    }

    fn own_bits(&self, orders: &[BitOrder]) -> Option<v1::RoomBits> {
        let run = self.node.peers.identity()?.run;
        let ordinal = self.servers().own?;
        let bit = |order: &BitOrder| v1::RoomBit {
            room: Bytes::copy_from_slice(&order.name),
            sub_seq: order.sub_seq.0,
            clear: order.is_clear,
        };
        let bits = orders.iter().map(bit).collect();
        Some(v1::RoomBits { ordinal: ordinal.0, incarnation: run.incarnation.0, bits })
    }

    /// Which of the bits the leader refused; none when nothing is known.
    async fn say_to(&self, leader: ServerId, bits: v1::RoomBits) -> Option<HashSet<u32>> {
        if self.is_own(leader) {
            return Some(self.change_bits(bits).await.refused.into_iter().collect());
        }
        match self.links.ask(leader, Call::Bits(bits)).await {
            Ok(Reply::Bits(done)) => Some(done.refused.into_iter().collect()),
            Ok(_) | Err(_) => None,
        }
    }

    /// Changes bits in rows that are led here.
    pub async fn change_bits(&self, bits: v1::RoomBits) -> v1::RoomBitsDone {
        let (ordinal, incarnation) = (Ordinal(bits.ordinal), Incarnation(bits.incarnation));
        let wanted = bits.bits.into_iter().zip(0..).map(|(bit, at)| {
            let stamp = Stamp { incarnation, sub_seq: SubSeq(bit.sub_seq) };
            let change = if bit.clear { BitChange::Clear } else { BitChange::Set };
            Wanted { at, room: bit.room, change: change(ordinal, stamp) }
        });
        self.change_rows(wanted.collect()).await
    }

    /// Lets the bits of runs that are over go from rows that are led here.
    pub(super) async fn sweep_rows(&self, rooms: Vec<Bytes>) {
        let sweep = |(room, at)| Wanted { at, room, change: BitChange::Sweep };
        self.change_rows(rooms.into_iter().zip(0..).map(sweep).collect()).await;
    }

    async fn change_rows(&self, wanted: Vec<Wanted>) -> v1::RoomBitsDone {
        let mut refused = Vec::new();
        let Ok(table) = self.node.table(ROOMS_TABLE) else {
            return v1::RoomBitsDone { refused: wanted.iter().map(|one| one.at).collect() };
        };
        let mut by_tablet: HashMap<TabletId, (Arc<TabletHandle>, Vec<Wanted>)> = HashMap::new();
        for one in wanted {
            match self.node.locate(&table, &one.room) {
                Ok(tablet) if check_name(&one.room).is_ok() => {
                    by_tablet.entry(tablet.id).or_insert_with(|| (tablet, Vec::new())).1.push(one);
                }
                Ok(_) | Err(_) => refused.push(one.at),
            }
        }
        for (tablet, wanted) in by_tablet.into_values() {
            let all: Vec<u32> = wanted.iter().map(|one| one.at).collect();
            if let Err(error) = self.change_tablet(&table, &tablet, wanted).await {
                tracing::debug!(tablet = %tablet.id, %error, "bits of rooms were not changed");
                refused.extend(all);
            }
        }
        v1::RoomBitsDone { refused }
    }

    /// Changes bits in rows of one tablet, as few writes as there can be: most that is said again
    /// is so already. What is seen has been acknowledged by as many copies as a write asks for.
    async fn change_tablet(
        &self,
        table: &Arc<TableInfo>,
        tablet: &Arc<TabletHandle>,
        wanted: Vec<Wanted>,
    ) -> Result<(), ApiError> {
        let servers = self.servers();
        let (mut ops, mut last) = (Vec::new(), Bytes::new());
        for one in wanted {
            let version = self.node.reader.newest(tablet, &one.room).map_err(store_error)?;
            let mut row = RoomRow::of(version.as_ref().map(|version| &version.body));
            last = one.room.clone();
            if row.change(one.change, &servers.runs) {
                let runs = Arc::clone(&servers.runs);
                let action = Action::Room { key: one.room, change: one.change, runs };
                ops.push(Op { condition: None, action });
            }
        }
        self.node.check_serving(table, tablet, &last)?;
        if ops.is_empty() { Ok(()) } else { self.write_ops(table, ops).await }
    }

    async fn write_ops(&self, table: &Arc<TableInfo>, ops: Vec<Op>) -> Result<(), ApiError> {
        let copies = u8::try_from(table.min_in_sync).unwrap_or(u8::MAX);
        for _ in 0..ROOM_OP_TRIES {
            let checked = Checked {
                table: Arc::clone(table),
                ops: ops.clone(),
                level: AckLevel::Copies(copies),
                token: self.node.tokens.make(),
                deadline: self.node.clock.tick().plus_ms(limits::ROOM_BITS_TIMEOUT_MS),
            };
            let write = match self.node.place(checked) {
                Ok(write) => write,
                Err(unplaced) => self.node.place_later(unplaced).await?,
            };
            let response = self.node.write(write).await?;
            match response.outcome() {
                v1::WriteOutcome::Committed => return Ok(()),
                // It is gone for sure and never was.
                v1::WriteOutcome::Reverted => {}
                v1::WriteOutcome::Unknown | v1::WriteOutcome::Unspecified => break,
            }
        }
        Err(ApiError::new(Reason::Unavailable, "the bits were not acknowledged by enough copies"))
    }

    /// Says bits again when another leads their rows, or their history broke.
    pub async fn watch_leaders(self: Arc<Self>) {
        let mut known: HashMap<TabletId, (Epoch, Lineage)> = HashMap::new();
        let (_, mut changes) = self.node.routes.watch();
        loop {
            self.doubt_what_changed(&mut known);
            loop {
                match changes.recv().await {
                    Ok(change)
                        if !change.full
                            && change.routes.as_ref().is_some_and(|routes| routes.tablets.is_empty()) => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                }
            }
        }
    }

    fn doubt_what_changed(&self, known: &mut HashMap<TabletId, (Epoch, Lineage)>) {
        let routes = self.node.routes.now();
        let Some(table) = routes.table(ROOMS_TABLE) else { return };
        let mut now = HashMap::new();
        let mut ranges: Vec<KeyRange> = Vec::new();
        for tablet in routes.tablets_of(table.id) {
            let (id, state) = (TabletId(tablet.id), (Epoch(tablet.epoch), Lineage(tablet.lineage)));
            if known.get(&id) != Some(&state)
                && let Ok(range) = ebla_proto::convert::tablet_range(tablet)
            {
                ranges.push(range);
            }
            now.insert(id, state);
        }
        *known = now;
        if !ranges.is_empty() {
            let is_meant = |room: &[u8]| ranges.iter().any(|range| range.contains(room));
            self.registry.doubt(self.node.clock.tick(), is_meant);
        }
    }
}
