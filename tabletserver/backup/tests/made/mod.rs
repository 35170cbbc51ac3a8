//! Backups made by hand, without a cluster.

use ebla_backup::{
    ALGORITHM, CreatedBy, Encryption, FileEntry, FileWriter, Key, MANIFEST_FORMAT, Manifest, Parent, Part,
    Repository, TABLE_ID_BYTES, TableEntry, TableSettings, Target, Unpaced,
};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::key;
use ebla_kernel::meta::TableSpec;
use std::sync::Arc;

/// Cluster that backups are of.
pub const CLUSTER: &str = "0123456789abcdef0123456789abcdef";

/// What a backup is to be.
#[derive(Clone)]
pub struct Wish {
    pub id: &'static str,
    pub cluster: &'static str,
    pub ts: u64,
    pub parent: Option<(&'static str, u64)>,
    /// Rows in each of two parts.
    pub rows: u32,
    pub value_bytes: usize,
}

impl Wish {
    /// A small full backup.
    pub fn full(id: &'static str, ts: u64) -> Self {
        Self { id, cluster: CLUSTER, ts, parent: None, rows: 100, value_bytes: 20 }
    }

    /// One that adds to another.
    pub fn incremental(id: &'static str, ts: u64, parent: (&'static str, u64)) -> Self {
        Self { parent: Some(parent), rows: 10, ..Self::full(id, ts) }
    }
}

/// Puts a backup of one table, `t`, in two parts of one file each.
pub async fn make(repository: &Repository, wish: &Wish) -> Result<Manifest, ebla_backup::BackupError> {
    let since_ts = wish.parent.map_or(0, |(_, ts)| ts);
    let mut parts = Vec::new();
    for (name, start, end) in [("p1", None, Some("m")), ("p2", Some("m"), None)] {
        let file = put_file(repository, wish, name, start.unwrap_or("a"), since_ts).await?;
        let part = Part {
            format: MANIFEST_FORMAT,
            name: name.to_owned(),
            table: 7,
            start: start.unwrap_or_default().into(),
            end: end.map(Into::into),
            tablet: 1,
            server: 1,
            since_ts,
            ts: wish.ts,
            rows: u64::from(wish.rows),
            tombstones: Vec::new(),
            files: vec![file],
        };
        repository.put_part(wish.id, &part).await?;
        parts.push(part);
    }
    assert_eq!(repository.parts(wish.id).await?, parts);
    let settings = TableSettings::of(&TableSpec::default());
    let table = TableEntry { id: 7, name: "t".to_owned(), since_ts, settings, parts };
    let encryption =
        repository.own_key().map(|key| Encryption { algorithm: ALGORITHM.to_owned(), key_id: key.id() });
    let created = CreatedBy {
        by: "test".to_owned(),
        started_ms: 1_000,
        ended_ms: 2_000,
        version: "0".to_owned(),
        scheduled: false,
    };
    let manifest = Manifest {
        format: MANIFEST_FORMAT,
        id: wish.id.to_owned(),
        cluster_id: wish.cluster.to_owned(),
        ts: wish.ts,
        parent: wish.parent.map(|(id, ts)| Parent { id: id.to_owned(), ts }),
        encryption,
        created,
        tables: vec![table],
    };
    repository.put_manifest(&manifest).await?;
    Ok(manifest)
}

async fn put_file(
    repository: &Repository,
    wish: &Wish,
    part: &str,
    first: &str,
    since_ts: u64,
) -> Result<FileEntry, ebla_backup::BackupError> {
    let dir = tempfile::tempdir().expect("a directory for files");
    let path = dir.path().join("file.sst");
    let mut writer = FileWriter::create(&path)?;
    // Of every other row two versions.
    for row in 0..wish.rows {
        let versions = if row % 2 == 0 && wish.ts > since_ts + 1 { 2 } else { 1 };
        for age in 0..versions {
            let row_key = format!("{first}{row:06}");
            let stored = key::encode_row(TableId(7), row_key.as_bytes(), Hlc(wish.ts - age));
            // Bytes that do not compress.
            let seed = (u64::from(row) << 24) + (age << 20);
            let noise = (0..wish.value_bytes as u64).map(|at| mixed(seed + at));
            let value: Vec<u8> = std::iter::once(1).chain(noise).collect();
            writer.add(&stored[TABLE_ID_BYTES..], &value)?;
        }
    }
    let written = writer.finish()?;
    let name = format!("data/{part}-0000.sst");
    let stored = repository.put_file(wish.id, &name, &path, repository.own_key(), &Unpaced).await?;
    Ok(written.entry(name, stored))
}

/// A byte that looks like none other of its neighbours' numbers.
fn mixed(number: u64) -> u8 {
    let mut mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed ^ (mixed >> 31)).to_le_bytes()[0]
}

/// The backups at a target, with a key or without.
pub fn repository(target: Arc<dyn Target>, key: Option<u8>) -> Repository {
    let key = key.map(|byte| Key::parse(&format!("{byte:02x}").repeat(32)).expect("64 digits"));
    Repository::new(target, key)
}
