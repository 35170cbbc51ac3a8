//! `ebla delete-range`: deletes every row of a range, tablet by tablet.

use super::{confirm, connect, output, written};
use crate::cli::{DeleteRange, Global};
use crate::exit::{UNAVAILABLE, code_of};
use crate::output::argument_bytes;
use anyhow::Context as _;
use ebla_client::{Committed, Outcome, Part, WriteOptions};
use std::process::ExitCode;

/// Deletes the rows and reports the outcome of the whole: committed only if every tablet is.
pub async fn run(global: &Global, args: DeleteRange) -> anyhow::Result<ExitCode> {
    let (from, to) = (argument_bytes(&args.from, global.hex), argument_bytes(&args.to, global.hex));
    let mut out = output(global);
    let what = format!("deleting {:?} up to {:?} of table {:?}", out.text(&from), out.text(&to), args.table);
    confirm(args.yes, &what)?;
    let client = connect(global, args.wait).await?;
    let parts = client.delete_range(&args.table, from, to, WriteOptions { ack: args.ack.ack }).await?;
    written::report(&mut out, &combine(parts)?)
}

/// One outcome for all tablets: the first that is not committed, otherwise the latest.
fn combine(parts: Vec<Part>) -> anyhow::Result<Outcome> {
    let all = parts.len();
    let failed = parts.iter().filter(|part| part.result.is_err()).count();
    let mut latest: Option<Committed> = None;
    let mut open = None;
    for part in parts {
        let tablet_id = part.tablet_id;
        match part.result {
            Ok(Outcome::Committed(committed)) => {
                latest = Some(match latest {
                    Some(latest) if latest.ts >= committed.ts => latest,
                    Some(_) | None => committed,
                });
            }
            Ok(outcome @ (Outcome::Reverted | Outcome::Unknown(_))) => open = open.or(Some(outcome)),
            Err(error) => {
                let again = if code_of(error.reason()) == UNAVAILABLE { ": run it again" } else { "" };
                return Err(error).with_context(|| {
                    format!("{failed} of {all} tablets kept their rows, the first is {tablet_id}{again}")
                });
            }
        }
    }
    Ok(open.or(latest.map(Outcome::Committed)).unwrap_or(Outcome::Reverted))
}
