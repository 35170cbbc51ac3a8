//! Snapshots of the state: `magic (8) · format (1) · xxh3 of the body (8, BE) · borsh body`.

use super::state::State;
use borsh::BorshSerialize as _;
use std::fmt;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"EBLAMETA";
const FORMAT: u8 = 9;
const HEADER_BYTES: usize = 17;

/// A snapshot that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotError {
    /// Too short or with another magic.
    NotASnapshot,
    /// Written by another version.
    UnknownFormat(u8),
    /// The checksum does not match.
    Damaged,
    /// The checksum matches and the content does not.
    Malformed(String),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotASnapshot => f.write_str("not a metadata snapshot"),
            Self::UnknownFormat(format) => {
                write!(
                    f,
                    "metadata snapshot format {format} is not {FORMAT}, the one of this version: start the version that wrote it"
                )
            }
            Self::Damaged => f.write_str("the metadata snapshot is damaged: its checksum does not match"),
            Self::Malformed(reason) => write!(f, "the metadata snapshot is malformed: {reason}"),
        }
    }
}

impl std::error::Error for SnapshotError {}

/// The state's bytes, checksummed.
#[must_use]
pub fn encode_snapshot(state: &State) -> Vec<u8> {
    let body = body(state);
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend_from_slice(MAGIC);
    out.push(FORMAT);
    out.extend_from_slice(&xxh3_64(&body).to_be_bytes());
    out.extend_from_slice(&body);
    out
}

/// Reads a state back.
///
/// # Errors
/// `SnapshotError` when the bytes are not a whole snapshot of a known format.
pub fn decode_snapshot(bytes: &[u8]) -> Result<State, SnapshotError> {
    let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(SnapshotError::NotASnapshot)?;
    if &header[..8] != MAGIC {
        return Err(SnapshotError::NotASnapshot);
    }
    if header[8] != FORMAT {
        return Err(SnapshotError::UnknownFormat(header[8]));
    }
    if header[9..] != xxh3_64(body).to_be_bytes() {
        return Err(SnapshotError::Damaged);
    }
    let mut state: State =
        borsh::from_slice(body).map_err(|error| SnapshotError::Malformed(error.to_string()))?;
    state.rebuild_indexes();
    Ok(state)
}

/// Hash over the whole state: equal on every master after the same command.
#[must_use]
pub fn state_hash(state: &State) -> u64 {
    xxh3_64(&body(state))
}

fn body(state: &State) -> Vec<u8> {
    let mut body = Vec::new();
    state.serialize(&mut body).expect("writing to a vector does not fail");
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_and_other_formats_are_told_apart() {
        let bytes = encode_snapshot(&State::default());
        assert_eq!(decode_snapshot(&bytes), Ok(State::default()));
        assert_eq!(decode_snapshot(&bytes[..10]), Err(SnapshotError::NotASnapshot));
        let mut damaged = bytes.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(decode_snapshot(&damaged), Err(SnapshotError::Damaged));
        for format in [FORMAT - 1, FORMAT + 1] {
            let mut other = bytes.clone();
            other[8] = format;
            assert_eq!(decode_snapshot(&other), Err(SnapshotError::UnknownFormat(format)));
        }
    }
}
