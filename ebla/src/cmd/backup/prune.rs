//! `ebla backup prune`: what no backup needs goes.

use super::repository;
use crate::cli::{Global, PruneBackups, Wait};
use crate::cmd::{confirm, connect, note, output};
use ebla_backup::{Garbage, PruneWish, limits};
use ebla_client::v1;
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest wait for a cluster that may not be there at all.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// Shows what no backup needs, and with `--yes` removes it.
pub async fn run(global: &Global, args: PruneBackups) -> anyhow::Result<()> {
    let repository = repository(&args.at.url).await?;
    let running = running(global).await;
    let default = if running.is_some() { Duration::ZERO } else { limits::PRUNE_AGE };
    let min_age = args.min_age.unwrap_or(default);
    let wish = PruneWish { running: running.clone().unwrap_or_default(), written_before_ms: ms_ago(min_age) };
    let garbage = repository.garbage(&wish).await?;
    if running.is_none() {
        let all = PruneWish { written_before_ms: u64::MAX, ..wish };
        note_of_kept(&garbage, &repository.garbage(&all).await?, min_age);
    }
    let mut out = output(global);
    if garbage.is_empty() {
        return out.one(&garbage_json(&garbage, "clean"), || "nothing to remove".to_owned());
    }
    if !args.yes {
        out.one(&garbage_json(&garbage, "found"), || described(&garbage, "no backup needs"))?;
    }
    confirm(args.yes, &format!("removing {} files", garbage.files.len() + garbage.uploads.len()))?;
    repository.remove_garbage(&garbage).await?;
    out.one(&garbage_json(&garbage, "removed"), || described(&garbage, "removed"))
}

/// Backups that the cluster is making; none when it does not say.
async fn running(global: &Global) -> Option<BTreeSet<String>> {
    let asked = async {
        let admin = connect(global, Wait { timeout: ASK_WITHIN }).await?.admin();
        Ok::<_, anyhow::Error>(admin.list_jobs(true).await?)
    };
    let jobs = tokio::time::timeout(ASK_WITHIN, asked).await.ok()?.ok()?;
    let backups = jobs.into_iter().filter(|job| job.kind() == v1::JobKind::Backup);
    Some(backups.filter_map(|job| Some(job.backup?.backup_id)).collect())
}

fn ms_ago(age: Duration) -> u64 {
    let then = SystemTime::now().checked_sub(age).and_then(|then| then.duration_since(UNIX_EPOCH).ok());
    // What was written in this very millisecond is old enough for those who want no age.
    then.and_then(|then| u64::try_from(then.as_millis()).ok()).map_or(0, |ms| ms.saturating_add(1))
}

fn note_of_kept(garbage: &Garbage, all: &Garbage, min_age: Duration) {
    let kept = all.files.len() + all.uploads.len() - garbage.files.len() - garbage.uploads.len();
    if kept > 0 {
        note(&format!(
            "{kept} files that are younger than {} are kept: no cluster could be asked whether it still makes a backup; name one with --endpoints, or give --min-age 0s",
            humantime::format_duration(min_age)
        ));
    }
}

fn garbage_json(garbage: &Garbage, state: &str) -> Json {
    json!({
        "backups": garbage.backups,
        "files": garbage.files.len(),
        "uploads": garbage.uploads.len(),
        "bytes": garbage.bytes(),
        "state": state,
    })
}

fn described(garbage: &Garbage, what: &str) -> String {
    let backups = match garbage.backups.as_slice() {
        [] => String::new(),
        ids => format!(", of backups that were never finished: {}", ids.join(" ")),
    };
    let (files, uploads) = (garbage.files.len(), garbage.uploads.len());
    format!("{what}: {files} files and {uploads} unfinished uploads of {} bytes{backups}", garbage.bytes())
}
