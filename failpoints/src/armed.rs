//! What happens at places, in a chaos build: read from the environment, carried out when hit.
//!
//! ```text
//! EBLA_FAILPOINTS = place ";" place ...
//! place           = NAME "=" step "->" step ...
//! step            = [N "*"] action          N times, then the next step; without N for ever
//! action          = "kill" | "error" | "pause(" MS ")" | "off"
//! ```
//!
//! `cut.flush=2*off->kill` dies at the third hit. What happened is said on stderr.

use crate::{ALL, Failed};
use std::time::Duration;

/// The variable that says what happens where.
pub const VARIABLE: &str = "EBLA_FAILPOINTS";

/// Why nothing was armed.
#[derive(Debug, thiserror::Error)]
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

/// Arms what the environment asks for, and gives its names.
///
/// # Errors
/// When a name is unknown or an action is not understood; then nothing is armed.
pub fn arm_from_environment() -> Result<Vec<&'static str>, ArmError> {
    let wanted = std::env::var(VARIABLE).unwrap_or_default();
    let parsed = parse(&wanted)?;
    for (name, actions) in &parsed {
        fail::cfg(*name, actions).map_err(|what| ArmError::Malformed { what })?;
    }
    Ok(parsed.into_iter().map(|(name, _)| name).collect())
}

/// Called at a place: does what is armed there.
#[must_use]
pub fn hit(name: &'static str) -> Option<Failed> {
    fail::eval(name, |action| act(name, &action.unwrap_or_default())).flatten()
}

fn act(name: &'static str, action: &str) -> Option<Failed> {
    eprintln!("failpoint {name}: {action}");
    match action {
        "kill" => std::process::abort(),
        "error" => Some(Failed(name)),
        pause => {
            std::thread::sleep(Duration::from_millis(pause.parse().unwrap_or_default()));
            None
        }
    }
}

/// Names and what the library below is told of them.
fn parse(text: &str) -> Result<Vec<(&'static str, String)>, ArmError> {
    let places = text.split(';').map(str::trim).filter(|place| !place.is_empty());
    places.map(parse_place).collect()
}

fn parse_place(place: &str) -> Result<(&'static str, String), ArmError> {
    let malformed = || ArmError::Malformed { what: place.to_owned() };
    let (name, steps) = place.split_once('=').ok_or_else(malformed)?;
    let known = ALL.iter().find(|known| **known == name.trim());
    let known = known.ok_or_else(|| ArmError::UnknownName { name: name.trim().to_owned() })?;
    let steps: Option<Vec<String>> = steps.split("->").map(parse_step).collect();
    Ok((known, steps.ok_or_else(malformed)?.join("->")))
}

fn parse_step(step: &str) -> Option<String> {
    let (times, action) = match step.trim().split_once('*') {
        Some((times, action)) => (format!("{}*", times.parse::<u32>().ok()?), action),
        None => (String::new(), step.trim()),
    };
    let action = match action {
        "off" => "off".to_owned(),
        "kill" | "error" => format!("return({action})"),
        pause => {
            let ms = pause.strip_prefix("pause(")?.strip_suffix(')')?;
            format!("return({})", ms.parse::<u64>().ok()?)
        }
    };
    Some(times + &action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_actions_are_read() {
        let parsed = parse("cut.flush=2*off->kill; flush.done=pause(50)").unwrap();
        assert_eq!(parsed[0], ("cut.flush", "2*off->return(kill)".to_owned()));
        assert_eq!(parsed[1], ("flush.done", "return(50)".to_owned()));
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
    fn a_place_acts_when_it_is_armed_and_only_then() {
        fn step() -> Result<(), Failed> {
            crate::failpoint!("cut.done");
            Ok(())
        }
        assert_eq!(step(), Ok(()));
        let (name, actions) = parse("cut.done=1*off->1*error->off").unwrap().remove(0);
        fail::cfg(name, &actions).unwrap();
        assert_eq!([step(), step(), step()], [Ok(()), Err(Failed("cut.done")), Ok(())]);
    }
}
