//! What cores want done, done: the one place where effects are carried out.

use super::disk::RegistryChange;
use super::env::Env;
use super::network::{Address, FenceAnswers, Message};
use super::server::{Internal, Server};
use crate::invariants::Observation;
use ebla_kernel::ids::TabletId;
use ebla_kernel::lease::LeaseTerms;
use ebla_kernel::meta;
use ebla_kernel::tablet::{Effect, Proposal};

impl Server {
    pub(super) fn execute(&mut self, env: &mut Env, id: TabletId, effect: Effect) {
        let index = self.index;
        match effect {
            Effect::Stage { seal, end } => {
                env.say(|| format!("server {index} {id} stages {} at {}", seal.attempt, end.pos));
                self.write_registry(env, RegistryChange::Staged(id, Some((seal, end))));
            }
            Effect::Unstage => self.write_registry(env, RegistryChange::Staged(id, None)),
            Effect::ProposeSplit(proposal) => self.propose_split(env, id, proposal),
            Effect::Except { tablet, to, epoch } => {
                let Some(run) = &mut self.run else { return };
                run.pledges.promiser.except(to, tablet, epoch);
            }
            Effect::PersistPromise { epoch } => self.write_registry(env, RegistryChange::Promise(id, epoch)),
            Effect::AnswerFence(answer) => {
                env.say(|| {
                    format!("server {index} {id} answers fence {}, end {}", answer.epoch, answer.end.pos)
                });
                env.observe(&Observation::FenceAnswered { tablet: id, server: index, answer });
                self.answer_fence(env, id, answer);
            }
            Effect::Append { entry, when } => self.append_own(env, id, entry, when),
            Effect::AppendCopies { entries } => self.append_copies(env, id, entries),
            Effect::Apply { upto } => self.apply_upto(env, id, upto),
            Effect::Stream(stream) => self.stream(env, id, stream),
            Effect::Send { to, epoch, message } => self.send(env, id, to, epoch, message),
            Effect::Locate { seq } => {
                let delay = env.rng.between((10, 1_000));
                self.after(env, delay, Internal::Located(id, seq));
            }
            Effect::Truncate { keep } => self.truncate(env, id, keep),
            Effect::Diverged { at, .. } => self.diverged(env, id, at),
            Effect::ProposeInSync(proposal) => self.propose(env, id, proposal),
            Effect::Lease(terms) => {
                let Some(run) = &mut self.run else { return };
                if let Some(copy) = run.copies.get_mut(&id) {
                    copy.terms = terms;
                }
            }
            Effect::Serve { epoch } => {
                env.leases_changed = true;
                env.say(|| format!("server {index} {id} serves {epoch}"));
            }
            Effect::StopServing { epoch, successor } => {
                env.say(|| format!("server {index} {id} stops serving {epoch}"));
                let Some(run) = &mut self.run else { return };
                run.gave_up.insert(id, (epoch, successor));
                if let Some(copy) = run.copies.get_mut(&id) {
                    copy.terms = LeaseTerms::default();
                }
                self.report_given_up(env);
            }
            Effect::Reply { request, answer } => self.answer(env, request, answer),
        }
    }

    /// A copy that disagrees below what was safe. It happens only after an election with too
    /// few answers; otherwise somebody has lied.
    fn diverged(&self, env: &mut Env, id: TabletId, at: ebla_kernel::ids::Pos) {
        if !env.watch.is_excused(id) {
            let detail = format!("{id} on server {} would have to cut {at}, which was safe", self.index);
            env.watch.fail("nothing safe is cut", &detail);
        }
    }

    fn propose(&mut self, env: &mut Env, id: TabletId, proposal: Proposal) {
        let Some(run) = self.server_run() else { return };
        let index = self.index;
        env.say(|| format!("server {index} {id} proposes {proposal:?}"));
        env.send(self.address(), Address::Meta, Message::Propose { run, proposals: vec![(id, proposal)] });
    }

    fn answer_fence(&mut self, env: &mut Env, id: TabletId, answer: ebla_kernel::tablet::FenceAnswer) {
        let Some(run) = &self.run else { return };
        let (Some((server, incarnation)), Some(copy)) = (run.identity, run.copies.get(&id)) else {
            return;
        };
        let answer = meta::FenceAnswer {
            tablet: id,
            replica: copy.core.replica(),
            epoch: answer.epoch,
            end: answer.end.pos,
            ts_max: answer.end.ts,
            disk_generation: self.disk.generation,
        };
        let answers = FenceAnswers { server, incarnation, answers: vec![answer] };
        env.send(self.address(), Address::Meta, Message::FenceAnswers(answers));
    }
}
