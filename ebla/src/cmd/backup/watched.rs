//! A backup or a restore that somebody waits for.

use crate::exit::Failure;
use ebla_client::{Admin, Error, Reason, v1};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long the masters may be unreachable meanwhile: they elect within seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a job has ended, and shows people how far it is.
///
/// # Errors
/// When it failed or was cancelled, or nobody can be asked any more; it goes on then.
pub async fn wait(admin: &Admin, id: u64) -> anyhow::Result<v1::Job> {
    wait_until(admin, id, |_| false).await
}

/// The same, or until it `is_enough`.
///
/// # Errors
/// As [`wait`].
pub async fn wait_until(
    admin: &Admin,
    id: u64,
    is_enough: impl Fn(&v1::Job) -> bool,
) -> anyhow::Result<v1::Job> {
    let bar = bar();
    let mut answered = Instant::now();
    loop {
        match admin.describe_job(id).await {
            Ok(job) if is_enough(&job) => return Ok(job),
            Ok(job) => match job.state() {
                v1::JobState::Running => {
                    answered = Instant::now();
                    bar.set_position(u64::from(job.progress_per_mille));
                    bar.set_message(match job.waits_for.as_str() {
                        "" => format!("{} of {} bytes", job.bytes, job.bytes_total),
                        what => format!("waits: {what}"),
                    });
                }
                v1::JobState::Done => {
                    bar.finish_and_clear();
                    return Ok(job);
                }
                v1::JobState::Failed => return Err(Failure::job_not_done(id, "failed", &job.error).into()),
                v1::JobState::Cancelled | v1::JobState::Unspecified => {
                    return Err(Failure::job_not_done(id, "cancelled", "").into());
                }
            },
            Err(error) if may_pass(&error) && answered.elapsed() < PATIENCE => {}
            Err(error) => {
                let hint = format!("job {id} goes on: follow it with `ebla job wait {id}`");
                return Err(anyhow::Error::from(error).context(hint));
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn may_pass(error: &Error) -> bool {
    matches!(error.reason(), Reason::Unavailable | Reason::TimedOut | Reason::NotLeader | Reason::Draining)
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {percent}% {msg}, about {eta} left");
    ProgressBar::new(1_000).with_style(style.expect("the template is well-formed"))
}
