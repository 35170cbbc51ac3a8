//! What is done so that a failpoint is come by: who is armed, and what is ordered then.

use super::cases::{Case, Role, Workflow};
use super::rig::{At, Rig, SETTLE_MAX};
use crate::cli::exit;
use crate::cluster::{Cluster, eventually};
use crate::observe::{id_in, servers_in};
use anyhow::{Context as _, Result, bail};
use serde_json::Value as Json;
use std::time::Duration;

/// How long one order may take; longer than a split or a move that is tried again and again.
const ORDER_TIMEOUT: &str = "60s";

/// How often the leading master is killed until the armed one leads.
const MASTER_TRIES: usize = 8;

/// Changes of metadata that are ordered: enough for several snapshots.
const CHANGES: usize = 60;

/// Commands of the CLI, one after the other.
pub type Orders = Vec<Vec<String>>;

impl Workflow {
    /// How many copies the tablets of a case have.
    #[must_use]
    pub fn copies(self) -> usize {
        match self {
            // With one on every server, the wiped one must get its own back.
            // Everybody has rows to export, and gets rows of what is restored.
            Self::Wipe | Self::Backup | Self::Restore => 4,
            Self::Writes
            | Self::Split
            | Self::Merge
            | Self::Move
            | Self::Failover
            | Self::Metadata
            | Self::CatchUp => 3,
        }
    }
}

/// Arms the process of the case, brings it into its role, and gives what is to be ordered.
///
/// # Errors
/// When the cluster does not do what it should.
pub fn prepare(rig: &mut Rig, case: &Case) -> Result<Orders> {
    let (workflow, role) = case.way;
    match workflow {
        Workflow::Writes => arm_copy(rig, case, role).map(|_| Vec::new()),
        Workflow::Split => split(rig, case, role),
        Workflow::Merge => merge(rig, case, role),
        Workflow::Move => move_copy(rig, case, role),
        Workflow::Wipe => wipe(rig, case).map(|()| Vec::new()),
        Workflow::Failover => failover(rig, case, role).map(|()| Vec::new()),
        Workflow::Metadata => {
            arm_master(rig, case, role)?;
            Ok(changes())
        }
        Workflow::CatchUp => catch_up(rig, case).map(|()| Vec::new()),
        Workflow::Backup => super::backup::back_up(rig, case, role),
        Workflow::Restore => super::backup::restore(rig, case, role),
    }
}

pub(super) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Places of the servers with a copy of a tablet, the leader first, and of those without.
fn places(cluster: &Cluster, tablet: &Json) -> Result<(Vec<usize>, Vec<usize>)> {
    let ids = cluster.ids()?;
    let leader = tablet["leader"].as_u64().context("the tablet is led")?;
    let holders = servers_in(tablet, "replicas");
    let (mut with, without): (Vec<usize>, Vec<usize>) =
        (0..ids.len()).partition(|at| holders.contains(&ids[*at]));
    with.sort_by_key(|at| ids[*at] != leader);
    Ok((with, without))
}

/// Starts a server with a copy of the first tablet armed, and lets it lead or not.
pub(super) fn arm_copy(rig: &mut Rig, case: &Case, role: Role) -> Result<usize> {
    let tablet = rig.cluster.first_tablet()?;
    let (with, _) = places(&rig.cluster, &tablet)?;
    // The leader loses its tablets when it is started again.
    let armed = with[1];
    rig.restart_armed(At::Server(armed), case.armed())?;
    rig.wait_until_whole(case.way.0.copies())?;
    if role == Role::Leader {
        lead(rig, armed)?;
    }
    Ok(armed)
}

/// Lets a server lead; what is armed may have acted before, so that it is down just now.
pub(super) fn lead(rig: &mut Rig, at: usize) -> Result<()> {
    rig.wait("the server is up", SETTLE_MAX, |cluster| cluster.id_of(at).is_ok())?;
    let server = rig.cluster.id_of(at)?;
    rig.let_lead(server)
}

/// Arms whoever has a part in a split or a merge.
fn arm_succession(rig: &mut Rig, case: &Case, role: Role) -> Result<()> {
    match role {
        Role::Leader | Role::Follower => arm_copy(rig, case, role).map(drop),
        Role::MasterLeader | Role::MasterFollower => arm_master(rig, case, role),
        Role::Target | Role::Source | Role::Wiped | Role::Deposed => bail!("{case} has no {role:?}"),
    }
}

/// Orders to merge the first two tablets. Whoever is armed leads both, or neither when the case
/// is about a follower.
fn merge(rig: &mut Rig, case: &Case, role: Role) -> Result<Orders> {
    gather(rig)?;
    arm_succession(rig, case, role)?;
    let tablets = rig.cluster.tablets();
    let [one, other] = &tablets[..] else { bail!("two tablets, not {}", tablets.len()) };
    let (one, other) = (id_in(one)?.to_string(), id_in(other)?.to_string());
    Ok(vec![words(&["tablet", "merge", &one, &other, "--timeout", ORDER_TIMEOUT])])
}

/// Brings the copies of both tablets to the same servers, so that the merge seals at once.
fn gather(rig: &mut Rig) -> Result<()> {
    let tablets = rig.cluster.tablets();
    let [one, other] = &tablets[..] else { bail!("two tablets, not {}", tablets.len()) };
    let (wanted, held) = (servers_in(one, "replicas"), servers_in(other, "replicas"));
    let goes = held.iter().filter(|server| !wanted.contains(server));
    let comes = wanted.iter().filter(|server| !held.contains(server));
    let id = id_in(other)?.to_string();
    for (from, to) in goes.zip(comes) {
        let order = ["tablet", "move", &id, "--from", &from.to_string(), "--to", &to.to_string()];
        let _ = rig.cluster.cli().run(&order).expect(exit::OK);
    }
    rig.wait_until_whole(3)
}

fn split(rig: &mut Rig, case: &Case, role: Role) -> Result<Orders> {
    arm_succession(rig, case, role)?;
    let tablet = id_in(&rig.cluster.first_tablet()?)?.to_string();
    Ok(vec![words(&["tablet", "split", &tablet, "--parts", "2", "--timeout", ORDER_TIMEOUT])])
}

fn move_copy(rig: &mut Rig, case: &Case, role: Role) -> Result<Orders> {
    let tablet = rig.cluster.first_tablet()?;
    let (with, without) = places(&rig.cluster, &tablet)?;
    let (source, target) = (with[1], *without.first().context("a server has no copy")?);
    match role {
        Role::Source => {
            rig.restart_armed(At::Server(source), case.armed())?;
            rig.wait_until_whole(3)?;
            lead(rig, source)?;
        }
        Role::Target => {
            rig.restart_armed(At::Server(target), case.armed())?;
            rig.wait_until_whole(3)?;
        }
        Role::Leader
        | Role::Follower
        | Role::Wiped
        | Role::Deposed
        | Role::MasterLeader
        | Role::MasterFollower => bail!("a move has no {role:?}"),
    }
    let tablet = id_in(&tablet)?.to_string();
    let (from, to) = (rig.cluster.id_of(source)?.to_string(), rig.cluster.id_of(target)?.to_string());
    Ok(vec![words(&["tablet", "move", &tablet, "--from", &from, "--to", &to, "--timeout", ORDER_TIMEOUT])])
}

fn wipe(rig: &mut Rig, case: &Case) -> Result<()> {
    let (with, _) = places(&rig.cluster, &rig.cluster.first_tablet()?)?;
    let at = with[with.len() - 1];
    let node = &mut rig.cluster.servers[at];
    node.process().kill()?;
    std::fs::remove_dir_all(&node.data_dir)?;
    rig.arm(At::Server(at), case.armed());
    rig.node(At::Server(at)).start().map(drop)
}

/// The deposed leader has writes that nobody else has, and starts armed when another leads. For a
/// follower all start together, it armed: they elect one of them.
fn failover(rig: &mut Rig, case: &Case, role: Role) -> Result<()> {
    let tablet = rig.cluster.first_tablet()?;
    let (with, _) = places(&rig.cluster, &tablet)?;
    let (leader, followers) = (with[0], [with[1], with[2]]);
    let old = rig.cluster.id_of(leader)?;
    for at in followers {
        rig.cluster.servers[at].process().signal(crate::process::Signal::Kill)?;
    }
    if role == Role::Deposed {
        // The lease of the leader outlives the others for a moment: these are acknowledged.
        let cli = rig.cluster.servers[leader].cli();
        let table = tablet["table"].as_str().context("the tablet has a table")?;
        for row in ["0000001-tail", "0000002-tail", "0000003-tail"] {
            let _ = cli.run(&["set", table, row, "alone", "--ack", "leader", "--timeout", "300ms"]);
        }
    }
    for at in with {
        rig.cluster.servers[at].process().kill()?;
    }
    if role == Role::Follower {
        rig.arm(At::Server(followers[0]), case.armed());
    }
    for at in followers {
        rig.cluster.servers[at].start()?;
    }
    if role == Role::Deposed {
        let cluster = &rig.cluster;
        let is_other = |leader: u64| leader != 0 && leader != old;
        let led =
            || cluster.first_tablet().is_ok_and(|tablet| tablet["leader"].as_u64().is_some_and(is_other));
        eventually("another copy leads", SETTLE_MAX, led)?;
        rig.arm(At::Server(leader), case.armed());
    }
    rig.cluster.servers[leader].start().map(drop)
}

/// Starts a master armed, and lets it lead or not.
pub(super) fn arm_master(rig: &mut Rig, case: &Case, role: Role) -> Result<()> {
    let leads = rig.cluster.leading_master().context("a master leads")?;
    let at = match role {
        // The first master's patience is the shortest: it is elected when the others fall silent.
        Role::MasterLeader => 0,
        _ => {
            if leads == 2 {
                1
            } else {
                2
            }
        }
    };
    rig.restart_armed(At::Master(at), case.armed())?;
    for _ in 0..MASTER_TRIES {
        rig.linger(Duration::from_millis(500))?;
        rig.wait("a master leads", SETTLE_MAX, |cluster| cluster.cli().run(&["status"]).code == 0)?;
        let leads = rig.cluster.leading_master();
        match (role, leads) {
            (Role::MasterLeader, Some(leads)) if leads != at => {
                rig.node(At::Master(leads)).kill_and_restart()?;
            }
            (_, None) => {}
            (_, Some(_)) => break,
        }
    }
    rig.wait_until_whole(case.way.0.copies())
}

/// Orders that change the metadata and nothing else.
fn changes() -> Orders {
    let change = |number| if number % 2 == 0 { "pause" } else { "resume" };
    (0..CHANGES).map(|number| words(&["balancer", change(number), "--timeout", "10s"])).collect()
}

/// A master that does not lead is away until the others have cut their logs, and starts armed.
fn catch_up(rig: &mut Rig, case: &Case) -> Result<()> {
    let leads = rig.cluster.leading_master().context("a master leads")?;
    let away = if leads == 2 { 1 } else { 2 };
    rig.cluster.masters[away].process().kill()?;
    let cli = rig.cluster.cli();
    for change in changes().into_iter().chain(changes()) {
        let _ = cli.run(&change.iter().map(String::as_str).collect::<Vec<_>>());
    }
    rig.arm(At::Master(away), case.armed());
    rig.node(At::Master(away)).start().map(drop)
}

/// How long the failpoint is waited for when all orders are given: flushes come every second.
pub const HIT_MAX: Duration = Duration::from_secs(8);
