//! Backups and restores in the crash matrix: whoever dies or fails at whatever step, there is a
//! whole backup or none, and a whole table or none.

use super::cases::{Action, Case, Role, Workflow};
use super::rig::{At, Rig, SETTLE_MAX};
use super::workflow::{Orders, arm_copy, arm_master, lead, words};
use crate::cli::{Cli, exit};
use crate::cluster::Cluster;
use anyhow::{Context as _, Result, bail, ensure};
use ebla_client::{Client, Hlc, Row, Scan};
use futures::TryStreamExt as _;
use serde_json::Value as Json;
use std::path::PathBuf;

/// Where the backups of a rig lie.
fn target(cluster: &Cluster) -> PathBuf {
    cluster.place.path().join("backups")
}

fn url(cluster: &Cluster) -> String {
    format!("file://{}", target(cluster).display())
}

/// The table under load.
fn table(cluster: &Cluster) -> Result<String> {
    Ok(cluster.first_tablet()?["table"].as_str().context("the tablet has a table")?.to_owned())
}

fn restored(table: &str) -> String {
    format!("{table}r")
}

fn create(cluster: &Cluster) -> Result<Vec<String>> {
    Ok(words(&["backup", "create", "--to", &url(cluster), "--table", &table(cluster)?, "--wait"]))
}

/// Arms whoever has a part in a backup, and orders one.
pub(super) fn back_up(rig: &mut Rig, case: &Case, role: Role) -> Result<Orders> {
    match role {
        Role::MasterLeader => arm_master(rig, case, role)?,
        Role::Follower => arm_asked(rig, case)?,
        Role::Leader | Role::Target | Role::Source | Role::Wiped | Role::Deposed | Role::MasterFollower => {
            bail!("a backup has no {role:?}")
        }
    }
    Ok(vec![create(&rig.cluster)?])
}

/// Of the followers the first is asked for its rows before the others.
fn arm_asked(rig: &mut Rig, case: &Case) -> Result<()> {
    let ids = rig.cluster.ids()?;
    let place =
        |wanted: Option<&u64>| ids.iter().position(|id| Some(id) == wanted).context("a server is there");
    let (first, last) = (place(ids.iter().min())?, place(ids.iter().max())?);
    rig.restart_armed(At::Server(first), case.armed())?;
    rig.wait_until_whole(case.way.0.copies())?;
    lead(rig, last)
}

/// Makes a backup, arms whoever has a part in a restore, and orders one.
pub(super) fn restore(rig: &mut Rig, case: &Case, role: Role) -> Result<Orders> {
    let create = create(&rig.cluster)?;
    let made = rig.order(vec![create])?;
    ensure!(made.iter().all(|made| made.code == exit::OK), "no backup was made: {}", made[0]);
    match role {
        Role::MasterLeader => arm_master(rig, case, role)?,
        Role::Follower => drop(arm_copy(rig, case, role)?),
        Role::Leader | Role::Target | Role::Source | Role::Wiped | Role::Deposed | Role::MasterFollower => {
            bail!("a restore has no {role:?}")
        }
    }
    let (url, table) = (url(&rig.cluster), table(&rig.cluster)?);
    Ok(vec![words(&["backup", "restore", "--from", &url, "--table", &table, "--as", &restored(&table)])])
}

/// What was ordered is there as a whole, or not at all; for cases about backups.
///
/// # Errors
/// With what is there.
pub(super) fn check(rig: &mut Rig, case: &Case) -> Result<()> {
    match case.way.0 {
        Workflow::Backup => check_backup(rig, case),
        Workflow::Restore => check_restored(rig, case),
        Workflow::Writes
        | Workflow::Split
        | Workflow::Merge
        | Workflow::Move
        | Workflow::Wipe
        | Workflow::Failover
        | Workflow::Metadata
        | Workflow::CatchUp => Ok(()),
    }
}

/// What became of the last attempt.
fn last_attempt(rig: &mut Rig) -> Result<Json> {
    rig.wait("a master leads", SETTLE_MAX, |cluster| cluster.cli().list(&["backup", "log"]).is_some())?;
    let attempts = rig.cluster.cli().list(&["backup", "log"]).context("there is a log of backups")?;
    attempts.last().cloned().context("something was tried")
}

/// Whoever dies or waits, it comes to a good end; only a step of a master that fails ends it.
fn check_outcome(case: &Case, attempt: &Json) -> Result<()> {
    let may_fail = case.action == Action::Error && case.way.1 == Role::MasterLeader;
    ensure!(may_fail || attempt["state"] == "done", "it came to nothing: {attempt}");
    Ok(())
}

fn check_backup(rig: &mut Rig, case: &Case) -> Result<()> {
    let attempt = last_attempt(rig)?;
    check_outcome(case, &attempt)?;
    let (cli, url) = (rig.cluster.cli(), url(&rig.cluster));
    let id = attempt["id"].as_str().context("a backup has an id")?.to_owned();
    if attempt["state"] == "done" {
        let verify = ["backup", "verify", "--from", &url, "--id", &id, "--sample", "100%", "-o", "json"];
        let verified = cli.run(&verify);
        ensure!(verified.code == exit::OK, "{verified}");
        let compared = verified.json()["sampled"].as_u64();
        ensure!(compared == attempt["rows"].as_u64() && compared > Some(0), "{verified} of {attempt}");
        return Ok(());
    }
    ensure!(attempt["error"].as_str().is_some_and(|why| !why.is_empty()), "it does not say why: {attempt}");
    ensure!(!is_listed(&cli, &url, &id), "a backup that failed is there: {attempt}");
    // What a crash has left goes at once: the cluster knows that it is over.
    let pruned = cli.run(&["backup", "prune", "--to", &url, "--yes"]);
    ensure!(pruned.code == exit::OK, "{pruned}");
    let left = target(&rig.cluster).join("backups").join(&id);
    ensure!(!left.exists(), "{} is still there", left.display());
    Ok(())
}

fn is_listed(cli: &Cli, url: &str, id: &str) -> bool {
    cli.list(&["backup", "list", "--to", url]).is_some_and(|all| all.iter().any(|backup| backup["id"] == id))
}

fn check_restored(rig: &mut Rig, case: &Case) -> Result<()> {
    let attempt = last_attempt(rig)?;
    check_outcome(case, &attempt)?;
    ensure!(attempt["kind"] == "restore", "the last attempt is no restore: {attempt}");
    let table = table(&rig.cluster)?;
    let name = restored(&table);
    if attempt["state"] != "done" {
        return rig.wait("the restored table is gone", SETTLE_MAX, |cluster| {
            cluster.cli().run(&["table", "describe", &name]).code == exit::NOT_FOUND
        });
    }
    let ts = attempt["ts"].as_str().and_then(|ts| ts.parse().ok()).map(Hlc).context("a restore has a ts")?;
    let client = rig.client.clone();
    let dropped = name.clone();
    rig.run(async move {
        let (source, restored) = (all(&client, &table, ts).await?, all(&client, &name, ts).await?);
        ensure!(!source.is_empty() && source == restored, "the restored table differs at {}", ts.0);
        Ok(())
    })??;
    super::matrix::drop_table(rig, &dropped)
}

async fn all(client: &Client, table: &str, at: Hlc) -> Result<Vec<Row>> {
    Ok(client.scan(table, Scan { at: Some(at), ..Scan::all() })?.try_collect().await?)
}
