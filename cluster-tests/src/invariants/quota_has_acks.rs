//! Whatever copies an election may ask, one of them has every acknowledged write: of the
//! members of the in-sync set so few lack it that they are no quota (m1, m9, m10). Of a write
//! acknowledged at `in_sync` no member lacks it, because a degraded election may ask any.
//!
//! This is the promise behind I4, looked at whenever the set changes, and not only when an
//! election happens to ask the wrong copies.

use super::epoch_has_acks::is_owed;
use super::{CoreView, Invariant, Observation, server_index};
use crate::oracle::{Oracle, Trust};
use ebla_kernel::ids::{ConfigVersion, Epoch, Pos, ReplicaId, TabletId};
use ebla_kernel::meta::{State, Tablet};
use ebla_kernel::op::AckLevel;
use std::collections::{BTreeMap, BTreeSet};

/// A tablet's in-sync set, and what was acknowledged.
#[derive(Debug, Default)]
struct Known {
    /// How often it has begun anew.
    losses: u64,
    version: ConfigVersion,
    epoch: Epoch,
    /// In-sync copies and their servers.
    members: Vec<(ReplicaId, usize)>,
    min_in_sync: usize,
    /// The last position of each epoch that Q has reached, or that D copies were said to have.
    copies: BTreeMap<Epoch, Pos>,
    /// The last of each epoch that was said to be on every member.
    everywhere: BTreeMap<Epoch, Pos>,
}

/// Every tablet.
#[derive(Debug, Default)]
pub struct QuotaHasAcks {
    tablets: BTreeMap<TabletId, Known>,
    /// Copies whose data is gone: they answer nothing.
    gone: BTreeSet<ReplicaId>,
}

impl Invariant for QuotaHasAcks {
    fn name(&self) -> &'static str {
        "m1, m9, m10 every quota has every acknowledged write"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::Metadata(state) => {
                state.tablets().try_for_each(|tablet| self.changed(oracle, state, tablet))
            }
            Observation::Wiped { server } => {
                let on_it = |known: &Known| {
                    let here = known.members.iter().filter(|(_, place)| place == server);
                    here.map(|(replica, _)| *replica).collect::<Vec<_>>()
                };
                let gone: Vec<ReplicaId> = self.tablets.values().flat_map(on_it).collect();
                self.gone.extend(gone);
                Ok(())
            }
            Observation::Acked { tablet, committed, .. } => {
                let known = self.tablets.entry(*tablet).or_default();
                match committed.level {
                    AckLevel::Leader => return Ok(()),
                    AckLevel::Copies(_) => raise(&mut known.copies, committed.pos),
                    AckLevel::InSync => raise(&mut known.everywhere, committed.pos),
                };
                self.judge(oracle, *tablet)
            }
            Observation::Stepped(CoreView { tablet, q: Some(q), .. }) => {
                let known = self.tablets.entry(*tablet).or_default();
                if raise(&mut known.copies, *q) { self.judge(oracle, *tablet) } else { Ok(()) }
            }
            Observation::Appended { .. }
            | Observation::Durable { .. }
            | Observation::Cut { .. }
            | Observation::Applied { .. }
            | Observation::Reshaped(_)
            | Observation::Leases(_)
            | Observation::FenceAnswered { .. }
            | Observation::AckSent { .. }
            | Observation::SaidReverted { .. }
            | Observation::LeaseHeld { .. }
            | Observation::Opened { .. }
            | Observation::Stepped(_) => Ok(()),
        }
    }
}

impl QuotaHasAcks {
    fn changed(&mut self, oracle: &Oracle, state: &State, tablet: &Tablet) -> Result<(), String> {
        self.inherit(oracle, tablet.id);
        if !self.tablets.contains_key(&tablet.id) {
            has_seals(oracle, state, tablet)?;
        }
        let known = self.tablets.entry(tablet.id).or_default();
        if known.losses != oracle.losses(tablet.id) {
            *known = Known { losses: oracle.losses(tablet.id), ..Known::default() };
        }
        let is_news = known.version != tablet.config_version || known.epoch != tablet.epoch;
        if !is_news && !known.members.is_empty() {
            return Ok(());
        }
        (known.version, known.epoch) = (tablet.config_version, tablet.epoch);
        known.min_in_sync = state.table(tablet.table).map_or(1, |table| usize::from(table.spec.min_in_sync));
        let place = |id: &ReplicaId| Some((*id, server_index(state, tablet.replica(*id)?.server)?));
        known.members = tablet.in_sync.iter().filter_map(place).collect();
        self.judge(oracle, tablet.id)
    }

    /// A tablet owes what those acknowledged that it was made of.
    fn inherit(&mut self, oracle: &Oracle, tablet: TabletId) {
        // What comes out of a merge has both seals on every copy that is in sync.
        let [(parent, seal)] = oracle.parents_of(tablet) else { return };
        if self.tablets.contains_key(&tablet) {
            return;
        }
        let story = oracle.story(tablet);
        let upto = |(epoch, pos): (&Epoch, &Pos)| {
            let limit = story.limit(*seal, *epoch)?;
            Some((*epoch, Pos::new(*epoch, pos.seq.min(limit))))
        };
        let owed = |known: &BTreeMap<Epoch, Pos>| known.iter().filter_map(upto).collect();
        let Some(older) = self.tablets.get(parent) else { return };
        let (copies, everywhere) = (owed(&older.copies), owed(&older.everywhere));
        self.tablets.insert(tablet, Known { copies, everywhere, ..Known::default() });
    }

    fn judge(&self, oracle: &Oracle, tablet: TabletId) -> Result<(), String> {
        let (Some(known), trust) = (self.tablets.get(&tablet), oracle.trust(tablet)) else { return Ok(()) };
        let story = oracle.story(tablet);
        let is_gone = |replica: &ReplicaId| self.gone.contains(replica) || oracle.is_gone(*replica);
        let live = || known.members.iter().filter(|(replica, _)| !is_gone(replica));
        let lacking = |pos: &Pos| live().filter(|(_, server)| !story.has(*server, *pos)).collect::<Vec<_>>();
        let spare = known.members.len().saturating_sub(known.min_in_sync);
        let copies = known.copies.values().filter(|_| is_owed(AckLevel::Copies(0), trust));
        let everywhere = known.everywhere.values().filter(|_| is_owed(AckLevel::InSync, trust));
        let owed = copies.map(|pos| (pos, spare)).chain(everywhere.map(|pos| (pos, 0)));
        for (pos, spare) in owed {
            let lacking = lacking(pos);
            if lacking.len() > spare {
                let Known { version, epoch, members, .. } = known;
                return Err(format!(
                    "{tablet} {epoch} {version}: {lacking:?} of {members:?} lack {pos}, {spare} may"
                ));
            }
        }
        Ok(())
    }
}

/// m28: whoever begins in sync has the logs of all parents up to their seals, or has lost its data.
fn has_seals(oracle: &Oracle, state: &State, tablet: &Tablet) -> Result<(), String> {
    let in_sync = tablet.in_sync_replicas().filter(|copy| !oracle.is_gone(copy.id));
    let places = in_sync.filter_map(|copy| server_index(state, copy.server));
    for server in places.filter(|_| oracle.trust(tablet.id) > Trust::Nothing) {
        for (parent, seal) in oracle.parents_of(tablet.id) {
            if !oracle.story(*parent).has(server, *seal) {
                return Err(format!("{} begins on server {server}, which lacks {parent} {seal}", tablet.id));
            }
        }
    }
    Ok(())
}

/// Whether that was news.
fn raise(last: &mut BTreeMap<Epoch, Pos>, pos: Pos) -> bool {
    let known = last.entry(pos.epoch).or_default();
    let is_news = pos > *known;
    *known = pos.max(*known);
    is_news
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::entry::{Entry, LogEnd, Payload};
    use ebla_kernel::hlc::Hlc;
    use ebla_kernel::ids::Incarnation;
    use ebla_kernel::op::Committed;
    use std::rc::Rc;

    const TABLET: TabletId = TabletId(1);

    fn entry() -> Entry {
        let payload = Payload::EpochStart { replica: ReplicaId(1), incarnation: Incarnation(1) };
        LogEnd::default().follow(Epoch(1), Hlc(1), payload)
    }

    /// Copies 1 to `members` are in sync, D is 2, and those on `servers` have the entry.
    fn acked(members: u64, servers: &[usize], level: AckLevel, gone: Option<usize>) -> Result<(), String> {
        let mut judge = QuotaHasAcks::default();
        let place = |n: u64| (ReplicaId(n), usize::try_from(n - 1).expect("small"));
        let members = (1..=members).map(place).collect();
        judge.tablets.insert(TABLET, Known { members, min_in_sync: 2, ..Known::default() });
        let mut oracle = Oracle::default();
        servers.iter().for_each(|server| oracle.durable(TABLET, *server, &Rc::new(entry())));
        if let Some(server) = gone {
            judge.observe(&oracle, &Observation::Wiped { server })?;
        }
        let committed = Committed { pos: entry().pos, ts: Hlc(1), level, results: Vec::new() };
        let (tablet, server, epoch, committed) = (TABLET, 0, Epoch(1), &committed);
        judge.observe(&oracle, &Observation::Acked { tablet, server, epoch, committed })
    }

    #[test]
    fn a_quota_without_an_acknowledged_write_is_seen() {
        let copies = AckLevel::Copies(2);
        assert!(acked(3, &[0, 2], copies, None).is_ok());
        assert!(acked(3, &[0], copies, None).is_err());
        assert!(acked(2, &[0], copies, None).is_err());
        assert!(acked(2, &[0], AckLevel::Leader, None).is_ok());
    }

    #[test]
    fn no_member_lacks_what_was_acknowledged_in_sync() {
        assert!(acked(3, &[0, 1, 2], AckLevel::InSync, None).is_ok());
        assert!(acked(3, &[0, 1], AckLevel::InSync, None).is_err());
    }

    #[test]
    fn whoever_lost_its_disk_is_in_no_quota() {
        assert!(acked(2, &[0], AckLevel::Copies(2), Some(1)).is_ok());
    }
}
