//! `ebla tablet split`: several tablets of one.

use super::connect;
use crate::cli::{Global, SplitTablet};
use crate::exit::Failure;
use crate::output::{Output, argument_bytes};
use bytes::Bytes;
use serde_json::json;

/// Splits a tablet, or says where it would be split.
pub async fn run(global: &Global, args: SplitTablet, out: &mut Output) -> anyhow::Result<()> {
    let admin = connect(global, args.wait).await?.admin();
    let keys: Vec<Bytes> = match args.parts {
        Some(parts) => admin.suggest_split(args.id, parts).await?,
        None => args.at.iter().map(|key| argument_bytes(key, global.hex)).collect(),
    };
    if keys.is_empty() {
        let hint = format!("tablet {} has too few rows to be split by size: give --at KEY", args.id);
        return Err(Failure::refused(hint).into());
    }
    let at: Vec<String> = keys.iter().map(|key| out.text(key)).collect();
    if args.dry_run {
        let tablet = admin.describe_tablet(args.id).await?.tablet.unwrap_or_default();
        let is_inside = |key: &Bytes| *key > tablet.start && (tablet.end.is_empty() || *key < tablet.end);
        if !keys.iter().all(is_inside) || !keys.windows(2).all(|pair| pair[0] < pair[1]) {
            let hint = format!(
                "a split point must lie strictly inside of tablet {}, and several must rise: choose other keys",
                args.id
            );
            return Err(Failure::usage(hint).into());
        }
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
