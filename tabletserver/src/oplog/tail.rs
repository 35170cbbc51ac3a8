//! Tells a torn tail from damage, before the engine opens the log.
//!
//! The engine cuts the last file at the first batch that it cannot read, whatever stands
//! behind. A batch is written only after the fsync of the one before it, so a readable batch
//! behind an unreadable one proves that a synced one is broken: that is damage. With nothing
//! readable behind, it is what a crash left of the last write.
//!
//! A file is `magic · version (8 BE) · alignment (8 BE)`, then batches `len << 8 | compression
//! (8 BE) · footer offset (8 BE) · entries · crc · footer · crc`, the footer's crc32 (LE)
//! xored with the low half of the file's number. Zeros behind the last batch are space that
//! was allocated ahead.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What every file begins with: magic, version 2, no alignment.
const HEADER: &[u8] =
    b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0";
const BATCH_HEADER_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const COMPRESSION_MAX: u8 = 1;
const QUEUES: [&str; 2] = ["raftlog", "rewrite"];

/// What the files of a log look like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Finding {
    /// Nothing that was synced is missing, as far as the files tell.
    Sound,
    /// Synced records are broken or files are missing.
    Damaged(String),
}

/// Looks at the files of the log in `dir`.
pub(super) fn inspect(dir: &Path) -> io::Result<Finding> {
    for queue in QUEUES {
        let files = files_of(dir, queue)?;
        if let Some(gap) = files.windows(2).find(|pair| pair[1].0 != pair[0].0 + 1) {
            return Ok(Finding::Damaged(format!("a file is missing before {}", gap[1].1.display())));
        }
        let Some((number, path)) = files.last() else { continue };
        let bytes = fs::read(path)?;
        if let Some(offset) = damage_in(&bytes, *number) {
            return Ok(Finding::Damaged(format!("{} is broken at byte {offset}", path.display())));
        }
    }
    Ok(Finding::Sound)
}

/// Number and path of the files of one queue, by number.
fn files_of(dir: &Path, queue: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != queue) {
            continue;
        }
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        files.extend(number.map(|number| (number, path)));
    }
    files.sort_unstable();
    Ok(files)
}

/// Where the last file is broken although readable batches follow.
fn damage_in(bytes: &[u8], number: u64) -> Option<usize> {
    let mut offset = if bytes.starts_with(HEADER) { HEADER.len() } else { 0 };
    while let Some(len) = read_batch(bytes.get(offset..)?, number) {
        offset += len;
    }
    let rest = &bytes[offset..];
    let is_readable = |at: &usize| read_batch(&rest[*at..], number).is_some();
    (1..rest.len()).find(is_readable).map(|_| offset)
}

/// The length of the batch that `bytes` begin with, if it is whole.
fn read_batch(bytes: &[u8], number: u64) -> Option<usize> {
    let (len_and_compression, rest) = bytes.split_first_chunk()?;
    let (footer_at, _) = rest.split_first_chunk()?;
    let len_and_compression = u64::from_be_bytes(*len_and_compression);
    if (len_and_compression & 0xFF) as u8 > COMPRESSION_MAX {
        return None;
    }
    let len = usize::try_from(len_and_compression >> 8).ok()?;
    let footer_at = usize::try_from(u64::from_be_bytes(*footer_at)).ok()?;
    if footer_at < BATCH_HEADER_BYTES || footer_at > len || len > bytes.len() {
        return None;
    }
    let entries = &bytes[BATCH_HEADER_BYTES..footer_at];
    let is_whole =
        (entries.is_empty() || has_crc(entries, 0)) && has_crc(&bytes[footer_at..len], number as u32);
    is_whole.then_some(len)
}

/// Whether `bytes` end in their crc32, xored with `signature`.
fn has_crc(bytes: &[u8], signature: u32) -> bool {
    let Some((body, crc)) = bytes.split_last_chunk::<CRC_BYTES>() else { return false };
    !body.is_empty() && crc32fast::hash(body) == u32::from_le_bytes(*crc) ^ signature
}
