//! What lies at a target and belongs to no backup.
//!
//! ```text
//!   a backup with a manifest        what the manifest does not name goes
//!   ... that cannot be read         nothing goes
//!   without, of a running job       nothing goes
//!   without, of a job that is over  everything goes
//!   without, nobody knows the job   everything, unless there is a sign of life
//! ```
//!
//! What is not called as Ebla calls its files is somebody else's: it stays.

use crate::error::BackupError;
use crate::names;
use crate::repository::{Repository, named_files};
use crate::sign::Sign;
use crate::target::{Listed, Unfinished};
use std::collections::{BTreeMap, BTreeSet};

/// What may be removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PruneWish {
    /// Backups that a cluster says it is making: nothing of them is garbage.
    pub running: BTreeSet<String>,
    /// Backups that a cluster says it makes no longer.
    pub over: BTreeSet<String>,
    /// What else is spared.
    pub spared: Spared,
}

/// Which backups without manifest are spared although no cluster says that it makes them.
/// Times are milliseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spared {
    /// Those with a sign of life, if anything of them was written since, and that are not over.
    Alive {
        /// Since when.
        since_ms: u64,
    },
    /// All of which anything was written since.
    Written {
        /// Since when.
        since_ms: u64,
    },
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
    /// What is no whole backup and was spared.
    pub kept: Vec<Kept>,
}

/// A backup without a manifest that can be read, which was spared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Its id.
    pub id: String,
    /// When anything of it was written last, milliseconds since 1970.
    pub written_ms: u64,
    /// Why.
    pub why: KeptWhy,
}

/// Why a backup was spared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeptWhy {
    /// A cluster says that it makes it.
    Running,
    /// Somebody may be making it: its sign, if that can be read.
    Alive(Option<Sign>),
    /// Its manifest cannot be read: nobody knows what it needs.
    Damaged(String),
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
    /// As the target says.
    pub async fn garbage(&self, wish: &PruneWish) -> Result<Garbage, BackupError> {
        // Manifests after files: a backup that is finished meanwhile is seen as finished.
        let mut listed = self.target().list(names::BACKUPS).await?;
        let probes = self.target().list(names::PROBES).await?;
        let mut uploads = self.target().list_unfinished(names::BACKUPS).await?;
        uploads.extend(self.target().list_unfinished(names::PROBES).await?);
        listed.extend(probes);
        listed.retain(|file| names::is_own(&file.name));
        uploads.retain(|upload| names::is_own(&upload.name));
        let mut at = At { named: BTreeSet::new(), finished: BTreeSet::new(), damaged: BTreeMap::new() };
        for (id, manifest) in self.survey().await? {
            match manifest {
                Ok(None) => {}
                Ok(Some(manifest)) => {
                    at.named.extend(named_files(&manifest)?);
                    at.finished.insert(id);
                }
                Err(error @ (BackupError::Damaged(_) | BackupError::NewerFormat(_))) => {
                    at.damaged.insert(id, error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        let mut garbage = find(wish, listed, uploads, &at);
        for kept in &mut garbage.kept {
            if let KeptWhy::Alive(sign) = &mut kept.why {
                *sign = self.sign(&kept.id).await;
            }
        }
        Ok(garbage)
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

/// What manifests say.
struct At {
    /// Names of everything that they need.
    named: BTreeSet<String>,
    /// Backups that have one.
    finished: BTreeSet<String>,
    /// Those that have one that cannot be read, and why.
    damaged: BTreeMap<String, String>,
}

/// What is known of the things of one backup, or of one probe.
#[derive(Default)]
struct Seen {
    written_ms: u64,
    has_sign: bool,
}

fn find(wish: &PruneWish, listed: Vec<Listed>, uploads: Vec<Unfinished>, at: &At) -> Garbage {
    // A backup is as young as the last of its files: one that is slow is not taken for dead.
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let files = listed.iter().map(|file| (&file.name, file.modified_ms));
    for (name, ms) in files.chain(uploads.iter().map(|upload| (&upload.name, upload.started_ms))) {
        let seen = seen.entry(owner(name).to_owned()).or_default();
        seen.written_ms = ms.max(seen.written_ms);
        seen.has_sign |= names::is_sign(name);
    }
    let spared: BTreeMap<String, KeptWhy> = seen
        .iter()
        .filter_map(|(owner, seen)| Some((owner.clone(), why_kept(wish, at, owner, seen)?)))
        .collect();
    let is_spared = |name: &str| spared.contains_key(owner(name));
    // What a manifest names is there: what goes up under such a name is the rest of an earlier try.
    let uploads: Vec<_> = uploads.into_iter().filter(|upload| !is_spared(&upload.name)).collect();
    let is_garbage = |file: &Listed| !is_spared(&file.name) && !at.named.contains(&file.name);
    let files: Vec<_> = listed.into_iter().filter(is_garbage).collect();
    let names = files.iter().map(|file| &file.name).chain(uploads.iter().map(|upload| &upload.name));
    let ids = names.filter_map(|name| Some(names::split(name)?.0));
    let unfinished: BTreeSet<_> = ids.filter(|id| !at.finished.contains(*id)).map(str::to_owned).collect();
    let kept = |(id, why): (String, KeptWhy)| {
        let written_ms = seen.get(&id).map_or(0, |seen| seen.written_ms);
        Kept { id, written_ms, why }
    };
    // Of a probe nobody needs to hear.
    let kept = spared.into_iter().filter(|(id, _)| names::check_id(id).is_ok()).map(kept).collect();
    Garbage { backups: unfinished.into_iter().collect(), files, uploads, kept }
}

/// Why nothing of a backup is garbage; none when it is.
fn why_kept(wish: &PruneWish, at: &At, owner: &str, seen: &Seen) -> Option<KeptWhy> {
    if let Some(why) = at.damaged.get(owner) {
        return Some(KeptWhy::Damaged(why.clone()));
    }
    // Of a finished backup nothing is on its way any more.
    if at.finished.contains(owner) {
        return None;
    }
    if wish.running.contains(owner) {
        return Some(KeptWhy::Running);
    }
    let is_probe = owner.starts_with(names::PROBES);
    let is_alive = match wish.spared {
        Spared::Written { since_ms } => seen.written_ms >= since_ms,
        Spared::Alive { since_ms } => {
            seen.written_ms >= since_ms && (is_probe || seen.has_sign && !wish.over.contains(owner))
        }
    };
    is_alive.then_some(KeptWhy::Alive(None))
}

/// The backup that something belongs to; probes belong to none, each to itself.
fn owner(name: &str) -> &str {
    names::split(name).map_or(name, |(id, _)| id)
}
