//! Files of a chain of backups as one row of versions.
//!
//! Each version of a row is in one file, or in several as the same bytes, so the files only have
//! to be brought into one order. One is opened when the others have come to its first key: of a
//! chain as many are open at once as it has links.

use super::Stop;
use super::selection::Source;
use ebla_backup::{BackupError, FileReader, FileVersion, Pace, Repository, Scratch};
use std::collections::VecDeque;
use std::path::PathBuf;

/// What opens a file.
pub(super) type Fetch<'a> = dyn FnMut(&Source) -> Result<Fetched, Stop> + 'a;

/// A file that is here, with what its engine needs; both go with it.
pub(super) struct Fetched {
    pub(super) reader: FileReader,
    pub(super) _engine: Scratch,
    pub(super) _dir: Scratch,
}

/// Brings a file into a directory of its own and opens it.
pub(super) async fn fetch(
    repository: &Repository,
    source: &Source,
    dir: PathBuf,
    pace: &dyn Pace,
) -> Result<Fetched, Stop> {
    let key = repository.key(&source.key_id)?;
    let dir = super::scratch(dir)?;
    let file = dir.0.join("versions.sst");
    repository.get_file(&source.backup, &source.file, key, &file, pace).await?;
    let engine = super::scratch(dir.0.join("engine"))?;
    let reader = FileReader::open(&file, &engine.0)?;
    Ok(Fetched { reader, _engine: engine, _dir: dir })
}

/// Files that are merged.
pub(super) struct Merge<'a> {
    fetch: Box<Fetch<'a>>,
    waiting: VecDeque<Source>,
    open: Vec<Open>,
}

struct Open {
    source: Source,
    file: Fetched,
    read: u64,
}

impl<'a> Merge<'a> {
    /// A merge of `sources`, which are in the order of their first keys.
    pub(super) fn new(sources: Vec<Source>, fetch: Box<Fetch<'a>>) -> Self {
        Self { fetch, waiting: sources.into(), open: Vec::new() }
    }

    /// Puts the next key and value in place of `key` and `value`; whether there was one.
    ///
    /// # Errors
    /// As `fetch` says, or when a file is not what its backup says.
    pub(super) fn next(&mut self, key: &mut Vec<u8>, value: &mut Vec<u8>) -> Result<bool, Stop> {
        key.clear();
        value.clear();
        let mut has_one = false;
        loop {
            let mut least: Option<&[u8]> = None;
            for open in &self.open {
                let Some((own, of_own)) = open.here()? else { continue };
                if least.is_none_or(|least| own < least) {
                    least = Some(own);
                    key.clear();
                    key.extend_from_slice(own);
                    value.clear();
                    value.extend_from_slice(of_own);
                    has_one = true;
                }
            }
            // A file that begins at or before it may hold an earlier one.
            match self.waiting.front() {
                Some(source) if !has_one || source.from <= *key => self.open_next()?,
                Some(_) | None => break,
            }
        }
        if has_one {
            self.step_over(key)?;
        }
        Ok(has_one)
    }

    fn open_next(&mut self) -> Result<(), Stop> {
        let Some(source) = self.waiting.pop_front() else { return Ok(()) };
        let mut file = (self.fetch)(&source)?;
        file.reader.seek(&source.from);
        self.open.push(Open { source, file, read: 0 });
        Ok(())
    }

    /// Leaves a version behind in every file that has it; files that are at their end are closed.
    fn step_over(&mut self, key: &[u8]) -> Result<(), Stop> {
        for open in &mut self.open {
            if open.here()?.is_some_and(|(own, _)| own == key) {
                open.read += 1;
                open.file.reader.step();
            }
        }
        let mut at = 0;
        while let Some(open) = self.open.get(at) {
            if open.here()?.is_some() {
                at += 1;
            } else {
                self.open.swap_remove(at).check_count()?;
            }
        }
        Ok(())
    }
}

impl Open {
    /// The version here, if it counts.
    fn here(&self) -> Result<Option<FileVersion<'_>>, BackupError> {
        let counts = |key: &[u8]| self.source.to.as_ref().is_none_or(|to| key < &to[..]);
        Ok(self.file.reader.version()?.filter(|(key, _)| counts(key)))
    }

    /// A file that was read as a whole had every version that the manifest names.
    fn check_count(&self) -> Result<(), BackupError> {
        let wanted = self.source.file.versions;
        if !self.source.is_whole || self.read == wanted {
            return Ok(());
        }
        Err(BackupError::Damaged(format!(
            "file {} of backup {} has {} versions, its manifest says {wanted}: restore another backup",
            self.source.file.name, self.source.backup, self.read
        )))
    }
}
