//! Commands of scripts about backups, restores and schedules.

use crate::Args;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Attempt, JobId, ReplicaId, TableId, TabletId};
use ebla_kernel::meta::{
    BackupJob, BackupStep, BackupWish, Command, NewTable, NewTablet, Origin, RefusedWish, RestoreJob,
    RestoreStep, RestoreWish, RestoredCopy, Schedule, SchedulePast, State, TableSpec, Totals, Wish,
};

pub const NAMES: [&str; 11] = [
    "refused-backup",
    "backup",
    "choose",
    "commit-backup",
    "finish",
    "restore",
    "restored-tables",
    "restored",
    "activate",
    "schedule",
    "unschedule",
];

/// The command of one of [`NAMES`].
pub fn command(name: &str, args: &Args, state: &State, now_ms: u64, new_table: Option<Command>) -> Command {
    let (job, attempt) = (JobId(args.number("j")), Attempt(args.number("j")));
    let backup = |step| Command::ChangeBackup { job, attempt, step };
    let restore = |step| Command::ChangeRestore { job, attempt, step };
    let start = |wish| Command::StartJob { wish, origin: Origin::Operator, time_ms: now_ms };
    match name {
        "refused-backup" => Command::RecordRefusal {
            wish: RefusedWish::Backup(backup_wish(args, state)),
            error: "it burns".to_owned(),
            started_ms: now_ms,
            ended_ms: now_ms + 5,
        },
        "backup" => start(Wish::Backup(Box::new(backup_wish(args, state)))),
        "choose" => backup(BackupStep::Choose { ts: Hlc::new(args.number("ts"), 0) }),
        "commit-backup" => {
            let totals = Totals { tables: 1, rows: args.number("rows"), bytes: 100, files: 1 };
            backup(BackupStep::Commit { totals })
        }
        "finish" => backup(BackupStep::Finish { time_ms: now_ms }),
        "restore" => start(Wish::Restore(Box::new(restore_wish(args)))),
        "restored-tables" => restore(RestoreStep::Create { tables: vec![table_of(new_table)] }),
        "restored" => {
            let copy = |replica: &str| RestoredCopy {
                tablet: TabletId(args.number("t")),
                replica: ReplicaId(replica.parse().unwrap()),
                rows: args.number("rows"),
                bytes: 10,
            };
            restore(RestoreStep::Restored { copies: args.list("r").into_iter().map(copy).collect() })
        }
        "activate" => restore(RestoreStep::Activate { time_ms: now_ms }),
        "schedule" => Command::SetSchedule { schedule: Box::new(schedule(args)) },
        "unschedule" => Command::RemoveSchedule { url: args.text("url").unwrap().to_owned() },
        other => panic!("{other} is no command about backups"),
    }
}

fn backup_wish(args: &Args, state: &State) -> BackupWish {
    let since = Hlc::new(args.number("since"), 0);
    let table = |name: &str| (state.table_named(name).map_or(TableId(99), |table| table.id), since);
    BackupWish {
        backup: args.text("id").unwrap().to_owned(),
        url: args.text("url").unwrap_or("file:///b").to_owned(),
        tables: args.list("tables").into_iter().map(table).collect(),
        parent: args.text("parent").map(|parent| (parent.to_owned(), since)),
        at: args.text("at").map(|_| Hlc::new(args.number("at"), 0)),
        safe: Hlc::new(args.number("safe"), 0),
        rate_bytes: 0,
        key_id: String::new(),
        by: "me".to_owned(),
        scheduled: args.text("scheduled").is_some(),
    }
}

fn restore_wish(args: &Args) -> RestoreWish {
    let named = |pair: &str| {
        let (source, name) = pair.split_once(':').unwrap();
        (TableId(source.parse().unwrap()), name.to_owned())
    };
    RestoreWish {
        backup: args.text("id").unwrap().to_owned(),
        url: "file:///b".to_owned(),
        ts: Hlc::new(5, 0),
        tables: args.list("tables").into_iter().map(named).collect(),
        replicas: None,
        rate_bytes: 0,
        by: "me".to_owned(),
    }
}

/// Promises and tablets as the command for an ordinary table would have them.
fn table_of(new_table: Option<Command>) -> NewTable {
    match new_table {
        Some(Command::CreateTable { spec, tablets, .. }) => NewTable { spec, tablets },
        _ => NewTable { spec: TableSpec::default(), tablets: Vec::<NewTablet>::new() },
    }
}

fn schedule(args: &Args) -> Schedule {
    Schedule {
        url: args.text("url").unwrap().to_owned(),
        every_ms: args.number("every"),
        full_every_ms: args.number("full"),
        keep: u32::try_from(args.number("keep")).unwrap(),
        tables: Vec::new(),
        rate_bytes: 0,
        key_id: String::new(),
        by: "me".to_owned(),
        past: SchedulePast::default(),
    }
}

pub fn backup_text(backup: &BackupJob) -> String {
    let ts = backup.ts.map_or("no timestamp".to_owned(), |ts| format!("at {ts}"));
    let committed = if backup.committed { ", committed" } else { "" };
    format!("{} of {:?} {ts}, {} rows{committed}", backup.wish.backup, backup.wish.tables, backup.totals.rows)
}

pub fn restore_text(restore: &RestoreJob) -> String {
    let names: Vec<&str> = restore.wish.tables.iter().map(|(_, name)| name.as_str()).collect();
    format!("{} as {names:?} into {:?}, {} rows", restore.wish.backup, restore.tables, restore.totals.rows)
}
