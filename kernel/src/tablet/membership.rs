//! The in-sync set: the leader proposes, metadata decides, the leader learns.
//!
//! One change at a time. From the proposal until metadata's answer both outcomes are reckoned
//! with (m2, m8, m17), however long that takes: a proposal is never dropped (m24).

use super::leader::Leader;
use super::progress::Change;
use super::replicate::Peer;
use super::{Context, Effect, Membership, Proposal, Tablet};
use crate::ids::{ConfigVersion, Epoch, ReplicaId, ServerId};
use crate::limits::PROPOSAL_RETRY_MS;
use crate::mutated;

impl Tablet {
    /// Metadata tells the set of this epoch.
    pub(super) fn learn_in_sync(
        &mut self,
        context: Context<'_>,
        epoch: Epoch,
        membership: Membership,
        effects: &mut Vec<Effect>,
    ) {
        let own = self.replica;
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == epoch) else { return };
        let Membership { version, in_sync, members, leaving } = membership;
        if version < leader.progress.version() {
            return;
        }
        leader.leaving = leaving;
        if version > leader.progress.version() {
            for (replica, peer) in &mut leader.peers {
                if !in_sync.contains(replica) && leader.progress.in_sync().contains(replica) {
                    peer.rejoins_at = Leader::rejoin_at(context.now);
                }
            }
            leader.progress.learn(version, in_sync);
            leader.proposal = None;
        }
        leader.peers.retain(|replica, _| members.contains_key(replica));
        for (replica, server) in members.into_iter().filter(|(replica, _)| *replica != own) {
            leader.peers.entry(replica).or_insert_with(|| Peer::new(server, context.now));
        }
        self.tell_lease_terms(effects);
        self.proceed(context, effects);
        self.review_membership(context, effects);
    }

    /// Metadata has decided that the change will never be.
    pub(super) fn proposal_refused(
        &mut self,
        context: Context<'_>,
        epoch: Epoch,
        version: ConfigVersion,
        effects: &mut Vec<Effect>,
    ) {
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == epoch) else { return };
        if leader.proposal.is_some_and(|(proposal, _)| proposal.version == version) {
            leader.proposal = None;
            leader.progress.refused();
            self.tell_lease_terms(effects);
            self.proceed(context, effects);
        }
    }

    /// Nothing was heard from a server for too long: its copy is to leave the set. It is asked
    /// from now on, because a copy that lacks nothing would say nothing by itself when it is
    /// back.
    pub(super) fn silent(&mut self, context: Context<'_>, server: ServerId, effects: &mut Vec<Effect>) {
        let Some(leader) = &mut self.leader else { return };
        for peer in leader.peers.values_mut().filter(|peer| peer.server == server) {
            peer.is_silent = true;
            peer.probe_soon(context.now);
        }
        self.review_membership(context, effects);
    }

    /// Proposes the change that is most needed, or repeats the one under way.
    pub(super) fn review_membership(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let (own, now, is_merging) = (self.replica, context.now, self.is_merging());
        let Some(leader) = &mut self.leader else { return };
        if let Some((proposal, again)) = &mut leader.proposal {
            if *again <= now {
                *again = now.plus_ms(PROPOSAL_RETRY_MS);
                if mutated!(ProposalForgotten) {
                    leader.proposal = None;
                    leader.progress.refused();
                    self.tell_lease_terms(effects);
                    return;
                }
                effects.push(Effect::ProposeInSync(*proposal));
            }
            return;
        }
        let change = leader.wanted_change(context, own).filter(|change| !(change.add && is_merging));
        let Some(change) = change else { return };
        let run = leader.peers.get(&change.replica).and_then(|peer| peer.run);
        let (epoch, version) = (leader.epoch, leader.progress.version());
        let proposal = Proposal { epoch, version, replica: change.replica, add: change.add, run };
        leader.progress.propose(change);
        leader.proposal = Some((proposal, now.plus_ms(PROPOSAL_RETRY_MS)));
        self.tell_lease_terms(effects);
        effects.push(Effect::ProposeInSync(proposal));
    }
}

impl Leader {
    fn wanted_change(&self, context: Context<'_>, own: ReplicaId) -> Option<Change> {
        let in_sync = self.progress.in_sync();
        let is_member = |id: ReplicaId| in_sync.contains(&id) && id != own;
        let leaves = |(id, peer): (&ReplicaId, &Peer)| {
            let is_late = peer.is_silent || peer.lags(context.now, self.bytes);
            let is_wanted = is_member(*id) && (is_late || self.leaving == Some(*id));
            (is_wanted && self.may_leave(*id)).then_some(Change { replica: *id, add: false })
        };
        let joins = |(id, peer): (&ReplicaId, &Peer)| {
            let may_come = !in_sync.contains(id) && self.leaving != Some(*id);
            let is_wanted = may_come && peer.rejoins_at <= context.now;
            let is_well = is_wanted && !peer.lags(context.now, self.bytes) && self.may_join(*id, peer);
            // A member that has promised nothing yet would count as unreachable.
            (is_well && self.is_live(context, *id)).then_some(Change { replica: *id, add: true })
        };
        // A member whose copy is gone for good has no peer: its server holds nothing of it.
        let gone = in_sync.iter().find(|id| is_member(**id) && !self.peers.contains_key(id));
        let gone = gone.filter(|id| self.may_leave(**id)).map(|id| Change { replica: *id, add: false });
        gone.or_else(|| self.peers.iter().find_map(leaves)).or_else(|| self.peers.iter().find_map(joins))
    }

    /// Whether the rest of the set has all that it must have, and is large enough (m9).
    fn may_leave(&self, leaving: ReplicaId) -> bool {
        let must_have = self.must_have();
        let rest = || self.progress.in_sync().iter().filter(|id| **id != leaving);
        let has_all = |id: &ReplicaId| self.progress.of(*id).seq >= must_have;
        let floor = if mutated!(StrictShrinksBelowD) { 1 } else { self.shrink_floor };
        let is_large = rest().count() >= floor;
        // Without the second no one could leave once two are lost.
        let is_safe = |id: &ReplicaId| has_all(id) || self.is_lost(*id);
        is_large && (rest().all(is_safe) || mutated!(ShrinkUnchecked))
    }
}
