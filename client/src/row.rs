//! What reads give: values, cells and rows.

use crate::error::Error;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_proto::error::Reason;
use ebla_proto::v1;

/// What a row holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Bytes, as they were set.
    Bytes(Bytes),
    /// A counter.
    Counter(i64),
}

impl Value {
    /// The bytes of the value; a counter gives its eight bytes, big-endian.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Counter(value) => Bytes::copy_from_slice(&value.to_be_bytes()),
        }
    }

    pub(crate) fn from_wire(bytes: Bytes, counter: bool, keys_only: bool) -> Result<Self, Error> {
        if !counter || keys_only {
            return Ok(Self::Bytes(bytes));
        }
        let eight = <[u8; 8]>::try_from(&bytes[..]).map_err(|_| {
            let hint = format!("the server sent a counter of {} bytes: report this as a bug", bytes.len());
            Error::new(Reason::Internal, hint)
        })?;
        Ok(Self::Counter(i64::from_be_bytes(eight)))
    }
}

/// A value and when it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cell {
    /// What the row holds.
    pub value: Value,
    /// When it was written.
    pub ts: Hlc,
}

impl Cell {
    /// The cell of an answer; none when there is no row.
    pub(crate) fn from_wire(response: v1::GetResponse) -> Result<Option<Self>, Error> {
        if !response.found {
            return Ok(None);
        }
        let value = Value::from_wire(response.value, response.counter, false)?;
        Ok(Some(Self { value, ts: Hlc(response.ts) }))
    }
}

/// A row of a scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Its key.
    pub key: Bytes,
    /// What it holds; empty bytes when the scan asked for keys only.
    pub value: Value,
    /// When it was written.
    pub ts: Hlc,
    /// When it ends by itself, milliseconds since 1970; none also when the scan asked for keys
    /// only.
    pub expires_ms: Option<u64>,
}

impl Row {
    pub(crate) fn from_wire(row: v1::Row, keys_only: bool) -> Result<Self, Error> {
        let value = Value::from_wire(row.value, row.counter, keys_only)?;
        let expires_ms = (row.expires_ms > 0).then_some(row.expires_ms);
        Ok(Self { key: row.key, value, ts: Hlc(row.ts), expires_ms })
    }
}
