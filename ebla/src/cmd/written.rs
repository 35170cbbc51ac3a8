//! How writes report: `{"ts","level","outcome","session"}`, the token when the outcome is unknown.

use crate::exit::{FAILED, UNAVAILABLE};
use crate::output::{Output, level_json};
use ebla_client::Outcome;
use serde_json::{Value as Json, json};
use std::process::ExitCode;

/// Writes an outcome and gives its exit code.
pub fn report(out: &mut Output, outcome: &Outcome) -> anyhow::Result<ExitCode> {
    out.one(&to_json(outcome), || to_line(outcome))?;
    Ok(exit_code(outcome))
}

/// The exit code of an outcome: 0 committed, 1 reverted, 4 unknown.
pub fn exit_code(outcome: &Outcome) -> ExitCode {
    match outcome {
        Outcome::Committed(_) => ExitCode::SUCCESS,
        Outcome::Reverted => ExitCode::from(FAILED),
        Outcome::Unknown(_) => ExitCode::from(UNAVAILABLE),
    }
}

fn to_json(outcome: &Outcome) -> Json {
    match outcome {
        Outcome::Committed(committed) => json!({
            "ts": committed.ts.0.to_string(),
            "level": level_json(committed.level),
            "outcome": "committed",
            "session": committed.session.map(|session| session.to_string()),
        }),
        Outcome::Reverted => json!({ "ts": null, "level": null, "outcome": "reverted" }),
        Outcome::Unknown(ticket) => {
            json!({ "ts": null, "level": null, "outcome": "unknown", "token": ticket.to_string() })
        }
    }
}

fn to_line(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Committed(committed) => {
            let level = committed.level.map(|level| format!(" ({level})")).unwrap_or_default();
            format!("committed at {}{level}", committed.ts.0)
        }
        Outcome::Reverted => "reverted: the write was undone before anybody saw it".to_owned(),
        Outcome::Unknown(ticket) => {
            format!("unknown: no answer in time, ask for it with\n  ebla outcome {ticket}")
        }
    }
}
