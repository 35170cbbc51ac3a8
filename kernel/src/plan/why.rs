//! Why a tablet is where it is: what the plan sees of it now.

use super::picture::{Picture, TabletView, Work};
use super::steadiness::Side;
use super::{Planner, balance, split};
use crate::ids::{ServerId, TabletId, Tick};

impl Planner {
    /// What speaks for and against a split or a move of a tablet, a sentence each. Empty for a
    /// tablet that is not there.
    #[must_use]
    pub fn why(&self, now: Tick, mut picture: Picture, id: TabletId) -> Vec<String> {
        self.rates.fill(&mut picture);
        let picture = &picture;
        let Some(tablet) = picture.tablets.get(&id) else { return Vec::new() };
        let mut found = vec![self.why_size(id, tablet)];
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
        if self.refused.contains_key(&id) {
            return format!(
                "it has {bytes} bytes, which is above {limit}, and could not be split: it is tried again later"
            );
        }
        format!("it has {bytes} bytes, which is above {limit}: it is split when its turn comes")
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
