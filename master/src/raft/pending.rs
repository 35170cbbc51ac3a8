//! Callers that wait for the group: proposals for their commit, reads for their index.

use crate::limits::PROPOSALS_MAX;
use ebla_kernel::meta::Reply;
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// Why the group did not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// This master does not lead; nothing was proposed.
    #[error("this master does not lead")]
    NotLeader,
    /// Too much waits already; nothing was proposed.
    #[error("too many requests wait for the metadata log")]
    Overloaded,
    /// Leadership was lost while the command was under way: it may take effect or not.
    #[error("leadership moved while the command was under way")]
    Lost,
    /// The master is stopping.
    #[error("this master is stopping")]
    Stopped,
}

/// Where a proposal's answer goes.
pub(crate) type ReplySender = oneshot::Sender<Result<Reply, NoAnswer>>;
/// Where a read's answer goes.
pub(crate) type ReadSender = oneshot::Sender<Result<(), NoAnswer>>;

/// Proposals by the name that their entry carries.
#[derive(Default)]
pub(super) struct Proposals {
    run: u64,
    last: u64,
    waiting: BTreeMap<u64, ReplySender>,
}

impl Proposals {
    /// `run` tells the names of this process from those of an earlier one.
    pub fn new(run: u64) -> Self {
        Self { run, ..Self::default() }
    }

    pub fn is_full(&self) -> bool {
        self.waiting.len() >= PROPOSALS_MAX
    }

    /// A new name for an entry.
    pub fn name(&mut self) -> (u64, Vec<u8>) {
        self.last += 1;
        let mut context = self.run.to_be_bytes().to_vec();
        context.extend_from_slice(&self.last.to_be_bytes());
        (self.last, context)
    }

    pub fn wait(&mut self, name: u64, reply: ReplySender) {
        self.waiting.insert(name, reply);
    }

    /// Who waits for the entry with this context, if it is one of this process.
    pub fn take(&mut self, context: &[u8]) -> Option<ReplySender> {
        let (run, name) = context.split_at_checked(8)?;
        let name: [u8; 8] = name.try_into().ok()?;
        (run == self.run.to_be_bytes()).then(|| self.waiting.remove(&u64::from_be_bytes(name)))?
    }

    pub fn fail_all(&mut self, why: NoAnswer) {
        for (_, reply) in std::mem::take(&mut self.waiting) {
            let _ = reply.send(Err(why));
        }
    }
}

/// A read that waits for the group to confirm its leader, then for the state to catch up.
struct Read {
    reply: ReadSender,
    asked_tick: u64,
    index: Option<u64>,
}

/// Reads by the name under which they were asked.
#[derive(Default)]
pub(super) struct Reads {
    last: u64,
    waiting: BTreeMap<u64, Read>,
}

impl Reads {
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= PROPOSALS_MAX
    }

    /// Takes a read in and gives the name to ask under.
    pub fn add(&mut self, tick: u64, reply: ReadSender) -> Vec<u8> {
        self.last += 1;
        self.waiting.insert(self.last, Read { reply, asked_tick: tick, index: None });
        self.last.to_be_bytes().to_vec()
    }

    /// The group confirmed the leader at `index`.
    pub fn confirm(&mut self, context: &[u8], index: u64) {
        let name = <[u8; 8]>::try_from(context).map(u64::from_be_bytes);
        if let Some(read) = name.ok().and_then(|name| self.waiting.get_mut(&name)) {
            read.index = Some(index);
        }
    }

    /// Answers every read that the state has caught up with.
    pub fn answer(&mut self, applied: u64) {
        let ready = |read: &Read| read.index.is_some_and(|index| index <= applied);
        for (_, read) in self.waiting.extract_if(.., |_, read| ready(read)) {
            let _ = read.reply.send(Ok(()));
        }
    }

    /// Names that were asked at or before `tick` without an answer; they count as asked `now`.
    pub fn overdue(&mut self, tick: u64, now: u64) -> Vec<Vec<u8>> {
        self.waiting.retain(|_, read| !read.reply.is_closed());
        let overdue =
            self.waiting.iter_mut().filter(|(_, read)| read.index.is_none() && read.asked_tick <= tick);
        overdue
            .map(|(name, read)| {
                read.asked_tick = now;
                name.to_be_bytes().to_vec()
            })
            .collect()
    }

    pub fn fail_all(&mut self, why: NoAnswer) {
        for (_, read) in std::mem::take(&mut self.waiting) {
            let _ = read.reply.send(Err(why));
        }
    }
}
