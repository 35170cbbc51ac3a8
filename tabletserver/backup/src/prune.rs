//! What lies at a target and belongs to no backup.

use crate::error::BackupError;
use crate::manifest::Manifest;
use crate::names;
use crate::repository::{Repository, named_files};
use crate::target::{Listed, Unfinished};
use std::collections::{BTreeMap, BTreeSet};

/// What may be removed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PruneWish {
    /// Backups that are being made: nothing of them is garbage.
    pub running: BTreeSet<String>,
    /// What was written after this, milliseconds since 1970, may belong to a backup that is
    /// being made without this caller's knowledge.
    pub written_before_ms: u64,
}

/// What no backup needs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Garbage {
    /// Backups that were never finished.
    pub backups: Vec<String>,
    /// Files of these, files that no manifest names, and what was left of probes.
    pub files: Vec<Listed>,
    /// What uploads that broke off have left.
    pub uploads: Vec<Unfinished>,
}

impl Garbage {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.uploads.is_empty()
    }

    /// How many bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let files = self.files.iter().map(|file| file.bytes);
        files.chain(self.uploads.iter().map(|upload| upload.bytes)).sum()
    }
}

impl Repository {
    /// What no backup needs.
    ///
    /// # Errors
    /// As the target says; `Damaged` when a manifest is not what was written, as nobody knows
    /// then which files it needs.
    pub async fn garbage(&self, wish: &PruneWish) -> Result<Garbage, BackupError> {
        // Manifests after files: a backup that is finished meanwhile is seen as finished.
        let mut listed = self.target().list(names::BACKUPS).await?;
        let probes = self.target().list(names::PROBES).await?;
        let mut uploads = self.target().list_unfinished(names::BACKUPS).await?;
        uploads.extend(self.target().list_unfinished(names::PROBES).await?);
        let mut manifests = BTreeMap::new();
        for (id, manifest) in self.survey().await? {
            manifests.extend(manifest?.map(|manifest| (id, manifest)));
        }
        listed.extend(probes);
        find(wish, listed, uploads, &manifests)
    }

    /// Removes what [`Self::garbage`] found.
    ///
    /// # Errors
    /// As the target says.
    pub async fn remove_garbage(&self, garbage: &Garbage) -> Result<(), BackupError> {
        self.target().remove_unfinished(&garbage.uploads).await?;
        let names: Vec<_> = garbage.files.iter().map(|file| file.name.clone()).collect();
        Ok(self.target().delete(&names).await?)
    }
}

fn find(
    wish: &PruneWish,
    listed: Vec<Listed>,
    uploads: Vec<Unfinished>,
    manifests: &BTreeMap<String, Manifest>,
) -> Result<Garbage, BackupError> {
    let mut named = BTreeSet::new();
    for manifest in manifests.values() {
        named.extend(named_files(manifest)?);
    }
    // A backup is as young as the last of its files: one that is slow is not taken for dead.
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let files = listed.iter().map(|file| (&file.name, file.modified_ms));
    for (name, ms) in files.chain(uploads.iter().map(|upload| (&upload.name, upload.started_ms))) {
        let newest = newest.entry(owner(name)).or_default();
        *newest = ms.max(*newest);
    }
    let is_garbage = |name: &str| {
        let owner = owner(name);
        let is_old = newest.get(owner).is_some_and(|ms| *ms < wish.written_before_ms);
        // Of a finished backup nothing is on its way any more.
        !wish.running.contains(owner) && (is_old || manifests.contains_key(owner)) && !named.contains(name)
    };
    let uploads: Vec<_> = uploads.iter().filter(|upload| is_garbage(&upload.name)).cloned().collect();
    let files: Vec<_> = listed.iter().filter(|file| is_garbage(&file.name)).cloned().collect();
    let names = files.iter().map(|file| &file.name).chain(uploads.iter().map(|upload| &upload.name));
    let ids = names.filter_map(|name| Some(names::split(name)?.0));
    let unfinished: BTreeSet<_> = ids.filter(|id| !manifests.contains_key(*id)).collect();
    let backups = unfinished.into_iter().map(str::to_owned).collect();
    Ok(Garbage { backups, files, uploads })
}

/// The backup that something belongs to; probes belong to none, each to itself.
fn owner(name: &str) -> &str {
    names::split(name).map_or(name, |(id, _)| id)
}
