//! What a server does for a backup: waits until nothing at or below T can follow in its copy,
//! reads, and looks whether it still is the copy that it began with.

use super::env::Env;
use super::rng::Rng;
use super::server::{Copy, Server, Timed};
use crate::oracle::{ArchivedPart, collected};
use ebla_kernel::backup::Ended;
use ebla_kernel::backup::run::Order;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{ReplicaId, Seq, TabletId};
use ebla_kernel::mutated;
use ebla_kernel::op::Body;

/// How long an export waits until nothing can follow any more.
const PATIENCE_US: u64 = 1_000_000;

/// How often it asks for that.
const ASK_EVERY_US: u64 = 100_000;

/// An export on its server.
#[derive(Debug)]
pub struct Export {
    /// What was ordered.
    pub order: Order,
    /// T.
    pub ts: Hlc,
    /// The run of the metadata node that ordered it.
    pub master: u64,
    /// Whether it goes on when that is over.
    pub outlives_master: bool,
    /// Where.
    pub server: usize,
    /// How far it is.
    pub step: Step,
}

/// How far an export is.
#[derive(Debug)]
pub enum Step {
    /// The order is on its way.
    Comes {
        /// When it is there.
        at_us: u64,
    },
    /// Something at or below T may still follow.
    Waits {
        /// The process that waits.
        run: u64,
        /// Until when.
        until_us: u64,
        /// When to ask again.
        ask_us: u64,
    },
    /// The rows are read and on their way to the target.
    Puts {
        /// The copy that they were read from.
        from: CopyMark,
        /// What was read.
        part: ArchivedPart,
        /// From when to when, in microseconds.
        span_us: (u64, u64),
        /// Whether somebody has thought of killing its server.
        is_spared: bool,
    },
}

/// One life of a copy: ends with its process, with the copy, and with a cut of its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyMark {
    run: u64,
    replica: ReplicaId,
    cuts: u64,
}

impl Export {
    /// Whether its server loses power now, with nine tenths of it done.
    pub fn is_to_be_killed(&mut self, env: &Env, rng: &mut Rng) -> bool {
        let kill_pm = env.profile.backups.as_ref().map_or(0, |faults| faults.kill_pm);
        match &mut self.step {
            Step::Puts { span_us: (from, to), is_spared, .. }
                if !*is_spared && (env.now_us - *from) * 10 >= (*to - *from) * 9 =>
            {
                *is_spared = true;
                rng.chance(kill_pm)
            }
            Step::Puts { .. } | Step::Comes { .. } | Step::Waits { .. } => false,
        }
    }

    /// Nothing at or below this may have been collected.
    fn needs(&self) -> Hlc {
        if self.order.since == Hlc::MIN { self.ts } else { self.order.since }
    }
}

impl Server {
    /// An export goes on; gives how it ended, once it has.
    pub(super) fn go_on_exporting(
        &mut self,
        env: &mut Env,
        rng: &mut Rng,
        floor: Hlc,
        export: &mut Export,
    ) -> Option<Result<ArchivedPart, Ended>> {
        let refused = |why: &str| Some(Err(Ended::Refused(why.into())));
        if self.asleep_until_us > env.now_us {
            return None;
        }
        let tablet = export.order.tablet;
        let mark = self.copy_mark(tablet, export);
        match &mut export.step {
            Step::Comes { at_us } if *at_us > env.now_us => None,
            Step::Comes { .. } => {
                let Some(CopyMark { run, .. }) = mark else { return refused("no such copy here") };
                let (until_us, ask_us) = (env.now_us + PATIENCE_US, env.now_us);
                export.step = Step::Waits { run, until_us, ask_us };
                None
            }
            Step::Waits { run, until_us, ask_us } => {
                let Some(from) = mark.filter(|mark| mark.run == *run) else { return refused("it is gone") };
                if self.is_closed(tablet, export.ts) {
                    return self.read_for_export(env, rng, floor, export, from);
                }
                if *until_us <= env.now_us {
                    return refused("something may still follow");
                }
                if *ask_us <= env.now_us {
                    *ask_us = env.now_us + ASK_EVERY_US;
                    self.timed(env, Timed::Close(tablet, export.ts));
                }
                None
            }
            Step::Puts { from, part, span_us: (_, until_us), .. } => {
                if mark != Some(*from) {
                    return refused("it is not the copy that it was");
                }
                if *until_us > env.now_us {
                    return None;
                }
                let part = part.clone();
                if floor > export.needs() { too_old() } else { Some(Ok(part)) }
            }
        }
    }

    fn read_for_export(
        &self,
        env: &Env,
        rng: &mut Rng,
        floor: Hlc,
        export: &mut Export,
        from: CopyMark,
    ) -> Option<Result<ArchivedPart, Ended>> {
        if floor > export.needs() {
            return too_old();
        }
        let (range, since) = (export.order.range.clone(), export.order.since);
        let mut rows = self.disk.store.snapshot(&range, export.ts);
        for versions in rows.values_mut() {
            *versions = collected(versions, floor);
            versions.retain(|ts, version| {
                let is_left_out = mutated!(DeletesNotExported)
                    && since > Hlc::MIN
                    && matches!(version.body, Body::Tombstone(_));
                *ts > since && !is_left_out
            });
        }
        rows.retain(|_, versions| !versions.is_empty());
        let span = env.profile.backups.as_ref().map_or((0, 0), |faults| faults.export_us);
        let span_us = (env.now_us, env.now_us + rng.between(span));
        let part = ArchivedPart { range, since, floor, rows };
        export.step = Step::Puts { from, part, span_us, is_spared: false };
        None
    }

    /// The copy here, if it has the range of an export.
    fn copy_mark(&self, tablet: TabletId, export: &Export) -> Option<CopyMark> {
        let run = self.run_number()?;
        let copy = self.run.as_ref()?.copies.get(&tablet)?;
        let has_range = copy.core.range().covers(&export.order.range);
        has_range.then_some(CopyMark { run, replica: copy.core.replica(), cuts: copy.cuts })
    }

    /// Whether nothing at or below `ts` can follow in a copy here, or be taken back.
    fn is_closed(&self, tablet: TabletId, ts: Hlc) -> bool {
        let Some(copy) = self.run.as_ref().and_then(|run| run.copies.get(&tablet)) else { return false };
        let closed = match mutated!(DeposedLeaderCloses) && copy.core.leading().is_some() {
            true => self.own_end(copy),
            false => self.closed(copy).map(|(_, ts)| ts),
        };
        closed.is_some_and(|closed| closed >= ts)
    }

    /// With the seeded bug a leader believes itself.
    fn own_end(&self, copy: &Copy) -> Option<Hlc> {
        let applied = copy.core.applied_seq();
        let end = self.disk.log.tablet(copy.core.id())?.end_at(applied)?;
        (applied > Seq(0)).then_some(end.ts)
    }
}

fn too_old() -> Option<Result<ArchivedPart, Ended>> {
    Some(Err(Ended::Impossible("what is needed may have been collected".into())))
}
