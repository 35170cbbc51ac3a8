//! What copies of a tablet say to each other, to the wire and back.

use crate::error::{ApiError, Reason};
use crate::v1;
use crate::v1::replica_message::Message;
use bytes::Bytes;
use ebla_kernel::entry::Entry;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{
    Attempt, DiskGeneration, Epoch, Generation, Pos, ReplicaId, Seq, ServerRun, TabletId,
};
use ebla_kernel::tablet::{PeerInput, PeerMessage, PeerRun};

/// Between whom a message goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// The tablet.
    pub tablet: TabletId,
    /// The copy that speaks.
    pub from: ReplicaId,
    /// The copy that is meant.
    pub to: ReplicaId,
    /// The speaker's data directory.
    pub generation: DiskGeneration,
    /// The epoch that the message is about.
    pub epoch: Epoch,
}

impl Envelope {
    fn close(self, message: Message) -> v1::ReplicaMessage {
        v1::ReplicaMessage {
            tablet_id: self.tablet.0,
            from_replica_id: self.from.0,
            to_replica_id: self.to.0,
            disk_generation: self.generation.0,
            epoch: self.epoch.0,
            message: Some(message),
        }
    }
}

/// Entries for a copy, as bytes that are encoded already.
#[must_use]
pub fn append_to_wire(envelope: Envelope, prev: Pos, entries: Vec<Bytes>, q: Pos) -> v1::ReplicaMessage {
    envelope.close(Message::Append(v1::ReplicaAppend {
        entries,
        q_epoch: q.epoch.0,
        q_seq: q.seq.0,
        prev_epoch: prev.epoch.0,
        prev_seq: prev.seq.0,
    }))
}

/// Anything for a copy.
#[must_use]
pub fn message_to_wire(envelope: Envelope, message: &PeerMessage) -> v1::ReplicaMessage {
    match message {
        PeerMessage::Probe => envelope.close(Message::Probe(v1::ReplicaProbe {})),
        PeerMessage::Hello { end, epochs } => {
            let start =
                |(epoch, first): &(Epoch, Seq)| v1::EpochStartAt { epoch: epoch.0, first_seq: first.0 };
            let epochs = epochs.iter().map(start).collect();
            envelope.close(Message::Hello(v1::ReplicaHello {
                end_epoch: end.epoch.0,
                end_seq: end.seq.0,
                epochs,
            }))
        }
        PeerMessage::Append { prev, entries, q } => {
            append_to_wire(envelope, *prev, entries.iter().map(|entry| entry.encode().into()).collect(), *q)
        }
        PeerMessage::Ack { pos, q, ready } => envelope.close(Message::Ack(v1::ReplicaAck {
            epoch: pos.epoch.0,
            seq: pos.seq.0,
            q_seq: q.0,
            ready_attempt: ready.0,
        })),
        PeerMessage::Refuse => envelope.close(Message::Refusal(v1::ReplicaRefusal {})),
        PeerMessage::CloseWanted { ts } => {
            envelope.close(Message::CloseWanted(v1::ReplicaCloseWanted { ts: ts.0 }))
        }
    }
}

/// A message of `run`'s copy, and whom it is for.
///
/// # Errors
/// `BAD_REQUEST` for an empty message, or for entries that cannot be read.
pub fn peer_input(
    wire: v1::ReplicaMessage,
    run: ServerRun,
) -> Result<(TabletId, ReplicaId, PeerInput), ApiError> {
    let message = match wire.message {
        Some(Message::Probe(_)) => PeerMessage::Probe,
        Some(Message::Hello(hello)) => PeerMessage::Hello {
            end: Pos::new(Epoch(hello.end_epoch), Seq(hello.end_seq)),
            epochs: hello.epochs.iter().map(|at| (Epoch(at.epoch), Seq(at.first_seq))).collect(),
        },
        Some(Message::Append(append)) => PeerMessage::Append {
            prev: Pos::new(Epoch(append.prev_epoch), Seq(append.prev_seq)),
            entries: append.entries.iter().map(read_entry).collect::<Result<_, _>>()?,
            q: Pos::new(Epoch(append.q_epoch), Seq(append.q_seq)),
        },
        Some(Message::Ack(ack)) => PeerMessage::Ack {
            pos: Pos::new(Epoch(ack.epoch), Seq(ack.seq)),
            q: Seq(ack.q_seq),
            ready: Attempt(ack.ready_attempt),
        },
        Some(Message::Refusal(_)) => PeerMessage::Refuse,
        Some(Message::CloseWanted(wanted)) => PeerMessage::CloseWanted { ts: Hlc(wanted.ts) },
        None => {
            let hint = "a message between copies is empty: both servers must run versions that fit together";
            return Err(ApiError::new(Reason::BadRequest, hint));
        }
    };
    let generation = Generation::Disk(DiskGeneration(wire.disk_generation));
    let (from, epoch) = (ReplicaId(wire.from_replica_id), Epoch(wire.epoch));
    let input = PeerInput { from, run: PeerRun { server: run, generation }, epoch, message };
    Ok((TabletId(wire.tablet_id), ReplicaId(wire.to_replica_id), input))
}

fn read_entry(bytes: &Bytes) -> Result<Entry, ApiError> {
    Entry::decode(bytes).map_err(|error| ApiError::new(Reason::BadRequest, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::entry::{LogEnd, Payload};
    use ebla_kernel::ids::{Attempt, Incarnation, ServerId};

    #[test]
    fn messages_survive_the_wire() {
        let entry = LogEnd::default().follow(Epoch(2), Hlc(9), Payload::Close);
        let pos = Pos::new(Epoch(2), Seq(1));
        let messages = [
            PeerMessage::Probe,
            PeerMessage::Hello { end: pos, epochs: vec![(Epoch(1), Seq(1)), (Epoch(2), Seq(7))] },
            PeerMessage::Append { prev: Pos::new(Epoch(1), Seq(4)), entries: vec![entry], q: pos },
            PeerMessage::Append { prev: Pos::ZERO, entries: Vec::new(), q: Pos::ZERO },
            PeerMessage::Ack { pos, q: Seq(3), ready: Attempt(4) },
            PeerMessage::Refuse,
            PeerMessage::CloseWanted { ts: Hlc(8) },
        ];
        let run = ServerRun { server: ServerId(4), incarnation: Incarnation(5) };
        let envelope = Envelope {
            tablet: TabletId(1),
            from: ReplicaId(2),
            to: ReplicaId(3),
            generation: DiskGeneration(6),
            epoch: Epoch(7),
        };
        for message in messages {
            let wire = message_to_wire(envelope, &message);
            let generation = Generation::Disk(DiskGeneration(6));
            let input = PeerInput {
                from: ReplicaId(2),
                run: PeerRun { server: run, generation },
                epoch: Epoch(7),
                message,
            };
            assert_eq!(peer_input(wire, run), Ok((TabletId(1), ReplicaId(3), input)));
        }
    }

    #[test]
    fn garbage_is_refused() {
        let run = ServerRun { server: ServerId(4), incarnation: Incarnation(5) };
        assert!(peer_input(v1::ReplicaMessage::default(), run).is_err());
        let append = v1::ReplicaAppend { entries: vec![Bytes::from_static(b"\x01x")], ..Default::default() };
        let wire = v1::ReplicaMessage { message: Some(Message::Append(append)), ..Default::default() };
        assert!(peer_input(wire, run).is_err());
    }
}
