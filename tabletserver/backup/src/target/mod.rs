//! A place for files: a directory or a bucket behind one trait.

mod directory;
mod s3;

use crate::Pace;
use crate::location::Location;
use async_trait::async_trait;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// Something that lies at a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its name below the target's URL.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written, milliseconds since 1970; 0 if unknown.
    pub modified_ms: u64,
}

/// Why something could not be done at a target. Displays the name, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing of that name.
    #[error("{0} is not there: check the URL, and whether somebody has removed or pruned it")]
    NotFound(String),
    /// The target is full.
    #[error("{0}")]
    Full(String),
    /// Credentials, permissions, bucket, or the disk of this machine: trying again does not help.
    #[error("{0}")]
    Refused(String),
    /// Tried as often as it makes sense.
    #[error("{0}")]
    Unavailable(String),
}

/// What lies in a file, as its bytes went by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Content {
    /// How many bytes.
    pub bytes: u64,
    /// Their digest, in hexadecimal.
    pub sha256: String,
}

/// What an upload that broke off has left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unfinished {
    /// The name that it was for.
    pub name: String,
    /// How the target calls it.
    pub upload: String,
    /// Bytes of it; 0 if unknown.
    pub bytes: u64,
    /// When it was begun, milliseconds since 1970; 0 if unknown.
    pub started_ms: u64,
}

/// A place for files.
#[async_trait]
pub trait Target: Send + Sync {
    /// Puts bytes under a name, whole or not at all, durable when it returns.
    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), TargetError>;

    /// Puts a local file under a name, whole or not at all, durable when it returns. Says what
    /// was read of it. The local file may be removed, but not be written to, from now on: on the
    /// same disk it is what lies there.
    async fn put_file(&self, name: &str, from: &Path, pace: &dyn Pace) -> Result<Content, TargetError>;

    /// What lies under a name, if it is at most `bytes_max` long.
    async fn get(&self, name: &str, bytes_max: u64) -> Result<Bytes, TargetError>;

    /// Brings what lies under a name into a new local file, and says what it was. The file may be
    /// removed, but not be written to: on the same disk it is what lies there.
    async fn get_file(&self, name: &str, to: &Path, pace: &dyn Pace) -> Result<Content, TargetError>;

    /// Everything whose name begins with `prefix`, which ends with a slash or is empty, by name.
    /// Unfinished uploads are none of it.
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, TargetError>;

    /// Names of the directories directly under `prefix`, which ends with a slash.
    async fn list_directories(&self, prefix: &str) -> Result<Vec<String>, TargetError>;

    /// Removes names; those that are not there are none.
    async fn delete(&self, names: &[String]) -> Result<(), TargetError>;

    /// What uploads that broke off, or go on, have left below `prefix`; nothing at a target that
    /// cannot tell.
    async fn list_unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, TargetError>;

    /// Removes what unfinished uploads have left; those that are gone are none.
    async fn remove_unfinished(&self, uploads: &[Unfinished]) -> Result<(), TargetError>;
}

/// Opens a target. Credentials come from the environment, the usual files or the instance.
///
/// # Errors
/// When it cannot be used as it is given.
pub async fn open(location: &Location) -> Result<Arc<dyn Target>, TargetError> {
    match location {
        Location::Directory(path) => Ok(Arc::new(directory::Directory::new(path.clone()))),
        Location::S3(bucket) => Ok(Arc::new(s3::S3::open(bucket).await?)),
    }
}
