//! `ebla set`: writes one row, on a condition if wanted.

use super::{connect, output, written};
use crate::cli::{Global, Set};
use crate::output::argument_bytes;
use ebla_client::{Batch, Hlc, WriteOptions};
use ebla_kernel::op::{Action, Condition};
use std::process::ExitCode;

/// Writes the row and reports the outcome.
pub async fn run(global: &Global, args: Set) -> anyhow::Result<ExitCode> {
    let condition = if args.if_absent {
        Some(Condition::Absent)
    } else if let Some(ts) = args.if_ts {
        Some(Condition::TsIs(Hlc(ts)))
    } else {
        args.if_value.as_ref().map(|value| Condition::ValueIs(argument_bytes(value, global.hex)))
    };
    let ttl_ms = args.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let action = Action::Set {
        key: argument_bytes(&args.row.key, global.hex),
        value: args.content.read(global.hex)?,
        ttl_ms,
    };
    let client = connect(global, args.wait).await?;
    let batch = Batch::new().op(condition, action);
    let outcome = client.write(&args.row.table, batch, WriteOptions { ack: args.ack.ack }).await?;
    written::report(&mut output(global), &outcome)
}
