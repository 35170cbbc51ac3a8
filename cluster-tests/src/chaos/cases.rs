//! Which cases the crash matrix has: every failpoint, by every way that leads there.

use anyhow::{Context as _, Result, bail};
use ebla_failpoints::ALL;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use std::fmt;
use std::str::FromStr;

/// What the process does at the failpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It dies at once.
    Kill,
    /// The step fails.
    Error,
    /// It waits for longer than leases last.
    Pause,
}

/// What is done so that the failpoint is come by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workflow {
    /// Nothing beside the load.
    Writes,
    /// A tablet is split, and its table dropped in the end.
    Split,
    /// Two tablets are merged, and their table dropped in the end.
    Merge,
    /// A copy moves from one server to another.
    Move,
    /// A server loses its directory and gets its copies back.
    Wipe,
    /// Everybody dies; the old leader comes back with a tail that nobody else has.
    Failover,
    /// Changes of metadata.
    Metadata,
    /// Changes of metadata while a master is away, so many that only a snapshot helps it.
    CatchUp,
    /// A backup to a directory.
    Backup,
    /// A table is brought back from a backup.
    Restore,
}

/// Whose process it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The server that leads the tablet.
    Leader,
    /// Another with a copy of it.
    Follower,
    /// The server that a copy comes to.
    Target,
    /// The server that a copy leaves.
    Source,
    /// The server that lost its directory.
    Wiped,
    /// The server that led before the failover.
    Deposed,
    /// The leading master.
    MasterLeader,
    /// Another master.
    MasterFollower,
}

/// How a failpoint is come by.
pub type Way = (Workflow, Role);

/// Splits and merges pass the same steps.
const BY_MASTERS: [Way; 4] = [
    (Workflow::Split, Role::MasterLeader),
    (Workflow::Split, Role::MasterFollower),
    (Workflow::Merge, Role::MasterLeader),
    (Workflow::Merge, Role::MasterFollower),
];
const BY_COPIES: [Way; 4] = [
    (Workflow::Split, Role::Leader),
    (Workflow::Split, Role::Follower),
    (Workflow::Merge, Role::Leader),
    (Workflow::Merge, Role::Follower),
];

/// By which ways the failpoints whose names begin so are come by; the first row that fits counts.
const WAYS: [(&str, &[Way]); 16] = [
    ("log.", &[(Workflow::Writes, Role::Leader), (Workflow::Writes, Role::Follower)]),
    ("flush.", &[(Workflow::Writes, Role::Leader), (Workflow::Writes, Role::Follower)]),
    ("split.commit", &BY_MASTERS),
    ("split.", &BY_COPIES),
    ("retired.", &BY_COPIES),
    ("bootstrap.", &[(Workflow::Move, Role::Target), (Workflow::Wipe, Role::Wiped)]),
    ("clear.", &[(Workflow::Move, Role::Target), (Workflow::Move, Role::Source)]),
    ("remove.", &[(Workflow::Move, Role::Source)]),
    ("cut.", &[(Workflow::Failover, Role::Deposed)]),
    ("promise.", &[(Workflow::Failover, Role::Follower)]),
    ("export.", &[(Workflow::Backup, Role::Follower)]),
    ("import.", &[(Workflow::Restore, Role::Follower)]),
    ("backup.", &[(Workflow::Backup, Role::MasterLeader)]),
    ("restore.", &[(Workflow::Restore, Role::MasterLeader)]),
    ("master.install", &[(Workflow::CatchUp, Role::MasterFollower)]),
    ("master.", &[(Workflow::Metadata, Role::MasterLeader), (Workflow::Metadata, Role::MasterFollower)]),
];

/// By which ways a failpoint is come by; none for a name that no row knows.
#[must_use]
pub fn ways(point: &str) -> &'static [Way] {
    WAYS.iter().find(|(begin, _)| point.starts_with(begin)).map_or(&[], |(_, ways)| ways)
}

/// One case: what happens where, to whom, and which of the hits it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// The failpoint.
    pub point: &'static str,
    /// How it is come by.
    pub way: Way,
    /// What happens there.
    pub action: Action,
    /// How many hits pass first.
    pub after: u32,
}

impl Case {
    /// What is armed, as `EBLA_FAILPOINTS` has it: once in the life of each process.
    #[must_use]
    pub fn armed(&self) -> String {
        let action = match self.action {
            Action::Kill => "kill",
            Action::Error => "error",
            Action::Pause => "pause(1500)",
        };
        format!("{}={}*off->1*{action}->off", self.point, self.after)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self { point, way: (workflow, role), action, after }, by) = (self, ':');
        write!(f, "{point}{by}{workflow:?}{by}{role:?}{by}{action:?}{by}{after}")
    }
}

impl FromStr for Case {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let [point, workflow, role, action, after] = parts[..] else {
            bail!("a case is POINT:WORKFLOW:ROLE:ACTION:HITS, as the matrix prints it");
        };
        let point = ALL.iter().find(|known| **known == point).with_context(|| format!("no point {point}"))?;
        let is_meant =
            |way: &&Way| (format!("{:?}", way.0), format!("{:?}", way.1)) == (workflow.into(), role.into());
        let way = ways(point).iter().find(is_meant).with_context(|| format!("{point} has no such way"))?;
        let actions = [Action::Kill, Action::Error, Action::Pause];
        let action = actions.into_iter().find(|known| format!("{known:?}") == action);
        let action = action.context("an action is Kill, Error or Pause")?;
        Ok(Self { point, way: *way, action, after: after.parse()? })
    }
}

/// How many hits may pass before the one that counts: more of what is come by all the time.
fn hits_max(point: &str) -> u32 {
    match point.split('.').next() {
        Some("log") => 300,
        Some("master") if point.starts_with("master.app") => 30,
        Some("flush") => 3,
        Some(_) | None => 1,
    }
}

/// Every case once, in an order drawn from `seed`.
#[must_use]
pub fn all(seed: u64) -> Vec<Case> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut cases = Vec::new();
    for &point in ALL {
        for &way in ways(point) {
            for action in [Action::Kill, Action::Error, Action::Pause] {
                cases.push(Case { point, way, action, after: random.random_range(0..hits_max(point)) });
            }
        }
    }
    cases.shuffle(&mut random);
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failpoint_has_a_way_and_every_way_a_failpoint() {
        let lost: Vec<_> = ALL.iter().filter(|point| ways(point).is_empty()).collect();
        assert!(lost.is_empty(), "no way leads to {lost:?}: add a row to WAYS");
        for (begin, _) in WAYS {
            assert!(ALL.iter().any(|point| point.starts_with(begin)), "no failpoint begins with {begin}");
        }
    }

    #[test]
    fn a_case_survives_its_text() {
        for case in all(7) {
            assert_eq!(case.to_string().parse::<Case>().unwrap(), case);
        }
        assert_eq!(all(7), all(7));
        assert_ne!(all(7), all(8));
        assert!("cut.flush:Split:Leader:Kill:0".parse::<Case>().is_err());
    }
}
