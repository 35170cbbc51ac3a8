//! What is written down of a backup: JSON, versioned, for programs and people.

use crate::settings::TableSettings;
use bytes::Bytes;
use ebla_kernel::range::{InvertedRange, KeyRange};
use serde::{Deserialize, Serialize};
use std::iter::Sum;

/// Version of manifests and parts. A newer one is refused with its number.
pub const MANIFEST_FORMAT: u32 = 1;

/// Everything of one backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// Its name; the directory under `backups/`.
    pub id: String,
    /// The cluster that it was made of, 32 hexadecimal digits.
    pub cluster_id: String,
    /// The timestamp T: it holds what was there at T.
    pub ts: u64,
    /// The backup that it adds to; none for a full one.
    pub parent: Option<Parent>,
    /// How the files are encrypted; none when they are not.
    pub encryption: Option<Encryption>,
    /// By whom, when and with which release.
    pub created: CreatedBy,
    /// The tables, by id.
    pub tables: Vec<TableEntry>,
}

/// The backup that an incremental one adds to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Parent {
    /// Its name.
    pub id: String,
    /// Its timestamp.
    pub ts: u64,
}

/// How files are encrypted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Encryption {
    /// `aes-256-gcm`.
    pub algorithm: String,
    /// Tells one key from another; says nothing of the key.
    pub key_id: String,
}

/// How a backup came to be.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CreatedBy {
    /// Who asked for it.
    pub by: String,
    /// When it began, milliseconds since 1970.
    pub started_ms: u64,
    /// When the manifest was written, milliseconds since 1970.
    pub ended_ms: u64,
    /// Release of the writer.
    pub version: String,
    /// Whether a schedule of that cluster made it, and so may delete it.
    #[serde(default)]
    pub scheduled: bool,
}

/// One table of a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableEntry {
    /// Its id in the cluster that it comes from.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Versions above this timestamp are here; 0: all, and the chain ends here for the table.
    pub since_ts: u64,
    /// What the table promised.
    pub settings: TableSettings,
    /// Ranges in key order: together every key, none twice.
    pub parts: Vec<Part>,
}

/// A range of a table whose versions one server has put into files. Also written by itself, under
/// `parts/`, as soon as all of its files are there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Part {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// Names its files; no other part of the backup has it.
    pub name: String,
    /// The table's id.
    pub table: u32,
    /// First key, in hexadecimal.
    #[serde(with = "crate::hex")]
    pub start: Vec<u8>,
    /// Where the keys end, not included; none: they do not.
    #[serde(with = "crate::hex::option")]
    pub end: Option<Vec<u8>>,
    /// The tablet that it was read from.
    pub tablet: u64,
    /// The server that read it.
    pub server: u64,
    /// Versions above this timestamp ...
    pub since_ts: u64,
    /// ... up to this one.
    pub ts: u64,
    /// Rows that were there at `ts`; with `since_ts`, those of them that were changed after it.
    pub rows: u64,
    /// Range deletions between the timestamps, cut to the range.
    pub tombstones: Vec<Tombstone>,
    /// Its files in key order.
    pub files: Vec<FileEntry>,
}

/// A deleted range.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tombstone {
    /// First key, in hexadecimal.
    #[serde(with = "crate::hex")]
    pub from: Vec<u8>,
    /// Where the keys end; none: they do not.
    #[serde(with = "crate::hex::option")]
    pub to: Option<Vec<u8>>,
    /// When.
    pub ts: u64,
}

/// One file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name below the backup's directory: `data/...`.
    pub name: String,
    /// Bytes as it lies at the target, encrypted or not.
    pub stored_bytes: u64,
    /// Of these bytes, in hexadecimal.
    pub sha256: String,
    /// Bytes of keys and values of its versions.
    pub bytes: u64,
    /// Versions in it.
    pub versions: u64,
    /// First key that it has a version of, in hexadecimal: the row's key, as users know it.
    #[serde(with = "crate::hex")]
    pub min_key: Vec<u8>,
    /// The last one.
    #[serde(with = "crate::hex")]
    pub max_key: Vec<u8>,
    /// Its oldest version.
    pub min_ts: u64,
    /// Its newest version.
    pub max_ts: u64,
}

/// What a backup comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Rows that were there at its timestamp; of an incremental one those that had changed.
    pub rows: u64,
    /// Versions.
    pub versions: u64,
    /// Bytes of keys and values of its versions.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Bytes of the files.
    pub stored_bytes: u64,
}

impl Sum for Totals {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            rows: sum.rows + one.rows,
            versions: sum.versions + one.versions,
            bytes: sum.bytes + one.bytes,
            files: sum.files + one.files,
            stored_bytes: sum.stored_bytes + one.stored_bytes,
        })
    }
}

impl Manifest {
    /// Whether it adds to another backup.
    #[must_use]
    pub fn is_incremental(&self) -> bool {
        self.parent.is_some()
    }

    /// Id of the key that its files are encrypted with; empty when they are not.
    #[must_use]
    pub fn key_id(&self) -> &str {
        self.encryption.as_ref().map_or("", |encryption| &encryption.key_id)
    }

    /// The table of that name.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&TableEntry> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// Every file.
    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        self.tables.iter().flat_map(|table| &table.parts).flat_map(|part| &part.files)
    }

    /// What all of it comes to.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.tables.iter().map(TableEntry::totals).sum()
    }
}

impl TableEntry {
    /// What the table comes to.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let files = || self.parts.iter().flat_map(|part| &part.files);
        Totals {
            rows: self.parts.iter().map(|part| part.rows).sum(),
            versions: files().map(|file| file.versions).sum(),
            bytes: files().map(|file| file.bytes).sum(),
            files: files().count() as u64,
            stored_bytes: files().map(|file| file.stored_bytes).sum(),
        }
    }
}

impl Part {
    /// Its keys.
    ///
    /// # Errors
    /// When its end is not above its start.
    pub fn range(&self) -> Result<KeyRange, InvertedRange> {
        range(&self.start, self.end.as_deref())
    }
}

impl Tombstone {
    /// The keys that it covers.
    ///
    /// # Errors
    /// When its end is not above its start.
    pub fn range(&self) -> Result<KeyRange, InvertedRange> {
        range(&self.from, self.to.as_deref())
    }
}

fn range(start: &[u8], end: Option<&[u8]>) -> Result<KeyRange, InvertedRange> {
    KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice))
}
