//! Some rows of a backup beside those of the cluster that it was made of.

use crate::cli::{Global, Wait};
use crate::cmd::{connect, note};
use crate::exit::Failure;
use crate::parse::Share;
use ebla_backup::{Manifest, Repository, TableEntry};
use ebla_client::{Client, Error, Hlc, Reason, Row, Scan, Value};
use ebla_kernel::op::{Body, Version};
use ebla_kernel::text::escape;
use ebla_tabletserver::{BackupRow, BackupTable};
use futures::StreamExt as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;

/// The hash of a key is taken modulo this.
const LOTS: u64 = 1_000_000;

/// What was compared.
#[derive(Debug, Default)]
pub struct Sampled {
    /// Rows that were the same.
    pub rows: u64,
    /// Why nothing was.
    pub skipped: Option<String>,
}

/// How a table was compared.
enum Compared {
    Rows(u64),
    Skipped(String),
}

/// Compares a share of the rows of every table of a backup.
///
/// # Errors
/// The first row that is another one.
pub async fn compare(
    global: &Global,
    wait: Wait,
    repository: &Repository,
    backup: &Manifest,
    share: Share,
) -> anyhow::Result<Sampled> {
    let client = match source(global, wait, backup).await {
        Ok(client) => client,
        Err(why) => return Ok(Sampled { rows: 0, skipped: Some(why) }),
    };
    let chain = repository.chain(&backup.id).await?;
    let mut sampled = Sampled::default();
    let mut reasons = Vec::new();
    for table in &backup.tables {
        let scratch = tempfile::tempdir()?;
        let wanted = Wanted { repository, chain: &chain, table, share, dir: scratch.path() };
        match compare_table(&client, Hlc(backup.ts), &wanted).await? {
            Compared::Rows(rows) => sampled.rows += rows,
            Compared::Skipped(why) => reasons.push(format!("table {:?}: {why}", table.name)),
        }
    }
    if reasons.len() == backup.tables.len() {
        sampled.skipped = Some(match reasons.is_empty() {
            true => "the backup has no tables".to_owned(),
            false => reasons.join("; "),
        });
    } else {
        reasons.iter().for_each(|why| note(&format!("not compared with the cluster: {why}")));
    }
    Ok(sampled)
}

/// The cluster, if it is the one that the backup was made of.
async fn source(global: &Global, wait: Wait, backup: &Manifest) -> Result<Client, String> {
    let unreachable = |error: anyhow::Error| format!("no cluster could be asked ({error:#})");
    let client = connect(global, wait).await.map_err(unreachable)?;
    let status = client.admin().status().await.map_err(|error| unreachable(error.into()))?;
    if status.cluster_id == backup.cluster_id {
        return Ok(client);
    }
    Err(format!(
        "backup {} is of the cluster {}, and this is {}",
        backup.id, backup.cluster_id, status.cluster_id
    ))
}

/// What is to be compared.
struct Wanted<'a> {
    repository: &'a Repository,
    chain: &'a [Manifest],
    table: &'a TableEntry,
    share: Share,
    dir: &'a Path,
}

async fn compare_table(client: &Client, at: Hlc, wanted: &Wanted<'_>) -> anyhow::Result<Compared> {
    if let Some(why) = why_not(client, wanted.table).await? {
        return Ok(Compared::Skipped(why));
    }
    let share = wanted.share;
    let backup = BackupTable {
        repository: wanted.repository.clone(),
        chain: wanted.chain.to_vec(),
        table: wanted.table.id,
        dir: wanted.dir.to_owned(),
    };
    let mut kept = backup.rows(move |key| is_drawn(key, share));
    let mut live = client.scan(&wanted.table.name, Scan { at: Some(at), ..Scan::default() })?;
    let mut same = 0;
    loop {
        let live_row = loop {
            match live.next().await.transpose() {
                Ok(Some(row)) if !is_drawn(&row.key, share) => {}
                Ok(row) => break row,
                Err(error) => return skipped_or(error),
            }
        };
        let kept_row = kept.recv().await.transpose()?;
        match (live_row, kept_row) {
            (None, None) => return Ok(Compared::Rows(same)),
            (Some(live), Some(kept)) if is_same(&live, &kept) => same += 1,
            (live, kept) => return Err(differs(&wanted.table.name, live.as_ref(), kept.as_ref()).into()),
        }
    }
}

/// Why the rows of a table cannot be compared, if they cannot.
async fn why_not(client: &Client, table: &TableEntry) -> anyhow::Result<Option<String>> {
    if table.settings.kind == "memory" {
        return Ok(Some("it is kept in memory, and may have lost rows since".to_owned()));
    }
    match client.admin().describe_table(&table.name).await {
        Ok(described) => {
            let id = described.table.and_then(|summary| summary.table).map(|table| table.id);
            Ok((id != Some(table.id)).then(|| "it was dropped, and another one has its name".to_owned()))
        }
        Err(error) if error.reason() == Reason::TableNotFound => Ok(Some("it was dropped".to_owned())),
        Err(error) => Err(error.into()),
    }
}

/// A table that cannot be read at that time any more is not compared.
fn skipped_or(error: Error) -> anyhow::Result<Compared> {
    if error.reason() == Reason::TimestampOutOfRange {
        return Ok(Compared::Skipped("its timestamp is no longer within the table's retention".to_owned()));
    }
    Err(error.into())
}

/// Whether a key belongs to the sample; the same for both sides.
fn is_drawn(key: &[u8], share: Share) -> bool {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let lot = u32::try_from(hasher.finish() % LOTS).map_or(0.0, f64::from);
    lot < share.percent / 100.0 * 1e6
}

fn is_same(live: &Row, (key, version): &BackupRow) -> bool {
    live.key == key && live.ts == version.ts && is_same_value(&live.value, version)
}

fn is_same_value(live: &Value, version: &Version) -> bool {
    match (live, &version.body) {
        (Value::Bytes(live), Body::Value(kept)) => live == kept,
        (Value::Counter(live), Body::Counter(kept)) => live == kept,
        (Value::Bytes(_) | Value::Counter(_), Body::Value(_) | Body::Counter(_) | Body::Tombstone(_)) => {
            false
        }
    }
}

fn differs(table: &str, live: Option<&Row>, kept: Option<&BackupRow>) -> Failure {
    let described = |found: Option<(&[u8], Hlc)>| match found {
        Some((key, ts)) => format!("{:?} of {}", escape(key), ts.0),
        None => "none".to_owned(),
    };
    let live = described(live.map(|row| (&row.key[..], row.ts)));
    let kept = described(kept.map(|(key, version)| (&key[..], version.ts)));
    Failure::refused(format!(
        "table {table:?} is not what the backup holds: the next row is {live} in the cluster and {kept} in the backup, or its value is another"
    ))
}
