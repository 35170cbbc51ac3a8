//! The bytes of a stored value: `kind (1 byte) · [expiry, 8 bytes BE milliseconds] · body`.
//!
//! Kinds: 0 tombstone of a deleted row (no body), 1 value (the user's bytes), 2 counter (8 bytes
//! BE, two's complement), 3 and 4 tombstones of a row that expired or was evicted; bit 0x80 says
//! that an expiry follows. The value of a range tombstone is
//! 0 (no upper end) or 1 and the upper end. Worked bytes: `docs/formats.md`.

use super::StoreError;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::{Body, Cause, Version};

const DELETED: u8 = 0;
const VALUE: u8 = 1;
const COUNTER: u8 = 2;
const EXPIRED: u8 = 3;
const EVICTED: u8 = 4;
const EXPIRES: u8 = 0x80;
const EXPIRY_BYTES: usize = 8;

const NO_UPPER_END: u8 = 0;
const UPPER_END: u8 = 1;

/// A tombstone of a row that somebody deleted.
pub(super) const TOMBSTONE_VALUE: &[u8] = &[DELETED];

/// What the first bytes of a stored value say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    kind: u8,
    pub(super) expires_ms: Option<u64>,
    body_at: usize,
}

impl Head {
    /// Reads the first bytes of a stored value.
    pub(super) fn read(stored: &[u8]) -> Result<Self, StoreError> {
        let (&first, rest) = stored.split_first().ok_or_else(|| StoreError::corrupt("empty value"))?;
        let kind = first & !EXPIRES;
        if kind > EVICTED {
            return Err(StoreError::corrupt(format!("value of unknown kind {first:#04x}")));
        }
        if first & EXPIRES == 0 {
            return Ok(Self { kind, expires_ms: None, body_at: 1 });
        }
        let expiry = rest.first_chunk::<EXPIRY_BYTES>();
        let expiry = expiry.ok_or_else(|| StoreError::corrupt("value cut within its expiry"))?;
        Ok(Self { kind, expires_ms: Some(u64::from_be_bytes(*expiry)), body_at: 1 + EXPIRY_BYTES })
    }

    /// Whether a read at `at` finds a value here.
    pub(super) fn is_live(self, at: Hlc) -> bool {
        !self.is_tombstone() && !self.is_expired(at)
    }

    /// Whether a read at `at` finds the version expired.
    pub(super) fn is_expired(self, at: Hlc) -> bool {
        self.expires_ms.is_some_and(|expires_ms| expires_ms <= at.ms())
    }

    /// Whether this says that the row is deleted.
    pub(super) fn is_tombstone(self) -> bool {
        matches!(self.kind, DELETED | EXPIRED | EVICTED)
    }

    /// The body of `stored`, whose head this is.
    pub(super) fn body(self, stored: &Bytes) -> Result<Body, StoreError> {
        let body = stored.slice(self.body_at..);
        match self.kind {
            VALUE => Ok(Body::Value(body)),
            COUNTER => match <[u8; 8]>::try_from(&body[..]) {
                Ok(counter) => Ok(Body::Counter(i64::from_be_bytes(counter))),
                Err(_) => Err(StoreError::corrupt(format!("counter of {} bytes", body.len()))),
            },
            DELETED if body.is_empty() => Ok(Body::Tombstone(Cause::Deleted)),
            EXPIRED if body.is_empty() => Ok(Body::Tombstone(Cause::Expired)),
            EVICTED if body.is_empty() => Ok(Body::Tombstone(Cause::Evicted)),
            _ => Err(StoreError::corrupt(format!("tombstone with {} bytes", body.len()))),
        }
    }
}

/// The stored bytes of a version.
pub(super) fn encode(body: &Body, expires_ms: Option<u64>) -> Vec<u8> {
    let (kind, bytes) = match body {
        Body::Tombstone(Cause::Deleted) => (DELETED, 0),
        Body::Tombstone(Cause::Expired) => (EXPIRED, 0),
        Body::Tombstone(Cause::Evicted) => (EVICTED, 0),
        Body::Value(value) => (VALUE, value.len()),
        Body::Counter(_) => (COUNTER, 8),
    };
    let mut out = Vec::with_capacity(1 + EXPIRY_BYTES + bytes);
    match expires_ms {
        None => out.push(kind),
        Some(expires_ms) => {
            out.push(kind | EXPIRES);
            out.extend_from_slice(&expires_ms.to_be_bytes());
        }
    }
    match body {
        Body::Tombstone(_) => {}
        Body::Value(value) => out.extend_from_slice(value),
        Body::Counter(counter) => out.extend_from_slice(&counter.to_be_bytes()),
    }
    out
}

/// The version of `ts` that `stored` says.
pub(super) fn decode(ts: Hlc, stored: &Bytes) -> Result<Version, StoreError> {
    let head = Head::read(stored)?;
    Ok(Version { ts, body: head.body(stored)?, expires_ms: head.expires_ms })
}

/// The stored value of a range tombstone up to `to`.
pub(super) fn encode_upper_end(to: Option<&Bytes>) -> Vec<u8> {
    match to {
        None => vec![NO_UPPER_END],
        Some(to) => [&[UPPER_END], &to[..]].concat(),
    }
}

/// The upper end that the stored value of a range tombstone says.
pub(super) fn decode_upper_end(stored: &[u8]) -> Result<Option<Bytes>, StoreError> {
    match stored.split_first() {
        Some((&NO_UPPER_END, [])) => Ok(None),
        Some((&UPPER_END, to)) => Ok(Some(Bytes::copy_from_slice(to))),
        _ => Err(StoreError::corrupt("range tombstone whose upper end is malformed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::ids::TableId;
    use ebla_kernel::key;
    use proptest::prelude::*;

    fn body() -> impl Strategy<Value = Body> {
        prop_oneof![
            Just(Body::Tombstone(Cause::Deleted)),
            Just(Body::Tombstone(Cause::Expired)),
            Just(Body::Tombstone(Cause::Evicted)),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(|value| Body::Value(value.into())),
            any::<i64>().prop_map(Body::Counter),
        ]
    }

    proptest! {
        #[test]
        fn versions_survive_encoding(body in body(), expires_ms: Option<u64>) {
            let version = Version { ts: Hlc(7), body, expires_ms };
            let stored = Bytes::from(encode(&version.body, expires_ms));
            prop_assert_eq!(decode(Hlc(7), &stored).unwrap(), version);
        }

        #[test]
        fn garbage_is_corrupt_or_reads_back_as_itself(stored in proptest::collection::vec(any::<u8>(), 0..20)) {
            let stored = Bytes::from(stored);
            match decode(Hlc(7), &stored) {
                Ok(version) => prop_assert_eq!(encode(&version.body, version.expires_ms), stored.to_vec()),
                Err(StoreError::Corrupt { .. }) => {}
                Err(other) => prop_assert!(false, "{other}"),
            }
            let _ = decode_upper_end(&stored);
        }
    }

    #[test]
    fn worked_bytes_of_the_documentation() {
        let check = |name, bytes: Vec<u8>| {
            crate::documented::check(include_str!("../../../docs/formats.md"), name, &bytes);
        };
        check("row-key", key::encode_row(TableId(1), b"a\0b", Hlc(2)));
        check("range-tombstone-key", key::encode_range_tombstone(TableId(1), b"m", Hlc(2)));
        check("value-tombstone", encode(&Body::Tombstone(Cause::Deleted), None));
        check("value-expired", encode(&Body::Tombstone(Cause::Expired), None));
        check("value-evicted", encode(&Body::Tombstone(Cause::Evicted), None));
        check("value-plain", encode(&Body::Value(Bytes::from_static(b"hi")), None));
        check("value-counter", encode(&Body::Counter(-2), None));
        check("value-expiring", encode(&Body::Value(Bytes::from_static(b"x")), Some(1_000)));
        check("range-tombstone-value", encode_upper_end(Some(&Bytes::from_static(b"z"))));
        assert_eq!(encode_upper_end(None), [0]);
        assert_eq!(encode(&Body::Tombstone(Cause::Deleted), None), TOMBSTONE_VALUE);
    }
}
