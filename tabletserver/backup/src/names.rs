//! What things at a target are called.

use crate::error::BackupError;
use crate::limits::ID_BYTES_MAX;

/// Where backups lie.
pub(crate) const BACKUPS: &str = "backups/";

/// Where servers and masters look whether they see the same target; nothing here is of use later.
pub const PROBES: &str = "probes/";

const MANIFEST: &str = "manifest.json";
const SIGN: &str = "sign.json";
const PARTS: &str = "parts/";
const DATA: &str = "data/";

/// Checks the name of a backup: it becomes part of paths.
///
/// # Errors
/// `NoBackup`.
pub fn check_id(id: &str) -> Result<(), BackupError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !id.is_empty() && id.len() <= ID_BYTES_MAX && id.bytes().all(is_plain) {
        return Ok(());
    }
    Err(BackupError::NoBackup(format!(
        "{id:?} is no id of a backup: `ebla backup list` shows them, such as 20261121T182203Z-1a2b3c4d"
    )))
}

/// The directory of a backup, with a slash at its end.
pub(crate) fn directory(id: &str) -> Result<String, BackupError> {
    check_id(id)?;
    Ok(format!("{BACKUPS}{id}/"))
}

pub(crate) fn manifest(id: &str) -> Result<String, BackupError> {
    Ok(directory(id)? + MANIFEST)
}

/// What says that a backup is being made.
pub(crate) fn sign(id: &str) -> Result<String, BackupError> {
    Ok(directory(id)? + SIGN)
}

/// Whether something at a target says that.
pub(crate) fn is_sign(name: &str) -> bool {
    split(name).is_some_and(|(_, rest)| rest == SIGN)
}

pub(crate) fn parts(id: &str) -> Result<String, BackupError> {
    Ok(directory(id)? + PARTS)
}

pub(crate) fn part(id: &str, part: &str) -> Result<String, BackupError> {
    check_id(part)?;
    Ok(format!("{}{part}.json", parts(id)?))
}

/// A file of a backup, which its manifest calls `data/...`.
pub(crate) fn file(id: &str, name: &str) -> Result<String, BackupError> {
    let base = name.strip_prefix(DATA).unwrap_or("");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if base.is_empty() || base.starts_with('.') || !base.bytes().all(is_plain) {
        return Err(BackupError::damaged(id, format!("names a file {name:?}, which cannot be one")));
    }
    Ok(directory(id)? + name)
}

/// How a file is called where it is encrypted, wherever the backups lie.
pub(crate) fn sealed(id: &str, name: &str) -> String {
    format!("{id}/{name}")
}

/// The id in the name of something below `backups/`, and what follows it.
pub(crate) fn split(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(BACKUPS)?.split_once('/')
}
