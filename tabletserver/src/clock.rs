//! The server's hybrid clock, shared by everything that issues timestamps.
//!
//! The decision is `kernel::hlc`; here are the wall clock, the lock and the persisted bound.
//! The bound is made durable outside of the lock and only when timestamps are issued: an
//! idle server writes nothing.

use crate::elapsed::Elapsed;
use crate::registry::{Registry, RegistryBatch, RegistryError};
use crossbeam::channel::{self, Receiver, Sender};
use ebla_kernel::hlc::{ClockError, Hlc, HlcClock};
use ebla_kernel::ids::Tick;
use ebla_kernel::limits::CLOCK_OFFSET_MS_MAX;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tracing::warn;

/// How often the thread that extends the bound looks whether the server stops.
const BOUND_LOOK_EVERY: Duration = Duration::from_millis(200);

/// The clock of one server.
pub struct Clock {
    hlc: Mutex<HlcClock>,
    registry: Arc<Registry>,
    /// Held while a bound is on its way to the registry.
    extending: Mutex<()>,
    /// Asks for a higher bound before it is needed.
    wants_bound: Sender<()>,
    elapsed: Elapsed,
}

impl Clock {
    /// A clock that starts above `bound`, below which everything may have been issued.
    #[must_use]
    pub fn new(registry: Arc<Registry>, bound: Hlc) -> (Self, Receiver<()>) {
        let hlc = Mutex::new(HlcClock::new(bound));
        let (wants_bound, wanted) = channel::bounded(1);
        (Self { hlc, registry, extending: Mutex::new(()), wants_bound, elapsed: Elapsed::start() }, wanted)
    }

    /// Waits until wall time has passed everything that an earlier run may have issued, so
    /// that restarts do not drive this clock ahead of the others. A wall clock that was set
    /// back is not waited for.
    pub fn catch_up(bound: Hlc) {
        let ahead_ms = bound.ms().saturating_sub(Self::wall_ms());
        if ahead_ms <= CLOCK_OFFSET_MS_MAX {
            std::thread::sleep(Duration::from_millis(ahead_ms));
        } else {
            warn!(ahead_ms, "the wall clock was set back; timestamps run ahead of it for that long");
        }
    }

    /// Wall time in milliseconds since 1970.
    #[must_use]
    pub fn wall_ms() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Time since the server started, by a clock that stops for nothing.
    #[must_use]
    pub fn tick(&self) -> Tick {
        self.elapsed.holder()
    }

    /// The clocks of elapsed time.
    #[must_use]
    pub fn elapsed(&self) -> Elapsed {
        self.elapsed
    }

    /// Issues the next timestamp, extending the persisted bound when it is reached.
    ///
    /// # Errors
    /// When the bound cannot be persisted.
    pub fn issue(&self) -> Result<Hlc, RegistryError> {
        loop {
            let wall_ms = Self::wall_ms();
            let (issued, is_near) = {
                let mut hlc = self.lock();
                (hlc.issue(wall_ms), hlc.wanted_bound(wall_ms).is_some())
            };
            if is_near {
                // Asked already is as good.
                let _ = self.wants_bound.try_send(());
            }
            if let Ok(ts) = issued {
                return Ok(ts);
            }
            self.extend_bound()?;
        }
    }

    /// Extends the bound whenever it is wanted, until the clock is gone or `stop` says so.
    ///
    /// # Errors
    /// When a bound cannot be persisted.
    pub fn keep_bound_ahead(&self, wanted: &Receiver<()>, stop: &AtomicBool) -> Result<(), RegistryError> {
        while !stop.load(Ordering::Relaxed) {
            if wanted.recv_timeout(BOUND_LOOK_EVERY).is_ok() {
                self.extend_bound()?;
            }
        }
        self.persist_exactly()
    }

    /// After a clean stop the next start need not jump ahead.
    fn persist_exactly(&self) -> Result<(), RegistryError> {
        let _one_at_a_time = self.extending.lock().expect("no holder of this lock panics");
        let mut batch = RegistryBatch::default();
        batch.set_hlc_bound(self.lock().close());
        self.registry.commit(batch)
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
