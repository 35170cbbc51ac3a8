//! Questions that leaders ask of copies which are not here yet. A copy that is about to come, a
//! child of a split above all, answers when it is there, and its leader need not ask again. A
//! question creates nothing: it waits for exactly the replica that it names, for a moment.

use crate::limits::{EARLY_PROBES_MAX, EARLY_PROBES_MS};
use ebla_kernel::ids::{ReplicaId, TabletId, Tick};
use ebla_kernel::tablet::{PeerInput, PeerMessage};
use std::collections::HashMap;

/// The latest question for each replica.
#[derive(Default)]
pub(super) struct EarlyProbes {
    kept: HashMap<(TabletId, ReplicaId), (Tick, PeerInput)>,
}

impl EarlyProbes {
    /// Keeps a question; any other message for a copy that is not here means nothing.
    pub(super) fn keep(&mut self, now: Tick, to: (TabletId, ReplicaId), said: PeerInput) {
        if said.message != PeerMessage::Probe {
            return;
        }
        if self.kept.len() >= EARLY_PROBES_MAX {
            self.kept.retain(|_, (since, _)| now.ms_since(*since) < EARLY_PROBES_MS);
        }
        if self.kept.len() < EARLY_PROBES_MAX {
            self.kept.insert(to, (now, said));
        }
    }

    /// The question that waited for a replica.
    pub(super) fn take(&mut self, now: Tick, to: (TabletId, ReplicaId)) -> Option<PeerInput> {
        let (since, said) = self.kept.remove(&to)?;
        (now.ms_since(since) < EARLY_PROBES_MS).then_some(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::ids::{DiskGeneration, Epoch, Generation, Incarnation, ServerId, ServerRun};
    use ebla_kernel::tablet::PeerRun;

    fn said(message: PeerMessage) -> PeerInput {
        let server = ServerRun { server: ServerId(1), incarnation: Incarnation(1) };
        let run = PeerRun { server, generation: Generation::Disk(DiskGeneration(1)) };
        PeerInput { from: ReplicaId(1), run, epoch: Epoch(2), message }
    }

    #[test]
    fn a_question_waits_a_moment_for_exactly_its_replica() {
        let mut early = EarlyProbes::default();
        let to = (TabletId(1), ReplicaId(2));
        early.keep(Tick(0), to, said(PeerMessage::Probe));
        assert!(early.take(Tick(1), (TabletId(1), ReplicaId(3))).is_none());
        assert!(early.take(Tick(1), to).is_some());
        assert!(early.take(Tick(1), to).is_none());
        early.keep(Tick(0), to, said(PeerMessage::Probe));
        assert!(early.take(Tick(0).plus_ms(EARLY_PROBES_MS), to).is_none());
        early.keep(Tick(0), to, said(PeerMessage::Refuse));
        assert!(early.take(Tick(0), to).is_none());
    }

    #[test]
    fn questions_are_bounded_and_old_ones_make_room() {
        let mut early = EarlyProbes::default();
        for replica in 0..=EARLY_PROBES_MAX as u64 {
            early.keep(Tick(0), (TabletId(1), ReplicaId(replica)), said(PeerMessage::Probe));
        }
        assert_eq!(early.kept.len(), EARLY_PROBES_MAX);
        let later = Tick(0).plus_ms(EARLY_PROBES_MS);
        early.keep(later, (TabletId(2), ReplicaId(1)), said(PeerMessage::Probe));
        assert_eq!(early.kept.len(), 1);
    }
}
