//! All backups at a target, also where some of them cannot be read.

use crate::chain::check_link;
use crate::error::BackupError;
use crate::limits::CHAIN_MAX;
use crate::manifest::Manifest;
use crate::repository::Repository;
use std::collections::BTreeMap;

/// What there is at a target, by id.
#[derive(Debug)]
pub struct Inventory {
    found: BTreeMap<String, Result<Manifest, BackupError>>,
}

/// Why a backup is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Its manifest cannot be read.
    Unreadable,
    /// A backup that it adds to, itself or by way of others, is missing or cannot be read.
    NoParent,
}

impl Repository {
    /// Every backup that was finished. One whose manifest is damaged, of a newer format, or cannot
    /// be read is there as that error.
    ///
    /// # Errors
    /// As the target says when it cannot be listed.
    pub async fn inventory(&self) -> Result<Inventory, BackupError> {
        let mut found = BTreeMap::new();
        for (id, manifest) in self.survey().await? {
            match manifest {
                Ok(None) => {}
                Ok(Some(manifest)) => drop(found.insert(id, Ok(manifest))),
                Err(error) => drop(found.insert(id, Err(error))),
            }
        }
        Ok(Inventory { found })
    }
}

impl Inventory {
    /// All ids: oldest first by timestamp, then those that cannot be read.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let ts = |manifest: &Result<Manifest, BackupError>| {
            manifest.as_ref().map_or(u64::MAX, |manifest| manifest.ts)
        };
        let mut ids: Vec<_> = self.found.iter().map(|(id, manifest)| (ts(manifest), id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id.clone()).collect()
    }

    /// A backup and those that it adds to, oldest first, as far as they can be read.
    ///
    /// # Errors
    /// `NoBackup` when it is not there.
    pub fn chain(&self, id: &str) -> Result<Vec<String>, BackupError> {
        if !self.found.contains_key(id) {
            return Err(BackupError::no_backup(id));
        }
        let mut ids = vec![id.to_owned()];
        while let Some(Ok(manifest)) = ids.last().and_then(|id| self.found.get(id))
            && let Some(parent) = &manifest.parent
            && ids.len() < CHAIN_MAX
            && self.found.contains_key(&parent.id)
        {
            ids.push(parent.id.clone());
        }
        ids.reverse();
        Ok(ids)
    }

    /// The manifest of a backup; none when it cannot be read or is not there.
    #[must_use]
    pub fn manifest(&self, id: &str) -> Option<&Manifest> {
        self.found.get(id)?.as_ref().ok()
    }

    /// What is wrong with a backup that the listing alone tells: its manifest cannot be read, or it
    /// adds to a backup that is not there or is wrong itself.
    #[must_use]
    pub fn fault(&self, id: &str) -> Option<Fault> {
        let chain = self.chain(id).ok()?;
        let first = chain.first()?;
        match self.found.get(first)? {
            Err(_) if first == id => Some(Fault::Unreadable),
            Ok(manifest) if manifest.parent.is_none() => None,
            Ok(_) | Err(_) => Some(Fault::NoParent),
        }
    }

    /// Takes out what was wrong with a manifest that cannot be read.
    pub fn take_error(&mut self, id: &str) -> Option<BackupError> {
        self.found.get(id)?.as_ref().err()?;
        self.found.remove(id)?.err()
    }

    /// Checks that a backup fits the one that it adds to.
    ///
    /// # Errors
    /// `Damaged` when it does not, or when that one is not there.
    pub fn check_parent(&self, child: &Manifest) -> Result<(), BackupError> {
        let Some(parent) = &child.parent else { return Ok(()) };
        match self.found.get(&parent.id) {
            Some(Ok(found)) => check_link(found, child),
            other => {
                let what = if other.is_some() { "cannot be read" } else { "is missing" };
                let what = format!("adds to the backup {}, which {what}", parent.id);
                Err(BackupError::damaged(&format!("backup {}", child.id), what))
            }
        }
    }
}
