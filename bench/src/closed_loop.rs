//! Closed loops: a number of callers, each of which makes its next call when the last one
//! has returned; and what came out of them.

use anyhow::Result;
use hdrhistogram::Histogram;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use std::thread;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What is left out at the beginning: connections and caches fill.
const WARM_UP: Duration = Duration::from_millis(500);

/// Longest time that is told apart, in nanoseconds: ten minutes.
const LATENCY_NANOS_MAX: u64 = 600 * 1_000_000_000;

/// A measurement.
pub struct Measured {
    /// Operations done.
    pub count: u64,
    /// How long they took together.
    pub time: Duration,
    /// Time of each in nanoseconds; empty where single ones were not timed.
    pub latencies: Histogram<u64>,
}

impl Measured {
    /// A measurement of work done as a whole.
    pub fn whole(count: u64, time: Duration) -> Self {
        Self { count, time, latencies: new_histogram() }
    }

    fn of(latencies: Histogram<u64>, time: Duration) -> Self {
        Self { count: latencies.len(), time, latencies }
    }

    /// Operations per second.
    pub fn per_second(&self) -> f64 {
        self.count as f64 / self.time.as_secs_f64()
    }
}

/// An empty histogram of times, in nanoseconds or anything longer.
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NANOS_MAX, 3).expect("bounds and precision are legal")
}

/// One caller's own records.
struct Caller {
    rng: SmallRng,
    latencies: Histogram<u64>,
    begin: Instant,
    end: Instant,
}

impl Caller {
    fn new(number: usize, time: Duration) -> Self {
        let begin = Instant::now() + WARM_UP;
        let rng = SmallRng::seed_from_u64(number as u64);
        Self { rng, latencies: new_histogram(), begin, end: begin + time }
    }

    /// Notes a call; false when the time is up.
    fn note(&mut self, called: Instant) -> bool {
        let now = Instant::now();
        if called >= self.begin && now <= self.end {
            let nanos = u64::try_from((now - called).as_nanos()).unwrap_or(u64::MAX);
            self.latencies.saturating_record(nanos);
        }
        now < self.end
    }
}

/// Runs `callers` tasks for `time`.
///
/// # Errors
/// The first error of a call: a benchmark of failures would be worthless.
pub async fn run_tasks<F, C>(callers: usize, time: Duration, call: F) -> Result<Measured>
where
    F: Fn(&mut SmallRng) -> C + Clone + Send + 'static,
    C: Future<Output = Result<()>> + Send,
{
    let mut tasks = JoinSet::new();
    for number in 0..callers {
        let call = call.clone();
        tasks.spawn(async move {
            let mut caller = Caller::new(number, time);
            loop {
                let called = Instant::now();
                call(&mut caller.rng).await?;
                if !caller.note(called) {
                    return anyhow::Ok(caller.latencies);
                }
            }
        });
    }
    let mut all = new_histogram();
    while let Some(done) = tasks.join_next().await {
        all.add(done??)?;
    }
    Ok(Measured::of(all, time))
}

/// Runs `callers` threads for `time`.
///
/// # Errors
/// As [`run_tasks`].
pub fn run_threads<F>(callers: usize, time: Duration, call: F) -> Result<Measured>
where
    F: Fn(&mut SmallRng) -> Result<()> + Sync,
{
    let call = &call;
    let one = |number: usize| {
        let mut caller = Caller::new(number, time);
        loop {
            let called = Instant::now();
            call(&mut caller.rng)?;
            if !caller.note(called) {
                return anyhow::Ok(caller.latencies);
            }
        }
    };
    let mut all = new_histogram();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..callers).map(|number| scope.spawn(move || one(number))).collect();
        threads.into_iter().try_for_each(|thread| {
            let latencies = thread.join().expect("a caller does not panic")?;
            all.add(latencies)?;
            anyhow::Ok(())
        })
    })?;
    Ok(Measured::of(all, time))
}
