//! Commands and flags of `ebla backup`.

use super::Wait;
use crate::parse;
use clap::{Args, Subcommand};
use std::time::Duration;

#[derive(Subcommand, Debug)]
pub enum Backup {
    /// Put what tables hold at one timestamp into files at a target
    Create(CreateBackup),
    /// Bring tables back from a backup; tables that are there are never touched
    Restore(RestoreBackup),
    /// List the backups at a target; needs no cluster
    List(BackupsAt),
    /// Describe a backup, the newest by default; needs no cluster
    Describe(DescribeBackup),
    /// Check every file of every backup at a target; needs no cluster
    Verify(VerifyBackups),
    /// Remove what no backup needs, such as files of backups that were never finished
    Prune(PruneBackups),
    /// Show every backup and restore that was tried and what became of it
    Log(Wait),
    /// Let the cluster make backups by itself
    #[command(subcommand)]
    Schedule(Schedule),
}

#[derive(Args, Debug)]
pub struct CreateBackup {
    /// Where it goes: s3://BUCKET/PREFIX or file:///DIRECTORY, which every server sees
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Only this table; may be given again
    #[arg(long = "table", value_parser = parse::name, value_name = "TABLE")]
    pub tables: Vec<String>,
    /// The timestamp that it is of; now holds everything that was acknowledged before
    #[arg(
        long,
        default_value = "now",
        allow_hyphen_values = true,
        value_parser = parse::at_or_now,
        value_name = "TS|now"
    )]
    pub at: parse::AtOrNow,
    /// Only what has changed since this backup at the same target
    #[arg(long, value_parser = parse::name, value_name = "ID")]
    pub incremental_from: Option<String>,
    /// Most bytes of files per second that each server sends; what an otherwise idle core does by default
    #[arg(long, value_parser = parse::rate, value_name = "BYTES/s")]
    pub rate: Option<u64>,
    /// Encrypt the files with the key of the servers (EBLA_BACKUP_KEY_FILE)
    #[arg(long)]
    pub encrypt: bool,
    /// Return when it is done
    #[arg(long = "wait")]
    pub until_done: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct RestoreBackup {
    /// Where it lies: s3://BUCKET/PREFIX or file:///DIRECTORY, which every server sees
    #[arg(long, value_name = "URL")]
    pub from: String,
    /// Which backup; the newest by default
    #[arg(long, value_parser = parse::name, value_name = "ID")]
    pub id: Option<String>,
    /// Only this table
    #[arg(long, value_parser = parse::name, value_name = "TABLE")]
    pub table: Option<String>,
    /// The name that the table gets
    #[arg(long = "as", requires = "table", value_parser = parse::name, value_name = "NEWNAME")]
    pub new_name: Option<String>,
    /// Copies of each tablet; as many as the table had by default
    #[arg(long, value_parser = parse::copies, value_name = "R")]
    pub replicas: Option<u8>,
    /// Most bytes of files per second that each server fetches; what half a core does by default
    #[arg(long, value_parser = parse::rate, value_name = "BYTES/s")]
    pub rate: Option<u64>,
    /// Return as soon as it has begun
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct BackupsAt {
    /// Where they lie: s3://BUCKET/PREFIX or file:///DIRECTORY
    #[arg(long = "to", visible_alias = "from", value_name = "URL")]
    pub url: String,
}

#[derive(Args, Debug)]
pub struct DescribeBackup {
    /// Which one; the newest by default
    #[arg(value_name = "ID")]
    pub id: Option<String>,
    /// The same as a flag
    #[arg(long = "id", value_name = "ID", conflicts_with = "id", id = "id_flag")]
    pub id_flag: Option<String>,
    #[command(flatten)]
    pub at: BackupsAt,
}

#[derive(Args, Debug)]
pub struct VerifyBackups {
    /// Where they lie: s3://BUCKET/PREFIX or file:///DIRECTORY
    #[arg(long = "from", visible_alias = "to", value_name = "URL")]
    pub url: String,
    /// Only this backup and those that it adds to
    #[arg(long, value_parser = parse::name, value_name = "ID")]
    pub id: Option<String>,
    /// Also compare so many of the rows, such as 10%, with the tables of the cluster, if the
    /// backup is of this cluster and the tables can still be read at its timestamp
    #[arg(long, value_parser = parse::share, value_name = "PERCENT")]
    pub sample: Option<parse::Share>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct PruneBackups {
    #[command(flatten)]
    pub at: BackupsAt,
    /// Leave alone every unfinished backup of which anything was written since, such as 1h. By
    /// default what the cluster does not make goes at once, and what it does not know, or if it
    /// cannot be asked, what has given no sign of life for 2m
    #[arg(long, value_parser = parse::age, value_name = "DURATION")]
    pub min_age: Option<Duration>,
    /// Remove it; without this it is only shown
    #[arg(long)]
    pub yes: bool,
}

#[derive(Subcommand, Debug)]
pub enum Schedule {
    /// Make backups to a target again and again
    Set(SetSchedule),
    /// Show the schedules
    List(Wait),
    /// Make no more backups to a target; those that are there stay
    Remove(RemoveSchedule),
}

#[derive(Args, Debug)]
pub struct SetSchedule {
    /// Where they go
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// From the start of one to the start of the next
    #[arg(long, value_parser = parse::duration, value_name = "DURATION")]
    pub every: Duration,
    /// From the start of a full one to the start of the next full one; 24h by default
    #[arg(long, value_parser = parse::duration, value_name = "DURATION")]
    pub full_every: Option<Duration>,
    /// How many are kept; those that they depend on are kept with them
    #[arg(long, default_value = "7", value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub keep: u32,
    /// Only this table; may be given again
    #[arg(long = "table", value_parser = parse::name, value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Most bytes of files per second that each server sends; what an otherwise idle core does by default
    #[arg(long, value_parser = parse::rate, value_name = "BYTES/s")]
    pub rate: Option<u64>,
    /// Encrypt the files with the key of the servers (EBLA_BACKUP_KEY_FILE)
    #[arg(long)]
    pub encrypt: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct RemoveSchedule {
    /// Where they went
    #[arg(long, value_name = "URL")]
    pub to: String,
    #[command(flatten)]
    pub wait: Wait,
}
