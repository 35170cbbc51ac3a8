//! What copies say to each other, on one stream for each pair of servers.

use super::env::Env;
use super::network::{Address, Message};
use super::server::{Internal, Server, Timed};
use crate::invariants::Observation;
use ebla_kernel::entry::Entry;
use ebla_kernel::ids::{Epoch, ReplicaId, Seq, TabletId};
use ebla_kernel::tablet::{Input, PeerInput, PeerMessage, PeerRun, Stream};

impl Server {
    /// Another copy says something to one that is here.
    pub(super) fn peer(&mut self, env: &mut Env, id: TabletId, to: ReplicaId, input: PeerInput) {
        self.hear(env, input.run.server);
        let Some(run) = &mut self.run else { return };
        let Some(copy) = run.copies.get_mut(&id).filter(|copy| copy.core.replica() == to) else { return };
        match &input.message {
            PeerMessage::CloseWanted { ts } => self.timed(env, Timed::Close(id, *ts)),
            PeerMessage::Append { .. } => {
                copy.by = input.epoch;
                self.step(env, id, Input::Peer(input));
            }
            PeerMessage::Probe
            | PeerMessage::Hello { .. }
            | PeerMessage::Ack { .. }
            | PeerMessage::Refuse => {
                self.step(env, id, Input::Peer(input));
            }
        }
    }

    /// Entries for a copy, as many as fit.
    pub(super) fn stream(&mut self, env: &mut Env, id: TabletId, stream: Stream) {
        let Stream { to, epoch, prev, from, upto, q } = stream;
        let most = env.profile.frame_entries_max;
        let entries: Option<Vec<Entry>> = self.entries(id, from, upto, most);
        let Some(entries) = entries else {
            let is_purged = self.disk.log.tablet(id).is_some_and(|log| from < log.first());
            let failed = if is_purged { Input::Purged { to } } else { Input::StreamFailed { to } };
            self.step(env, id, failed);
            return;
        };
        let sent = entries.last().map_or(Seq(from.0 - 1), Entry::seq);
        self.send(env, id, to, epoch, PeerMessage::Append { prev, entries, q });
        let delay = env.rng.between((1, 200));
        self.after(env, delay, Internal::Sent(id, to, sent));
    }

    /// Entries of the log, durable or on their way there; none if they are gone.
    fn entries(&self, id: TabletId, from: Seq, upto: Seq, most: usize) -> Option<Vec<Entry>> {
        let copy = self.run.as_ref()?.copies.get(&id)?;
        let log = self.disk.log.tablet(id);
        let mut entries = Vec::new();
        let mut seq = from;
        while seq <= upto && entries.len() < most {
            let durable = log.and_then(|log| log.get(seq));
            let tail = || copy.tail.iter().find(|entry| entry.seq() == seq);
            let entry = durable.or_else(tail)?;
            entries.push(Entry::clone(entry));
            seq = seq.next();
        }
        Some(entries)
    }

    /// Something for another copy. If it is lost the stream has broken.
    pub(super) fn send(
        &mut self,
        env: &mut Env,
        id: TabletId,
        to: ReplicaId,
        epoch: Epoch,
        message: PeerMessage,
    ) {
        let Some(server) = self.server_run() else { return };
        let Some(copy) = self.run.as_ref().and_then(|run| run.copies.get(&id)) else { return };
        let place = env.directory.route(id).and_then(|route| route.copies.get(&to)).copied();
        let Some(place) = place else { return };
        if let PeerMessage::Ack { pos, .. } = &message {
            let (tablet, server, pos) = (id, self.index, *pos);
            env.observe(&Observation::AckSent { tablet, server, epoch, pos });
        }
        let run = PeerRun { server, generation: copy.generation };
        let input = PeerInput { from: copy.core.replica(), run, epoch, message };
        let index = self.index;
        env.say(|| format!("server {index} {id} to {to} of {epoch}: {}", brief(&input.message)));
        let message = Message::Peer { tablet: id, to, input };
        if !env.send(self.address(), Address::Server(place), message) {
            self.broken(env, place);
        }
    }

    /// A stream has broken: it is opened again, once, whatever else is lost until then.
    fn broken(&mut self, env: &mut Env, place: usize) {
        if self.run.as_mut().is_some_and(|run| run.broken.insert(place)) {
            let delay = env.rng.between((20_000, 400_000));
            self.after(env, delay, Internal::Opened(place));
        }
    }

    /// A broken stream is opened, if it can be.
    pub(super) fn opened(&mut self, env: &mut Env, place: usize) {
        if let Some(run) = &mut self.run {
            run.broken.remove(&place);
        }
        self.connected(env, place);
    }

    /// A stream is open again; copies there may have missed something.
    pub(super) fn connected(&mut self, env: &mut Env, place: usize) {
        if env.network.is_cut((self.address(), Address::Server(place))) {
            self.broken(env, place);
            return;
        }
        let server = env.directory.servers.iter().find(|(_, index)| **index == place);
        let Some((server, _)) = server else { return };
        let server = *server;
        let Some(run) = &self.run else { return };
        let ids: Vec<TabletId> = run.copies.keys().copied().collect();
        ids.into_iter().for_each(|id| self.step(env, id, Input::Connected { server }));
    }
}

/// A message in a few words.
fn brief(message: &PeerMessage) -> String {
    match message {
        PeerMessage::Append { prev, entries, q } => {
            format!("{} entries after {prev}, q {q}", entries.len())
        }
        PeerMessage::Probe
        | PeerMessage::Hello { .. }
        | PeerMessage::Ack { .. }
        | PeerMessage::Refuse
        | PeerMessage::CloseWanted { .. } => format!("{message:?}"),
    }
}
