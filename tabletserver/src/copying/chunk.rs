//! Versions in a message: length of key and of value, 4 bytes big-endian each, stored key,
//! stored value; one after the other.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Bytes before each version.
pub(super) const HEAD_BYTES: usize = 8;

/// Puts a version behind those of a chunk.
pub(super) fn push(chunk: &mut BytesMut, stored_key: &[u8], stored_value: &[u8]) {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("keys and values are below 4 GiB");
    chunk.put_u32(length(stored_key));
    chunk.put_u32(length(stored_value));
    chunk.put_slice(stored_key);
    chunk.put_slice(stored_value);
}

/// The versions of a chunk; none when it is cut short.
pub(super) fn read(mut chunk: Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    let mut versions = Vec::new();
    while !chunk.is_empty() {
        if chunk.len() < HEAD_BYTES {
            return None;
        }
        let (key, value) = (chunk.get_u32() as usize, chunk.get_u32() as usize);
        if chunk.len() < key.checked_add(value)? {
            return None;
        }
        let key = chunk.split_to(key);
        versions.push((key, chunk.split_to(value)));
    }
    Some(versions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn versions_survive_and_cut_chunks_are_told(
            versions in proptest::collection::vec(("[a-z]{0,9}", "[a-z]{0,9}"), 1..9),
            cut in 1usize..8,
        ) {
            let mut chunk = BytesMut::new();
            for (key, value) in &versions {
                push(&mut chunk, key.as_bytes(), value.as_bytes());
            }
            let whole = chunk.freeze();
            let wanted: Vec<_> = versions.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
            prop_assert_eq!(read(whole.clone()), Some(wanted));
            prop_assert_eq!(read(whole.slice(..whole.len() - cut)).filter(|_| cut < HEAD_BYTES), None);
        }

        #[test]
        fn garbage_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(bytes.into());
        }
    }
}
