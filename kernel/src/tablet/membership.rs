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
use std::collections::BTreeSet;

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
        if leader.proposal.as_ref().is_some_and(|(proposal, _)| proposal.version == version) {
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
                effects.push(Effect::ProposeInSync(proposal.clone()));
            }
            return;
        }
        let change = leader.wanted_change(context, own).filter(|change| !(change.add && is_merging));
        let Some(change) = change else { return };
        let first = change.replicas.first().filter(|_| change.replicas.len() == 1);
        let run = first.and_then(|first| leader.peers.get(first)).and_then(|peer| peer.run);
        let (epoch, version) = (leader.epoch, leader.progress.version());
        let proposal = Proposal { epoch, version, change: change.clone(), run };
        leader.progress.propose(change);
        leader.proposal = Some((proposal.clone(), now.plus_ms(PROPOSAL_RETRY_MS)));
        self.tell_lease_terms(effects);
        effects.push(Effect::ProposeInSync(proposal));
    }
}

impl Leader {
    fn wanted_change(&self, context: Context<'_>, own: ReplicaId) -> Option<Change> {
        self.wanted_leave(context, own).or_else(|| self.wanted_join(context))
    }

    /// Who is to leave: one of them, or, where none may go alone because others lack as much, all.
    fn wanted_leave(&self, context: Context<'_>, own: ReplicaId) -> Option<Change> {
        let is_wanted = |id: &ReplicaId| match self.peers.get(id) {
            // A member whose copy is gone for good has no peer: its server holds nothing of it.
            None => true,
            Some(peer) => peer.is_silent || peer.lags(context.now, self.bytes) || self.leaving == Some(*id),
        };
        let members = self.progress.in_sync().iter().filter(|id| **id != own);
        let wanted: BTreeSet<ReplicaId> = members.copied().filter(is_wanted).collect();
        let (gone, here): (Vec<_>, Vec<_>) = wanted.iter().partition(|id| self.is_lost(**id));
        let alone = gone.into_iter().chain(here).map(|id: &ReplicaId| BTreeSet::from([*id]));
        let mut leaves = alone.chain([wanted.clone()]).filter(|leaving| !leaving.is_empty());
        let replicas = leaves.find(|leaving| self.may_leave(leaving))?;
        Some(Change { replicas, add: false })
    }

    fn wanted_join(&self, context: Context<'_>) -> Option<Change> {
        let joins = |(id, peer): &(&ReplicaId, &Peer)| {
            let may_come = !self.progress.in_sync().contains(id) && self.leaving != Some(**id);
            let is_wanted = may_come && peer.rejoins_at <= context.now;
            // A member that has promised nothing yet would count as unreachable.
            is_wanted
                && !peer.lags(context.now, self.bytes)
                && self.may_join(**id, peer)
                && self.is_live(context, **id)
        };
        let (id, _) = self.peers.iter().find(joins)?;
        Some(Change { replicas: [*id].into(), add: true })
    }

    /// Whether the rest of the set has all that it must have, and is large enough (m9).
    fn may_leave(&self, leaving: &BTreeSet<ReplicaId>) -> bool {
        let must_have = self.must_have();
        let rest = || self.progress.in_sync().iter().filter(|id| !leaving.contains(*id));
        let has_all = |id: &ReplicaId| self.progress.of(*id).seq >= must_have;
        let floor = if mutated!(StrictShrinksBelowD) { 1 } else { self.shrink_floor };
        let is_large = rest().count() >= floor;
        // Without the second no one could leave once two are lost.
        let is_safe = |id: &ReplicaId| has_all(id) || self.is_lost(*id);
        is_large && (rest().all(is_safe) || mutated!(ShrinkUnchecked))
    }
}
