//! The rows that are loaded and asked for: fixed-width keys in order, values that compress
//! to about half, both made from the row's number alone.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

/// How many rows there are and how large.
#[derive(Clone, Copy)]
pub struct Rows {
    /// Rows in all.
    pub count: u64,
    /// Bytes of each value.
    pub value_bytes: usize,
}

impl Rows {
    /// Key of a row, 16 bytes.
    pub fn key(number: u64) -> Bytes {
        format!("row-{number:012}").into()
    }

    /// Value of a row: random bytes, then zeros.
    pub fn value(self, number: u64) -> Bytes {
        let mut value = vec![0; self.value_bytes];
        SmallRng::seed_from_u64(number).fill_bytes(&mut value[..self.value_bytes / 2]);
        value.into()
    }

    /// The number of any row.
    pub fn any(self, rng: &mut SmallRng) -> u64 {
        rng.random_range(0..self.count)
    }

    /// Keys that cut the rows into equal parts.
    pub fn split_keys(self, parts: u64) -> Vec<Bytes> {
        (1..parts).map(|part| Self::key(self.count * part / parts)).collect()
    }

    /// Bytes of keys and values together.
    pub fn bytes(self) -> u64 {
        self.count * (16 + self.value_bytes as u64)
    }
}
