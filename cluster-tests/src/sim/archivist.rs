//! Whoever makes backups: the job as the masters' log knows it, the leading master that drives it
//! (`kernel::backup::run`), and the target where parts lie.
//!
//! ```text
//!  garbage is held ─▶ T, half a second ahead ─▶ T passes ─▶ orders, exports ─▶ every key once ─▶ made
//!                                                   ▲ a run of the metadata node that is new lists
//!                                                   └ the parts at the target and goes on
//! ```
//!
//! - Garbage is not collected for real: a floor rises, and whoever reads below it is shown what a
//!   collection would have left. The stores stay whole, as the other invariants want them.
//! - Chance here has a source of its own, and only some seeds have backups.

use super::clock::EPOCH_MS;
use super::env::{Env, Event};
use super::exporting::{Export, Step as ExportStep};
use super::fault::SpanUs;
use super::meta::MetaNode;
use super::rng::Rng;
use super::server::Server;
use super::world::World;
use crate::oracle::{Archived, ArchivedPart};
use ebla_kernel::backup::cover::check_cover;
use ebla_kernel::backup::run::{BackupRun, DonePart, Order, PartId};
use ebla_kernel::backup::site::map_of;
use ebla_kernel::backup::{Ended, Standing};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::limits::CLOCK_OFFSET_MS_MAX;
use ebla_kernel::mutated;
use ebla_kernel::range::KeyRange;
use std::collections::{BTreeMap, VecDeque};

/// How often everybody who has to do with backups looks around.
const TICK_US: u64 = 10_000;

/// The one table.
const TABLE: TableId = TableId(1);

/// What one seed's backups are like.
#[derive(Clone, Debug)]
pub struct BackupFaults {
    /// Their own source of chance.
    pub rng: Rng,
    /// Pause between two backups.
    pub every_us: SpanUs,
    /// How long an export takes, once nothing can follow any more.
    pub export_us: SpanUs,
    /// How long old versions are kept.
    pub retention_ms: u64,
    /// Of 1,000 backups, after how many garbage is held for an incremental one.
    pub held_pm: u64,
    /// Of 1,000 exports, how many servers lose power when nine tenths are done.
    pub kill_pm: u64,
    /// Of 1,000 exports, of how many the master never hears that they are done.
    pub unheard_pm: u64,
}

impl BackupFaults {
    /// The mixture of one seed.
    #[must_use]
    pub fn draw(mut rng: Rng) -> Self {
        Self {
            every_us: (10_000, 100_000 << rng.below(6)),
            export_us: (1_000, 20_000 << rng.below(7)),
            retention_ms: [20, 200, 2_000][rng.index(3)],
            held_pm: [300, 800][rng.index(2)],
            kill_pm: [0, 100, 300][rng.index(3)],
            unheard_pm: [0, 50][rng.index(2)],
            rng,
        }
    }
}

/// A step of a job that is a record of the metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The safe point.
    HoldGarbage,
    /// T.
    ChooseTime,
}

/// What the metadata knows of a backup under way.
#[derive(Debug)]
struct Job {
    parent: Option<usize>,
    asked_us: u64,
    /// Steps to be recorded.
    steps: VecDeque<Step>,
    /// The run of the metadata node that records the next one, and when it is there.
    recording: Option<(u64, u64)>,
    ts: Hlc,
    /// Whether garbage collection is to blame when versions are gone.
    is_held: bool,
}

/// Everything that has to do with backups, the servers' part excepted.
#[derive(Debug)]
pub struct Archivist {
    rng: Rng,
    clocks_agree: bool,
    /// Nothing below can be read any more.
    floor: Hlc,
    /// The floor does not pass this.
    held: Option<Hlc>,
    job: Option<Job>,
    /// The leading master's memory, and which run of the metadata node it is.
    run: Option<(u64, BackupRun)>,
    exports: Vec<Export>,
    /// What lies at the target for the backup under way.
    target: BTreeMap<PartId, ArchivedPart>,
    next_us: u64,
    /// Backups that must still be made, whether as an addition to the last one or in full; none:
    /// by chance, for ever.
    owed: Option<VecDeque<bool>>,
}

impl World {
    /// Everybody who has to do with backups does what is to be done.
    pub(super) fn back_up(&mut self) {
        let Some(archivist) = &mut self.archivist else { return };
        let victims = archivist.step(&mut self.env, &self.meta, &mut self.servers);
        victims.into_iter().for_each(|victim| self.crash(victim));
        self.env.after(TICK_US, Event::Backup);
    }
}

impl Archivist {
    /// Nobody has made a backup yet.
    #[must_use]
    pub fn new(env: &Env) -> Option<Self> {
        let faults = env.profile.backups.clone()?;
        let honest = env.profile.wall_jump_us.is_none() && env.profile.skew_ms_max < CLOCK_OFFSET_MS_MAX;
        Some(Self {
            rng: faults.rng,
            clocks_agree: honest,
            floor: Hlc::MIN,
            held: None,
            job: None,
            run: None,
            exports: Vec::new(),
            target: BTreeMap::new(),
            next_us: faults.every_us.0,
            owed: None,
        })
    }

    /// From now on one full backup is made, then one that adds to it, then none.
    pub fn close(&mut self) {
        self.owed = Some([false, true].into());
    }

    /// Whether everything that was to be made is made.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.job.is_none() && self.owed.as_ref().is_some_and(VecDeque::is_empty)
    }

    /// Servers that lose power now.
    fn step(&mut self, env: &mut Env, meta: &MetaNode, servers: &mut [Server]) -> Vec<usize> {
        let wall_ms = EPOCH_MS + env.now_us / 1_000;
        let retention_ms = env.profile.backups.as_ref().map_or(0, |faults| faults.retention_ms);
        let due = Hlc::new(wall_ms - retention_ms, 0);
        self.floor = self.floor.max(due.min(self.held.unwrap_or(Hlc::MAX)));
        let victims = self.serve(env, servers);
        match meta.run_number() {
            Some(number) => self.lead(env, meta, number),
            None => self.run = None,
        }
        victims
    }

    /// The leading master goes on with a job, or begins one.
    fn lead(&mut self, env: &mut Env, meta: &MetaNode, number: u64) {
        if self.run.as_ref().is_some_and(|(known, _)| *known != number) {
            self.run = None;
        }
        let Some(job) = &mut self.job else {
            self.begin(env, meta);
            return;
        };
        let Some(step) = job.steps.front().copied() else {
            self.export(env, meta, number);
            return;
        };
        match job.recording {
            Some((known, at_us)) if known == number => {
                if at_us <= env.now_us {
                    self.record(env, step);
                }
            }
            Some(_) | None => {
                let delay = self.rng.between(env.profile.disk.sync_us);
                job.recording = Some((number, env.now_us + delay));
            }
        }
    }

    fn begin(&mut self, env: &mut Env, meta: &MetaNode) {
        let is_there = meta.state().is_some_and(|state| state.table(TABLE).is_some());
        if env.now_us < self.next_us || !is_there {
            return;
        }
        let adds = match &mut self.owed {
            None => self.rng.chance(600),
            Some(owed) => match owed.front() {
                Some(adds) => *adds,
                None => return,
            },
        };
        let last = env.history.backups.len().checked_sub(1);
        let parent = last.filter(|_| adds);
        let since = parent.map(|parent| env.history.backups[parent].ts);
        let is_held = since.is_none_or(|since| self.held == Some(since));
        let mut steps: VecDeque<Step> = [Step::HoldGarbage, Step::ChooseTime].into();
        if mutated!(TimeBeforeSafePoint) {
            steps.swap(0, 1);
        }
        env.say(|| format!("somebody wants a backup that adds to {parent:?}"));
        let (asked_us, ts) = (env.now_us, Hlc::MIN);
        self.job = Some(Job { parent, asked_us, steps, recording: None, ts, is_held });
    }

    /// A step of the job is in the metadata.
    fn record(&mut self, env: &mut Env, step: Step) {
        let Some(job) = &mut self.job else { return };
        job.steps.pop_front();
        job.recording = None;
        let now_ms = EPOCH_MS + env.now_us / 1_000;
        match step {
            Step::HoldGarbage => {
                let since = job.parent.map(|parent| env.history.backups[parent].ts);
                self.held = Some(since.unwrap_or(Hlc::new(now_ms, 0)));
            }
            Step::ChooseTime => job.ts = Hlc::new(now_ms + CLOCK_OFFSET_MS_MAX, 0),
        }
        env.say(|| format!("the backup has taken the step {step:?}"));
    }

    /// Orders what is left to be exported, as soon as T has passed.
    fn export(&mut self, env: &mut Env, meta: &MetaNode, number: u64) {
        let (Some(job), Some(state)) = (&self.job, meta.state()) else { return };
        let (ts, now) = (job.ts, env.tick());
        if EPOCH_MS + env.now_us / 1_000 <= ts.ms() {
            return;
        }
        let since = job.parent.map_or(Hlc::MIN, |parent| env.history.backups[parent].ts);
        let (_, run) = self.run.get_or_insert_with(|| {
            let done = |(part, held): (&PartId, &ArchivedPart)| DonePart {
                part: *part,
                table: TABLE,
                range: held.range.clone(),
            };
            let done: Vec<DonePart> = self.target.iter().map(done).collect();
            (number, BackupRun::new(now, [(TABLE, since)], &done, PartId(number << 32)))
        });
        let map = map_of(state, [TABLE], &BTreeMap::new());
        let orders = run.plan(now, &map, &meta.usable());
        // What was given up is not heard any more.
        let running: Vec<PartId> = run.running().map(|order| order.part).collect();
        self.exports.retain(|export| export.master != number || running.contains(&export.order.part));
        let standing = run.standing(now);
        orders.into_iter().for_each(|order| self.send(env, order, ts, number));
        match standing {
            Standing::Running => {}
            Standing::Done => self.finish(env),
            Standing::GivenUp(reason) => self.give_up(env, &reason),
        }
    }

    fn send(&mut self, env: &mut Env, order: Order, ts: Hlc, master: u64) {
        let Some(server) = env.directory.servers.get(&order.server).copied() else { return };
        env.say(|| format!("server {server} is to export {order:?}"));
        let delay = self.rng.between(env.profile.network.delay_us);
        let outlives_master = self.rng.chance(500);
        self.exports.push(Export {
            order,
            ts,
            master,
            outlives_master,
            server,
            step: ExportStep::Comes { at_us: env.now_us + delay },
        });
    }

    /// Every key is at the target: the manifest is written, if they all are there once.
    fn finish(&mut self, env: &mut Env) {
        let (Some(job), Some((_, run))) = (self.job.take(), self.run.take()) else { return };
        let mut parts: Vec<ArchivedPart> = run.parts().filter_map(|part| self.target.remove(&part)).collect();
        parts.sort_by(|a, b| a.range.cmp(&b.range));
        if let Err(flaw) = check_cover(&KeyRange::all(), parts.iter().map(|part| &part.range)) {
            env.watch.fail("I14 a backup holds every key once", &format!("{flaw:?} in {parts:?}"));
        }
        let (ts, parent, asked_us, clocks_agree) = (job.ts, job.parent, job.asked_us, self.clocks_agree);
        env.say(|| format!("the backup at {ts} is made"));
        env.history.backups.push(Archived { ts, parent, asked_us, clocks_agree, parts });
        let held_pm = env.profile.backups.as_ref().map_or(0, |faults| faults.held_pm);
        let is_held = self.owed.is_some() || self.rng.chance(held_pm);
        self.held = is_held.then_some(ts);
        if let Some(owed) = &mut self.owed {
            owed.pop_front();
        }
        self.clear(env);
    }

    /// A backup comes to nothing. That may only be because nobody held garbage for it.
    fn give_up(&mut self, env: &mut Env, reason: &str) {
        let Some(job) = self.job.take() else { return };
        env.say(|| format!("the backup at {} is given up: {reason}", job.ts));
        if job.is_held {
            env.watch.fail("I14 what a backup needs is held", reason);
        }
        self.held = None;
        self.clear(env);
    }

    fn clear(&mut self, env: &Env) {
        self.run = None;
        self.target.clear();
        self.exports.clear();
        let every_us = env.profile.backups.as_ref().map_or((0, 0), |faults| faults.every_us);
        let pause = if self.owed.is_some() { 0 } else { self.rng.between(every_us) };
        self.next_us = env.now_us + pause;
    }

    /// Exports go on; gives the servers that lose power now.
    fn serve(&mut self, env: &mut Env, servers: &mut [Server]) -> Vec<usize> {
        let mut victims = Vec::new();
        let leads = self.run.as_ref().map(|(number, _)| *number);
        for mut export in std::mem::take(&mut self.exports) {
            let is_orphan = leads != Some(export.master);
            if is_orphan && !export.outlives_master {
                continue;
            }
            let server = &mut servers[export.server];
            let step = server.go_on_exporting(env, &mut self.rng, self.floor, &mut export);
            if export.is_to_be_killed(env, &mut self.rng) {
                victims.push(export.server);
            }
            match step {
                None => self.exports.push(export),
                Some(ended) => self.ended(env, export, ended),
            }
        }
        victims
    }

    fn ended(&mut self, env: &mut Env, export: Export, ended: Result<ArchivedPart, Ended>) {
        let (part, server) = (export.order.part, export.server);
        let ended = match ended {
            Err(ended) => ended,
            Ok(held) => {
                self.target.insert(part, held);
                let unheard_pm = env.profile.backups.as_ref().map_or(0, |faults| faults.unheard_pm);
                let is_unheard = self.rng.chance(unheard_pm);
                if is_unheard { Ended::Refused("the connection broke".into()) } else { Ended::Done }
            }
        };
        env.say(|| format!("server {server} ends {part:?}: {ended:?}"));
        let now = env.tick();
        if let Some((number, run)) = &mut self.run
            && *number == export.master
        {
            run.ended(now, part, ended);
        }
    }
}
