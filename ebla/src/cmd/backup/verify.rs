//! `ebla backup verify`: whether backups are what was written.

use super::list::none_there;
use super::{repository, sample};
use crate::cli::{Global, VerifyBackups};
use crate::cmd::{note, output};
use ebla_backup::{BackupError, Manifest, Pace, Repository};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal as _;

/// Checks every file, and compares a sample of the rows with the tables if that is wanted.
pub async fn run(global: &Global, args: VerifyBackups) -> anyhow::Result<()> {
    let repository = repository(&args.url).await?;
    let backups = match &args.id {
        Some(id) => repository.chain(id).await?,
        None => all(&repository).await?,
    };
    let newest = backups.last().ok_or_else(|| none_there(&args.url))?;
    check(&repository, &backups).await?;
    let sampled = match args.sample {
        Some(share) => Some(sample::compare(global, args.wait, &repository, newest, share).await?),
        None => None,
    };
    let files: u64 = backups.iter().map(|backup| backup.totals().files).sum();
    let stored_bytes: u64 = backups.iter().map(|backup| backup.totals().stored_bytes).sum();
    let mut object = json!({
        "ids": backups.iter().map(|backup| &backup.id).collect::<Vec<_>>(),
        "backups": backups.len(),
        "files": files,
        "versions": backups.iter().map(|backup| backup.totals().versions).sum::<u64>(),
        "bytes": backups.iter().map(|backup| backup.totals().bytes).sum::<u64>(),
        "stored_bytes": stored_bytes,
        "state": "ok",
    });
    let mut line = format!("{} backups are whole: {files} files, {stored_bytes} bytes", backups.len());
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

/// Every backup, each with all that it adds to.
async fn all(repository: &Repository) -> Result<Vec<Manifest>, BackupError> {
    let backups = repository.list().await?;
    for backup in &backups {
        repository.chain(&backup.id).await?;
    }
    Ok(backups)
}

/// Checks all of them, and says of each that is damaged what is wrong.
async fn check(repository: &Repository, backups: &[Manifest]) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let bar = Bar::new(backups.iter().map(|backup| backup.totals().stored_bytes).sum());
    let (mut first, mut damaged) = (None, 0);
    for backup in backups {
        bar.0.set_message(backup.id.clone());
        let Err(error) = repository.check(backup, scratch.path(), &bar).await else { continue };
        if !matches!(error, BackupError::Damaged(_)) {
            return Err(error.into());
        }
        note(&format!("backup {} is damaged: {error}", backup.id));
        damaged += 1;
        first.get_or_insert(error);
    }
    bar.0.finish_and_clear();
    match first {
        None => Ok(()),
        Some(error) => {
            let what = format!("{damaged} of {} backups are damaged", backups.len());
            Err(anyhow::Error::from(error).context(what))
        }
    }
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
