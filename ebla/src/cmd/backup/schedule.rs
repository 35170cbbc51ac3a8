//! `ebla backup schedule`: backups that the cluster makes by itself.

use super::author;
use crate::cli::{Global, Schedule, SetSchedule};
use crate::cmd::{connect, job, output};
use ebla_client::v1;
use serde_json::{Value as Json, json};
use std::time::Duration;

const COLUMNS: [&str; 8] = ["url", "every_s", "full_every_s", "keep", "last_id", "next", "failures", "error"];

/// How often a full backup is made unless it is said.
const FULL_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Sets, shows or removes schedules.
pub async fn run(global: &Global, command: Schedule) -> anyhow::Result<()> {
    let mut out = output(global);
    match command {
        Schedule::Set(args) => {
            let admin = connect(global, args.wait).await?.admin();
            let schedule = admin.set_backup_schedule(wanted(args)).await?;
            out.one(&schedule_json(&schedule), || {
                format!("a backup to {} every {} s", schedule.url, schedule.every_ms / 1_000)
            })
        }
        Schedule::List(wait) => {
            let schedules = connect(global, wait).await?.admin().list_backup_schedules().await?;
            out.list(&COLUMNS, &schedules.iter().map(schedule_json).collect::<Vec<_>>())
        }
        Schedule::Remove(args) => {
            connect(global, args.wait).await?.admin().remove_backup_schedule(&args.to).await?;
            out.one(&json!({ "removed": args.to }), || format!("no more backups to {}", args.to))
        }
    }
}

fn wanted(args: SetSchedule) -> v1::BackupSchedule {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    v1::BackupSchedule {
        url: args.to,
        every_ms: ms(args.every),
        // Unless it is said, a full one each time when that is rarer than once a day.
        full_every_ms: ms(args.full_every.unwrap_or(FULL_EVERY.max(args.every))),
        keep: args.keep,
        tables: args.tables,
        rate_bytes: args.rate.unwrap_or(0),
        encrypted: args.encrypt,
        by: author(),
        ..v1::BackupSchedule::default()
    }
}

/// A schedule as JSON.
pub fn schedule_json(schedule: &v1::BackupSchedule) -> Json {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "url": schedule.url,
        "every_s": schedule.every_ms as f64 / 1_000.0,
        "full_every_s": schedule.full_every_ms as f64 / 1_000.0,
        "keep": schedule.keep,
        "tables": schedule.tables,
        "rate": (schedule.rate_bytes > 0).then_some(schedule.rate_bytes),
        "encrypted": schedule.encrypted,
        "by": schedule.by,
        "last_id": text(&schedule.last_backup_id),
        "last_ts": (schedule.last_ts > 0).then(|| schedule.last_ts.to_string()),
        "started_ms": (schedule.started_ms > 0).then_some(schedule.started_ms),
        "next": job::time_text(schedule.next_ms),
        "next_ms": schedule.next_ms,
        "failures": schedule.failures,
        "error": text(&schedule.error),
    })
}
