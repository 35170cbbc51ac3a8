//! `ebla add`: adds to a counter and prints its new value.

use super::{connect, output, written};
use crate::cli::{Add, Global};
use crate::output::argument_bytes;
use ebla_client::{Batch, Outcome, WriteOptions};
use serde_json::json;
use std::process::ExitCode;

/// Adds and prints the new value; an outcome without one is reported like that of any write.
pub async fn run(global: &Global, args: Add) -> anyhow::Result<ExitCode> {
    let client = connect(global, args.wait).await?;
    let batch = Batch::new().add(argument_bytes(&args.row.key, global.hex), args.delta);
    let outcome = client.write(&args.row.table, batch, WriteOptions { ack: args.ack.ack }).await?;
    let mut out = output(global);
    if let Outcome::Committed(committed) = &outcome
        && let Some(value) = committed.counters.first().copied().flatten()
    {
        out.one(&json!({ "value": value, "ts": committed.ts.0.to_string() }), || value.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    written::report(&mut out, &outcome)
}
