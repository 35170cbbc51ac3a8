//! `ebla tablet split`: several tablets of one.

use super::{connect, note};
use crate::cli::{Global, SplitTablet};
use crate::exit::Failure;
use crate::output::{Output, argument_bytes};
use anyhow::Context as _;
use bytes::Bytes;
use ebla_client::{Admin, v1};
use ebla_kernel::ids::TabletId;
use ebla_kernel::meta::check_split_keys;
use ebla_kernel::range::KeyRange;
use ebla_proto::convert::non_empty;
use serde_json::json;

/// Splits a tablet, or says where it would be split.
pub async fn run(global: &Global, args: SplitTablet, out: &mut Output) -> anyhow::Result<()> {
    let admin = connect(global, args.wait).await?.admin();
    let keys: Vec<Bytes> = match args.parts {
        Some(parts) => found(&admin, &args, parts, out).await?,
        None => args.at.iter().map(|key| argument_bytes(key, global.hex)).collect(),
    };
    let at: Vec<String> = keys.iter().map(|key| out.text(key)).collect();
    if args.dry_run {
        let tablet = admin.describe_tablet(args.id).await?.tablet.unwrap_or_default();
        let range =
            KeyRange::new(tablet.start, non_empty(tablet.end)).ok().context("the tablet has no keys")?;
        check_split_keys(TabletId(args.id), &range, &keys).map_err(|bad| Failure::usage(bad.to_string()))?;
        let object = json!({ "job": null, "children": [], "at": at });
        let line = || format!("tablet {} would be split at {}", args.id, at.join(", "));
        return out.one(&object, line);
    }
    let split = admin.split_tablet(args.id, keys).await?;
    let object = json!({ "job": split.job_id, "children": split.child_tablet_ids, "at": at });
    out.one(&object, || {
        let ids: Vec<String> = split.child_tablet_ids.iter().map(u64::to_string).collect();
        format!("tablet {} is split at {}: tablets {} serve", args.id, at.join(", "), ids.join(", "))
    })
}

/// Keys for so many parts, or fewer where there are no more: then it is said why.
async fn found(admin: &Admin, args: &SplitTablet, parts: u32, out: &Output) -> anyhow::Result<Vec<Bytes>> {
    let id = args.id;
    let (keys, what) = if args.by_load {
        let found = admin.suggest_split_by_load(id, parts).await?;
        if let Some(hint) = no_cut(id, &found, out) {
            return Err(Failure::refused(hint).into());
        }
        (found.split_keys, "its requests do not allow more of about the same load")
    } else {
        let keys = admin.suggest_split(id, parts).await?;
        if keys.is_empty() {
            let hint = format!("tablet {id} has too few rows to be split by size: give --at KEY");
            return Err(Failure::refused(hint).into());
        }
        (keys, "it has too few rows, or too large ones, for more of about the same size")
    };
    let made = keys.len() + 1;
    if made < parts as usize {
        note(&format!("tablet {id} is cut into {made} parts, not into {parts}: {what}"));
    }
    Ok(keys)
}

/// Why a tablet cannot be split by load.
fn no_cut(id: u64, found: &v1::SuggestSplitResponse, out: &Output) -> Option<String> {
    match found.finding() {
        v1::SplitFinding::Cut => None,
        v1::SplitFinding::HotKey => Some(format!(
            "the key {} has {} % of the requests of tablet {id}, so that no split would halve them: spread them over more keys",
            out.text(&found.hot_key),
            found.hot_key_percent
        )),
        v1::SplitFinding::Wandering => Some(format!(
            "the requests of tablet {id} go along its keys, so that no split would halve those to come: give --at KEY"
        )),
        v1::SplitFinding::TooFewSamples | v1::SplitFinding::TooFewRows | v1::SplitFinding::Unspecified => {
            Some(format!(
                "too few requests of tablet {id} were sampled in the last 20 s: it must have half of its table's --split-load; try again some seconds after the load has begun, lower the limit with `ebla table set`, or give --at KEY"
            ))
        }
    }
}
