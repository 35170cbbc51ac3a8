//! The mark that says which version of Ebla wrote a directory of rows.

use super::StoreError;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

const FILE: &str = "FORMAT";

/// Refuses a directory of a newer format than `known`.
pub(super) fn check(dir: &Path, known: u32) -> Result<(), StoreError> {
    let text = match fs::read_to_string(dir.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read its FORMAT file", error)),
    };
    match text.trim().parse::<u32>() {
        Ok(format) if format <= known => Ok(()),
        Ok(_) => Err(StoreError::NewerFormat { path: dir.into(), found: text.trim().into(), known }),
        Err(_) => Err(StoreError::corrupt(format!("{} says {:?}", dir.join(FILE).display(), text.trim()))),
    }
}

/// Marks a directory as written by `format`; durable on return.
pub(super) fn mark(dir: &Path, format: u32) -> Result<(), StoreError> {
    let path = dir.join(FILE);
    if path.exists() {
        return Ok(());
    }
    let text = format!("{format}\n");
    crate::durable_file::replace(&path, text.as_bytes())
        .map_err(|error| failed("write its FORMAT file", error))
}

fn failed(tried: &'static str, source: std::io::Error) -> StoreError {
    StoreError::Engine { tried, source: source.into() }
}
