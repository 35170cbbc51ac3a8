//! What happens at places, in a chaos build: read from the environment, carried out when hit.
//!
//! ```text
//! EBLA_FAILPOINTS = place ";" place ...
//! place           = NAME "=" step "->" step ...
//! step            = [N "*"] action          N hits, then the next step; without N all that follow
//! action          = "kill" | "error" | "pause(" MS ")" | "off"
//! ```
//!
//! `cut.flush=2*off->1*kill` dies at the third hit. What happened is said on stderr. The grammar
//! is that of the crate `fail`; that crate itself cannot be used, since turning it on turns it on
//! in `raft-engine` too, which does not compile then.

use crate::{ALL, Failed};
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// The variable that says what happens where.
pub const VARIABLE: &str = "EBLA_FAILPOINTS";

/// Why nothing was armed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArmError {
    /// There is no such place.
    #[error("{VARIABLE} names no place {name:?}; there are {}", ALL.join(", "))]
    UnknownName {
        /// What was given.
        name: String,
    },
    /// It cannot be read.
    #[error("{VARIABLE} has {what:?}: write NAME=[N*]ACTION->..., ACTION one of kill, error, pause(MS), off")]
    Malformed {
        /// The part that was not understood.
        what: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Kill,
    Error,
    Pause(Duration),
    Off,
}

/// An action and how many hits it is still for; none: all that follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Step {
    left: Option<u32>,
    action: Action,
}

/// What is armed, from the first step on that has hits left.
type Places = BTreeMap<&'static str, Vec<Step>>;

static ARMED: OnceLock<Mutex<Places>> = OnceLock::new();

/// Arms what the environment asks for, once for the whole life of the process, and gives the
/// names.
///
/// # Errors
/// When a name is unknown or an action is not understood; then nothing is armed.
pub fn arm_from_environment() -> Result<Vec<&'static str>, ArmError> {
    let places = parse(&std::env::var(VARIABLE).unwrap_or_default())?;
    let names = places.keys().copied().collect();
    let _ = ARMED.set(Mutex::new(places));
    Ok(names)
}

/// Called at a place: does what is armed there.
#[must_use]
pub fn hit(name: &'static str) -> Option<Failed> {
    let armed = ARMED.get()?;
    // The lock is let go before anything happens: another thread may wait at another place.
    let action = next_action(&mut armed.lock().unwrap_or_else(PoisonError::into_inner), name);
    match action {
        Action::Off => None,
        Action::Kill => {
            eprintln!("failpoint {name}: kill");
            std::process::abort()
        }
        Action::Error => {
            eprintln!("failpoint {name}: error");
            Some(Failed(name))
        }
        Action::Pause(pause) => {
            eprintln!("failpoint {name}: pause of {pause:?}");
            std::thread::sleep(pause);
            None
        }
    }
}

fn next_action(places: &mut Places, name: &str) -> Action {
    let Some(steps) = places.get_mut(name) else { return Action::Off };
    steps.retain(|step| step.left != Some(0));
    let Some(step) = steps.first_mut() else { return Action::Off };
    step.left = step.left.map(|left| left - 1);
    step.action
}

fn parse(text: &str) -> Result<Places, ArmError> {
    let places = text.split(';').map(str::trim).filter(|place| !place.is_empty());
    places.map(parse_place).collect()
}

fn parse_place(place: &str) -> Result<(&'static str, Vec<Step>), ArmError> {
    let malformed = || ArmError::Malformed { what: place.to_owned() };
    let (name, steps) = place.split_once('=').ok_or_else(malformed)?;
    let known = ALL.iter().find(|known| **known == name.trim());
    let known = known.ok_or_else(|| ArmError::UnknownName { name: name.trim().to_owned() })?;
    let steps: Option<Vec<Step>> = steps.split("->").map(parse_step).collect();
    Ok((known, steps.ok_or_else(malformed)?))
}

fn parse_step(step: &str) -> Option<Step> {
    let (left, action) = match step.trim().split_once('*') {
        Some((times, action)) => (Some(times.parse().ok()?), action),
        None => (None, step.trim()),
    };
    let action = match action {
        "off" => Action::Off,
        "kill" => Action::Kill,
        "error" => Action::Error,
        pause => {
            let ms = pause.strip_prefix("pause(")?.strip_suffix(')')?;
            Action::Pause(Duration::from_millis(ms.parse().ok()?))
        }
    };
    Some(Step { left, action })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_taken_one_after_the_other() {
        let mut places = parse("cut.flush=2*off->1*kill; flush.done=1*pause(50)->error").unwrap();
        let mut next = |name| next_action(&mut places, name);
        let taken: Vec<Action> = (0..4).map(|_| next("cut.flush")).collect();
        assert_eq!(taken, [Action::Off, Action::Off, Action::Kill, Action::Off]);
        let taken: Vec<Action> = (0..3).map(|_| next("flush.done")).collect();
        assert_eq!(taken, [Action::Pause(Duration::from_millis(50)), Action::Error, Action::Error]);
        assert_eq!(next("log.append"), Action::Off);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn what_is_not_understood_is_refused_with_what_would_be() {
        let unknown = parse("cut.flsh=kill").unwrap_err().to_string();
        assert!(unknown.contains("cut.flsh") && unknown.contains("cut.flush"), "{unknown}");
        for wrong in ["cut.flush", "cut.flush=die", "cut.flush=x*kill", "cut.flush=pause(soon)"] {
            let refused = parse(wrong).unwrap_err().to_string();
            assert!(refused.contains(wrong) && refused.contains("pause(MS)"), "{refused}");
        }
    }

    #[test]
    fn an_armed_place_fails_and_another_does_not() {
        assert_eq!(hit("cut.done"), None);
        let armed = ARMED.set(Mutex::new(parse("cut.done=1*off->1*error; cut.clear=pause(1)").unwrap()));
        assert!(armed.is_ok(), "no other test arms anything");
        let hits = [hit("cut.done"), hit("cut.done"), hit("cut.done")];
        assert_eq!(hits, [None, Some(Failed("cut.done")), None]);
        assert_eq!((hit("cut.clear"), hit("cut.log")), (None, None));
    }
}
