//! A tablet of a memory table that has lost every copy comes back empty.
//!
//! A copy in memory is lost with its process. While one copy of the in-sync set is not lost, it
//! is waited for: nobody else can know what was acknowledged. When all of them are lost there is
//! nothing left to wait for, and the tablet begins anew by itself: empty copies under new ids,
//! in a **new lineage**, so that positions, tokens and watches of before are told apart from
//! those of now and never compared with them. The range stays: boundaries outlive their rows.
//!
//! ```text
//!   in sync: r1 lost, r2 lost, r3 lost ──Empty──▶ r4, r5, r6: in sync, empty, nobody leads
//!                                                  lineage + 1, epoch as before: the next
//!                                                  election raises it
//! ```

use super::apply::{Changes, create_replica};
use super::command::NewBeginning;
use super::control::Control;
use super::job::{self, JobEnd, JobKind, JobState};
use super::rejection::Rejection;
use super::spec::TableKind;
use super::state::{Emptied, Replica, State, Tablet};
use crate::hlc::Hlc;
use crate::ids::{JobId, ServerId, TabletId};
use crate::mutated;
use std::collections::BTreeSet;

/// Jobs that are ended for a tablet before it begins anew: its own, and the move that the end of
/// a merge leaves behind.
const JOBS_ENDED_MAX: usize = 3;

impl State {
    /// Whether a tablet keeps its rows in memory and every copy that counted is lost. Of one that
    /// began anew and was never led since, one lost copy is enough: there is nothing in the others, and
    /// its server was perhaps on its way down when it was chosen.
    #[must_use]
    pub fn is_bereft(&self, tablet: &Tablet) -> bool {
        let kind = self.table(tablet.table).map(|table| table.spec.kind);
        let (here, lost): (Vec<_>, Vec<_>) =
            tablet.in_sync_replicas().partition(|copy| self.holds_data(copy));
        kind == Some(TableKind::Memory) && (here.is_empty() || (is_untouched(tablet) && !lost.is_empty()))
    }
}

/// Whether a tablet began anew and nobody was appointed to lead it since.
fn is_untouched(tablet: &Tablet) -> bool {
    let was_led = tablet.leader.is_some() || tablet.former.is_some();
    tablet.emptied.is_some() && tablet.parents.is_empty() && !was_led
}

impl Control {
    /// Where a tablet that has lost every copy is to begin anew: where its copies were, those that
    /// counted first, as far as their servers are connected: another one would lose its new copy when
    /// it comes back. None while one that counted is away, and for the impatient while those that are
    /// there are too few to lead and serve.
    pub(super) fn begin_anew(
        &self,
        state: &State,
        tablet: &Tablet,
        is_impatient: bool,
    ) -> Option<NewBeginning> {
        let spec = &state.table(tablet.table)?.spec;
        let (wanted, least) = (usize::from(spec.replicas), spec.in_sync_min());
        let counted = |copy: &&Replica| tablet.in_sync.contains(&copy.id);
        let (first, rest): (Vec<_>, Vec<_>) = tablet.replicas.iter().partition(counted);
        let is_there = |server: &ServerId| self.sessions.contains_key(server);
        let is_whole = first.iter().all(|copy| is_there(&copy.server));
        let mut known = BTreeSet::new();
        let servers = first.into_iter().chain(rest).map(|copy| copy.server);
        let servers = servers.filter(|server| is_there(server) && known.insert(*server)).take(wanted);
        let anew = NewBeginning { tablet: tablet.id, epoch: tablet.epoch, servers: servers.collect() };
        ((is_whole || is_impatient) && anew.servers.len() >= least).then_some(anew)
    }
}

/// Lets a tablet begin anew, empty.
pub(super) fn empty(
    state: &mut State,
    anew: &NewBeginning,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<Tablet, Rejection> {
    let (id, servers) = (anew.tablet, &anew.servers);
    let tablet = state.tablet(id).ok_or(Rejection::NoTablet(id))?;
    if tablet.epoch != anew.epoch {
        return Err(Rejection::StaleEpoch(Box::new(tablet.clone())));
    }
    if !state.is_bereft(tablet) {
        return Err(Rejection::HasData(Box::new(tablet.clone())));
    }
    if let Some(unknown) = servers.iter().find(|server| state.server(**server).is_none()) {
        return Err(Rejection::NoServer(*unknown));
    }
    end_jobs(state, id, time_ms, changes);
    let mut tablet = state.tablet(id).ok_or(Rejection::NoTablet(id))?.clone();
    if !is_untouched(&tablet) {
        let (before, lineage) = (tablet.lineage, state.next.lineage);
        if !mutated!(EmptyUnderOldLineage) {
            state.next.lineage = lineage.next();
            tablet.lineage = lineage;
        }
        let times = tablet.emptied.map_or(0, |emptied| emptied.times).saturating_add(1);
        tablet.emptied = Some(Emptied { time_ms, before, times });
    }
    note_copies_gone(&tablet, servers, changes);
    tablet.replicas =
        servers.iter().map(|server| create_replica(state, TableKind::Memory, *server)).collect();
    tablet.in_sync = tablet.replicas.iter().map(|replica| replica.id).collect();
    tablet.config_version = tablet.config_version.next();
    (tablet.leader, tablet.former, tablet.moving) = (None, None, None);
    (tablet.recovering, tablet.degraded) = (false, false);
    tablet.joined_ts = Hlc::MIN;
    tablet.parents.clear();
    changes.tablets.insert(id);
    state.replace_tablet(tablet.clone());
    Ok(tablet)
}

/// Whatever was under way with the tablet was about rows that are gone.
fn end_jobs(state: &mut State, id: TabletId, time_ms: u64, changes: &mut Changes) {
    for _ in 0..JOBS_ENDED_MAX {
        let Some((job, kind)) = state.job_of(id).map(|job| (job.id, job.kind.clone())) else { return };
        match kind {
            JobKind::Move(_) => fail(state, job, time_ms, changes),
            // The first two are not about tablets, the third is never under way.
            JobKind::Backup(_) | JobKind::Restore(_) | JobKind::Transfer(_) => return,
            JobKind::Split(_) | JobKind::Merge(_) => {
                let end = JobEnd::Failed { error: why() };
                if job::end(state, job, None, end, time_ms, changes).is_err() {
                    fail(state, job, time_ms, changes);
                }
            }
        }
    }
}

fn fail(state: &mut State, job: JobId, time_ms: u64, changes: &mut Changes) {
    state.finish_job(job, JobState::Failed, Some(why()), time_ms, changes);
}

fn why() -> String {
    "every copy in memory was lost, and the tablet began anew".to_owned()
}

/// Servers that get no new copy are told that they hold none.
fn note_copies_gone(tablet: &Tablet, stays: &[ServerId], changes: &mut Changes) {
    let gone = tablet.replicas.iter().filter(|copy| !stays.contains(&copy.server));
    changes.removed_copies.extend(gone.map(|copy| (tablet.id, copy.server)));
}
