//! `ebla top`: the busiest tablets and keys.

use super::{connect, note, output};
use crate::cli::{Global, Top};
use crate::output::Output;
use ebla_client::{Heat, v1};
use serde_json::{Value as Json, json};
use std::cmp::Reverse;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::SystemTime;

/// Clears a terminal and goes to its upper left corner.
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

/// Shows one picture as JSON, or one after the other for people until they end it.
pub async fn run(global: &Global, args: Top) -> anyhow::Result<ExitCode> {
    let client = connect(global, args.wait).await?;
    let limit = usize::try_from(args.limit)?;
    loop {
        let heat = client.heat(args.interval, args.limit).await?;
        let mut out = output(global);
        let picture = picture(&out, &heat, limit);
        if !out.is_table() {
            out.one(&picture, String::new)?;
            return Ok(ExitCode::SUCCESS);
        }
        let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        out.one(&picture, || format!("{clear}{time}  {}", headline(&picture)))?;
        let list = |name: &str| picture[name].as_array().cloned().unwrap_or_default();
        let rates = ["reads_per_s", "writes_per_s", "bytes_per_s"];
        out.list(&[&["tablet", "table", "server"], &rates[..]].concat(), &list("tablets"))?;
        let columns = [&["key", "table", "tablet", "server"], &rates[..], &["tablet_percent"]].concat();
        out.list(&columns, &list("keys"))?;
        for (server, error) in &heat.unreachable {
            note(&format!("server {} at {} did not answer: {error}", server.id, server.address));
        }
    }
}

fn headline(picture: &Json) -> String {
    format!(
        "{} servers, {} reads/s, {} writes/s, {} bytes/s",
        picture["servers"], picture["reads_per_s"], picture["writes_per_s"], picture["bytes_per_s"]
    )
}

/// Everything as one object: rates per second, the busiest first.
fn picture(out: &Output, heat: &Heat, limit: usize) -> Json {
    let mut total = Rates::default();
    let (mut tablets, mut keys) = (Vec::new(), Vec::new());
    for server in &heat.servers {
        let rates = |counts: &Option<v1::HeatCounts>| Rates::of(counts.as_ref(), server.window_ms);
        total.add(rates(&server.total));
        for tablet in &server.tablets {
            let names =
                json!({ "tablet": tablet.tablet_id, "table": tablet.table, "server": server.server_id });
            tablets.push((rates(&tablet.counts), names));
        }
        for key in &server.keys {
            let mut names =
                json!({ "table": key.table, "tablet": key.tablet_id, "server": server.server_id });
            names["key"] = out.text(&key.key).into();
            if std::str::from_utf8(&key.key).is_err() {
                names[out.mark_name()] = true.into();
            }
            keys.push((rates(&key.counts), names));
        }
    }
    name_shares(&mut keys, &tablets);
    let mut picture = total.json(json!({ "servers": heat.servers.len() }));
    picture["tablets"] = busiest(tablets, limit);
    picture["keys"] = busiest(keys, limit);
    picture["unreachable"] = heat.unreachable.iter().map(|(server, _)| server.id).collect();
    picture
}

/// Says of every key which part of its tablet's requests it has.
fn name_shares(keys: &mut [(Rates, Json)], tablets: &[(Rates, Json)]) {
    for (rates, names) in keys {
        let its = |(_, tablet): &&(Rates, Json)| {
            (&tablet["tablet"], &tablet["server"]) == (&names["tablet"], &names["server"])
        };
        let all = tablets.iter().find(its).map_or(0, |(all, _)| all.reads + all.writes);
        // Keys are sampled, tablets are counted.
        let percent = ((rates.reads + rates.writes) * 100).checked_div(all).map(|percent| percent.min(100));
        names["tablet_percent"] = json!(percent);
    }
}

fn busiest(mut rows: Vec<(Rates, Json)>, limit: usize) -> Json {
    rows.sort_by_key(|(rates, _)| Reverse(rates.reads + rates.writes));
    rows.into_iter().take(limit).map(|(rates, names)| rates.json(names)).collect()
}

/// Per second.
#[derive(Clone, Copy, Default)]
struct Rates {
    reads: u64,
    writes: u64,
    bytes: u64,
}

impl Rates {
    fn of(counts: Option<&v1::HeatCounts>, window_ms: u64) -> Self {
        let counts = counts.copied().unwrap_or_default();
        let per_second = |count: u64| {
            let rate = u128::from(count) * 1_000 / u128::from(window_ms.max(1));
            u64::try_from(rate).unwrap_or(u64::MAX)
        };
        Self {
            reads: per_second(counts.reads),
            writes: per_second(counts.writes),
            bytes: per_second(counts.read_bytes + counts.written_bytes),
        }
    }

    fn add(&mut self, more: Self) {
        self.reads += more.reads;
        self.writes += more.writes;
        self.bytes += more.bytes;
    }

    fn json(self, mut names: Json) -> Json {
        names["reads_per_s"] = self.reads.into();
        names["writes_per_s"] = self.writes.into();
        names["bytes_per_s"] = self.bytes.into();
        names
    }
}
