//! The key that files are encrypted with.

use crate::error::BackupError;
use crate::hex::{from_hex, to_hex};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hkdf};
use std::ffi::OsString;
use std::fmt;

/// Names a file with the key.
pub const KEY_FILE_VARIABLE: &str = "EBLA_BACKUP_KEY_FILE";

/// Holds the key itself.
pub const KEY_VARIABLE: &str = "EBLA_BACKUP_KEY";

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;

/// Set before the key where its id is made, so that the digest is of use for nothing else.
const ID_LABEL: &[u8] = b"ebla backup key id";

/// Set where the key of a file is made.
const FILE_LABEL: &[u8] = b"ebla backup file";

/// Bytes of the digest that an id has.
const ID_BYTES: usize = 8;

/// What a key looks like.
const HINT: &str = "give 64 hexadecimal digits or base64 of 32 bytes, such as `openssl rand -hex 32` prints";

/// The key that files are encrypted with: 32 bytes, never shown.
#[derive(Clone)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// The key of this process: of the file that `EBLA_BACKUP_KEY_FILE` names, otherwise
    /// `EBLA_BACKUP_KEY` itself, 64 hexadecimal digits or base64 of 32 bytes; none when neither
    /// is set. A file may also hold the 32 bytes as they are.
    ///
    /// # Errors
    /// When what is set is no key.
    pub fn from_environment() -> Result<Option<Self>, BackupError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(path) = variable(KEY_FILE_VARIABLE) {
            return Self::of_file(&path).map(Some);
        }
        let Some(text) = variable(KEY_VARIABLE) else { return Ok(None) };
        let key = text.to_str().and_then(Self::parse);
        key.map(Some).ok_or_else(|| BackupError::Key(format!("{KEY_VARIABLE} is no key: {HINT}")))
    }

    fn of_file(path: &OsString) -> Result<Self, BackupError> {
        let bytes = std::fs::read(path).map_err(|error| {
            BackupError::Key(format!(
                "the key file {} cannot be read ({error}): set {KEY_FILE_VARIABLE} to a file that this process may read",
                path.display()
            ))
        })?;
        let raw = <[u8; KEY_BYTES]>::try_from(&bytes[..]).ok().map(Self);
        let key = raw.or_else(|| Self::parse(std::str::from_utf8(&bytes).ok()?));
        key.ok_or_else(|| BackupError::Key(format!("the file {} holds no key: {HINT}", path.display())))
    }

    /// Reads 64 hexadecimal digits, or base64 of 32 bytes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let bytes = from_hex(text).or_else(|| STANDARD.decode(text).ok())?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// Tells it from other keys; says nothing of it.
    #[must_use]
    pub fn id(&self) -> String {
        to_hex(&self.id_bytes())
    }

    pub(crate) fn id_bytes(&self) -> [u8; ID_BYTES] {
        let mut sum = digest::Context::new(&digest::SHA256);
        sum.update(ID_LABEL);
        sum.update(&self.0);
        let sum = sum.finish();
        *sum.as_ref().first_chunk().expect("a digest of SHA-256 has 32 bytes")
    }

    /// The key of one file, whose `salt` no other file has: so nonces may count from 0 in each.
    pub(crate) fn of_salt(&self, salt: &[u8]) -> [u8; KEY_BYTES] {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.0);
        let mut key = [0; KEY_BYTES];
        let info = [FILE_LABEL];
        let expanded = extracted.expand(&info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key));
        expanded.expect("32 bytes are the length of one digest");
        key
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_one_key() {
        let hex = "00".repeat(31) + "ff";
        let base64 = STANDARD.encode([&[0; 31][..], &[0xFF]].concat());
        let ids = [hex, base64 + "\n"].map(|text| Key::parse(&text).unwrap().id());
        assert_eq!(ids[0], ids[1]);
        assert_eq!(ids[0].len(), 16);
        for wrong in ["", "00", "zz", &"0".repeat(63), &"0".repeat(66)] {
            assert!(Key::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        let key = Key::parse(&"ab".repeat(32)).unwrap();
        assert!(!format!("{key:?}").contains("abab"));
    }
}
