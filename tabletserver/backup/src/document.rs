//! JSON that shows when a bit of it was flipped: `{"sha256": "...", "NAME": {...}}`, the digest
//! being that of the exact bytes of the value.

use crate::error::BackupError;
use crate::hex::to_hex;
use crate::manifest::MANIFEST_FORMAT;
use ring::digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

const SHA256: &str = "sha256";

/// The one field that every release can read.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

/// `content` as a document.
pub(crate) fn write<T: Serialize>(name: &str, content: &T) -> Vec<u8> {
    let content = serde_json::to_string(content).expect("plain fields and lists become JSON");
    let sha256 = to_hex(digest::digest(&digest::SHA256, content.as_bytes()).as_ref());
    format!("{{\"{SHA256}\":\"{sha256}\",\"{name}\":{content}}}\n").into_bytes()
}

/// The content of a document that lies at `place`.
///
/// # Errors
/// `Damaged` when it is not what was written, `NewerFormat`.
pub(crate) fn read<T: DeserializeOwned>(name: &str, place: &str, bytes: &[u8]) -> Result<T, BackupError> {
    let damaged = |what: &str| BackupError::damaged(place, what);
    let fields: BTreeMap<String, &RawValue> =
        serde_json::from_slice(bytes).map_err(|_| damaged("is cut short or no JSON"))?;
    let content = fields.get(name).ok_or_else(|| damaged("holds something else"))?.get();
    let said: String = fields
        .get(SHA256)
        .and_then(|said| serde_json::from_str(said.get()).ok())
        .ok_or_else(|| damaged("lacks its sha256"))?;
    if said != to_hex(digest::digest(&digest::SHA256, content.as_bytes()).as_ref()) {
        return Err(damaged("was changed after it was written: its sha256 is another"));
    }
    let versioned: Versioned = serde_json::from_str(content).map_err(|_| damaged("lacks its format"))?;
    if versioned.format > MANIFEST_FORMAT {
        return Err(BackupError::NewerFormat(format!(
            "{place} has format {}, and this release knows formats up to {MANIFEST_FORMAT}: use a newer release",
            versioned.format
        )));
    }
    serde_json::from_str(content).map_err(|error| damaged(&format!("is malformed ({error})")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_newer_format_is_refused_with_its_number() {
        let bytes = write("part", &json!({ "format": 7, "what": "ever" }));
        let error = read::<serde_json::Value>("part", "x.json", &bytes).unwrap_err();
        assert!(matches!(&error, BackupError::NewerFormat(text) if text.contains("format 7")), "{error}");
    }

    proptest! {
        #[test]
        fn every_flipped_bit_and_every_cut_is_seen(text in ".{0,20}", at: prop::sample::Index, bit in 0..8u8) {
            let content = json!({ "format": 1, "text": text });
            let bytes = write("part", &content);
            prop_assert_eq!(read::<serde_json::Value>("part", "x", &bytes).unwrap(), content.clone());
            let mut flipped = bytes.clone();
            flipped[at.index(bytes.len())] ^= 1 << bit;
            let is_same = |bytes: &[u8]| read::<serde_json::Value>("part", "x", bytes).is_ok_and(|read| read == content);
            let last_is_space = flipped[..bytes.len() - 1] == bytes[..bytes.len() - 1];
            prop_assert!(last_is_space || !is_same(&flipped));
            prop_assert!(!is_same(&bytes[..at.index(bytes.len() - 1)]));
        }
    }
}
