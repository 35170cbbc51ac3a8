//! `ebla balancer`: what the cluster does by itself, and why.

use super::job::time_text;
use super::{connect, note, output};
use crate::cli::{Balancer, BalancerStatus, Global, Wait};
use crate::output::Output;
use ebla_client::v1;
use serde_json::{Value as Json, json};
use std::process::ExitCode;

const COLUMNS: [&str; 5] = ["time", "tablet", "action", "outcome", "reason"];

const PLANNED_COLUMNS: [&str; 3] = ["tablet", "action", "reason"];

/// Shows it, pauses it, lets it go on, or explains.
pub async fn run(global: &Global, command: Balancer) -> anyhow::Result<ExitCode> {
    match command {
        Balancer::Status(args) => status(global, args).await?,
        Balancer::Pause(wait) => pause(global, wait, true).await?,
        Balancer::Resume(wait) => pause(global, wait, false).await?,
        Balancer::Why(args) => {
            let explained = connect(global, args.wait).await?.admin().explain_tablet(args.id).await?;
            let decisions: Vec<_> = explained.decisions.iter().map(decision_json).collect();
            let object = json!({ "tablet": args.id, "findings": explained.findings, "decisions": decisions });
            let mut out = output(global);
            out.one(&object, || explained.findings.join("\n"))?;
            if out.is_table() && !decisions.is_empty() {
                out.list_whole(&COLUMNS, &decisions)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(global: &Global, args: BalancerStatus) -> anyhow::Result<()> {
    let status = connect(global, args.wait).await?.admin().balancer(args.dry_run).await?;
    let decisions: Vec<_> = status.decisions.iter().map(decision_json).collect();
    let state = match (status.paused, status.interval_ms) {
        (true, _) => "paused",
        (false, 0) => "off",
        (false, _) => "running",
    };
    let mut object = json!({
        "state": state,
        "paused": status.paused,
        "interval_ms": status.interval_ms,
        "rounds": status.rounds,
        "round_us": status.round_us,
        "decisions": decisions,
        "hot_keys": [],
    });
    let mut out = output(global);
    let planned: Vec<_> = status.planned.iter().map(decision_json).collect();
    if args.dry_run {
        object["planned"] = planned.clone().into();
    }
    object["hot_keys"] = status.hot_keys.iter().map(|hot| hot_key_json(&out, hot)).collect();
    out.one(&object, || {
        format!("the balancer is {state}: {} rounds, the last took {} us", status.rounds, status.round_us)
    })?;
    if out.is_table() && !decisions.is_empty() {
        out.list_whole(&COLUMNS, &decisions)?;
    }
    if out.is_table() && args.dry_run {
        note(&format!("{} steps would be begun now:", planned.len()));
        out.list_whole(&PLANNED_COLUMNS, &planned)?;
    }
    if out.is_table() {
        for hot in &status.hot_keys {
            note(&format!(
                "the key {} of table {} has {} % of the requests of tablet {}: no split would take them apart",
                out.text(&hot.key),
                hot.table,
                hot.percent,
                hot.tablet_id
            ));
        }
    }
    Ok(())
}

fn hot_key_json(out: &Output, hot: &v1::HotKey) -> Json {
    let mut object = json!({
        "key": out.text(&hot.key),
        "table": hot.table,
        "tablet": hot.tablet_id,
        "percent": hot.percent,
        "time_ms": hot.time_ms,
    });
    if std::str::from_utf8(&hot.key).is_err() {
        object[out.mark_name()] = true.into();
    }
    object
}

async fn pause(global: &Global, wait: Wait, paused: bool) -> anyhow::Result<()> {
    let paused = connect(global, wait).await?.admin().pause_balancer(paused).await?;
    let line = if paused { "the balancer is paused" } else { "the balancer goes on" };
    output(global).one(&json!({ "paused": paused }), || line.to_owned())
}

fn decision_json(decision: &v1::BalancerDecision) -> Json {
    json!({
        "time": time_text(decision.time_ms),
        "time_ms": decision.time_ms,
        "tablet": decision.tablet_id,
        "kind": decision.kind,
        "action": decision.action,
        "reason": decision.reason,
        "outcome": (!decision.outcome.is_empty()).then_some(&decision.outcome),
    })
}
