//! Signs of life: what a backup that is being made keeps saying at its target.
//!
//! The master that makes a backup puts the sign before anything else, and again and again. So
//! whoever looks after a target knows without any cluster what is garbage: a backup without
//! manifest and without sign is made by nobody, nor is one whose sign has not been renewed for
//! [`limits::SIGN_DEAD_AFTER`](crate::limits::SIGN_DEAD_AFTER). The sign goes with the manifest.

use crate::document;
use crate::error::BackupError;
use crate::limits::PART_BYTES_MAX;
use crate::manifest::MANIFEST_FORMAT;
use crate::names;
use crate::repository::Repository;
use serde::{Deserialize, Serialize};

const SIGN: &str = "sign";

/// Who makes a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sign {
    format: u32,
    /// The cluster, in hexadecimal.
    pub cluster_id: String,
    /// The job there.
    pub job: u64,
    /// Who asked for it.
    pub by: String,
    /// Since when, milliseconds since 1970.
    pub started_ms: u64,
}

impl Sign {
    /// The sign of a job.
    #[must_use]
    pub fn new(cluster_id: String, job: u64, by: String, started_ms: u64) -> Self {
        Self { format: MANIFEST_FORMAT, cluster_id, job, by, started_ms }
    }
}

impl Repository {
    /// Says that a backup is being made. When it was said last, the target knows.
    ///
    /// # Errors
    /// As the target says.
    pub async fn put_sign(&self, backup: &str, sign: &Sign) -> Result<(), BackupError> {
        let place = names::sign(backup)?;
        Ok(self.target().put(&place, document::write(SIGN, sign).into()).await?)
    }

    /// Who makes a backup; none if nobody says so in words that can be read.
    pub(crate) async fn sign(&self, backup: &str) -> Option<Sign> {
        let place = names::sign(backup).ok()?;
        let bytes = self.target().get(&place, PART_BYTES_MAX).await.ok()?;
        document::read(SIGN, &place, &bytes).ok()
    }
}
