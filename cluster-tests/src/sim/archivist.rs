//! Whoever makes backups: who asks for one, the leading master that drives it (`kernel::backup::run`)
//! from one record of the metadata to the next, and the target where parts lie.
//!
//! ```text
//!  StartJob ─▶ Choose: T, half a second ahead ─▶ orders, exports ─▶ Commit ─▶ manifest ─▶ Finish
//!                                                   ▲ a run of the metadata node that is new lists
//!                                                   └ the parts at the target and goes on
//! ```
//!
//! - The job is the metadata's: whoever cancels it before its commit has prevented the manifest.
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
use ebla_kernel::ids::{JobId, TableId};
use ebla_kernel::limits::CLOCK_OFFSET_MS_MAX;
use ebla_kernel::meta::{
    BackupJob, BackupStep, BackupWish, Command, Job, JobEnd, JobKind, JobState, Origin, Totals, Wish,
};
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

/// What was asked for, and what was proposed of it.
#[derive(Debug)]
struct Asked {
    /// Its name at the target.
    name: String,
    parent: Option<usize>,
    asked_us: u64,
    /// Its record, once it is there.
    job: Option<JobId>,
    /// The run of the metadata node to which the next record was proposed.
    proposed_to: Option<u64>,
    /// Whether garbage collection is to blame when versions are gone.
    is_held: bool,
    /// T, where it is chosen before garbage is held.
    early: Option<Hlc>,
    /// Whether its manifest is at the target.
    is_written: bool,
}

/// Everything that has to do with backups, the servers' part excepted.
#[derive(Debug)]
pub struct Archivist {
    rng: Rng,
    clocks_agree: bool,
    /// Nothing below can be read any more.
    floor: Hlc,
    /// The floor does not pass this: what was last heard of the record of the backup under way.
    recorded: Option<Hlc>,
    /// Nor this, which is held for the next backup.
    held: Option<Hlc>,
    asked: Option<Asked>,
    /// Backups that were asked for.
    wishes: u64,
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
        let victims = archivist.step(&mut self.env, &mut self.meta, &mut self.servers);
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
            recorded: None,
            held: None,
            asked: None,
            wishes: 0,
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
        self.asked.is_none() && self.owed.as_ref().is_some_and(VecDeque::is_empty)
    }

    /// Backups that are brought back, and the chance in which that happens.
    pub fn to_bring_back(&mut self, last: usize) -> Vec<(usize, Rng)> {
        let other = self.rng.index(last + 1);
        [other, last].map(|number| (number, Rng::new(self.rng.draw()))).into()
    }

    /// Servers that lose power now.
    fn step(&mut self, env: &mut Env, meta: &mut MetaNode, servers: &mut [Server]) -> Vec<usize> {
        let wall_ms = EPOCH_MS + env.now_us / 1_000;
        if let Some(state) = meta.state() {
            self.recorded = state.safe_ts(wall_ms);
        }
        let retention_ms = env.profile.backups.as_ref().map_or(0, |faults| faults.retention_ms);
        let due = Hlc::new(wall_ms - retention_ms, 0);
        let held = [self.recorded, self.held].into_iter().flatten().min();
        self.floor = self.floor.max(due.min(held.unwrap_or(Hlc::MAX)));
        let victims = self.serve(env, servers);
        match meta.run_number() {
            Some(number) => self.lead(env, meta, number),
            None => self.run = None,
        }
        victims
    }

    /// The leading master goes on with a job, or somebody asks for one.
    fn lead(&mut self, env: &mut Env, meta: &mut MetaNode, number: u64) {
        if self.run.as_ref().is_some_and(|(known, _)| *known != number) {
            self.run = None;
        }
        let Some(asked) = &mut self.asked else {
            self.begin(env, meta);
            return;
        };
        let running = meta.state().and_then(|state| state.backup_running()).cloned();
        let running = running.filter(|job| job.origin == Origin::Operator);
        let Some((job, backup)) = running.as_ref().and_then(|job| Some((job, backup_of(job)?))) else {
            // It may be over before anybody has seen it running.
            let attempts = meta.state().into_iter().flat_map(|state| state.backup_attempts());
            let is_own = |job: &&Job| backup_of(job).is_some_and(|backup| backup.wish.backup == asked.name);
            let over = attempts.filter(is_own).last().map(|job| job.id);
            match asked.job.or(over) {
                None if asked.proposed_to != Some(number) => self.ask(env, meta, number),
                None => {}
                Some(job) => self.ended_as(env, meta, job),
            }
            return;
        };
        if asked.job.is_none() {
            (asked.job, asked.proposed_to) = (Some(job.id), None);
        }
        let is_proposed = asked.proposed_to == Some(number);
        match backup.ts {
            _ if backup.committed => self.write_manifest(env, meta, job, number),
            None if is_proposed => {}
            None => {
                let now_ms = EPOCH_MS + env.now_us / 1_000;
                let ts = asked.early.unwrap_or(Hlc::new(now_ms + CLOCK_OFFSET_MS_MAX, 0));
                asked.proposed_to = Some(number);
                change(env, meta, job, BackupStep::Choose { ts });
            }
            Some(ts) => self.export(env, meta, (job, ts), number),
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
        env.say(|| format!("somebody wants a backup that adds to {parent:?}"));
        let now_ms = EPOCH_MS + env.now_us / 1_000;
        let early = mutated!(TimeBeforeSafePoint).then_some(Hlc::new(now_ms + CLOCK_OFFSET_MS_MAX, 0));
        self.wishes += 1;
        self.asked = Some(Asked {
            name: format!("b{}", self.wishes),
            parent,
            asked_us: env.now_us,
            job: None,
            proposed_to: None,
            is_held,
            early,
            is_written: false,
        });
    }

    /// Asks the leading master, and again when that has forgotten it.
    fn ask(&mut self, env: &mut Env, meta: &mut MetaNode, number: u64) {
        let Some(asked) = &mut self.asked else { return };
        let now_ms = EPOCH_MS + env.now_us / 1_000;
        let parent = asked.parent.map(|parent| (format!("p{parent}"), env.history.backups[parent].ts));
        let since = parent.as_ref().map_or(Hlc::MIN, |(_, ts)| *ts);
        let safe = parent.as_ref().map_or(Hlc::new(now_ms, 0), |(_, ts)| *ts);
        let wish = BackupWish {
            backup: asked.name.clone(),
            url: "file:///simulated".into(),
            tables: vec![(TABLE, since)],
            parent,
            at: None,
            safe,
            rate_bytes: 0,
            key_id: String::new(),
            by: "simulation".into(),
            scheduled: false,
        };
        asked.proposed_to = Some(number);
        let (wish, origin) = (Wish::Backup(Box::new(wish)), Origin::Operator);
        meta.command(env, Command::StartJob { wish, origin, time_ms: now_ms });
    }

    /// Orders what is left to be exported, as soon as T has passed.
    fn export(&mut self, env: &mut Env, meta: &mut MetaNode, (job, ts): (&Job, Hlc), number: u64) {
        let (Some(asked), Some(state)) = (&mut self.asked, meta.state()) else { return };
        let now = env.tick();
        if EPOCH_MS + env.now_us / 1_000 <= ts.ms() {
            return;
        }
        let since = asked.parent.map_or(Hlc::MIN, |parent| env.history.backups[parent].ts);
        let (_, run) = self.run.get_or_insert_with(|| {
            let done = |(part, held): (&PartId, &ArchivedPart)| DonePart {
                part: *part,
                table: TABLE,
                range: held.range.clone(),
            };
            let done: Vec<DonePart> = self.target.iter().map(done).collect();
            asked.proposed_to = None;
            (number, BackupRun::new(now, [(TABLE, since)], &done, PartId(number << 32)))
        });
        let map = map_of(state, [TABLE], &BTreeMap::new());
        let orders = run.plan(now, &map, &meta.usable());
        // What was given up is not heard any more.
        let running: Vec<PartId> = run.running().map(|order| order.part).collect();
        self.exports.retain(|export| export.master != number || running.contains(&export.order.part));
        let standing = run.standing(now);
        match standing {
            Standing::Running => {}
            _ if asked.proposed_to == Some(number) => {}
            Standing::Done => {
                asked.proposed_to = Some(number);
                change(env, meta, job, BackupStep::Commit { totals: Totals::default() });
            }
            Standing::GivenUp(reason) => {
                asked.proposed_to = Some(number);
                if asked.is_held {
                    env.watch.fail("I14 what a backup needs is held", &reason);
                }
                let (end, time_ms) = (JobEnd::Failed { error: reason }, EPOCH_MS + env.now_us / 1_000);
                meta.command(env, Command::EndJob { job: job.id, attempt: None, end, time_ms });
            }
        }
        orders.into_iter().for_each(|order| self.send(env, order, ts, number));
    }

    /// Past its commit: every key is at the target, and the manifest says so; then the job is done.
    fn write_manifest(&mut self, env: &mut Env, meta: &mut MetaNode, job: &Job, number: u64) {
        let Some(asked) = &mut self.asked else { return };
        if asked.is_written {
            if asked.proposed_to != Some(number) {
                asked.proposed_to = Some(number);
                let time_ms = EPOCH_MS + env.now_us / 1_000;
                change(env, meta, job, BackupStep::Finish { time_ms });
            }
            return;
        }
        (asked.is_written, asked.proposed_to) = (true, None);
        let (parent, asked_us, clocks_agree) = (asked.parent, asked.asked_us, self.clocks_agree);
        let ts = backup_of(job).and_then(|backup| backup.ts).unwrap_or(Hlc::MIN);
        let done = |(part, held): (&PartId, &ArchivedPart)| DonePart {
            part: *part,
            table: TABLE,
            range: held.range.clone(),
        };
        let done: Vec<DonePart> = self.target.iter().map(done).collect();
        let chosen = BackupRun::new(env.tick(), [(TABLE, Hlc::MIN)], &done, PartId(number << 32));
        let mut parts: Vec<ArchivedPart> =
            chosen.parts().filter_map(|part| self.target.get(&part).cloned()).collect();
        parts.sort_by(|a, b| a.range.cmp(&b.range));
        if let Err(flaw) = check_cover(&KeyRange::all(), parts.iter().map(|part| &part.range)) {
            env.watch.fail("I14 a backup holds every key once", &format!("{flaw:?} in {parts:?}"));
        }
        env.say(|| format!("the backup at {ts} is made"));
        env.history.backups.push(Archived { ts, parent, asked_us, clocks_agree, parts, restored: None });
        let held_pm = env.profile.backups.as_ref().map_or(0, |faults| faults.held_pm);
        let is_held = self.owed.is_some() || self.rng.chance(held_pm);
        self.held = is_held.then_some(ts);
    }

    /// The job has ended: it is done, or came to nothing, and then there is no manifest.
    fn ended_as(&mut self, env: &mut Env, meta: &MetaNode, job: JobId) {
        let attempts = meta.state().into_iter().flat_map(|state| state.backup_attempts());
        let Some(ended) = attempts.filter(|known| known.id == job).last() else { return };
        let is_written = self.asked.take().is_some_and(|asked| asked.is_written);
        env.say(|| format!("the backup {job} has ended: {:?}", ended.state));
        if is_written != (ended.state == JobState::Done) {
            let detail = format!("{:?}, and whether there is a manifest is {is_written}", ended.state);
            env.watch.fail("I14 a backup is there if its job is done", &detail);
        }
        if is_written {
            if let Some(owed) = &mut self.owed {
                owed.pop_front();
            }
        } else {
            // What the next one would add to may be collected meanwhile.
            self.held = None;
            self.owed = self.owed.is_some().then(|| [false, true].into());
        }
        self.clear(env);
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

fn backup_of(job: &Job) -> Option<&BackupJob> {
    match &job.kind {
        JobKind::Backup(backup) => Some(backup),
        JobKind::Split(_)
        | JobKind::Merge(_)
        | JobKind::Move(_)
        | JobKind::Restore(_)
        | JobKind::Transfer(_) => None,
    }
}

/// Puts a step of a backup into the masters' log.
fn change(env: &mut Env, meta: &mut MetaNode, job: &Job, step: BackupStep) {
    meta.command(env, Command::ChangeBackup { job: job.id, attempt: job.attempt, step });
}
