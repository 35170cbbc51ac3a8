//! What things at a target are called.

use crate::error::BackupError;
use crate::limits::ID_BYTES_MAX;
use std::time::SystemTime;

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

/// Whether something at a target is called as Ebla calls what it puts there. Anything else is
/// somebody else's, and is never removed.
pub(crate) fn is_own(name: &str) -> bool {
    if let Some(probe) = name.strip_prefix(PROBES) {
        let (number, server) = probe.split_once('-').unwrap_or((probe, "0"));
        return is_hex(number, 16) && server.bytes().all(|byte| byte.is_ascii_digit());
    }
    let Some((id, rest)) = split(name) else { return false };
    let is_file = |place: &str, ending: &str| {
        let file = rest.strip_prefix(place).and_then(|file| file.strip_suffix(ending));
        file.is_some_and(|file| check_id(file).is_ok())
    };
    // PART-NNNN.sst
    let is_numbered = || {
        let (_, number) =
            rest.strip_suffix(".sst").and_then(|file| file.rsplit_once('-')).unwrap_or_default();
        number.len() >= 4 && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let is_data = is_file(DATA, ".sst") && is_numbered();
    is_generated(id) && ([MANIFEST, SIGN].contains(&rest) || is_file(PARTS, ".json") || is_data)
}

/// A name for a backup that is asked for `now`: when that was, readable, and a number against two at
/// once.
#[must_use]
pub fn new_id(now: SystemTime) -> String {
    let now = humantime::format_rfc3339_seconds(now).to_string();
    format!("{}-{:08x}", now.replace(['-', ':'], ""), rand::random::<u32>())
}

/// Whether an id looks like those of [`new_id`]: 20261121T182203Z-1a2b3c4d.
fn is_generated(id: &str) -> bool {
    let Some((time, number)) = id.split_once('-') else { return false };
    let is_digit = |at: usize| time.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let is_time = time.len() == 16 && (0..15).all(|at| at == 8 || is_digit(at));
    is_time && time.as_bytes()[8] == b'T' && time.ends_with('Z') && is_hex(number, 8)
}

fn is_hex(digits: &str, count: usize) -> bool {
    digits.len() == count && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_given_is_known_as_one() {
        let id = new_id(SystemTime::now());
        assert!(is_generated(&id) && check_id(&id).is_ok(), "{id}");
    }

    #[test]
    fn what_is_somebody_elses_is_told_apart() {
        let own = [
            "probes/0123456789abcdef",
            "probes/0123456789abcdef-12",
            "backups/20261121T182203Z-1a2b3c4d/manifest.json",
            "backups/20261121T182203Z-1a2b3c4d/parts/t5-12.json",
            "backups/20261121T182203Z-1a2b3c4d/data/t5-12-0000.sst",
        ];
        let foreign = [
            "probes/readme",
            "backups/README",
            "backups/photos/data/a.sst",
            "backups/20261121T182203Z-1a2b3c4d/notes.txt",
            "backups/20261121T182203Z-1a2b3c4d/data/a/b.sst",
            "backups/20261121T182203/manifest.json",
            "backups/2026-1a2b3c4d/manifest.json",
        ];
        assert!(own.into_iter().all(is_own));
        assert!(!foreign.into_iter().any(is_own));
    }
}
