//! The metadata of the world: one node that never crashes, whose commands may be lost on the
//! way, and whose leader may forget everything that it did not put into the log.

use super::world::World;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{
    Attempt, ConfigVersion, DiskGeneration, Epoch, Generation, Incarnation, ReplicaId, ServerId, ServerRun,
    TabletId,
};
use ebla_kernel::meta::{
    self, Command, Control, Effect, Fence, InSyncChange, Input, Parent, RegisterServer, Reply, SealOrder,
    SplitCommit, State, apply,
};
use ebla_kernel::range::KeyRange;
use ebla_kernel::tablet::{Membership, PeerRun, Proposal, SplitProposal};

/// What goes to a server in its session, in order.
#[derive(Clone, Debug)]
pub enum Down {
    Fences(Vec<Fence>),
    Assign { full: bool, assigned: Vec<Assigned>, removed: Vec<TabletId> },
    Seal(SealOrder),
    Transfer(TabletId, Epoch, ReplicaId),
    InSyncRefused(TabletId, Epoch, ConfigVersion),
    SplitRefused(TabletId, Epoch, Attempt),
}

/// What metadata says of a server's copy.
#[derive(Clone, Debug)]
pub struct Assigned {
    pub tablet: TabletId,
    pub range: KeyRange,
    pub replica: ReplicaId,
    pub epoch: Epoch,
    pub leader: Option<(ReplicaId, ServerRun)>,
    pub membership: Membership,
    pub min_in_sync: u8,
    pub appointed_ts: Hlc,
    pub parents: Vec<Parent>,
    pub aborted: Attempt,
}

/// The state, the core that leads, and what is on its way to the log.
#[derive(Default)]
pub struct Metadata {
    pub state: State,
    pub control: Control,
    pub proposed: Vec<(Command, Waits)>,
}

/// Who waits for a command.
#[derive(Clone, Debug)]
pub enum Waits {
    Nobody,
    InSync(ServerRun, TabletId, Proposal),
    Split(ServerRun, Vec<(TabletId, Epoch)>, Attempt),
}

impl World {
    /// Registers the process of a server, which then begins.
    pub fn register(&mut self, at: usize) {
        self.boot += 1;
        let command = Command::RegisterServer(RegisterServer {
            cluster_id: None,
            server_id: None,
            disk_generation: DiskGeneration(100 * (at as u64 + 1)),
            boot_id: self.boot,
            starts: self.boot,
            address: "h:1".to_owned(),
            zone: String::new(),
            time_ms: 0,
        });
        if let Reply::Registered(registered) = self.apply(command) {
            let now = self.now;
            self.servers[at].start(now, registered.server.incarnation);
            self.connect(at);
        }
    }

    /// Opens a session, or opens it anew: what was on its way is lost.
    pub fn connect(&mut self, at: usize) {
        let server = &mut self.servers[at];
        server.inbox.clear();
        server.is_connected = true;
        let (server, incarnation) = (ServerId(server.number), server.incarnation);
        self.control(Input::SessionOpened { server, incarnation });
        self.tell_given_up(at);
    }

    /// What ended here without a successor in sight is said again in a new session.
    fn tell_given_up(&mut self, at: usize) {
        let server = &self.servers[at];
        let gave_up = |(id, core): (&TabletId, &super::server::Core)| {
            let (epoch, successor) = core.gave_up?;
            Some(meta::GaveUp { tablet: *id, epoch, successor })
        };
        let epochs: Vec<_> = server.cores.iter().filter_map(gave_up).collect();
        if !epochs.is_empty() {
            let server = ServerId(server.number);
            self.control(Input::GaveUp { server, epochs });
        }
    }

    pub fn propose(&mut self, command: Command, waits: Waits) {
        self.meta.proposed.push((command, waits));
    }

    /// One of the proposed commands reaches the log.
    pub fn commit_one(&mut self) {
        if self.meta.proposed.is_empty() {
            return;
        }
        let at = self.chance.below(self.meta.proposed.len());
        let (command, waits) = self.meta.proposed.remove(at);
        if self.is_faulty && self.chance.per_mille(100) {
            return;
        }
        let reply = self.apply(command);
        match (waits, reply) {
            (Waits::InSync(run, tablet, proposal), Reply::InSync(results))
                if results.iter().any(Result::is_err) =>
            {
                self.refuse_in_sync(run, tablet, proposal);
            }
            (Waits::Split(run, tablets, attempt), Reply::Rejected(why)) => {
                self.say(|| format!("meta refuses {attempt} of {tablets:?}: {why}"));
                for (tablet, epoch) in tablets {
                    self.send_down(run, Down::SplitRefused(tablet, epoch, attempt));
                }
            }
            _ => {}
        }
    }

    fn refuse_in_sync(&mut self, run: ServerRun, tablet: TabletId, proposal: Proposal) {
        let record = self.meta.state.tablet(tablet);
        let Proposal { epoch, version, .. } = proposal;
        let same = record.is_some_and(|record| (record.epoch, record.config_version) == (epoch, version));
        if same {
            self.send_down(run, Down::InSyncRefused(tablet, epoch, version));
        } else if let Some(assigned) = self.assigned(tablet, run.server) {
            let (full, removed) = (false, Vec::new());
            self.send_down(run, Down::Assign { full, assigned: vec![assigned], removed });
        }
    }

    fn send_down(&mut self, run: ServerRun, message: Down) {
        let server = self.servers.iter_mut().find(|server| server.run() == run);
        if let Some(server) = server.filter(|server| server.is_connected) {
            server.inbox.push_back(message);
        }
    }

    pub fn apply(&mut self, command: Command) -> Reply {
        let index = self.meta.state.applied() + 1;
        self.say(|| format!("meta applies {command:?}"));
        let (reply, changes) = apply(&mut self.meta.state, index, command);
        self.control(Input::Applied(changes));
        reply
    }

    pub fn control(&mut self, input: Input) {
        let mut effects = Vec::new();
        let now = self.now;
        self.meta.control.step(now, &self.meta.state, input, &mut effects);
        for effect in effects {
            self.carry_out_meta(effect);
        }
    }

    fn carry_out_meta(&mut self, effect: Effect) {
        let (server, message) = match effect {
            Effect::Propose(command) => return self.propose(command, Waits::Nobody),
            Effect::SendFences { server, fences } => (server, Down::Fences(fences)),
            Effect::SendAssignments { server, full, tablets, removed } => {
                let assigned = tablets.iter().filter_map(|id| self.assigned(*id, server)).collect();
                (server, Down::Assign { full, assigned, removed })
            }
            Effect::SendSeal { server, order } => (server, Down::Seal(order)),
            Effect::SendTransfer { server, tablet, epoch, replica } => {
                (server, Down::Transfer(tablet, epoch, replica))
            }
            Effect::EndSession { server } => {
                let server = &mut self.servers[usize::try_from(server.0).expect("small") - 1];
                server.is_connected = false;
                return;
            }
        };
        let run = self.servers[usize::try_from(server.0).expect("small") - 1].run();
        self.send_down(run, message);
    }

    fn assigned(&self, id: TabletId, server: ServerId) -> Option<Assigned> {
        let state = &self.meta.state;
        let tablet = state.tablet(id)?;
        let replica = tablet.replica_on(server)?;
        let run =
            |leader: &meta::Leader| ServerRun { server: leader.server, incarnation: leader.incarnation };
        Some(Assigned {
            tablet: id,
            range: tablet.range.clone(),
            replica: replica.id,
            epoch: tablet.epoch,
            leader: tablet.leader.as_ref().map(|leader| (leader.replica, run(leader))),
            membership: Membership {
                version: tablet.config_version,
                in_sync: tablet.in_sync.clone(),
                members: tablet.replicas.iter().map(|replica| (replica.id, replica.server)).collect(),
                leaving: tablet.leaving(),
            },
            min_in_sync: state.table(tablet.table)?.spec.min_in_sync,
            appointed_ts: tablet.appointed_ts,
            parents: tablet.parents.clone(),
            aborted: tablet.aborted,
        })
    }

    pub fn propose_in_sync(&mut self, at: usize, id: TabletId, proposal: Proposal) {
        let run = self.servers[at].run();
        let nobody = (Incarnation(0), Generation::Disk(DiskGeneration(0)));
        let of = |run: PeerRun| (run.server.incarnation, run.generation);
        let (incarnation, generation) = proposal.run.map_or(nobody, of);
        let change = InSyncChange {
            tablet: id,
            epoch: proposal.epoch,
            config_version: proposal.version,
            replicas: proposal.change.replicas.clone(),
            add: proposal.change.add,
            incarnation,
            generation,
        };
        let proposer = (run.server, run.incarnation);
        let command = Command::AlterInSync { proposer, changes: vec![change] };
        self.propose(command, Waits::InSync(run, id, proposal));
    }

    pub fn propose_split(&mut self, at: usize, id: TabletId, proposal: SplitProposal) {
        let run = self.servers[at].run();
        let own = self.servers[at].peer_run().generation;
        let ready = proposal.ready.iter().map(|(id, run)| (*id, run.map_or(own, |run| run.generation)));
        let (epoch, attempt) = (proposal.epoch, proposal.attempt);
        let commit = SplitCommit { tablet: id, attempt, epoch, seal: proposal.seal, ready: ready.collect() };
        let proposer = (run.server, run.incarnation);
        let commits = self.meta.control.take_commit(&self.meta.state, proposer, commit);
        if commits.is_empty() {
            return;
        }
        let tablets = commits.iter().map(|commit| (commit.tablet, commit.epoch)).collect();
        let command = Command::CommitSplit { proposer, commits, time_ms: self.now.0 };
        self.propose(command, Waits::Split(run, tablets, attempt));
    }
}
