//! The server's hybrid clock, shared by everything that issues timestamps.
//!
//! The decision is `kernel::hlc`; here are the wall clock, the lock and the persisted bound.
//! The bound is made durable outside of the lock and only when timestamps are issued: an
//! idle server writes nothing.

use crate::registry::{Registry, RegistryBatch, RegistryError};
use ebla_kernel::hlc::{ClockError, Hlc, HlcClock};
use ebla_kernel::ids::Tick;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The clock of one server.
pub struct Clock {
    hlc: Mutex<HlcClock>,
    registry: Arc<Registry>,
    /// Held while a bound is on its way to the registry.
    extending: Mutex<()>,
    started: Instant,
}

impl Clock {
    /// A clock that starts above `bound`, below which everything may have been issued.
    #[must_use]
    pub fn new(registry: Arc<Registry>, bound: Hlc) -> Self {
        let hlc = HlcClock::new(bound);
        Self { hlc: Mutex::new(hlc), registry, extending: Mutex::new(()), started: Instant::now() }
    }

    /// Wall time in milliseconds since 1970.
    #[must_use]
    pub fn wall_ms() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Monotonic time since the server started.
    #[must_use]
    pub fn tick(&self) -> Tick {
        Tick(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Issues the next timestamp, extending the persisted bound when it is reached.
    ///
    /// # Errors
    /// When the bound cannot be persisted.
    pub fn issue(&self) -> Result<Hlc, RegistryError> {
        loop {
            let wall_ms = Self::wall_ms();
            if let Ok(ts) = self.lock().issue(wall_ms) {
                return Ok(ts);
            }
            self.extend_bound()?;
        }
    }

    /// Persists a higher bound when one is due; for whoever has time before it is needed.
    ///
    /// # Errors
    /// When it cannot be persisted.
    pub fn extend_bound(&self) -> Result<(), RegistryError> {
        let _one_at_a_time = self.extending.lock().expect("no holder of this lock panics");
        let Some(bound) = self.lock().wanted_bound(Self::wall_ms()) else { return Ok(()) };
        let mut batch = RegistryBatch::default();
        batch.set_hlc_bound(bound);
        self.registry.commit(batch)?;
        self.lock().bound_persisted(bound);
        Ok(())
    }

    /// The time of a read of the newest rows: nothing committed so far is above it.
    #[must_use]
    pub fn now(&self) -> Hlc {
        let wall_ms = Self::wall_ms();
        self.lock().peek(wall_ms)
    }

    /// Adopts a timestamp from outside.
    ///
    /// # Errors
    /// When it is too far ahead to be believed.
    pub fn observe(&self, ts: Hlc) -> Result<(), ClockError> {
        self.lock().observe(ts, Self::wall_ms())
    }

    /// Raises the clock above a timestamp of our own log or of metadata.
    pub fn raise(&self, ts: Hlc) {
        self.lock().raise(ts);
    }

    fn lock(&self) -> MutexGuard<'_, HlcClock> {
        self.hlc.lock().expect("no holder of this lock panics")
    }
}
