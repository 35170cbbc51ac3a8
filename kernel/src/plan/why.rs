//! Why a tablet is where it is: what the plan sees of it now.

use super::picture::{Picture, Seam, TabletView, Work};
use super::steadiness::Side;
use super::{Planner, Refusal, balance, busy, merge, split};
use crate::ids::{ServerId, TabletId, Tick};

/// The tablets next to one, as far as there are some.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Neighbours {
    /// The one that ends where it begins.
    pub before: Option<TabletId>,
    /// The one that begins where it ends.
    pub after: Option<TabletId>,
}

impl Planner {
    /// What speaks for and against a split, a merge or a move of a tablet, a sentence each.
    /// Empty for a tablet that is not there.
    #[must_use]
    pub fn why(&self, now: Tick, mut picture: Picture, id: TabletId, next: Neighbours) -> Vec<String> {
        self.rates.fill(&mut picture);
        let picture = &picture;
        let Some(tablet) = picture.tablets.get(&id) else { return Vec::new() };
        let mut found = vec![self.why_size(id, tablet), self.why_load(now, id, tablet)];
        found.extend(next.before.map(|before| self.why_merge(now, picture, (before, id), before)));
        found.extend(next.after.map(|after| self.why_merge(now, picture, (id, after), after)));
        found.extend(why_work(tablet));
        if let Some(until) = self.resting.get(&id) {
            found.push(format!("it was moved lately and stays for {} s more", until.ms_since(now) / 1_000));
        }
        if tablet.leader.is_none() {
            found.push("nobody leads it now: it is left alone until somebody does".to_owned());
        } else if tablet.in_sync.len() < tablet.wanted {
            let (good, wanted) = (tablet.in_sync.len(), tablet.wanted);
            found.push(format!("{good} of its {wanted} copies are in sync: no copy is moved before all are"));
        }
        found.extend(tablet.leader.map(|leader| self.why_leader(now, picture, leader)));
        found.extend(tablet.copies.iter().map(|server| self.why_copy(now, picture, *server)));
        found
    }

    fn why_size(&self, id: TabletId, tablet: &TabletView) -> String {
        let (bytes, limit) = (tablet.bytes, tablet.split_bytes);
        if !split::is_too_large(tablet) {
            return format!("it has {bytes} bytes and is split above {limit}");
        }
        if self.refusal(id).is_some() {
            return format!(
                "it has {bytes} bytes, which is above {limit}, and could not be split: it is tried again later"
            );
        }
        format!("it has {bytes} bytes, which is above {limit}: it is split when its turn comes")
    }

    fn refusal(&self, id: TabletId) -> Option<Refusal> {
        self.refused.get(&id).map(|(why, _)| *why)
    }

    fn why_load(&self, now: Tick, id: TabletId, tablet: &TabletView) -> String {
        let (recent, limit) = (tablet.recent, tablet.split_load);
        if limit == 0 {
            return format!("it has {recent} requests a second, and its table splits by size only");
        }
        let Some(ms) = self.busy.lasting_ms(now, id) else {
            return format!("it has {recent} requests a second and is split above {limit}");
        };
        let what = match self.refusal(id) {
            None => {
                let patience_ms = busy::patience_ms(self.settings.lasts_ms);
                format!("it is split when that has lasted for {} s and it stays so", patience_ms / 1_000)
            }
            Some(Refusal::HotKey) => {
                "one key has most of them, so that a split would not help: spread them over more keys"
                    .to_owned()
            }
            Some(Refusal::Wandering) => {
                "they go along its keys, as rows that are added at an end do, so that no cut would halve them"
                    .to_owned()
            }
            Some(Refusal::TooEarly) => "too few of them were sampled yet".to_owned(),
            Some(Refusal::Failed) => "it could not be split: it is tried again later".to_owned(),
        };
        format!("it has {recent} requests a second, above {limit} for {} s now: {what}", ms / 1_000)
    }

    /// Why a tablet is not one with its neighbour `other`.
    fn why_merge(
        &self,
        now: Tick,
        picture: &Picture,
        (left, right): (TabletId, TabletId),
        other: TabletId,
    ) -> String {
        let not = format!("it is not merged with {other}");
        match picture.tablets.get(&right).map_or(Seam::First, |tablet| tablet.seam) {
            Seam::First => return format!("{not}: that was not there a moment ago"),
            Seam::Off => {
                return format!("{not}: in its table nothing is merged by itself (--auto-merge off)");
            }
            Seam::Drawn => {
                return format!(
                    "{not}: a person drew the boundary, and it stays until `ebla tablet merge`, or `ebla table set` with --auto-merge all"
                );
            }
            Seam::Loose(_) => {}
        }
        let busy = [left, right].into_iter().find_map(|id| {
            let tablet = picture.tablets.get(&id).filter(|tablet| !merge::is_idle(tablet))?;
            let (bytes, load) = merge::idle_limits(tablet);
            let requests = tablet.recent.max(tablet.requests);
            Some(format!(
                "{not}: {id} has {} bytes and {requests} requests a second, and each half may have {bytes} and {load}",
                tablet.bytes
            ))
        });
        busy.unwrap_or_else(|| self.why_calm(now, left, right, &not))
    }

    fn why_calm(&self, now: Tick, left: TabletId, right: TabletId, not: &str) -> String {
        if let Some(Refusal::Failed) = self.refusal(left) {
            return format!("{not}: that could not be begun, and is tried again later");
        }
        let calm_ms = |tablet| self.calm.lasting_ms(now, tablet).unwrap_or(0);
        let (calm_ms, patience_ms) =
            (calm_ms(left).min(calm_ms(right)), merge::patience_ms(self.settings.lasts_ms));
        if calm_ms < patience_ms {
            let (calm, patience) = (calm_ms / 1_000, patience_ms / 1_000);
            return format!("{not} yet: both have been small and idle for {calm} s of {patience} s");
        }
        format!("{not} yet: both have been small and idle for long, and it is done when its turn comes")
    }

    fn why_leader(&self, now: Tick, picture: &Picture, leader: ServerId) -> String {
        let weights = balance::leader_weights(picture);
        let side = self.leaders.of(now, leader);
        format!("its leader {leader} leads {}", compared(weights.of(leader), weights.mean(), side))
    }

    fn why_copy(&self, now: Tick, picture: &Picture, server: ServerId) -> String {
        let weights = balance::copy_weights(picture);
        let side = self.copies.of(now, server);
        format!("its copy's server {server} holds {}", compared(weights.of(server), weights.mean(), side))
    }
}

fn compared(weight: Option<u64>, mean: u64, side: Option<(Side, u64)>) -> String {
    let share = |weight: u64| weight as f64 / balance::UNIT as f64;
    let Some(weight) = weight else {
        return "what others are to take: it is not up, or it is drained".to_owned();
    };
    let (weight, mean) = (share(weight), share(mean));
    match side {
        None => format!("{weight:.1}, of a mean of {mean:.1}: about its share"),
        Some((Side::Heavy, ms)) => {
            format!("{weight:.1}, of a mean of {mean:.1}: too much for {} s now", ms / 1_000)
        }
        Some((Side::Light, ms)) => {
            format!("{weight:.1}, of a mean of {mean:.1}: too little for {} s now", ms / 1_000)
        }
    }
}

fn why_work(tablet: &TabletView) -> Option<String> {
    match tablet.work? {
        Work::Split => Some("it is being split".to_owned()),
        Work::Merge => Some("it is being merged with a neighbour".to_owned()),
        Work::Move { from: Some(from), to } => Some(format!("its copy on {from} moves to {to}")),
        Work::Move { from: None, to } => Some(format!("a copy that was lacking comes to {to}")),
    }
}
