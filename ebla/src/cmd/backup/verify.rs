//! `ebla backup verify`: whether backups are what was written.

use super::list::none_there;
use super::{repository, sample};
use crate::cli::{Global, VerifyBackups};
use crate::cmd::{note, output};
use crate::output::counted;
use anyhow::Context as _;
use ebla_backup::{BackupError, Manifest, Pace, Repository, Totals};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::io::IsTerminal as _;

/// Damages of one backup that people are told of; programs hear of all.
const DAMAGES_SHOWN: usize = 10;

/// Checks every file, and compares a sample of the rows with the tables if that is wanted.
pub async fn run(global: &Global, args: VerifyBackups) -> anyhow::Result<()> {
    let repository = repository(&args.url).await?;
    let mut inventory = repository.inventory().await?;
    let ids = match &args.id {
        Some(id) => inventory.chain(id)?,
        None => inventory.ids(),
    };
    if ids.is_empty() {
        return Err(none_there(&args.url).into());
    }
    let mut report = Report { shown: output(global).is_table(), ..Report::default() };
    for id in &ids {
        if let Some(error) = inventory.take_error(id) {
            report.add(id, error);
        }
    }
    let backups: Vec<&Manifest> = ids.iter().filter_map(|id| inventory.manifest(id)).collect();
    for backup in &backups {
        if let Err(error) = inventory.check_parent(backup) {
            report.add(&backup.id, error);
        }
    }
    check(&repository, &backups, &mut report).await?;
    if !report.is_whole() {
        output(global).one_of_programs(&report_json(&backups, &report))?;
        return Err(report.into_error(ids.len()));
    }
    let mut object = report_json(&backups, &report);
    let sampled = match (args.sample, backups.last()) {
        (Some(share), Some(newest)) => {
            Some(sample::compare(global, args.wait, &repository, newest, share).await?)
        }
        (Some(_) | None, _) => None,
    };
    let totals = totals(&backups);
    let mut line = format!(
        "{} whole: {}, {} bytes",
        counted(backups.len() as u64, "backup is", "backups are"),
        counted(totals.files, "file", "files"),
        totals.stored_bytes
    );
    if let Some(sampled) = sampled {
        object["sampled"] = json!(sampled.rows);
        object["sample_skipped"] = json!(sampled.skipped);
        match sampled.skipped {
            Some(why) => note(&format!("no rows were compared with the cluster's: {why}")),
            None => line.push_str(&format!("; {} rows are as in the cluster at that time", sampled.rows)),
        }
    }
    output(global).one(&object, || line)
}

/// Checks all of them to the end.
async fn check(repository: &Repository, backups: &[&Manifest], report: &mut Report) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir().with_context(|| {
        format!(
            "no directory for the file that is being checked can be made in {}: set TMPDIR to a place with room",
            std::env::temp_dir().display()
        )
    })?;
    let bar = Bar::new(totals(backups).stored_bytes);
    for backup in backups {
        bar.0.set_message(backup.id.clone());
        match repository.damages(backup, scratch.path(), &bar).await {
            Ok(damages) => damages.into_iter().for_each(|damage| report.add(&backup.id, damage)),
            // The disk of this machine.
            Err(error @ BackupError::Local(_)) => return Err(error.into()),
            Err(error) => report.add(&backup.id, error),
        }
    }
    bar.0.finish_and_clear();
    Ok(())
}

/// What is wrong, and what could not be checked, in the order in which it was found.
#[derive(Default)]
struct Report {
    /// Whether people read it as it comes.
    shown: bool,
    damaged: Vec<(String, BackupError)>,
    unchecked: Vec<(String, BackupError)>,
}

impl Report {
    fn add(&mut self, id: &str, error: BackupError) {
        let is_damage = matches!(error, BackupError::Damaged(_));
        let (list, what) = if is_damage {
            (&mut self.damaged, "is damaged")
        } else {
            (&mut self.unchecked, "was not checked")
        };
        let times = list.iter().filter(|(other, _)| other == id).count();
        if self.shown && times < DAMAGES_SHOWN {
            note(&format!("backup {id} {what}: {error}"));
        } else if self.shown && times == DAMAGES_SHOWN {
            note(&format!("backup {id} {what} in more places: -o json lists them"));
        }
        list.push((id.to_owned(), error));
    }

    fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.unchecked.is_empty()
    }

    /// The first damage, else the first reason for not having checked one.
    fn into_error(self, backups: usize) -> anyhow::Error {
        let (what, list) = match self.damaged.is_empty() {
            true => ("could not be checked", self.unchecked),
            false => ("are damaged", self.damaged),
        };
        let ids: BTreeSet<_> = list.iter().map(|(id, _)| id.clone()).collect();
        let what = format!("{} of {backups} backups {what}", ids.len());
        let first = list.into_iter().next().map(|(_, error)| anyhow::Error::from(error));
        match first {
            Some(error) => error.context(what),
            None => anyhow::Error::msg(what),
        }
    }
}

fn report_json(backups: &[&Manifest], report: &Report) -> Json {
    let listed = |list: &[(String, BackupError)]| -> Vec<Json> {
        list.iter().map(|(id, error)| json!({ "id": id, "error": error.to_string() })).collect()
    };
    let state = match (report.damaged.is_empty(), report.unchecked.is_empty()) {
        (false, _) => "damaged",
        (true, false) => "unchecked",
        (true, true) => "ok",
    };
    let totals = totals(backups);
    json!({
        "ids": backups.iter().map(|backup| &backup.id).collect::<Vec<_>>(),
        "backups": backups.len(),
        "files": totals.files,
        "versions": totals.versions,
        "bytes": totals.bytes,
        "stored_bytes": totals.stored_bytes,
        "damaged": listed(&report.damaged),
        "unchecked": listed(&report.unchecked),
        "state": state,
    })
}

fn totals(backups: &[&Manifest]) -> Totals {
    backups.iter().map(|backup| backup.totals()).sum()
}

/// How far it is, on a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(bytes: u64) -> Self {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new(bytes) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }
}

#[async_trait::async_trait]
impl Pace for Bar {
    async fn wait(&self, bytes: usize) {
        self.0.inc(bytes as u64);
    }
}
