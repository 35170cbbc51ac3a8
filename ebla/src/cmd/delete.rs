//! `ebla delete`: deletes one row; no error when there is none.

use super::{connect, output, written};
use crate::cli::{Delete, Global};
use crate::output::argument_bytes;
use ebla_client::{Batch, WriteOptions};
use std::process::ExitCode;

/// Deletes the row and reports the outcome.
pub async fn run(global: &Global, args: Delete) -> anyhow::Result<ExitCode> {
    let client = connect(global, args.wait).await?;
    let batch = Batch::new().delete(argument_bytes(&args.row.key, global.hex));
    let outcome = client.write(&args.row.table, batch, WriteOptions { ack: args.ack.ack }).await?;
    written::report(&mut output(global), &outcome)
}
