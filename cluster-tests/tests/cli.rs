//! The command line as scripts rely on it: JSON fields, exit codes, messages. Against
//! `ebla dev`, from outside.

use anyhow::Result;
use ebla_cluster_tests::cli::{Cli, Output, exit};
use ebla_cluster_tests::cluster::{Dev, eventually, free_addresses};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

fn start() -> Result<(Dev, Cli)> {
    let dev = Dev::start(&[])?;
    let cli = dev.node.cli();
    let _ = cli.run(&["table", "create", "t", "--split-at", "h", "--split-at", "p"]).expect(exit::OK);
    Ok((dev, cli))
}

/// Timestamps are decimal strings: 2^53 breaks many JSON readers.
fn ts(value: &Value) -> u64 {
    let text = value["ts"].as_str().unwrap_or_else(|| panic!("no ts string in {value}"));
    text.parse().unwrap_or_else(|_| panic!("ts is not decimal in {value}"))
}

fn fields(value: &Value) -> Vec<&str> {
    value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

/// A refusal of what was asked for: by the command line itself or by a server.
#[track_caller]
fn refused(output: Output) -> Output {
    assert!([exit::FAILED, exit::USAGE].contains(&output.code), "not refused: {output}");
    output
}

#[track_caller]
fn has_fields(value: &Value, wanted: &[&str]) {
    for field in wanted {
        assert!(!value[*field].is_null(), "{field} is missing from {value}");
    }
}

#[test]
fn rows_are_set_read_and_deleted() -> Result<()> {
    let (_dev, cli) = start()?;
    let set = cli.json(&["set", "t", "apple", "red"]);
    has_fields(&set, &["ts", "level", "outcome"]);
    assert_eq!(set["outcome"], "committed");

    let get = cli.json(&["get", "t", "apple"]);
    assert_eq!(fields(&get), ["key", "value", "ts"]);
    assert_eq!((&get["key"], &get["value"]), (&json!("apple"), &json!("red")));
    assert_eq!(ts(&get), ts(&set));
    assert!(cli.run(&["get", "t", "apple"]).expect(exit::OK).text().contains("red"));

    let deleted = cli.json(&["delete", "t", "apple"]);
    assert_eq!(deleted["outcome"], "committed");
    assert!(ts(&deleted) > ts(&set));
    let _ = cli.run(&["get", "t", "apple"]).expect(exit::NOT_FOUND);
    let _ = cli.run(&["delete", "t", "apple"]).expect(exit::OK);
    Ok(())
}

#[test]
fn values_may_be_empty_negative_and_any_bytes() -> Result<()> {
    let (_dev, cli) = start()?;
    let _ = cli.run(&["set", "t", "empty", ""]).expect(exit::OK);
    assert_eq!(cli.json(&["get", "t", "empty"])["value"], "");
    let _ = cli.run(&["set", "t", "negative", "-1"]).expect(exit::OK);
    assert_eq!(cli.json(&["get", "t", "negative"])["value"], "-1");
    let _ = cli.run_with_input(&["set", "t", "piped", "--file", "-"], b"a\0b").expect(exit::OK);
    assert_eq!(cli.json(&["get", "t", "piped"])["value"], "a\0b");
    let _ = cli.run(&["set", "t", "piped", "--file", "/none"]).expect(exit::USAGE).saying(&["/none"]);
    let _ = cli.run(&["set", "t", "piped", "x", "--file", "-"]).expect(exit::USAGE);
    let _ = cli.run(&["set", "t", "piped"]).expect(exit::USAGE).saying(&["VALUE", "--file"]);
    let _ = cli.run(&["set", "t", "flag", "--limit"]).expect(exit::OK);
    assert_eq!(cli.json(&["get", "t", "flag"])["value"], "--limit");
    let _ = cli.run(&["set", "t", "ébla", "تابلت"]).expect(exit::OK);
    assert_eq!(cli.json(&["get", "t", "ébla"])["value"], "تابلت");

    let _ = cli.run(&["--hex", "set", "t", "6b00ff", "6869ff"]).expect(exit::OK);
    let plain = cli.run(&["range", "t", "--prefix", "k", "-o", "jsonl"]).expect(exit::OK).json_lines();
    assert_eq!(plain.len(), 1);
    assert_eq!(plain[0]["escaped"], true);
    assert_eq!(plain[0]["value"], "hi\\xff");
    let hex = cli.json(&["--hex", "get", "t", "6b00ff"]);
    assert_eq!((&hex["key"], &hex["value"]), (&json!("6b00ff"), &json!("6869ff")));
    Ok(())
}

#[test]
fn conditions_hold_or_nothing_happens() -> Result<()> {
    let (_dev, cli) = start()?;
    let first = cli.json(&["set", "t", "k", "one", "--if-absent"]);
    let refused = cli.run(&["set", "t", "k", "two", "--if-absent", "-o", "json"]).expect(exit::FAILED);
    let error = refused.error();
    assert_eq!(error["reason"], "CONDITION_FAILED");
    assert_eq!(error["definite"], true);
    has_fields(&error, &["message"]);

    let at_first = ts(&first).to_string();
    let _ = cli.run(&["set", "t", "k", "two", "--if-ts", &at_first]).expect(exit::OK);
    let _ = cli.run(&["set", "t", "k", "three", "--if-ts", &at_first]).expect(exit::FAILED);
    let _ = cli.run(&["set", "t", "k", "three", "--if-value", "two"]).expect(exit::OK);
    let _ = cli.run(&["set", "t", "k", "four", "--if-value", "two"]).expect(exit::FAILED);
    assert_eq!(cli.json(&["get", "t", "k"])["value"], "three");
    let _ = cli.run(&["delete", "t", "k"]).expect(exit::OK);
    let _ = cli.run(&["set", "t", "k", "again", "--if-absent"]).expect(exit::OK);
    Ok(())
}

#[test]
fn counters_count_and_refuse_what_is_none() -> Result<()> {
    let (_dev, cli) = start()?;
    let added = cli.json(&["add", "t", "n", "5"]);
    assert_eq!(fields(&added), ["value", "ts"]);
    assert_eq!(added["value"], 5);
    assert_eq!(cli.json(&["add", "t", "n", "-7"])["value"], -2);
    let get = cli.run(&["get", "t", "n"]).expect(exit::OK);
    assert!(get.text().contains("-2"), "a counter is printed in decimal: {get}");

    let _ = cli.run(&["set", "t", "text", "12"]).expect(exit::OK);
    let _ = cli.run(&["add", "t", "text", "1"]).expect(exit::FAILED).saying(&["counter"]);
    let _ = cli.run(&["add", "t", "edge", &i64::MAX.to_string()]).expect(exit::OK);
    let _ = cli.run(&["add", "t", "edge", "1"]).expect(exit::FAILED);
    let _ = cli.run(&["add", "t", "edge", "9223372036854775808"]).expect(exit::USAGE);
    let range = cli.run(&["range", "t", "--prefix", "edge", "-o", "jsonl"]).expect(exit::OK);
    assert!(range.text().contains("9223372036854775807"), "{range}");
    Ok(())
}

#[test]
fn the_past_can_be_read() -> Result<()> {
    let (_dev, cli) = start()?;
    let old = cli.json(&["set", "t", "k", "old"]);
    let new = cli.json(&["set", "t", "k", "new"]);
    let at_old = ts(&old).to_string();
    assert_eq!(cli.json(&["get", "t", "k", "--at", &at_old])["value"], "old");
    assert_eq!(cli.json(&["get", "t", "k", "--at", &ts(&new).to_string()])["value"], "new");
    let rows = cli.run(&["range", "t", "--at", &at_old, "-o", "jsonl"]).expect(exit::OK).json_lines();
    assert_eq!(rows[0]["value"], "old");

    std::thread::sleep(Duration::from_millis(2_100));
    assert_eq!(cli.json(&["get", "t", "k", "--at", "-1s"])["value"], "new");
    let _ = cli.run(&["get", "t", "k", "--at", "-5m"]).expect(exit::NOT_FOUND);
    let _ = cli
        .run(&["get", "t", "k", "--at", "2001-02-03T04:05:06Z"])
        .expect(exit::FAILED)
        .saying(&["keeps old versions"]);
    let _ = cli.run(&["get", "t", "k", "--at", "soon"]).expect(exit::USAGE);
    Ok(())
}

#[test]
fn rows_expire() -> Result<()> {
    let (_dev, cli) = start()?;
    let _ = cli.run(&["set", "t", "brief", "v", "--ttl", "1500ms"]).expect(exit::OK);
    let _ = cli.run(&["set", "t", "long", "v", "--ttl", "1h"]).expect(exit::OK);
    assert_eq!(cli.json(&["get", "t", "brief"])["value"], "v");
    let gone = || cli.run(&["get", "t", "brief"]).code == exit::NOT_FOUND;
    eventually("the row expired", Duration::from_secs(5), gone)?;
    assert_eq!(cli.json(&["range", "t", "--count"])["count"], 1);
    let _ = cli.run(&["set", "t", "brief", "again", "--if-absent"]).expect(exit::OK);
    Ok(())
}

#[test]
fn ranges_go_both_ways_over_tablets() -> Result<()> {
    let (_dev, cli) = start()?;
    let keys = ["a", "b", "g", "h", "h1", "o", "p", "z"];
    for key in keys {
        let _ = cli.run(&["set", "t", key, &format!("value of {key}")]).expect(exit::OK);
    }
    let range = |more: &[&str]| -> Vec<String> {
        let args = [&["range", "t", "-o", "jsonl"], more].concat();
        let rows = cli.run(&args).expect(exit::OK).json_lines();
        rows.iter().map(|row| row["key"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(range(&[]), keys);
    assert_eq!(range(&["--reverse"]), ["z", "p", "o", "h1", "h", "g", "b", "a"]);
    assert_eq!(range(&["--from", "b", "--to", "o"]), ["b", "g", "h", "h1"]);
    assert_eq!(range(&["--from", "b", "--to", "o", "--reverse", "--limit", "3"]), ["h1", "h", "g"]);
    assert_eq!(range(&["--prefix", "h"]), ["h", "h1"]);
    assert_eq!(range(&["--limit", "5"]), ["a", "b", "g", "h", "h1"]);
    assert_eq!(range(&["--keys-only"]), keys);
    assert_eq!(cli.json(&["range", "t", "--count"]), json!({ "count": 8 }));
    assert_eq!(cli.json(&["range", "t", "--count", "--from", "h"]), json!({ "count": 5 }));
    let rows = cli.run(&["range", "t", "--limit", "1", "-o", "jsonl"]).expect(exit::OK).json_lines();
    assert_eq!(fields(&rows[0]), ["key", "value", "ts"]);
    assert_eq!(rows[0]["value"], "value of a");

    let _ = cli.run(&["delete-range", "t", "b", "p"]).expect(exit::USAGE).saying(&["--yes"]);
    let _ = cli.run(&["delete-range", "t", "b", "p", "--yes"]).expect(exit::OK);
    assert_eq!(range(&[]), ["a", "p", "z"]);
    Ok(())
}

#[test]
fn files_are_loaded_and_bad_lines_named() -> Result<()> {
    let (dev, cli) = start()?;
    let tsv = dev.place.path().join("rows.tsv");
    fs::write(&tsv, "one\t1\ntwo\t2\nno tab here\n\tempty key\nthree\t3\twith a tab\n")?;
    let path = tsv.to_string_lossy();
    let loaded = cli.run(&["load", "t", &path, "--format", "tsv"]).expect(exit::FAILED);
    let said = format!("{}{}", loaded.text(), loaded.stderr);
    for line in ["3", "4"] {
        let named = said.split(|c: char| !c.is_ascii_digit()).any(|word| word == line);
        assert!(named, "line {line} is not named: {loaded}");
    }
    assert_eq!(cli.json(&["range", "t", "--count"])["count"], 3);
    assert_eq!(cli.json(&["get", "t", "two"])["value"], "2");

    let jsonl = b"{\"id\":\"x\",\"v\":\"vx\"}\n{\"id\":\"y\",\"v\":\"vy\",\"more\":[1,2]}\n";
    let args = ["load", "t", "-", "--format", "jsonl", "--key-field", "id"];
    let _ = cli.run_with_input(&args, jsonl).expect(exit::OK);
    let whole: Value =
        serde_json::from_str(cli.json(&["get", "t", "y"])["value"].as_str().unwrap_or_default())?;
    assert_eq!(whole, json!({ "id": "y", "v": "vy", "more": [1, 2] }));
    let args = [&args[..], &["--value-field", "v"]].concat();
    let _ = cli.run_with_input(&args, jsonl).expect(exit::OK);
    assert_eq!(cli.json(&["get", "t", "y"])["value"], "vy");

    let garbage = [0xff, 0x00, b'\n', b'{', b'\n'];
    let _ = cli.run_with_input(&args, &garbage).expect(exit::FAILED);
    let truncated = b"{\"id\":\"z1\",\"v\":\"1\"}\n{\"id\":\"z2\",\"v\":";
    let _ = cli.run_with_input(&args, truncated).expect(exit::FAILED);
    assert_eq!(cli.json(&["get", "t", "z1"])["value"], "1");
    let _ = cli.run(&["load", "t", "/no/such/file", "--format", "tsv"]).expect(exit::FAILED);
    Ok(())
}

#[test]
fn lists_have_their_fields() -> Result<()> {
    let (_dev, cli) = start()?;
    let _ = cli.run(&["set", "t", "a", "v"]).expect(exit::OK);
    let tables = cli.json(&["table", "list"]);
    has_fields(&tables[0], &["name", "id", "state"]);
    assert_eq!(tables[0]["name"], "t");
    assert!(tables[0]["id"].is_u64());

    let wanted = [
        "id",
        "table",
        "start",
        "end",
        "leader",
        "epoch",
        "replicas",
        "in_sync",
        "degraded",
        "rows_estimate",
        "bytes",
    ];
    let tablets = cli.json(&["tablet", "list", "t"]);
    let tablets = tablets.as_array().expect("a list is an array");
    let bounds: Vec<_> = tablets.iter().map(|tablet| (&tablet["start"], &tablet["end"])).collect();
    assert_eq!(bounds.len(), 3);
    assert_eq!((bounds[0].0, bounds[0].1, bounds[2].1), (&json!(""), &json!("h"), &json!("")));
    for tablet in tablets {
        has_fields(tablet, &wanted);
        let copies = tablet["replicas"].as_array().expect("a list of servers");
        assert_eq!(copies.len(), 3);
        assert!(copies.contains(&tablet["leader"]));
        assert_eq!(tablet["replicas"], tablet["in_sync"]);
        assert_eq!((&tablet["degraded"], &tablet["awaiting"]), (&json!(false), &Value::Null));
    }
    let counted = || {
        let list = cli.list(&["tablet", "list", "t"]).unwrap_or_default();
        list.iter()
            .any(|tablet| tablet["rows_estimate"].as_u64() == Some(1) && tablet["bytes"].as_u64() > Some(0))
    };
    eventually("the tablet list counts the row", Duration::from_secs(10), counted)?;
    let id = tablets[0]["id"].to_string();
    has_fields(&cli.json(&["tablet", "describe", &id]), &wanted);
    let _ = cli.run(&["tablet", "describe", "999999"]).expect(exit::NOT_FOUND);

    let servers = cli.json(&["server", "list"]);
    let servers = servers.as_array().expect("a list is an array");
    assert_eq!(servers.len(), 3);
    for server in servers {
        has_fields(server, &["id", "address", "state", "tablets", "leaders"]);
        assert_eq!(server["state"], "up");
        assert!(!server["zone"].is_null());
    }
    let leaders: u64 = servers.iter().filter_map(|server| server["leaders"].as_u64()).sum();
    assert_eq!(leaders, 3);
    let _ = cli.run(&["status"]).expect(exit::OK);
    let _ = cli.json(&["status"]);
    Ok(())
}

#[test]
fn copies_are_read_and_led() -> Result<()> {
    let (_dev, cli) = start()?;
    let written = cli.json(&["set", "t", "a", "1", "--ack", "copies=2"]);
    assert_eq!((&written["outcome"], &written["level"]), (&json!("committed"), &json!("copies=2")));
    let session = written["session"].as_str().expect("a session is a text").to_owned();
    assert_eq!(session.split('.').count(), 4);
    for _ in 0..10 {
        // Any of the three copies answers, or the leader for it.
        assert_eq!(cli.json(&["get", "t", "a", "--session", &session])["value"], "1");
        assert_eq!(cli.json(&["get", "t", "a", "--bounded", "30s"])["ts"], written["ts"]);
    }
    for wrong in ["copies=1", "copies=4"] {
        let _ = cli.run(&["set", "t", "a", "1", "--ack", wrong]).expect(exit::USAGE).saying(&["2 to 3"]);
        let load = ["load", "t", "-", "--format", "tsv", "--ack", wrong];
        let _ = cli.run_with_input(&load, b"a\t1\n").expect(exit::USAGE).saying(&["2 to 3"]);
    }

    let tablet = cli.json(&["tablet", "list", "t"])[0].clone();
    let (id, leads) = (tablet["id"].to_string(), tablet["leader"].to_string());
    let transfer = |to: &str| cli.run(&["tablet", "transfer-leader", &id, "--to", to, "-o", "json"]);
    let _ = transfer(&leads).expect(exit::FAILED).saying(&["leads tablet"]);
    let _ = transfer("99").expect(exit::NOT_FOUND).saying(&["server list"]);
    let other =
        tablet["replicas"].as_array().and_then(|copies| copies.iter().find(|id| **id != tablet["leader"]));
    let other = other.expect("three copies").as_u64();
    let moved = cli.json(&["tablet", "transfer-leader", &id, "--to", &format!("s{}", other.unwrap_or(0))]);
    assert_eq!((moved["tablet"].as_u64(), moved["leader"].as_u64()), (tablet["id"].as_u64(), other));
    assert!(moved["epoch"].as_u64() > tablet["epoch"].as_u64());
    let job = cli.json(&["job", "wait", &moved["job"].to_string()]);
    assert_eq!(
        (&job["kind"], &job["state"], &job["to"]),
        (&json!("transfer"), &json!("done"), &json!(other))
    );
    assert_eq!((&job["tablet"], &job["from"]), (&tablet["id"], &tablet["leader"]));
    let _ = cli.run(&["server", "drain", &leads]).expect(exit::OK);
    let _ = transfer(&leads).expect(exit::FAILED).saying(&["drained", "server activate"]);
    let _ = cli.run(&["server", "activate", &leads]).expect(exit::OK);
    let split = cli.json(&["tablet", "split", &id, "--at", "c"]);
    let later = cli.json(&["tablet", "split", &split["children"][1].to_string(), "--at", "d"]);
    let retired = transfer(&leads).expect(exit::FAILED).saying(&["is no more"]);
    let told: serde_json::Value = serde_json::from_str(&retired.stderr).unwrap();
    let living = json!([split["children"][0], later["children"][0], later["children"][1]]);
    assert_eq!(told["successors"], living, "those that were split since are not named");
    assert_eq!(cli.json(&["get", "t", "a"])["value"], "1");

    assert_eq!(cli.json(&["lost", "list"]), json!([]), "nothing was dropped");
    let _ = cli.run(&["lost", "list", "--table", "none"]).expect(exit::NOT_FOUND);
    let _ = cli.run(&["lost", "show", "99", "1"]).expect(exit::NOT_FOUND);
    let _ = cli.run(&["lost", "show", "s1", "99"]).expect(exit::NOT_FOUND).saying(&["lost list"]);
    Ok(())
}

#[test]
fn what_is_busy_is_shown() -> Result<()> {
    let (_dev, cli) = start()?;
    let writer = cli.clone();
    let writing = std::thread::spawn(move || {
        for number in 0..60 {
            let _ = writer.run(&["set", "t", "hot", &number.to_string()]).expect(exit::OK);
            let _ = writer.run(&["set", "t", &format!("cold{number}"), "v"]).expect(exit::OK);
        }
    });
    let seen = cli.json(&["top", "--interval", "600ms", "--limit", "3"]);
    writing.join().expect("the writer goes on to its end");
    assert_eq!(seen["servers"], 3, "{seen}");
    assert!(seen["writes_per_s"].as_u64() > Some(0), "{seen}");
    assert_eq!(seen["tablets"][0]["table"], "t", "{seen}");
    assert_eq!(seen["keys"][0]["key"], "hot", "{seen}");
    assert!(seen["keys"].as_array().is_some_and(|keys| keys.len() <= 3), "{seen}");
    let _ = cli.run(&["top", "--interval", "1ms"]).expect(exit::USAGE).saying(&["100ms"]);
    Ok(())
}

#[test]
fn tables_come_and_go() -> Result<()> {
    let (_dev, cli) = start()?;
    let _ = cli.run(&["table", "create", "t"]).expect(exit::FAILED).saying(&["exists"]);
    let copies = cli.run(&["table", "create", "copies", "--replicas", "4"]).expect(exit::FAILED);
    let _ = copies.saying(&["3 tablet servers are up and 4 are needed"]);
    let two = cli.run(&["table", "create", "two", "--replicas", "2"]).expect(exit::OK);
    let _ = two.saying(&["warning: with 2 copies"]);
    assert_eq!(cli.json(&["table", "describe", "two"])["failures_tolerated"], 0);
    let spec = cli.json(&["table", "describe", "t"]);
    let numbers = ["replicas", "min_in_sync", "failures_tolerated"].map(|name| spec[name].as_u64());
    assert_eq!(numbers, [Some(3), Some(2), Some(1)]);
    let described = cli.json(&["table", "describe", "t"]);
    has_fields(&described, &["name", "id", "state"]);
    let _ = cli.run(&["table", "describe", "none"]).expect(exit::NOT_FOUND);
    let _ = cli.run(&["table", "drop", "t"]).expect(exit::USAGE).saying(&["--yes"]);
    let _ = cli.run(&["table", "drop", "t", "--yes"]).expect(exit::OK);
    let _ = cli.run(&["get", "t", "k"]).expect(exit::NOT_FOUND);
    let _ = cli.run(&["table", "create", "t"]).expect(exit::OK);
    assert_eq!(cli.json(&["range", "t", "--count"])["count"], 0);
    Ok(())
}

#[test]
fn bad_input_gets_a_message_and_the_process_goes_on() -> Result<()> {
    let (_dev, cli) = start()?;
    let _ = refused(cli.run(&["set", "t", "", "v"])).saying(&["key"]);
    let long = "k".repeat(4 * 1024 + 1);
    let _ = refused(cli.run(&["set", "t", &long, "v"])).saying(&["4"]);
    let longest = "k".repeat(4 * 1024);
    let _ = cli.run(&["set", "t", &longest, "v"]).expect(exit::OK);
    let huge = [b"big\t".to_vec(), vec![b'x'; 8 * 1024 * 1024 + 1], b"\nsmall\t1\n".to_vec()].concat();
    let _ = cli.run_with_input(&["load", "t", "-", "--format", "tsv"], &huge).expect(exit::FAILED);
    assert_eq!(cli.json(&["get", "t", "small"])["value"], "1");
    let _ = cli.run(&["get", "t", "big"]).expect(exit::NOT_FOUND);

    let _ = cli.run(&["get", "nowhere", "k"]).expect(exit::NOT_FOUND).saying(&["nowhere"]);
    let unknown = cli.run(&["set", "nowhere", "k", "v", "-o", "json"]).expect(exit::NOT_FOUND);
    assert_eq!(unknown.error()["reason"], "TABLE_NOT_FOUND");
    let _ = refused(cli.run(&["range", "t", "--from", "z", "--to", "a"]));
    let _ = refused(cli.run(&["delete-range", "t", "z", "a", "--yes"]));
    let _ = cli.run(&["get", "t", "k", "--no-such-flag"]).expect(exit::USAGE);
    let _ = cli.run(&["no-such-command"]).expect(exit::USAGE);
    let _ = cli.run(&["outcome", "not-a-token"]).expect(exit::USAGE);

    let nobody = Cli::new(&free_addresses(1)[0]);
    let unreachable = nobody.run(&["get", "t", "k", "--timeout", "1s"]).expect(exit::UNAVAILABLE);
    let _ = unreachable.saying(&["127.0.0.1"]);
    assert_eq!(cli.json(&["get", "t", "small"])["value"], "1");
    Ok(())
}
