//! `ebla get`: one row.

use super::{connect, output};
use crate::cli::{Get, Global};
use crate::exit::Failure;
use crate::output::argument_bytes;
use ebla_client::Consistency;
use std::process::ExitCode;

/// Prints the row, or says that there is none.
pub async fn run(global: &Global, args: Get) -> anyhow::Result<ExitCode> {
    let client = connect(global, args.wait).await?;
    let key = argument_bytes(&args.row.key, global.hex);
    let consistency = match (args.bounded, args.session) {
        (_, Some(session)) => Consistency::Session(session),
        (Some(staleness), None) => Consistency::Bounded(staleness),
        (None, None) => Consistency::Linearizable,
    };
    let cell = match args.at {
        Some(at) => client.get_at(&args.row.table, key.clone(), at).await?,
        None => client.get_with(&args.row.table, key.clone(), consistency).await?,
    };
    let mut out = output(global);
    let Some(cell) = cell else {
        let message = format!("there is no key {:?} in table {:?}", out.text(&key), args.row.table);
        return Err(Failure::key_not_found(message).into());
    };
    let line = out.value_text(&cell.value);
    out.one(&out.cell_json(&key, &cell), || line)?;
    Ok(ExitCode::SUCCESS)
}
