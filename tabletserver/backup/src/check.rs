//! Whether a backup is what was written, down to every version.

use crate::background;
use crate::coverage::check_coverage;
use crate::encryption;
use crate::error::BackupError;
use crate::key::Key;
use crate::limits;
use crate::manifest::{FileEntry, Manifest, Part, TableEntry};
use crate::names;
use crate::pace::{Pace, Worker};
use crate::repository::{Repository, blocking};
use crate::scratch::Scratch;
use crate::sst::{FileReader, Written, split_key};
use crate::target::TargetError;
use ebla_kernel::range::KeyRange;
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

impl Repository {
    /// Checks everything of a backup but its parents: coverage of each table, names, and each
    /// file: its bytes, its sha256, and order, counts and bounds of its versions. `scratch` is an
    /// empty directory, and is that again.
    ///
    /// # Errors
    /// `Damaged` with the first thing that is wrong, `Key`.
    pub async fn check(
        &self,
        manifest: &Manifest,
        scratch: &Path,
        pace: &dyn Pace,
    ) -> Result<(), BackupError> {
        check_manifest(manifest)?;
        self.check_presence(manifest).await?;
        self.check_files(manifest, scratch, pace, &mut Err).await
    }

    /// As [`Self::check`], but goes on to the end: everything that is damaged, and each file that
    /// cannot be read, is returned.
    ///
    /// # Errors
    /// `Key`, `NewerFormat`, and when target or disk do not allow to go on.
    pub async fn damages(
        &self,
        manifest: &Manifest,
        scratch: &Path,
        pace: &dyn Pace,
    ) -> Result<Vec<BackupError>, BackupError> {
        match check_manifest(manifest) {
            Err(error @ BackupError::Damaged(_)) => return Ok(vec![error]),
            other => other?,
        }
        let mut found = Vec::new();
        let note = &mut |damage| {
            found.push(damage);
            Ok(())
        };
        self.check_files(manifest, scratch, pace, note).await?;
        Ok(found)
    }

    /// Checks file after file; `damaged` hears what is wrong, and says whether to go on.
    async fn check_files(
        &self,
        manifest: &Manifest,
        scratch: &Path,
        pace: &dyn Pace,
        damaged: &mut (dyn FnMut(BackupError) -> Result<(), BackupError> + Send),
    ) -> Result<(), BackupError> {
        let key = self.key(manifest.key_id())?;
        let mut hear = |checked| match checked {
            Err(
                error @ (BackupError::Damaged(_)
                | BackupError::Target(TargetError::Refused(_) | TargetError::NotFound(_))),
            ) => damaged(error),
            other => other,
        };
        let mut checks = FuturesOrdered::new();
        let mut number = 0_u64;
        for part in manifest.tables.iter().flat_map(|table| &table.parts) {
            for file in &part.files {
                if checks.len() >= limits::CHECKS_MAX
                    && let Some(checked) = checks.next().await
                {
                    hear(checked)?;
                }
                let dir = scratch.join(number.to_string());
                checks.push_back(self.check_file(manifest, key, (part, file), dir, pace));
                number += 1;
            }
        }
        while let Some(checked) = checks.next().await {
            hear(checked)?;
        }
        Ok(())
    }

    async fn check_file(
        &self,
        manifest: &Manifest,
        key: Option<&Key>,
        (part, file): (&Part, &FileEntry),
        dir: PathBuf,
        pace: &dyn Pace,
    ) -> Result<(), BackupError> {
        let made = Scratch::make(dir);
        let scratch = made.map_err(|error| BackupError::local("make room for a file to check", error))?;
        let local = scratch.0.join("checked.sst");
        self.get_file(&manifest.id, file, key, &local, pace).await?;
        let place = names::file(&manifest.id, &file.name)?;
        let (part, file) = (part.clone(), file.clone());
        let mut worker = pace.worker();
        let look = move || check_versions(&place, &part, &file, (&local, &scratch.0), &mut worker);
        blocking(move || background::work(look)).await
    }

    /// A look at names and sizes finds most of what is wrong without reading anything.
    ///
    /// # Errors
    /// `Damaged` with the first file that is missing or of another size.
    pub async fn check_presence(&self, manifest: &Manifest) -> Result<(), BackupError> {
        let listed = self.target().list(&names::directory(&manifest.id)?).await?;
        for file in manifest.files() {
            let place = names::file(&manifest.id, &file.name)?;
            let Ok(at) = listed.binary_search_by(|listed| listed.name.as_str().cmp(&place)) else {
                return Err(BackupError::damaged(&place, "is missing"));
            };
            if listed[at].bytes != file.stored_bytes {
                let what = format!(
                    "has {} bytes, and had {} when it was written",
                    listed[at].bytes, file.stored_bytes
                );
                return Err(BackupError::damaged(&place, what));
            }
        }
        Ok(())
    }
}

/// Checks what a manifest says against itself.
///
/// # Errors
/// `Damaged` with the first thing that does not fit.
pub fn check_manifest(manifest: &Manifest) -> Result<(), BackupError> {
    let place = names::manifest(&manifest.id)?;
    let wrong = |what: String| Err(BackupError::damaged(&place, what));
    if manifest.encryption.as_ref().is_some_and(|found| found.algorithm != encryption::ALGORITHM) {
        return wrong("names an encryption that this release does not know".to_owned());
    }
    let (mut ids, mut table_names, mut files) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for table in &manifest.tables {
        if !ids.insert(table.id) || !table_names.insert(&table.name) {
            return wrong(format!("names the table {:?} twice", table.name));
        }
        if let Err(error) = table.settings.spec() {
            return Err(BackupError::NewerFormat(format!("table {:?} of {place}: {error}", table.name)));
        }
        let parent_ts = manifest.parent.as_ref().map_or(0, |parent| parent.ts);
        if ![0, parent_ts].contains(&table.since_ts) {
            return wrong(format!("adds the table {:?} to no backup", table.name));
        }
        check_table(manifest, table)
            .or_else(|what| wrong(format!("is wrong: table {:?} {what}", table.name)))?;
    }
    for file in manifest.files() {
        names::file(&manifest.id, &file.name)?;
        if !files.insert(&file.name) {
            return wrong(format!("names the file {} twice", file.name));
        }
    }
    Ok(())
}

fn check_table(manifest: &Manifest, table: &TableEntry) -> Result<(), String> {
    check_coverage(&table.parts).map_err(|wrong| wrong.to_string())?;
    for part in &table.parts {
        if (part.table, part.since_ts, part.ts) != (table.id, table.since_ts, manifest.ts) {
            return Err(format!("has a part {} of another table or time", part.name));
        }
        let range = part.range().map_err(|_| "has an inverted part".to_owned())?;
        let is_inside = |ts: u64| ts > part.since_ts && ts <= part.ts;
        for tombstone in &part.tombstones {
            let covered = tombstone.range().ok().filter(|covered| range.covers(covered));
            if covered.is_none() || !is_inside(tombstone.ts) {
                return Err(format!("has a range deletion in part {} that is none of it", part.name));
            }
        }
        // Each row that is counted has a version in the files.
        if part.rows > part.files.iter().map(|file| file.versions).fold(0, u64::saturating_add) {
            return Err(format!("has {} rows in part {}, and its files have fewer", part.rows, part.name));
        }
        let mut last: Option<&FileEntry> = None;
        for file in &part.files {
            let is_sound = file.min_key <= file.max_key && file.min_ts <= file.max_ts && file.versions > 0;
            let follows = last.is_none_or(|last| last.max_key <= file.min_key);
            let fits = [&file.min_key, &file.max_key].into_iter().all(|key| range.contains(key));
            if !is_sound || !follows || !fits || !is_inside(file.min_ts) || !is_inside(file.max_ts) {
                return Err(format!("has a file {} that does not fit its part", file.name));
            }
            last = Some(file);
        }
    }
    Ok(())
}

/// Checks the versions of one file, which lies at `local`.
fn check_versions(
    place: &str,
    part: &Part,
    file: &FileEntry,
    (local, scratch): (&Path, &Path),
    worker: &mut Worker,
) -> Result<(), BackupError> {
    let wrong = |what: &str| BackupError::damaged(place, what);
    let range = part.range().map_err(|_| wrong("is of an inverted part"))?;
    let mut reader = FileReader::open(local, scratch)?;
    let (mut seen, mut passed) = (Seen::default(), 0_u64);
    while let Some((key, value)) = reader.version()? {
        seen.add(key, value, &range).map_err(wrong)?;
        reader.step();
        passed += 1;
        if passed % limits::VERSIONS_PER_YIELD == 0 {
            worker.rest();
        }
    }
    let Some(found) = seen.found else { return Err(wrong("holds nothing")) };
    if found.min_ts.0 <= part.since_ts || found.max_ts.0 > part.ts {
        return Err(wrong("holds versions of another time"));
    }
    let is_same = found.entry(file.name.clone(), (file.stored_bytes, file.sha256.clone())) == *file;
    if is_same { Ok(()) } else { Err(wrong("holds other versions than its manifest says")) }
}

/// What was found in a file so far.
#[derive(Default)]
struct Seen {
    found: Option<Written>,
    last: Vec<u8>,
}

impl Seen {
    fn add(&mut self, file_key: &[u8], value: &[u8], range: &KeyRange) -> Result<(), &'static str> {
        let (key, ts) = split_key(file_key).map_err(|_| "holds a malformed key")?;
        if !range.contains(&key) {
            return Err("holds a key outside of its part");
        }
        let bytes = (file_key.len() + value.len()) as u64;
        match &mut self.found {
            None => {
                let (min_key, max_key) = (key.clone(), key);
                self.found = Some(Written { bytes, versions: 1, min_key, max_key, min_ts: ts, max_ts: ts });
            }
            Some(found) => {
                if self.last.as_slice() >= file_key {
                    return Err("holds keys that do not rise");
                }
                found.bytes += bytes;
                found.versions += 1;
                found.max_key = key;
                found.min_ts = found.min_ts.min(ts);
                found.max_ts = found.max_ts.max(ts);
            }
        }
        self.last.clear();
        self.last.extend_from_slice(file_key);
        Ok(())
    }
}
