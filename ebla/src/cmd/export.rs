//! `ebla export`: all rows of a table at one timestamp, a line each, as `ebla load` takes them back.

use super::load_file::ESCAPED_LINE;
use super::{connect, key_bounds};
use crate::cli::{Export, Global, LoadFormat};
use crate::output::{Format, Output};
use ebla_client::{Row, Scan, Value};
use ebla_kernel::text::escape;
use futures::StreamExt as _;
use std::io::{self, BufWriter, Write as _};
use std::process::ExitCode;

/// Bytes that are kept in memory before they are handed to stdout.
const BUFFER_BYTES: usize = 256 * 1024;

/// Streams the rows to stdout; nothing else goes there, whatever the output format.
pub async fn run(global: &Global, args: Export) -> anyhow::Result<ExitCode> {
    let (from, to, prefix) = key_bounds(&args.keys, global);
    let scan = Scan { from, to, prefix, at: args.at, ..Scan::default() };
    let client = connect(global, args.wait).await?;
    // Asked first, so that a missing table is an error even of an empty range.
    client.route(&args.table, &scan.from).await?;
    let mut rows = client.scan(&args.table, scan)?;
    // Not with --hex: bytes are written so that they can be read back.
    let plain = Output::new(Format::Jsonl, false);
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout());
    while let Some(row) = rows.next().await {
        let row = row?;
        let line = match args.format {
            LoadFormat::Jsonl => json_line(&plain, &row),
            LoadFormat::Tsv => tsv_line(&row),
        };
        out.write_all(line.as_bytes())?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn json_line(plain: &Output, row: &Row) -> String {
    let mut object = plain.row_json(row, false);
    if let Some(expires_ms) = row.expires_ms {
        object["expires_ms"] = expires_ms.into();
    }
    format!("{object}\n")
}

/// Key, TAB, value as they are, or escaped and marked where a line could not say them.
fn tsv_line(row: &Row) -> String {
    let number;
    let value = match &row.value {
        Value::Bytes(bytes) => &bytes[..],
        Value::Counter(count) => {
            number = count.to_string();
            number.as_bytes()
        }
    };
    match (std::str::from_utf8(&row.key), std::str::from_utf8(value)) {
        (Ok(key), Ok(text)) if is_plain(key, text) => format!("{key}\t{text}\n"),
        (Ok(_) | Err(_), Ok(_) | Err(_)) => {
            format!("{ESCAPED_LINE}{}\t{}\n", on_one_line(&row.key), on_one_line(value))
        }
    }
}

fn is_plain(key: &str, value: &str) -> bool {
    let ends_as_windows = value.ends_with('\r');
    !key.contains(['\t', '\n']) && !key.starts_with(ESCAPED_LINE) && !value.contains('\n') && !ends_as_windows
}

fn on_one_line(bytes: &[u8]) -> String {
    escape(bytes).replace('\t', "\\x09").replace('\n', "\\x0a").replace('\r', "\\x0d")
}
