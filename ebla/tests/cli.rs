//! The binary from outside, without a cluster: usage, exit codes, messages.

use serde_json::Value as Json;
use std::net::TcpListener;
use std::process::{Command, Output};

fn ebla(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ebla"))
        .env_remove("EBLA_ENDPOINTS")
        .env_remove("EBLA_LOG")
        .args(arguments)
        .output()
        .expect("the binary was built for this test")
}

/// Runs and expects an exit code; gives stderr.
fn check(arguments: &[&str], code: i32) -> String {
    let output = ebla(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?} printed to stdout");
    stderr
}

/// An address at which nobody listens.
fn dead_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn wrong_arguments_exit_2_and_say_what_to_give() {
    let cases: [(&[&str], &str); 28] = [
        (&["get", "t", "k", "--bogus"], "--bogus"),
        (&["nonsense"], "nonsense"),
        (&["get", "t"], "KEY"),
        (&["get", "t", "k", "--at", "yesterday"], "-5m"),
        (&["range", "t", "--at", "0"], "ts"),
        (&["set", "t", "k", "v", "--ttl", "10"], "10s"),
        (&["set", "t", "k", "v", "--ttl", "0s"], "1ms"),
        (&["set", "t", "k", "v", "--ack", "all"], "in-sync"),
        (&["set", "t", "k", "v", "--if-absent", "--if-ts", "5"], "--if-ts"),
        (&["add", "t", "k", "many"], "many"),
        (&["dev", "--masters", "2"], "1 or 3"),
        (&["master", "--id", "1", "--peers", "here", "--data-dir", "x"], "ID=HOST:PORT"),
        (&["master", "--id", "4", "--peers", "1=a:1", "--data-dir", "x"], "does not name master 4"),
        (&["load", "t", "-", "--format", "csv"], "tsv"),
        (&["outcome", "garbage"], "token"),
        (&["get", "t", "k", "--bounded", "5"], "10s"),
        (&["get", "t", "k", "--bounded", "5s", "--at", "-5m"], "--at"),
        (&["get", "t", "k", "--session", "1.2.3"], "LINEAGE.EPOCH.SEQ.TS"),
        (&["get", "t", "k", "--session", "1.2.3.4", "--bounded", "5s"], "--bounded"),
        (&["table", "create", "t", "--replicas", "0"], "from 1 to 7"),
        (&["table", "create", "t", "--replicas", "8"], "from 1 to 7"),
        (&["table", "create", "t", "--replicas", "3", "--min-in-sync", "1"], "--policy degraded"),
        (&["table", "create", "t", "--replicas", "3", "--min-in-sync", "4"], "--min-in-sync"),
        (&["table", "create", "t", "--replicas", "3", "--ack", "copies=4"], "copies=4"),
        (&["table", "create", "t", "--policy", "lax"], "degraded"),
        (&["tablet", "transfer-leader", "1"], "--to"),
        (&["tablet", "transfer-leader", "1", "--to", "first"], "s3"),
        (&["lost", "show", "1"], "ID"),
    ];
    for (arguments, hint) in cases {
        let stderr = check(arguments, 2);
        assert!(stderr.contains(hint), "{arguments:?}: {stderr}");
    }
}

#[test]
fn destructive_commands_want_yes() {
    for arguments in [&["table", "drop", "t"][..], &["delete-range", "t", "a", "b"]] {
        assert!(check(arguments, 2).contains("--yes"));
    }
}

#[test]
fn an_unreachable_cluster_exits_4_and_names_the_endpoint() {
    let endpoint = dead_endpoint();
    let cases: [&[&str]; 13] = [
        &["get", "t", "k"],
        &["set", "t", "k", "-v"],
        &["add", "t", "k", "-5"],
        &["range", "t", "--at", "-5m"],
        &["status"],
        &["table", "list"],
        &["load", "t", "-", "--format", "tsv"],
        &["outcome", "1-2-3.74.6b"],
        &["get", "t", "k", "--bounded", "5s"],
        &["get", "t", "k", "--session", "1.2.3.4"],
        &["tablet", "transfer-leader", "1", "--to", "s3"],
        &["lost", "list"],
        &["lost", "show", "127.0.0.1:7401", "1"],
    ];
    for arguments in cases {
        let arguments = [arguments, &["--endpoints", &endpoint]].concat();
        let stderr = check(&arguments, 4);
        assert!(stderr.contains(&endpoint) && stderr.contains("EBLA_ENDPOINTS"), "{stderr}");
    }
}

#[test]
fn json_errors_have_three_fields() {
    let endpoint = dead_endpoint();
    let cases: [(&[&str], i32, &str); 3] = [
        (&["-o", "json", "get", "t", "k", "--endpoints", &endpoint], 4, "UNAVAILABLE"),
        (&["get", "t", "k", "-o", "jsonl", "--bogus"], 2, "BAD_REQUEST"),
        (&["table", "drop", "t", "-o", "json"], 2, "BAD_REQUEST"),
    ];
    for (arguments, code, reason) in cases {
        let error: Json = serde_json::from_str(&check(arguments, code)).unwrap();
        assert_eq!(error["reason"], reason);
        assert_eq!(error["definite"], true);
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
}

#[test]
fn a_missing_file_fails_before_anything_else() {
    assert!(check(&["load", "t", "/nonexistent", "--format", "tsv"], 1).contains("/nonexistent"));
}

#[test]
fn help_and_version_go_to_stdout() {
    for arguments in [&["--version"][..], &["--help"], &["set", "--help"]] {
        let output = ebla(arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains("ebla"));
    }
}
