//! Rows go out as lines and come back as they were.

use anyhow::{Result, ensure};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::Dev;
use serde_json::Value as Json;

/// Rows of a table without their timestamps.
fn rows(cli: &Cli, table: &str) -> Vec<Json> {
    let mut rows = cli.run(&["range", table, "-o", "jsonl"]).expect(exit::OK).json_lines();
    rows.iter_mut().for_each(|row| drop(row.as_object_mut().expect("a row is an object").remove("ts")));
    rows
}

fn create(cli: &Cli, table: &str) {
    let create = ["table", "create", table, "--replicas", "1", "--split-at", "h", "--split-at", "p"];
    let _ = cli.run(&create).expect(exit::OK);
}

/// Sets a row whose key and value are hexadecimal digits.
fn set_bytes(cli: &Cli, key: &str, value: &str) {
    let _ = cli.run(&["set", "t", key, value, "--hex"]).expect(exit::OK);
}

#[test]
fn an_export_comes_back_as_it_was() -> Result<()> {
    let cluster = Dev::start(&["--servers", "2"])?;
    let cli = cluster.node.cli();
    create(&cli, "t");
    let plain: String =
        (0..600).map(|row| format!("{}{row:03}\tvalue {row}\n", ['a', 'k', 'x'][row % 3])).collect();
    let _ = cli.run_with_input(&["load", "t", "-", "--format", "tsv"], plain.as_bytes()).expect(exit::OK);
    // TAB and line ends, bytes that are no text beside a backslash, what looks like an escape.
    set_bytes(&cli, "6b096b0a", "760a760d");
    set_bytes(&cli, "6bff", "5c783431");
    set_bytes(&cli, "5c783431", "ff00");
    set_bytes(&cli, "5c3a6b", "5c3a76");
    set_bytes(&cli, "6b30", "76610d");
    let _ = cli.run(&["set", "t", "ends", "later", "--ttl", "1h"]).expect(exit::OK);
    let plain_rows = rows(&cli, "t");

    let text = cli.run(&["export", "t", "--format", "tsv"]).expect(exit::OK);
    create(&cli, "of_tsv");
    let _ = cli.run_with_input(&["load", "of_tsv", "-", "--format", "tsv"], &text.stdout).expect(exit::OK);
    ensure!(rows(&cli, "of_tsv") == plain_rows, "{text}");

    let _ = cli.run(&["add", "t", "count", "-7"]).expect(exit::OK);
    let before = cli.run(&["export", "t"]).expect(exit::OK);
    ensure!(before.json_lines().iter().any(|row| row["expires_ms"].is_u64()), "{before}");
    create(&cli, "of_jsonl");
    // Twice: counters are not added up.
    for _ in 0..2 {
        let load = ["load", "of_jsonl", "-", "--format", "jsonl"];
        let _ = cli.run_with_input(&load, &before.stdout).expect(exit::OK);
    }
    ensure!(rows(&cli, "of_jsonl") == rows(&cli, "t"), "{before}");
    let again = cli.run(&["export", "of_jsonl", "--prefix", "ends"]).expect(exit::OK);
    ensure!(again.json_lines()[0]["expires_ms"].is_u64(), "a time to live comes back: {again}");

    // As of a timestamp, over all tablets.
    let ts = before.json_lines().iter().filter_map(|row| row["ts"].as_str()?.parse::<u64>().ok()).max();
    let ts = ts.unwrap_or_default().to_string();
    let _ = cli.run(&["delete-range", "t", "", "", "--yes"]).expect(exit::OK);
    let past = cli.run(&["export", "t", "--at", &ts]).expect(exit::OK);
    ensure!(past.stdout == before.stdout, "{past}");
    ensure!(cli.run(&["export", "t"]).expect(exit::OK).stdout.is_empty(), "nothing is left");
    let _ = cli.run(&["export", "none"]).expect(exit::NOT_FOUND);
    Ok(())
}
