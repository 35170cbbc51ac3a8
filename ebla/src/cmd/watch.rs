//! `ebla watch`: changes as they are committed, until it is ended.

use super::{connect, key_bounds, note, output};
use crate::cli::{Global, Watch};
use crate::output::{Output, argument_bytes, type_name};
use ebla_client::{Since, WatchChange, WatchEvent};
use futures::{FutureExt as _, StreamExt as _};
use std::process::ExitCode;

/// Prints events as they come.
pub async fn run(global: &Global, args: Watch) -> anyhow::Result<ExitCode> {
    let (from, to, prefix) = key_bounds(&args.keys, global);
    let watch = ebla_client::Watch {
        key: args.key.as_ref().map(|key| argument_bytes(key, global.hex)),
        from,
        to,
        prefix,
        since: if args.snapshot { Since::Snapshot } else { args.since.clone().unwrap_or_default() },
    };
    let client = connect(global, args.wait).await?;
    let mut events = client.watch(&args.table, watch)?;
    let mut out = output(global);
    let mut has_begun = false;
    loop {
        // What is there goes out together, and at once when nothing else is.
        let next = match events.next().now_or_never() {
            Some(next) => next,
            None => {
                out.finish()?;
                events.next().await
            }
        };
        let Some(event) = next.transpose()? else { break };
        let is_resolved = matches!(event.change, WatchChange::Resolved { .. });
        if !out.is_table() {
            out.stream(&out.event_json(&event), String::new)?;
        } else if !is_resolved {
            let line = line(&out, &event);
            out.stream(&serde_json::Value::Null, || line)?;
        } else if !has_begun {
            note(&format!("watching table {:?}; end it with Ctrl-C", args.table));
        }
        has_begun |= is_resolved;
    }
    out.end_stream()?;
    Ok(ExitCode::SUCCESS)
}

/// An event on one line: what, key, value, with TABs between.
fn line(out: &Output, event: &WatchEvent) -> String {
    let what = type_name(&event.change);
    let range = |from: &[u8], to: &[u8]| {
        let to = if to.is_empty() { "the end".to_owned() } else { out.text(to) };
        format!("{} .. {to}", out.text(from))
    };
    let text = match &event.change {
        WatchChange::Set { key, value, .. } => format!("{}\t{}", out.text(key), out.value_text(value)),
        WatchChange::Delete { key, is_evicted: true, .. } => format!("{}\tevicted", out.text(key)),
        WatchChange::Delete { key, .. } | WatchChange::Expire { key, .. } => out.text(key),
        WatchChange::DeleteRange { from, to, .. } => range(from, to),
        WatchChange::Resolved { ts } => ts.0.to_string(),
        WatchChange::Break { from, to, reason } => format!("{}\t{reason}", range(from, to)),
    };
    out.fit(format!("{what}\t{text}"))
}
