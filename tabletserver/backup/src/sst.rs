//! Files of versions: RocksDB's table files.
//!
//! A key is the row's stored key without its table id: `escaped key · 00 01 · !ts`, so that files
//! fit any table. A value is the stored value of the version.

use crate::error::BackupError;
use crate::limits::{FILE_BLOCK_BYTES, FILE_SYNC_BYTES, READ_PAGE_BYTES};
use crate::manifest::FileEntry;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::key::{self, StoredKey};
use rocksdb::{
    BlockBasedOptions, DB, DBCompressionType, IngestExternalFileOptions, Options, ReadOptions, SstFileWriter,
};
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

/// Bytes of the table id that a stored key begins with and a key in a file does not.
pub const TABLE_ID_BYTES: usize = 4;

/// Takes a key of a file apart: the row's key and the version's timestamp.
///
/// # Errors
/// When it is none.
pub fn split_key(file_key: &[u8]) -> Result<(Vec<u8>, Hlc), key::MalformedKey> {
    // Any table does: it is not part of the answer.
    let mut stored = Vec::with_capacity(TABLE_ID_BYTES + file_key.len());
    stored.extend_from_slice(&1_u32.to_be_bytes());
    stored.extend_from_slice(file_key);
    match key::decode(&stored)? {
        StoredKey::Row { table: TableId(_), key, ts } => Ok((key, ts)),
        StoredKey::RangeTombstone { .. } => Err(key::MalformedKey),
    }
}

/// What went into a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// Bytes of keys and values of its versions.
    pub bytes: u64,
    /// Versions.
    pub versions: u64,
    /// First key.
    pub min_key: Vec<u8>,
    /// Last key.
    pub max_key: Vec<u8>,
    /// Oldest version.
    pub min_ts: Hlc,
    /// Newest version.
    pub max_ts: Hlc,
}

impl Written {
    /// The file as manifests describe it, once it lies at the target as `stored`.
    #[must_use]
    pub fn entry(self, name: String, stored: (u64, String)) -> FileEntry {
        FileEntry {
            name,
            stored_bytes: stored.0,
            sha256: stored.1,
            bytes: self.bytes,
            versions: self.versions,
            min_key: self.min_key,
            max_key: self.max_key,
            min_ts: self.min_ts.0,
            max_ts: self.max_ts.0,
        }
    }
}

/// Writes one file, keys strictly rising.
pub struct FileWriter {
    writer: SstFileWriter<'static>,
    bytes: u64,
    versions: u64,
    first: Vec<u8>,
    last: Vec<u8>,
    ts: Option<(Hlc, Hlc)>,
}

impl FileWriter {
    /// Begins a file at `path`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path) -> Result<Self, BackupError> {
        let writer = SstFileWriter::create(options());
        writer.open(path).map_err(|error| BackupError::local("create a file of versions", error))?;
        Ok(Self { writer, bytes: 0, versions: 0, first: Vec::new(), last: Vec::new(), ts: None })
    }

    /// Adds a version. `key` is the stored key of the row without its table id.
    ///
    /// # Errors
    /// When the disk does not take it, or keys do not rise.
    pub fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        let write = |error: &dyn std::fmt::Display| BackupError::local("write a file of versions", error);
        self.writer.put(key, value).map_err(|error| write(&error))?;
        let (_, ts) = key::split_ts(key).map_err(|_| write(&"the store holds a malformed key"))?;
        let (min, max) = self.ts.unwrap_or((ts, ts));
        self.ts = Some((min.min(ts), max.max(ts)));
        if self.versions == 0 {
            self.first.extend_from_slice(key);
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        self.versions += 1;
        self.bytes += (key.len() + value.len()) as u64;
        Ok(())
    }

    /// Bytes in the file so far, about.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.writer.file_size()
    }

    /// Versions in the file so far.
    #[must_use]
    pub fn versions(&self) -> u64 {
        self.versions
    }

    /// Ends the file.
    ///
    /// # Errors
    /// As `add`, and when it holds nothing.
    pub fn finish(mut self) -> Result<Written, BackupError> {
        let end = |error: &dyn std::fmt::Display| BackupError::local("end a file of versions", error);
        self.writer.finish().map_err(|error| end(&error))?;
        let key_of = |stored: &[u8]| {
            let split = split_key(stored).map_err(|_| end(&"the store holds a malformed key"));
            split.map(|(key, _)| key)
        };
        let (min_ts, max_ts) = self.ts.ok_or_else(|| end(&"it holds nothing"))?;
        Ok(Written {
            bytes: self.bytes,
            versions: self.versions,
            min_key: key_of(&self.first)?,
            max_key: key_of(&self.last)?,
            min_ts,
            max_ts,
        })
    }
}

/// A version as it stands in a file: key and value.
pub type FileVersion<'a> = (&'a [u8], &'a [u8]);

/// Reads one file, a page of it in memory.
pub struct FileReader {
    db: DB,
    page: Page,
    at: usize,
    failed: Option<String>,
}

/// Some versions that follow each other.
#[derive(Default)]
struct Page {
    bytes: Vec<u8>,
    /// Where key and value of each stand.
    versions: Vec<(Range<usize>, Range<usize>)>,
    is_last: bool,
}

impl FileReader {
    /// Opens a file. `scratch` is an empty directory for what the engine needs, best on the same
    /// disk; whoever made it removes it. Stands before the first version.
    ///
    /// # Errors
    /// When the file is none, or damaged.
    pub fn open(path: &Path, scratch: &Path) -> Result<Self, BackupError> {
        let local = |error: &dyn std::fmt::Display| BackupError::local("open a file of versions", error);
        // A second name for the file: the engine takes it away.
        let link = scratch.join("taken-in.sst");
        if std::fs::hard_link(path, &link).is_err() {
            std::fs::copy(path, &link).map_err(|error| local(&error))?;
        }
        let mut opened = options().clone();
        opened.create_if_missing(true);
        let db = DB::open(&opened, scratch.join("engine")).map_err(|error| local(&error))?;
        let mut taking = IngestExternalFileOptions::default();
        taking.set_move_files(true);
        db.ingest_external_file_opts(&taking, vec![link]).map_err(|error| {
            BackupError::damaged(&path.display().to_string(), format!("is no file of versions ({error})"))
        })?;
        let mut reader = Self { db, page: Page::default(), at: 0, failed: None };
        reader.seek(&[]);
        Ok(reader)
    }

    /// Goes to the first version whose key is at or above `key`.
    pub fn seek(&mut self, key: &[u8]) {
        let mut page = std::mem::take(&mut self.page);
        page.bytes.clear();
        page.versions.clear();
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek(key);
        while let Some((key, value)) = rows.item().filter(|_| page.bytes.len() < READ_PAGE_BYTES) {
            let key_at = page.bytes.len();
            page.bytes.extend_from_slice(key);
            let value_at = page.bytes.len();
            page.bytes.extend_from_slice(value);
            page.versions.push((key_at..value_at, value_at..page.bytes.len()));
            rows.next();
        }
        page.is_last = !rows.valid();
        self.failed = rows.status().err().map(|error| error.to_string());
        drop(rows);
        (self.page, self.at) = (page, 0);
    }

    /// Key and value here; none at the end.
    ///
    /// # Errors
    /// When a block is damaged.
    pub fn version(&self) -> Result<Option<FileVersion<'_>>, BackupError> {
        if let Some((key, value)) = self.page.versions.get(self.at) {
            return Ok(Some((&self.page.bytes[key.clone()], &self.page.bytes[value.clone()])));
        }
        match &self.failed {
            Some(error) => {
                Err(BackupError::damaged("a file of versions", format!("has a damaged block ({error})")))
            }
            None => Ok(None),
        }
    }

    /// Goes to the next version.
    pub fn step(&mut self) {
        if self.at + 1 < self.page.versions.len() || self.page.is_last {
            self.at = (self.at + 1).min(self.page.versions.len());
            return;
        }
        let Some((key, _)) = self.page.versions.last() else { return };
        // The least key above the last one of the page.
        let mut next = self.page.bytes[key.clone()].to_vec();
        next.push(0);
        if self.failed.is_none() {
            self.seek(&next);
        } else {
            self.at = self.page.versions.len();
        }
    }
}

/// Of files, and of the engine that opens one.
fn options() -> &'static Options {
    static OPTIONS: OnceLock<Options> = OnceLock::new();
    OPTIONS.get_or_init(|| {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_size(FILE_BLOCK_BYTES);
        let mut options = Options::default();
        // To the disk as it is written, so that the sync at the end does not hold up others.
        options.set_bytes_per_sync(FILE_SYNC_BYTES);
        options.set_block_based_table_factory(&blocks);
        options.set_compression_type(DBCompressionType::Lz4);
        // The engine only looks: it neither rewrites nor writes a log of its own.
        options.set_disable_auto_compactions(true);
        options.set_keep_log_file_num(1);
        options
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_key(key: &str, ts: u64) -> Vec<u8> {
        key::encode_row(TableId(9), key.as_bytes(), Hlc(ts))[TABLE_ID_BYTES..].to_vec()
    }

    #[test]
    fn what_is_written_is_read_over_many_pages() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sst");
        let mut writer = FileWriter::create(&path).unwrap();
        let versions: Vec<_> = (0..5_000_u64)
            .map(|at| (file_key(&format!("k{:05}", at / 2), 10 - at % 2), vec![1; 200]))
            .collect();
        versions.iter().for_each(|(key, value)| writer.add(key, value).unwrap());
        assert!(writer.add(&versions[0].0, b"x").is_err(), "keys must rise");
        let written = writer.finish().unwrap();
        assert_eq!((written.versions, written.min_ts, written.max_ts), (5_000, Hlc(9), Hlc(10)));
        assert_eq!((&written.min_key[..], &written.max_key[..]), (&b"k00000"[..], &b"k02499"[..]));
        let scratch = tempfile::tempdir().unwrap();
        let mut reader = FileReader::open(&path, scratch.path()).unwrap();
        let mut read = Vec::new();
        while let Some((key, value)) = reader.version().unwrap() {
            read.push((key.to_vec(), value.to_vec()));
            reader.step();
        }
        assert_eq!(read, versions);
        reader.step();
        assert_eq!(reader.version().unwrap(), None);
        reader.seek(&file_key("k00007", u64::MAX));
        assert_eq!(reader.version().unwrap().unwrap().0, &versions[14].0[..]);
        assert!(path.exists(), "the file itself stays");
    }

    #[test]
    fn a_damaged_file_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sst");
        std::fs::write(&path, b"not a table").unwrap();
        let scratch = tempfile::tempdir().unwrap();
        assert!(matches!(FileReader::open(&path, scratch.path()), Err(BackupError::Damaged(_))));
        assert!(FileWriter::create(&dir.path().join("no/such.sst")).is_err());
    }
}
