//! Files that only those with the key can read.
//!
//! ```text
//!   file   := "EBLAENC" · 01 · key id (8) · salt (32) · chunk ... · last chunk
//!   chunk  := AES-256-GCM of 1 MiB, with its tag (16); the last one of up to 1 MiB
//!   nonce  := 00 00 00 · number of the chunk (8 BE) · 01 if it is the last one, else 00
//!   key    := HKDF-SHA256(salt, the process's key, "ebla backup file")
//! ```
//!
//! The header and the name of the file are authenticated with every chunk, and number and end by
//! the nonce: chunks that were swapped, files that were swapped or cut short do not decrypt.

use crate::error::BackupError;
use crate::key::Key;
use aes_gcm::aead::AeadInPlace;
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce, Tag};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::io::{self, BufRead, Write};

/// How it is named in manifests.
pub const ALGORITHM: &str = "aes-256-gcm";

const MAGIC: &[u8; 7] = b"EBLAENC";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 48;
const SALT_BYTES: usize = 32;
const CHUNK_BYTES: usize = 1 << 20;
const TAG_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;

/// What all chunks of a file have in common.
struct Cipher {
    cipher: Aes256Gcm,
    /// Header and name.
    associated: Vec<u8>,
    next: u64,
}

impl Cipher {
    fn new(key: &Key, header: &[u8; HEADER_BYTES], name: &str) -> Self {
        let salt = &header[HEADER_BYTES - SALT_BYTES..];
        let cipher = Aes256Gcm::new(&key.of_salt(salt).into());
        Self { cipher, associated: [&header[..], name.as_bytes()].concat(), next: 0 }
    }

    fn nonce(&mut self, is_last: bool) -> [u8; NONCE_BYTES] {
        let mut nonce = [0; NONCE_BYTES];
        nonce[3..11].copy_from_slice(&self.next.to_be_bytes());
        nonce[11] = u8::from(is_last);
        self.next += 1;
        nonce
    }

    fn seal(&mut self, chunk: &mut [u8], is_last: bool) -> Tag {
        let nonce = self.nonce(is_last);
        let sealed =
            self.cipher.encrypt_in_place_detached(Nonce::from_slice(&nonce), &self.associated, chunk);
        sealed.expect("a chunk is far below the 64 GiB that one nonce may have")
    }

    /// Whether `chunk` was sealed so.
    fn open(&mut self, chunk: &mut [u8], tag: &[u8], is_last: bool) -> bool {
        let nonce = self.nonce(is_last);
        let (nonce, tag) = (Nonce::from_slice(&nonce), Tag::from_slice(tag));
        self.cipher.decrypt_in_place_detached(nonce, &self.associated, chunk, tag).is_ok()
    }
}

/// Encrypts `from` for the file `name`, which is `BACKUP/data/...`.
///
/// # Errors
/// When something cannot be read or written, or the system has no randomness.
pub(crate) fn seal(key: &Key, name: &str, from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    let mut header = [0; HEADER_BYTES];
    header[..7].copy_from_slice(MAGIC);
    header[7] = VERSION;
    header[8..16].copy_from_slice(&key.id_bytes());
    let filled = SystemRandom::new().fill(&mut header[HEADER_BYTES - SALT_BYTES..]);
    filled.map_err(|_| io::Error::other("the system gives no random bytes"))?;
    to.write_all(&header)?;
    let mut cipher = Cipher::new(key, &header, name);
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    loop {
        let is_last = fill(from, &mut chunk, CHUNK_BYTES)?;
        let tag = cipher.seal(&mut chunk, is_last);
        to.write_all(&chunk)?;
        to.write_all(&tag)?;
        if is_last {
            return to.flush();
        }
    }
}

/// Decrypts the file `name`.
///
/// # Errors
/// `Key` for a file of another key, `Damaged` when it is not what was written, `NewerFormat`,
/// `Local`.
pub(crate) fn open(
    key: &Key,
    name: &str,
    from: &mut impl BufRead,
    to: &mut impl Write,
) -> Result<(), BackupError> {
    let local = |error| BackupError::local("decrypt a file of a backup", error);
    let mut header = [0; HEADER_BYTES];
    if let Err(error) = from.read_exact(&mut header) {
        return Err(match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::damaged(name, "is cut short"),
            _ => local(error),
        });
    }
    check_header(key, name, &header)?;
    let mut cipher = Cipher::new(key, &header, name);
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + TAG_BYTES);
    loop {
        let is_last = fill(from, &mut chunk, CHUNK_BYTES + TAG_BYTES).map_err(local)?;
        let body = chunk.len().checked_sub(TAG_BYTES);
        let body = body.ok_or_else(|| BackupError::damaged(name, "is cut short"))?;
        let (body, tag) = chunk.split_at_mut(body);
        if !cipher.open(body, tag, is_last) {
            return Err(BackupError::damaged(name, "does not decrypt: it was changed, cut short or swapped"));
        }
        to.write_all(body).map_err(local)?;
        if is_last {
            return to.flush().map_err(local);
        }
    }
}

fn check_header(key: &Key, name: &str, header: &[u8; HEADER_BYTES]) -> Result<(), BackupError> {
    if &header[..7] != MAGIC {
        return Err(BackupError::damaged(name, "is not encrypted, and its manifest says that it is"));
    }
    if header[7] > VERSION {
        return Err(BackupError::NewerFormat(format!(
            "{name} is encrypted in format {}, and this release knows {VERSION}: use a newer release",
            header[7]
        )));
    }
    if header[7] != VERSION {
        return Err(BackupError::damaged(name, "has an unknown header"));
    }
    if header[8..16] != key.id_bytes() {
        return Err(BackupError::damaged(name, "is encrypted with another key than its manifest says"));
    }
    Ok(())
}

/// Fills `chunk` with up to `bytes`; whether nothing follows.
fn fill(from: &mut impl BufRead, chunk: &mut Vec<u8>, bytes: usize) -> io::Result<bool> {
    chunk.clear();
    while chunk.len() < bytes {
        let available = from.fill_buf()?;
        if available.is_empty() {
            return Ok(true);
        }
        let taken = available.len().min(bytes - chunk.len());
        chunk.extend_from_slice(&available[..taken]);
        from.consume(taken);
    }
    Ok(from.fill_buf()?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAME: &str = "b/data/1-0000.sst";

    fn key(byte: u8) -> Key {
        Key::parse(&format!("{byte:02x}").repeat(32)).unwrap()
    }

    fn sealed(name: &str, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        seal(&key(1), name, &mut &plain[..], &mut out).unwrap();
        out
    }

    fn opened(key: &Key, name: &str, sealed: &[u8]) -> Result<Vec<u8>, BackupError> {
        let mut out = Vec::new();
        open(key, name, &mut &sealed[..], &mut out).map(|()| out)
    }

    #[test]
    fn every_length_around_a_chunk_comes_back() {
        for bytes in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES] {
            let plain: Vec<u8> = (0..bytes).map(|at| at.to_le_bytes()[0]).collect();
            let sealed = sealed(NAME, &plain);
            assert_eq!(opened(&key(1), NAME, &sealed).unwrap(), plain);
        }
    }

    #[test]
    fn swapped_chunks_and_a_lost_end_are_seen() {
        let plain: Vec<u8> = (0..3 * CHUNK_BYTES).map(|at| (at >> 20).to_le_bytes()[0]).collect();
        let sealed = sealed(NAME, &plain);
        let (header, chunks) = sealed.split_at(HEADER_BYTES);
        let chunks: Vec<_> = chunks.chunks(CHUNK_BYTES + TAG_BYTES).collect();
        for order in [&[1, 0, 2][..], &[0, 1], &[0, 2], &[0, 1, 2, 2], &[0, 0, 2]] {
            let joined: Vec<u8> = order.iter().flat_map(|at| chunks[*at]).copied().collect();
            assert!(opened(&key(1), NAME, &[header, &joined].concat()).is_err(), "{order:?}");
        }
    }

    #[test]
    fn another_key_another_name_and_other_files_are_refused() {
        let sealed = sealed(NAME, b"plain");
        assert!(opened(&key(1), NAME, &sealed).is_ok());
        assert!(opened(&key(2), NAME, &sealed).unwrap_err().to_string().contains("another key"));
        assert!(opened(&key(1), "b/data/1-0001.sst", &sealed).is_err());
        assert!(opened(&key(1), NAME, b"plain text that is long enough to hold a whole header").is_err());
    }

    #[test]
    fn two_files_of_the_same_bytes_differ() {
        assert_ne!(sealed(NAME, b"plain"), sealed(NAME, b"plain"));
    }

    proptest! {
        #[test]
        fn every_flipped_bit_and_every_cut_is_seen(plain in proptest::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, bit in 0..8u8) {
            let mut sealed = sealed(NAME, &plain);
            prop_assert_eq!(opened(&key(1), NAME, &sealed).unwrap(), plain);
            let at = at.index(sealed.len());
            prop_assert!(opened(&key(1), NAME, &sealed[..at]).is_err());
            sealed[at] ^= 1 << bit;
            prop_assert!(opened(&key(1), NAME, &sealed).is_err());
        }
    }
}
