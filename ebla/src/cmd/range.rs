//! `ebla range`: rows in key order, as they arrive.

use super::{connect, key_bounds, output};
use crate::cli::{Global, Range};
use crate::output::Output;
use ebla_client::{Row, Scan};
use futures::StreamExt as _;
use serde_json::json;
use std::process::ExitCode;

/// Prints the rows, or how many there are.
pub async fn run(global: &Global, args: Range) -> anyhow::Result<ExitCode> {
    let (from, to, prefix) = key_bounds(&args.keys, global);
    let scan = Scan {
        from,
        to,
        prefix,
        limit: args.limit,
        reverse: args.reverse,
        keys_only: args.keys_only,
        at: args.at,
    };
    let client = connect(global, args.wait).await?;
    let mut out = output(global);
    if args.count {
        let counted = client.count(&args.table, scan).await?;
        out.one(&json!({ "count": counted.count }), || counted.count.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    // Asked first, so that a missing table is an error even of an empty range.
    client.route(&args.table, &scan.from).await?;
    let mut rows = client.scan(&args.table, scan)?;
    while let Some(row) = rows.next().await {
        let row = row?;
        let line = if out.is_table() { line(&out, &row, args.keys_only) } else { String::new() };
        out.stream(&out.row_json(&row, args.keys_only), || line)?;
    }
    out.end_stream()?;
    Ok(ExitCode::SUCCESS)
}

/// A row on one line: key, TAB, value.
fn line(out: &Output, row: &Row, keys_only: bool) -> String {
    let key = out.text(&row.key);
    if keys_only { key } else { out.fit(format!("{key}\t{}", out.value_text(&row.value))) }
}
