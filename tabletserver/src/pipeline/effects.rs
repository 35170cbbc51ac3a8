//! What cores want done, done: the one place where effects are carried out.
//!
//! Effects are executed in the order in which a core gave them. What must be durable before
//! what leaves is decided by the cores: a reply to a write comes out of `Applied`, an answer
//! to a fence out of `PromisePersisted` and `Persisted`.

use super::Item;
use super::apply::Order;
use super::cut::{Job, Work};
use super::sequencer::{Sequencer, Slot};
use crate::oplog::Logged;
use crate::replication::Outgoing;
use crate::succession::Staging;
use ebla_kernel::entry::{Entry, LogEnd};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Pos, ReplicaId, Seq, TabletId};
use ebla_kernel::meta::TableKind;
use ebla_kernel::op::Change;
use ebla_kernel::tablet::{ApplyWhen, Effect, PeerMessage, Stream};
use ebla_proto::replication::{Envelope, message_to_wire};
use std::sync::Arc;
use tracing::{error, info};

impl Sequencer {
    pub(super) fn carry_out(&mut self, id: TabletId, effect: Effect) {
        let Some(slot) = self.slots.get(&id) else { return };
        match effect {
            Effect::Except { tablet, to, epoch } => self.leases.except(to, tablet, epoch),
            Effect::PersistPromise { epoch } => self.promises.push((id, epoch)),
            Effect::AnswerFence(answer) => self.fence_answers.push((id, slot.tablet.replica(), answer)),
            Effect::Append { entry, when } => self.append(id, entry, when),
            Effect::AppendCopies { entries } => {
                for entry in entries {
                    self.append(id, entry, ApplyWhen::Safe);
                }
            }
            Effect::Apply { upto } => drop(self.orders.send(Order::Settle(Arc::clone(&slot.handle), upto))),
            Effect::Stream(stream) => self.stream(id, stream),
            Effect::Send { to, epoch, message } => self.send(id, to, epoch, &message),
            Effect::Locate { seq } => drop(self.cuts.send(Work::Locate(Arc::clone(&slot.handle), seq))),
            Effect::Truncate { keep } => self.truncate(id, keep),
            Effect::Diverged { keep, at } => self.diverged(id, keep, at),
            Effect::ProposeInSync(proposal) => self.proposals.push((id, proposal)),
            Effect::Stage { seal, end } => {
                let handle = Arc::clone(&slot.handle);
                self.stagings.push(Staging { handle, seal: Some((seal, end)) });
            }
            Effect::Unstage => {
                self.stagings.push(Staging { handle: Arc::clone(&slot.handle), seal: None });
            }
            Effect::ProposeSplit(proposal) => self.commits.push((id, proposal)),
            Effect::Lease(terms) => slot.handle.set_lease(terms),
            Effect::Serve { epoch } => {
                info!(tablet = %id, %epoch, "serving");
                // A former leader's clock may have been ahead of this one: no read from now on
                // may be at a timestamp below what it wrote.
                self.clock.raise(slot.tablet.end().ts);
                slot.handle.set_serving(Some(epoch));
                self.serving_changed = true;
            }
            Effect::StopServing { epoch, successor } => {
                info!(tablet = %id, %epoch, ?successor, "gave up an epoch");
                metrics::counter!("ebla_tablet_epochs_given_up_total").increment(1);
                slot.handle.give_up(epoch, successor);
                slot.handle.set_everywhere(None);
                slot.handle.set_wanted(None);
                self.serving_changed = true;
            }
            Effect::Reply { request, answer } => {
                if let Some(reply) = self.waiting.remove(&request) {
                    reply.send(answer);
                }
            }
        }
    }

    fn append(&mut self, id: TabletId, entry: Entry, when: ApplyWhen) {
        let Some(slot) = self.slots.get(&id) else { return };
        let bytes = entry.changes().iter().map(Change::bytes).sum::<usize>();
        if !entry.reverts().is_empty() {
            metrics::counter!("ebla_reverted_writes_total").increment(entry.reverts().len() as u64);
        }
        let logged: Arc<Logged> = Arc::new(entry.into());
        let is_wanted = slot.has_peers || slot.handle.progress.is_watched();
        if is_wanted && slot.tablet.leading().is_some() {
            slot.handle.tail.push(Arc::clone(&logged));
            self.with_tails.insert(id);
        }
        let lane = match slot.handle.kind {
            TableKind::Durable => &mut self.disk,
            TableKind::Memory => &mut self.memory,
        };
        lane.push(&slot.handle, Item { logged, when }, bytes);
    }

    fn stream(&mut self, id: TabletId, stream: Stream) {
        let Some(slot) = self.slots.get(&id) else { return };
        let outgoing = Outgoing::Entries(Arc::clone(&slot.handle), stream);
        let is_queued = slot.servers.get(&stream.to).is_some_and(|server| self.peers.send(*server, outgoing));
        if !is_queued {
            self.unsent.push((id, stream.to));
        }
    }

    fn send(&self, id: TabletId, to: ReplicaId, epoch: Epoch, message: &PeerMessage) {
        let Some(slot) = self.slots.get(&id) else { return };
        let (Some(server), Some(own)) = (slot.servers.get(&to), self.peers.identity()) else { return };
        let (from, generation) = (slot.handle.replica, own.generation);
        let envelope = Envelope { tablet: id, from, to, generation, epoch };
        // Without a way the message is lost, like on any network: its core says it again.
        self.peers.send(*server, Outgoing::Message(message_to_wire(envelope, message)));
    }

    /// A copy is over. What it has beyond its leader goes into the loss ledger, and then the masters
    /// hear of it.
    fn diverged(&self, id: TabletId, keep: Seq, at: Pos) {
        let Some(slot) = self.slots.get(&id) else { return };
        metrics::counter!("ebla_replica_diverged_total").increment(1);
        error!(
            tablet = %id, %at,
            "this copy holds entries that were safe and that its leader does not have: too few copies \
             chose that leader, or data is damaged; the copy takes and serves no more, see `ebla tablet describe`"
        );
        slot.handle.set_diverged();
        let last = slot.tablet.durable_end().pos;
        let _ = self.cuts.send(Work::Enter { handle: Arc::clone(&slot.handle), keep, last });
    }

    fn truncate(&self, id: TabletId, keep: LogEnd) {
        let Some(slot) = self.slots.get(&id) else { return };
        let job = Job { handle: Arc::clone(&slot.handle), keep, last: slot.tablet.durable_end().pos };
        let _ = self.orders.send(Order::Cut(job));
    }
}

impl Slot {
    /// Tells readers and the rest of the server what has become of the replica.
    pub(super) fn publish(&mut self) {
        let (handle, tablet) = (&self.handle, &self.tablet);
        handle.set_sealed(tablet.sealed().is_some());
        handle.set_safe(tablet.safe());
        handle.set_standing(tablet.standing());
        handle.set_behind(tablet.behind());
        handle.set_everywhere(tablet.everywhere().map(|pos| pos.seq));
        handle.set_wanted(tablet.wanted_above());
        if handle.epochs.load().as_slice() != tablet.epochs() {
            handle.epochs.store(Arc::new(tablet.epochs().to_vec()));
        }
        handle.set_kept(self.standing.at(tablet.standing(), tablet.end()));
        self.safe.at(tablet.safe(), tablet.end());
        handle.set_safe_end(self.safe.reached);
    }
}

/// Which entry a position of the log that rises, known by its number alone, has reached. It is
/// followed by marks, one at a time.
#[derive(Default)]
pub(super) struct Marks {
    /// An entry at or below the position, the newest known.
    reached: LogEnd,
    mark: Option<LogEnd>,
}

impl Marks {
    /// Where the log ends at `end`: above the timestamp that is returned an entry may lie above `upto`.
    fn at(&mut self, upto: Seq, end: LogEnd) -> Hlc {
        if upto >= end.pos.seq {
            *self = Self { reached: end, mark: None };
            return Hlc::MAX;
        }
        match self.mark {
            Some(mark) if mark.pos.seq <= upto => *self = Self { reached: mark, mark: Some(end) },
            // A cut has taken the marked entry.
            Some(mark) if mark.pos.seq > end.pos.seq => self.mark = Some(end),
            Some(_) => {}
            None => self.mark = Some(end),
        }
        self.reached.ts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::ids::Pos;

    fn end(seq: u64) -> LogEnd {
        LogEnd { pos: Pos::new(Epoch(1), Seq(seq)), ts: Hlc(seq * 10), hash: 0 }
    }

    #[test]
    fn marks_follow_a_position() {
        let mut marks = Marks::default();
        assert_eq!(marks.at(Seq(0), end(4)), Hlc(0));
        assert_eq!(marks.at(Seq(3), end(6)), Hlc(0));
        assert_eq!(marks.at(Seq(4), end(8)), Hlc(40));
        assert_eq!(marks.at(Seq(7), end(9)), Hlc(40));
        assert_eq!(marks.at(Seq(9), end(9)), Hlc::MAX);
        assert_eq!(marks.at(Seq(9), end(12)), Hlc(90));
        assert_eq!(marks.at(Seq(9), end(10)), Hlc(90));
        assert_eq!(marks.at(Seq(10), end(12)), Hlc(100));
    }
}
