//! How fast backups go: at the rate that was asked for, else with a part of a core.
//!
//! The engine's work, reading, packing, writing, checking, is on one thread for each file or part, in
//! the background. With no rate given those of a process take turns, so that however many there are
//! they have what one of them may have.

use crate::{Rate, background, limits};
use async_trait::async_trait;
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What holds transfers, and the work on what was transferred, to a pace.
#[async_trait]
pub trait Pace: Send + Sync {
    /// Waits until `bytes` more may be sent or received.
    async fn wait(&self, bytes: usize);

    /// Work on what was sent or received, all of it on one thread.
    fn worker(&self) -> Worker {
        Worker { held: None, since: None }
    }
}

/// As fast as it goes.
pub struct Unpaced;

#[async_trait]
impl Pace for Unpaced {
    async fn wait(&self, _bytes: usize) {}
}

/// A rate, or else a part of a core.
#[derive(Clone)]
pub enum Held {
    /// Together at most so many bytes per second.
    Rate(Arc<Rate>),
    /// One in so many of a core, of all that work in this crew together.
    Core(Crew, u32),
}

#[async_trait]
impl Pace for Held {
    async fn wait(&self, bytes: usize) {
        if let Self::Rate(rate) = self {
            tokio::time::sleep(rate.take_whole(Instant::now(), bytes)).await;
        }
    }

    fn worker(&self) -> Worker {
        let held = match self {
            Self::Rate(_) => None,
            Self::Core(crew, parts) => Some((crew.clone(), *parts)),
        };
        if let Some((crew, _)) = &held {
            crew.0.fetch_add(1, Ordering::Relaxed);
        }
        Worker { held, since: None }
    }
}

/// Those of a process who work in the background, counted.
#[derive(Clone, Default)]
pub struct Crew(Arc<AtomicU32>);

/// Holds a thread back that reads and writes versions.
pub struct Worker {
    held: Option<(Crew, u32)>,
    /// How long the thread had had a core when it began, or last rested.
    since: Option<Duration>,
}

impl Worker {
    /// Lets those go first who answer clients, and rests when it is time to: for what the others work
    /// meanwhile, and for what nobody is to.
    pub fn rest(&mut self) {
        background::give_way();
        let Some((crew, parts)) = &self.held else { return };
        let now = worked();
        let worked = now.saturating_sub(*self.since.get_or_insert(now));
        if worked >= limits::STRETCH {
            let turns = crew.0.load(Ordering::Relaxed).max(1).saturating_mul(*parts);
            std::thread::sleep(worked.saturating_mul(turns - 1).min(limits::REST_MAX));
            self.since = Some(self::worked());
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some((crew, _)) = &self.held {
            crew.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How long this thread has had a core.
fn worked() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Works for so long, and tells for which part of the time the thread had a core.
    fn work(worker: &mut Worker, millis: u64) -> f64 {
        let (began, had) = (Instant::now(), worked());
        while began.elapsed() < Duration::from_millis(millis) {
            let stretch = worked();
            while worked() - stretch < Duration::from_millis(2) {}
            worker.rest();
        }
        (worked() - had).as_secs_f64() / began.elapsed().as_secs_f64()
    }

    #[test]
    fn two_that_work_at_once_take_no_more_than_one() {
        let crew = Crew::default();
        let whole = Held::Core(crew.clone(), 1);
        let (mut first, second) = (whole.worker(), whole.worker());
        let share = work(&mut first, 100);
        assert!(share < 0.6, "{share}");
        drop((first, second));
        assert_eq!(crew.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_alone_takes_no_more_than_its_part() {
        let share = work(&mut Held::Core(Crew::default(), 2).worker(), 100);
        assert!(share < 0.6, "{share}");
    }

    #[tokio::test]
    async fn the_first_bytes_wait_too() {
        let began = Instant::now();
        Held::Rate(Arc::new(Rate::new(10_000))).wait(1_000).await;
        assert!(began.elapsed() >= Duration::from_millis(90));
    }
}
