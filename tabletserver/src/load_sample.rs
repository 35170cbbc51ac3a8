//! Keys of a busy tablet's requests, drawn at random from the last two windows of time.
//!
//! Requests never wait for it: who finds it taken leaves it. Its size is bounded, whatever the
//! load.

use crate::limits::{LOAD_SAMPLE_KEY_BYTES_MAX, LOAD_WINDOW};
use bytes::Bytes;
use ebla_kernel::limits::{LOAD_SAMPLE_KEYS_MAX, LOAD_SAMPLE_KEYS_MIN};
use ebla_kernel::plan::LoadSample;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Samples the requests of one tablet.
#[derive(Default)]
pub struct Sampler {
    windows: Mutex<Windows>,
}

impl Sampler {
    /// Notes the key of a request.
    pub fn note(&self, key: &[u8]) {
        let mut windows = match self.windows.try_lock() {
            Ok(windows) => windows,
            Err(TryLockError::Poisoned(windows)) => windows.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        windows.note(Instant::now(), key);
    }

    /// The last two whole windows; empty ones before there are two.
    #[must_use]
    pub fn sample(&self) -> LoadSample {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner).whole.clone()
    }
}

/// Two windows that are whole, and the one that is filled.
struct Windows {
    whole: LoadSample,
    keys: Vec<Bytes>,
    /// Requests in the window so far.
    seen: u64,
    began: Option<Instant>,
    random: u64,
}

impl Default for Windows {
    fn default() -> Self {
        // Any number but zero will do.
        Self { whole: LoadSample::default(), keys: Vec::new(), seen: 0, began: None, random: 0x9e37_79b9 }
    }
}

impl Windows {
    /// Each request of a window has the same chance to be in it at its end (Vitter's R).
    fn note(&mut self, now: Instant, key: &[u8]) {
        let passed = self.began.map_or(Duration::ZERO, |began| now.duration_since(began));
        if passed >= LOAD_WINDOW && self.seen >= LOAD_SAMPLE_KEYS_MIN as u64 {
            let older = std::mem::take(&mut self.whole.younger);
            self.whole = LoadSample { older, younger: std::mem::take(&mut self.keys) };
            (self.seen, self.began) = (0, None);
        }
        self.began.get_or_insert(now);
        self.seen += 1;
        let kept = || Bytes::copy_from_slice(&key[..key.len().min(LOAD_SAMPLE_KEY_BYTES_MAX)]);
        if self.keys.len() < LOAD_SAMPLE_KEYS_MAX {
            self.keys.push(kept());
            return;
        }
        let at = self.draw() % self.seen;
        if let Some(place) = usize::try_from(at).ok().and_then(|at| self.keys.get_mut(at)) {
            *place = kept();
        }
    }

    /// Marsaglia's xorshift: good enough to draw from a window.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(windows: &mut Windows, from: Instant, keys: std::ops::Range<u32>) {
        for number in keys {
            windows.note(from, format!("{number:06}").as_bytes());
        }
    }

    #[test]
    fn two_windows_are_kept_and_both_are_bounded() {
        let (start, mut windows) = (Instant::now(), Windows::default());
        fill(&mut windows, start, 0..50_000);
        assert_eq!(windows.whole, LoadSample::default(), "no window is whole yet");
        fill(&mut windows, start + LOAD_WINDOW, 50_000..60_000);
        fill(&mut windows, start + 2 * LOAD_WINDOW, 60_000..60_010);
        let LoadSample { older, younger } = windows.whole.clone();
        assert_eq!((older.len(), younger.len()), (LOAD_SAMPLE_KEYS_MAX, LOAD_SAMPLE_KEYS_MAX));
        assert!(older.iter().all(|key| key[..] < b"050000"[..]));
        assert!(younger.iter().all(|key| key[..] >= b"050000"[..]));
        // All of the window has the same chance.
        let late = older.iter().filter(|key| key[..] >= b"025000"[..]).count();
        assert!((40..=88).contains(&late), "{late}");
    }

    #[test]
    fn a_window_with_few_requests_lasts_longer() {
        let (start, mut windows) = (Instant::now(), Windows::default());
        fill(&mut windows, start, 0..10);
        fill(&mut windows, start + 3 * LOAD_WINDOW, 10..32);
        assert_eq!(windows.whole, LoadSample::default());
        fill(&mut windows, start + 3 * LOAD_WINDOW, 32..33);
        assert_eq!(windows.whole.younger.len(), LOAD_SAMPLE_KEYS_MIN);
    }

    #[test]
    fn long_keys_are_cut_and_nobody_waits() {
        let sampler = Sampler::default();
        sampler.note(&[b'k'; 4_000]);
        let windows = sampler.windows.lock().unwrap();
        assert_eq!(windows.keys[0].len(), LOAD_SAMPLE_KEY_BYTES_MAX);
        sampler.note(b"left out");
        assert_eq!(windows.keys.len(), 1);
    }
}
