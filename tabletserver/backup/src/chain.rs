//! A backup and those that it adds to.

use crate::error::BackupError;
use crate::limits::CHAIN_MAX;
use crate::manifest::{Manifest, TableEntry};
use crate::repository::Repository;
use std::collections::BTreeSet;

impl Repository {
    /// A backup and those it adds to, oldest first: a full one, then the increments.
    ///
    /// # Errors
    /// `NoBackup` when there is none of this name; `Damaged` when one that it adds to is missing,
    /// or they do not fit each other: cluster, timestamps, tables.
    pub async fn chain(&self, backup: &str) -> Result<Vec<Manifest>, BackupError> {
        let mut chain = vec![self.manifest(backup).await?];
        while let Some((newest, parent)) = chain.last().and_then(|last| Some((last, last.parent.as_ref()?))) {
            if chain.len() >= CHAIN_MAX {
                let what = format!("adds to more than {CHAIN_MAX} others");
                return Err(BackupError::damaged(&format!("backup {backup}"), what));
            }
            let found = self.manifest_if_there(&parent.id).await?;
            let found = found.ok_or_else(|| {
                let what = format!("adds to the backup {}, which is missing", parent.id);
                BackupError::damaged(&format!("backup {}", newest.id), what)
            })?;
            check_link(&found, newest)?;
            chain.push(found);
        }
        chain.reverse();
        Ok(chain)
    }
}

/// Checks that `child` adds to `parent`.
///
/// # Errors
/// `Damaged` with what does not fit.
pub(crate) fn check_link(parent: &Manifest, child: &Manifest) -> Result<(), BackupError> {
    let wrong = |what: String| Err(BackupError::damaged(&format!("backup {}", child.id), what));
    if parent.cluster_id != child.cluster_id {
        return wrong(format!(
            "is of the cluster {}, and {}, which it adds to, of the cluster {}",
            child.cluster_id, parent.id, parent.cluster_id
        ));
    }
    let said = child.parent.as_ref().map(|parent| (&parent.id, parent.ts));
    if said != Some((&parent.id, parent.ts)) || parent.ts >= child.ts {
        return wrong(format!("does not follow {}: their timestamps do not fit", parent.id));
    }
    for table in child.tables.iter().filter(|table| table.since_ts != 0) {
        let below = parent.tables.iter().find(|below| below.id == table.id);
        if below.is_none() || table.since_ts != parent.ts {
            return wrong(format!("adds to a table {:?} that {} does not have", table.name, parent.id));
        }
    }
    Ok(())
}

/// Leaves those tables of a chain that some tables of its newest backup are made of.
pub fn retain_tables(chain: &mut [Manifest], tables: &BTreeSet<u32>) {
    let mut needed: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); chain.len()];
    for table in tables {
        // The layers are the newest ones.
        let first = chain.len() - layers(chain, *table).len();
        for needed in &mut needed[first..] {
            needed.insert(*table);
        }
    }
    for (manifest, needed) in chain.iter_mut().zip(needed) {
        manifest.tables.retain(|table| needed.contains(&table.id));
    }
}

/// What of a chain a table of its newest backup is made of, oldest first: a full table, then what
/// was changed.
#[must_use]
pub fn layers<'a>(chain: &'a [Manifest], table: u32) -> Vec<(&'a Manifest, &'a TableEntry)> {
    let mut found: Vec<(&'a Manifest, &'a TableEntry)> = Vec::new();
    for manifest in chain.iter().rev() {
        let Some(entry) = manifest.tables.iter().find(|entry| entry.id == table) else { break };
        found.push((manifest, entry));
        if entry.since_ts == 0 {
            break;
        }
    }
    found.reverse();
    found
}
