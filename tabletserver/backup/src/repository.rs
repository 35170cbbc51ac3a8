//! Backups by name: manifests, parts and files at a target.

use crate::Pace;
use crate::document;
use crate::encryption;
use crate::error::BackupError;
use crate::key::{KEY_FILE_VARIABLE, KEY_VARIABLE, Key};
use crate::limits::{MANIFEST_BYTES_MAX, PART_BYTES_MAX};
use crate::location::Location;
use crate::manifest::{FileEntry, Manifest, Part};
use crate::names;
use crate::target::{self, Content, Target, TargetError};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::spawn_blocking;

const MANIFEST: &str = "manifest";
const PART: &str = "part";

/// The backups at one target.
#[derive(Clone)]
pub struct Repository {
    target: Arc<dyn Target>,
    key: Option<Key>,
}

impl Repository {
    /// Opens a target with the key of this process.
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn open(location: &Location) -> Result<Self, BackupError> {
        let key = Key::from_environment()?;
        Ok(Self::new(target::open(location).await?, key))
    }

    /// The backups at a target.
    #[must_use]
    pub fn new(target: Arc<dyn Target>, key: Option<Key>) -> Self {
        Self { target, key }
    }

    /// The target itself.
    #[must_use]
    pub fn target(&self) -> &Arc<dyn Target> {
        &self.target
    }

    /// The key of this process, whatever a backup wants.
    #[must_use]
    pub fn own_key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The key of this process, if it is that of `key_id`; none for an empty one.
    ///
    /// # Errors
    /// `Key`: with what to set.
    pub fn key(&self, key_id: &str) -> Result<Option<&Key>, BackupError> {
        let hint = format!(
            "set {KEY_FILE_VARIABLE} to a file with it, or {KEY_VARIABLE}, for every process of Ebla"
        );
        match &self.key {
            _ if key_id.is_empty() => Ok(None),
            Some(key) if key.id() == key_id => Ok(Some(key)),
            Some(key) => Err(BackupError::Key(format!(
                "the backup is encrypted with the key {key_id}, and the key here is {}: {hint}",
                key.id()
            ))),
            None => Err(BackupError::Key(format!(
                "the backup is encrypted with the key {key_id}, and no key is given here: {hint}"
            ))),
        }
    }

    /// Puts a local file of versions under `backups/ID/NAME`, encrypted if `key` is given. Gives
    /// the bytes as they lie there and their sha256 in hexadecimal. For encryption a file is
    /// written beside it, and removed.
    ///
    /// # Errors
    /// As the target says.
    pub async fn put_file(
        &self,
        backup: &str,
        name: &str,
        from: &Path,
        key: Option<&Key>,
        pace: &dyn Pace,
    ) -> Result<(u64, String), BackupError> {
        let place = names::file(backup, name)?;
        let content = match key {
            None => self.target.put_file(&place, from, pace).await?,
            Some(key) => {
                let sealed = Beside::new(from, "sealed");
                let (key, from, to) = (key.clone(), from.to_owned(), sealed.0.clone());
                let name = names::sealed(backup, name);
                blocking(move || {
                    let local = |error| BackupError::local("encrypt a file of a backup", error);
                    let mut from = BufReader::new(File::open(from).map_err(local)?);
                    let mut to = BufWriter::new(File::create(to).map_err(local)?);
                    encryption::seal(&key, &name, &mut from, &mut to).map_err(local)
                })
                .await?;
                self.target.put_file(&place, &sealed.0, pace).await?
            }
        };
        Ok((content.bytes, content.sha256))
    }

    /// Brings a file here, checked against its sha256 and decrypted. `to` must not be there yet.
    ///
    /// # Errors
    /// `Damaged` when it is not what was written.
    pub async fn get_file(
        &self,
        backup: &str,
        file: &FileEntry,
        key: Option<&Key>,
        to: &Path,
        pace: &dyn Pace,
    ) -> Result<(), BackupError> {
        let place = names::file(backup, &file.name)?;
        let Some(key) = key else {
            let got = self.target.get_file(&place, to, pace).await;
            return check_content(&place, file, found(&place, got)?);
        };
        let sealed = Beside::new(to, "sealed");
        let got = self.target.get_file(&place, &sealed.0, pace).await;
        check_content(&place, file, found(&place, got)?)?;
        let (key, from, to) = (key.clone(), sealed.0.clone(), to.to_owned());
        let name = names::sealed(backup, &file.name);
        blocking(move || {
            let local = |error| BackupError::local("decrypt a file of a backup", error);
            let mut from = BufReader::new(File::open(from).map_err(local)?);
            let mut to = BufWriter::new(File::create_new(to).map_err(local)?);
            encryption::open(&key, &name, &mut from, &mut to)
        })
        .await
    }

    /// Puts a part that is done.
    ///
    /// # Errors
    /// As the target says.
    pub async fn put_part(&self, backup: &str, part: &Part) -> Result<(), BackupError> {
        let place = names::part(backup, &part.name)?;
        Ok(self.target.put(&place, document::write(PART, part).into()).await?)
    }

    /// The parts that are done.
    ///
    /// # Errors
    /// As the target says; `Damaged` for one that is not what was written.
    pub async fn parts(&self, backup: &str) -> Result<Vec<Part>, BackupError> {
        let mut parts = Vec::new();
        for listed in self.target.list(&names::parts(backup)?).await? {
            let bytes = self.target.get(&listed.name, PART_BYTES_MAX).await?;
            let part: Part = document::read(PART, &listed.name, &bytes)?;
            if names::part(backup, &part.name)? != listed.name {
                return Err(BackupError::damaged(&listed.name, "is another part"));
            }
            parts.push(part);
        }
        Ok(parts)
    }

    /// Puts the manifest, once all its files lie there: from here on there is a backup. Parts are
    /// removed, and files that it does not name.
    ///
    /// # Errors
    /// As the target says, `Damaged` when somebody has removed a file; then there is no backup.
    pub async fn put_manifest(&self, manifest: &Manifest) -> Result<(), BackupError> {
        self.check_presence(manifest).await?;
        let place = names::manifest(&manifest.id)?;
        self.target.put(&place, document::write(MANIFEST, manifest).into()).await?;
        // The backup is there: what cannot be removed now is left to `ebla backup prune`.
        if let Err(error) = self.remove_unnamed(manifest).await {
            tracing::warn!(backup = manifest.id, %error, "files that the manifest does not name were not removed");
        }
        Ok(())
    }

    async fn remove_unnamed(&self, manifest: &Manifest) -> Result<(), BackupError> {
        let listed = self.target.list(&names::directory(&manifest.id)?).await?;
        let named = named_files(manifest)?;
        let unnamed = listed.into_iter().map(|listed| listed.name).filter(|name| !named.contains(name));
        Ok(self.target.delete(&unnamed.collect::<Vec<_>>()).await?)
    }

    /// The manifest of a backup.
    ///
    /// # Errors
    /// `NoBackup`, `Damaged`, `NewerFormat`.
    pub async fn manifest(&self, backup: &str) -> Result<Manifest, BackupError> {
        self.manifest_if_there(backup).await?.ok_or_else(|| BackupError::no_backup(backup))
    }

    /// The manifest of a backup that may not be there, or not be finished.
    ///
    /// # Errors
    /// `Damaged`, `NewerFormat`.
    pub async fn manifest_if_there(&self, backup: &str) -> Result<Option<Manifest>, BackupError> {
        let place = names::manifest(backup)?;
        let bytes = match self.target.get(&place, MANIFEST_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(TargetError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let manifest: Manifest = read_document(place.clone(), bytes).await?;
        if manifest.id != backup {
            return Err(BackupError::damaged(&place, format!("is that of the backup {}", manifest.id)));
        }
        Ok(Some(manifest))
    }

    /// The manifest of a backup as it lies there, and its name; for whoever wants to know whether
    /// others see the same.
    ///
    /// # Errors
    /// As the target says, also when it has more than `bytes_max`.
    pub async fn manifest_bytes(&self, backup: &str, bytes_max: u64) -> Result<(String, Bytes), BackupError> {
        let place = names::manifest(backup)?;
        let bytes = self.target.get(&place, bytes_max).await?;
        Ok((place, bytes))
    }

    /// Every backup, oldest first by timestamp.
    ///
    /// # Errors
    /// As the target says, `NotFound` for a directory that is not there; `Damaged` for a manifest
    /// that is not what was written.
    pub async fn list(&self) -> Result<Vec<Manifest>, BackupError> {
        let mut found = Vec::new();
        for (_, manifest) in self.survey().await? {
            found.extend(manifest?);
        }
        found.sort_by(|a, b| (a.ts, &a.id).cmp(&(b.ts, &b.id)));
        Ok(found)
    }

    /// Everything that looks like a backup: its name, and its manifest if it is finished.
    ///
    /// # Errors
    /// As the target says when it cannot be listed.
    #[allow(clippy::type_complexity, reason = "a list of names and what was read of each")]
    pub async fn survey(&self) -> Result<Vec<(String, Result<Option<Manifest>, BackupError>)>, BackupError> {
        let mut found = Vec::new();
        for id in self.target.list_directories(names::BACKUPS).await? {
            if names::check_id(&id).is_ok() {
                let manifest = self.manifest_if_there(&id).await;
                found.push((id, manifest));
            }
        }
        Ok(found)
    }

    /// Removes a backup, its manifest first; also one that was never finished.
    ///
    /// # Errors
    /// As the target says.
    pub async fn remove(&self, backup: &str) -> Result<(), BackupError> {
        self.target.delete(&[names::manifest(backup)?]).await?;
        let directory = names::directory(backup)?;
        self.target.remove_unfinished(&self.target.list_unfinished(&directory).await?).await?;
        let left: Vec<_> =
            self.target.list(&directory).await?.into_iter().map(|listed| listed.name).collect();
        Ok(self.target.delete(&left).await?)
    }
}

/// Names at the target of everything that belongs to a backup that is done.
pub(crate) fn named_files(manifest: &Manifest) -> Result<BTreeSet<String>, BackupError> {
    let files = manifest.files().map(|file| names::file(&manifest.id, &file.name));
    files.chain([names::manifest(&manifest.id)]).collect()
}

/// A large manifest takes its time.
async fn read_document<T: DeserializeOwned + Send + 'static>(
    place: String,
    bytes: Bytes,
) -> Result<T, BackupError> {
    blocking(move || document::read(MANIFEST, &place, &bytes)).await
}

/// A file that a manifest names is there, or the backup is damaged.
fn found(place: &str, got: Result<Content, TargetError>) -> Result<Content, BackupError> {
    match got {
        Err(TargetError::NotFound(_)) => Err(BackupError::damaged(place, "is missing")),
        other => Ok(other?),
    }
}

fn check_content(place: &str, file: &FileEntry, content: Content) -> Result<(), BackupError> {
    if content.bytes != file.stored_bytes {
        let what = format!("has {} bytes, and had {} when it was written", content.bytes, file.stored_bytes);
        return Err(BackupError::damaged(place, what));
    }
    if content.sha256 != file.sha256 {
        return Err(BackupError::damaged(place, "was changed after it was written: its sha256 is another"));
    }
    Ok(())
}

/// A local file beside another one; it goes at the end.
struct Beside(PathBuf);

impl Beside {
    fn new(file: &Path, ending: &str) -> Self {
        let mut name = file.as_os_str().to_owned();
        name.push(".");
        name.push(ending);
        Self(name.into())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It lies in a directory that is removed as a whole sooner or later.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs what computes for long or may wait for a disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    let ended = spawn_blocking(work).await;
    ended.unwrap_or_else(|error| Err(BackupError::local("work on a file of a backup", error)))
}
