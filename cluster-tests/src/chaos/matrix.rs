//! One case of the crash matrix: under load, with one process armed, from a new table to its end.
//!
//! ```text
//! table, load ─▶ a process is armed ─▶ orders ─▶ it dies, at most four times, and comes back
//!   ─▶ whole, jobs ended, load ends without an error ─▶ each copy leads once: rows, counters
//!   ─▶ the table is dropped ─▶ nothing staged, retired, or half built is left
//! ```

use super::cases::Case;
use super::rig::{Rig, SETTLE_MAX};
use super::workflow::{self, HIT_MAX};
use crate::cli::{Output, exit};
use crate::cluster::Cluster;
use crate::load::{Known, Load, Shape};
use anyhow::{Context as _, Result, ensure};
use std::sync::Arc;
use std::time::Duration;

/// Rows of the load, of which half lie in each tablet.
const ROWS: u64 = 400;

/// How long the load runs before anything happens.
const WARM_UP: Duration = Duration::from_millis(300);

/// Gauges of a server that are zero when nothing is under way and nothing is left behind.
const LEFTOVERS: [&str; 3] =
    ["ebla_tablets_staged_count", "ebla_tablets_retired_count", "ebla_replicas_unfinished_count"];

/// How a case went.
#[derive(Debug)]
pub struct Report {
    /// How often the failpoint acted.
    pub acted: usize,
    /// What was ordered, and how that ended.
    pub orders: Vec<String>,
    /// Calls of the load that were answered.
    pub calls: u64,
    /// The longest of them.
    pub longest: Duration,
}

/// Runs one case; the rig is to be thrown away when it fails.
///
/// # Errors
/// What is wrong, with the last words of the armed process.
pub fn run(rig: &mut Rig, case: &Case, number: u64) -> Result<Report> {
    let table = format!("t{number}");
    let copies = case.way.0.copies();
    rig.wait("every server is up", SETTLE_MAX, Cluster::all_ready)?;
    create(rig, &table, case)?;
    rig.wait_until_whole(copies)?;
    let load = start_load(rig, &table, number);
    rig.linger(WARM_UP)?;
    let orders = workflow::prepare(rig, case).context("bringing the process into its role")?;
    let outputs = rig.order(orders)?;
    let _ = wait_for_hit(rig);
    rig.wait_until_whole(copies)?;
    wait_for_jobs(rig)?;
    super::backup::check(rig, case).context("the backup or the restore")?;
    let known = rig.run(load.stop())??;
    check_copies(rig, &known)?;
    drop_table(rig, &table)?;
    let _ = wait_for_hit(rig);
    wait_for_leftovers(rig)?;
    let acted = rig.acted();
    ensure!(acted > 0, "{} was never hit: the way does not lead there", case.point);
    rig.disarm()?;
    let summary = known.summary();
    ensure!(summary.errors == 0, "clients saw {} errors: {:#?}", summary.errors, summary.in_words);
    let told = |output: &Output| format!("{} -> {}", output.command(), output.code);
    Ok(Report {
        acted,
        orders: outputs.iter().take(2).map(told).collect(),
        calls: summary.reads.len() + summary.writes.len(),
        longest: summary.longest.0,
    })
}

fn create(rig: &mut Rig, table: &str, case: &Case) -> Result<()> {
    let replicas = case.way.0.copies().to_string();
    let middle = format!("{:07}", ROWS / 2);
    let mut create = vec!["table", "create", table, "--replicas", &replicas, "--timeout", "30s"];
    if case.way.0 != super::cases::Workflow::Failover {
        create.extend(["--split-at", &middle]);
    }
    let created = rig.cluster.cli().run(&create);
    ensure!(created.code == exit::OK, "{created}");
    Ok(())
}

fn start_load(rig: &Rig, table: &str, seed: u64) -> Load {
    let shape = Shape {
        table: table.to_owned(),
        rows: ROWS,
        counters: 8,
        writers: 6,
        pause: Duration::from_millis(2),
        value_bytes: 64,
        seed,
    };
    let _runtime = rig.runtime.enter();
    Load::start(&rig.client, shape)
}

/// Waits for a while until the failpoint has acted.
fn wait_for_hit(rig: &mut Rig) -> Result<()> {
    let until = std::time::Instant::now() + HIT_MAX;
    while rig.acted() == 0 && std::time::Instant::now() < until {
        rig.linger(Duration::from_millis(100))?;
    }
    Ok(())
}

/// No job runs for ever, and one that was not done says why.
fn wait_for_jobs(rig: &mut Rig) -> Result<()> {
    let jobs = |cluster: &Cluster| cluster.cli().list(&["job", "list"]);
    rig.wait("no job is under way", SETTLE_MAX, |cluster| {
        jobs(cluster).is_some_and(|jobs| jobs.iter().all(|job| job["state"] != "running"))
    })
    .with_context(|| format!("{:#?}", jobs(&rig.cluster)))?;
    for job in jobs(&rig.cluster).unwrap_or_default() {
        let says_why = job["state"] != "failed" || job["error"].as_str().is_some_and(|why| !why.is_empty());
        ensure!(says_why, "a job failed and does not say why: {job}");
    }
    Ok(())
}

/// Lets each copy lead, and compares what it has with what clients were told.
fn check_copies(rig: &mut Rig, known: &Arc<Known>) -> Result<()> {
    for at in 0..rig.cluster.servers.len() {
        rig.wait("the server is up", SETTLE_MAX, |cluster| cluster.id_of(at).is_ok())?;
        let server = rig.cluster.id_of(at)?;
        rig.let_lead(server)?;
        let (known, client) = (Arc::clone(known), rig.client.clone());
        let checked = rig.run(async move { known.check(&client).await })?;
        checked.with_context(|| format!("with server {server} leading what it has"))?;
    }
    Ok(())
}

/// Drops a table, whoever is down just now.
pub(super) fn drop_table(rig: &mut Rig, table: &str) -> Result<()> {
    rig.wait("the table is dropped", SETTLE_MAX, |cluster| {
        let dropped = cluster.cli().run(&["table", "drop", table, "--yes", "--timeout", "10s"]);
        [exit::OK, exit::NOT_FOUND].contains(&dropped.code)
    })
}

/// Nothing of a dropped table stays on any server.
fn wait_for_leftovers(rig: &mut Rig) -> Result<()> {
    let left = |cluster: &Cluster| {
        let mut left = Vec::new();
        for node in &cluster.servers {
            for gauge in LEFTOVERS {
                match node.metric(gauge) {
                    Ok(0.0) => {}
                    Ok(count) => left.push(format!("{gauge} is {count} at {}", node.address)),
                    Err(error) => left.push(format!("{gauge} of {}: {error}", node.address)),
                }
            }
            let incoming = std::fs::read_dir(node.data_dir.join("incoming")).into_iter().flatten().count();
            if incoming > 0 {
                left.push(format!("{incoming} half built copies at {}", node.address));
            }
        }
        left
    };
    rig.wait("nothing is left behind", SETTLE_MAX, |cluster| left(cluster).is_empty())
        .with_context(|| left(&rig.cluster).join(", "))
}
