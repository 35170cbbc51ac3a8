//! Work that nobody waits for, on threads that leave the processor to those who answer clients.

use crate::limits;
use rustix::process::{getpriority_process, setpriority_process};
use std::panic::resume_unwind;
use std::thread;
use tracing::warn;

/// Does `work` on a thread of its own that the scheduler puts behind all others, and waits for it.
/// The caller must be a thread that may block.
///
/// A panic of `work` is one of the caller.
pub fn work<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let yielding = || {
        if let Err(error) = step_back() {
            warn!(%error, "work in the background goes at the priority of all other");
        }
        work()
    };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("ebla-background".to_owned());
        let thread = builder.spawn_scoped(scope, yielding).expect("the system gives a thread");
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Lets others go first. The scheduler lets a thread of any niceness work for a few milliseconds
/// before it looks at who else is ready: too long for whoever waits for an answer.
pub(crate) fn give_way() {
    thread::yield_now();
}

/// Of this thread alone: on Linux niceness is not the process's.
fn step_back() -> rustix::io::Result<()> {
    match getpriority_process(None)? {
        niceness if niceness < limits::BACKGROUND_NICENESS => {
            setpriority_process(None, limits::BACKGROUND_NICENESS)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_yields_and_the_caller_does_not() {
        let niceness = || getpriority_process(None).unwrap();
        let before = niceness();
        assert_eq!(work(niceness), limits::BACKGROUND_NICENESS.max(before));
        assert_eq!(niceness(), before);
    }

    #[test]
    #[should_panic(expected = "broken")]
    fn a_panic_is_the_callers() {
        work(|| panic!("broken"));
    }
}
