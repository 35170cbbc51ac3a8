//! `ebla backup prune`: what no backup needs goes.
//!
//! The cluster, if it can be asked, knows its own backups: what it makes stays, what it no longer
//! makes goes at once. Of those it does not know, the sign of life at the target tells whether
//! anybody makes them.

use super::repository;
use crate::cli::{Global, PruneBackups, Wait};
use crate::cmd::{connect, note, output};
use ebla_backup::{Garbage, Kept, KeptWhy, PruneWish, Spared, limits};
use ebla_client::v1;
use ebla_proto::convert::time_text;
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest wait for a cluster that may not be there at all.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// Names that people are shown of all that there are.
const NAMES_SHOWN: usize = 20;

/// Shows what no backup needs, and with `--yes` removes it.
pub async fn run(global: &Global, args: PruneBackups) -> anyhow::Result<()> {
    let repository = repository(&args.at.url).await?;
    let (running, over) = known(global).await.unwrap_or_default();
    let spared = match args.min_age {
        Some(min_age) => Spared::Written { since_ms: ms_ago(min_age) },
        None => Spared::Alive { since_ms: ms_ago(limits::SIGN_DEAD_AFTER) },
    };
    let garbage = repository.garbage(&PruneWish { running, over, spared }).await?;
    garbage.kept.iter().for_each(|kept| note(&kept_line(kept)));
    let mut out = output(global);
    if garbage.is_empty() {
        return out.one(&garbage_json(&garbage, "clean"), || "nothing to remove".to_owned());
    }
    if !args.yes {
        let shown = || format!("{}{}", described(&garbage, "no backup needs"), names(&garbage));
        out.one(&garbage_json(&garbage, "found"), shown)?;
        note("nothing was removed: give --yes to remove it");
        return Ok(());
    }
    repository.remove_garbage(&garbage).await?;
    out.one(&garbage_json(&garbage, "removed"), || described(&garbage, "removed"))
}

/// Backups that the cluster is making, and those that it remembers and does not make; none when
/// it does not say.
async fn known(global: &Global) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
    let asked = async {
        let admin = connect(global, Wait { timeout: ASK_WITHIN }).await?.admin();
        Ok::<_, anyhow::Error>(admin.list_backup_attempts().await?)
    };
    let attempts = tokio::time::timeout(ASK_WITHIN, asked).await.ok()?.ok()?;
    let backups = attempts.into_iter().filter(|job| job.kind() == v1::JobKind::Backup);
    let (running, over): (Vec<_>, Vec<_>) = backups.partition(|job| job.state() == v1::JobState::Running);
    let ids = |jobs: Vec<v1::Job>| jobs.into_iter().filter_map(|job| Some(job.backup?.backup_id)).collect();
    Some((ids(running), ids(over)))
}

/// A time ago; what was written in this very millisecond is old enough for those who want no age.
fn ms_ago(age: Duration) -> u64 {
    let then = SystemTime::now().checked_sub(age).and_then(|then| then.duration_since(UNIX_EPOCH).ok());
    then.and_then(|then| u64::try_from(then.as_millis()).ok()).map_or(0, |ms| ms.saturating_add(1))
}

fn kept_line(kept: &Kept) -> String {
    let Kept { id, written_ms, why } = kept;
    let written = time_text(*written_ms);
    match why {
        KeptWhy::Running => format!("{id} is kept: the cluster is making it"),
        KeptWhy::Damaged(why) => format!("{id} is kept, as nobody knows which files it needs: {why}"),
        KeptWhy::Alive(sign) => {
            let who = sign.as_ref().map_or_else(
                || "somebody may be making it".to_owned(),
                |sign| format!("job {} of the cluster {} may be making it", sign.job, sign.cluster_id),
            );
            format!(
                "{id} is kept: {who}, something was written at {written}; name its cluster with --endpoints, wait, or give --min-age 0s if that cluster is gone"
            )
        }
    }
}

fn garbage_json(garbage: &Garbage, state: &str) -> Json {
    json!({
        "backups": garbage.backups,
        "files": garbage.files.len(),
        "uploads": garbage.uploads.len(),
        "bytes": garbage.bytes(),
        "names": all_names(garbage).collect::<Vec<_>>(),
        "kept": garbage.kept.iter().map(|kept| &kept.id).collect::<Vec<_>>(),
        "state": state,
    })
}

fn all_names(garbage: &Garbage) -> impl Iterator<Item = &str> {
    let files = garbage.files.iter().map(|file| file.name.as_str());
    files.chain(garbage.uploads.iter().map(|upload| upload.name.as_str()))
}

/// The first names, a line each.
fn names(garbage: &Garbage) -> String {
    let mut lines: String = all_names(garbage).take(NAMES_SHOWN).map(|name| format!("\n  {name}")).collect();
    let more = all_names(garbage).count().saturating_sub(NAMES_SHOWN);
    if more > 0 {
        lines.push_str(&format!("\n  and {more} more"));
    }
    lines
}

fn described(garbage: &Garbage, what: &str) -> String {
    let backups = match garbage.backups.as_slice() {
        [] => String::new(),
        ids => format!(", of backups that were never finished: {}", ids.join(" ")),
    };
    let (files, uploads) = (garbage.files.len(), garbage.uploads.len());
    format!("{what}: {files} files and {uploads} unfinished uploads of {} bytes{backups}", garbage.bytes())
}
