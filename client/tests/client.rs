//! The client against servers that redirect, lose streams and are overloaded.

mod fake;

use bytes::Bytes;
use ebla_client::{
    AckLevel, Batch, Client, Consistency, Hlc, Outcome, Reason, Scan, SessionToken, Ticket, Value,
    WriteOptions,
};
use fake::{Fake, Faults};
use futures::TryStreamExt as _;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

async fn connect(fake: &Fake) -> Client {
    Client::builder().endpoints(fake.addresses.clone()).timeout(TIMEOUT).connect().await.unwrap()
}

fn bytes(text: &'static str) -> Value {
    Value::Bytes(Bytes::from_static(text.as_bytes()))
}

async fn keys(client: &Client, scan: Scan) -> Vec<String> {
    let rows: Vec<_> = client.scan("t", scan).unwrap().try_collect().await.unwrap();
    rows.iter().map(|row| String::from_utf8_lossy(&row.key).into_owned()).collect()
}

/// Rows `a0` to `z9`, without anything in between.
fn fill(fake: &Fake) -> Vec<String> {
    let names: Vec<_> =
        ('a'..='z').flat_map(|letter| (0..10).map(move |digit| format!("{letter}{digit}"))).collect();
    let mut state = fake.state.lock().unwrap();
    names.iter().for_each(|name| state.put(name, "v"));
    names
}

#[tokio::test]
async fn rows_are_written_and_read() {
    let fake = Fake::start(2, &["m"]);
    let client = connect(&fake).await;
    let first = client.set("t", "z", "one").await.unwrap().committed().unwrap();
    client.set("t", "z", "two").await.unwrap().committed().unwrap();
    assert_eq!(client.get("t", "z").await.unwrap().unwrap().value, bytes("two"));
    assert_eq!(client.get_unary("t", "z").await.unwrap().unwrap().value, bytes("two"));
    assert_eq!(client.get_at("t", "z", first.ts).await.unwrap().unwrap().value, bytes("one"));
    client.delete("t", "z").await.unwrap().committed().unwrap();
    assert_eq!(client.get("t", "z").await.unwrap(), None);
    let added = client.add("t", "n", 5).await.unwrap().committed().unwrap();
    assert_eq!(added.counters, [Some(5)]);
}

#[tokio::test]
async fn a_moved_leader_is_followed() {
    let fake = Fake::start(3, &[]);
    let client = connect(&fake).await;
    client.set("t", "k", "1").await.unwrap().committed().unwrap();
    for server in [2, 3, 1] {
        fake.lead(0, server);
        client.set("t", "k", "2").await.unwrap().committed().unwrap();
        assert_eq!(client.get("t", "k").await.unwrap().unwrap().value, bytes("2"));
    }
    assert_eq!(fake.state.lock().unwrap().runs, 4);
}

#[tokio::test]
async fn a_killed_leader_is_replaced() {
    let mut fake = Fake::start(3, &[]);
    let client = connect(&fake).await;
    client.set("t", "k", "1").await.unwrap().committed().unwrap();
    fake.kill(1);
    fake.lead(0, 2);
    client.set("t", "k", "2").await.unwrap().committed().unwrap();
    assert_eq!(client.get("t", "k").await.unwrap().unwrap().value, bytes("2"));
}

#[tokio::test]
async fn a_retry_of_a_lost_answer_does_not_run_twice() {
    let fake = Fake::start(1, &[]);
    fake.faults(Faults { lost_answers: 3, ..Faults::default() });
    let client = connect(&fake).await;
    let added = client.add("t", "n", 1).await.unwrap().committed().unwrap();
    assert_eq!(added.counters, [Some(1)]);
    let state = fake.state.lock().unwrap();
    assert_eq!((state.runs, state.arrivals), (1, 4));
}

#[tokio::test]
async fn a_lost_insert_is_not_reported_as_a_failed_condition() {
    let fake = Fake::start(1, &[]);
    fake.faults(Faults { lost_answers: 1, ..Faults::default() });
    let client = connect(&fake).await;
    client.insert_if_absent("t", "k", "v").await.unwrap().committed().unwrap();
    let error = client.insert_if_absent("t", "k", "w").await.unwrap_err();
    assert_eq!(
        (error.reason(), error.is_definite(), error.is_retryable()),
        (Reason::ConditionFailed, true, false)
    );
}

#[tokio::test]
async fn overload_is_waited_out() {
    let fake = Fake::start(1, &[]);
    fake.faults(Faults { overloads: 3, ..Faults::default() });
    let client = connect(&fake).await;
    client.set("t", "k", "v").await.unwrap().committed().unwrap();
    assert_eq!(fake.state.lock().unwrap().runs, 1);
}

#[tokio::test]
async fn silence_after_sending_is_an_unknown_outcome() {
    let fake = Fake::start(1, &[]);
    let client = connect(&fake).await.with_timeout(Duration::from_millis(200));
    client.set("t", "k", "v").await.unwrap().committed().unwrap();
    fake.faults(Faults { mute: true, ..Faults::default() });
    let Outcome::Unknown(ticket) = client.set("t", "k", "w").await.unwrap() else {
        panic!("should be unknown")
    };
    let ticket: Ticket = ticket.to_string().parse().unwrap();
    assert_eq!(client.outcome(&ticket).await.unwrap(), Outcome::Reverted);
}

#[tokio::test]
async fn many_calls_share_a_stream() {
    let fake = Fake::start(2, &["m"]);
    let client = connect(&fake).await;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..500u32 {
        let client = client.clone();
        tasks.spawn(async move {
            let key = format!("{}{i}", if i % 2 == 0 { 'a' } else { 'z' });
            client.set("t", key.clone(), i.to_string()).await.unwrap().committed().unwrap();
            let cell = client.get("t", key).await.unwrap().unwrap();
            assert_eq!(cell.value.into_bytes(), i.to_string());
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(client.count("t", Scan::all()).await.unwrap().count, 500);
}

#[tokio::test]
async fn scans_cross_tablets_in_every_direction() {
    let fake = Fake::start(3, &["c", "h", "p"]);
    let names = fill(&fake);
    let client = connect(&fake).await;
    assert_eq!(keys(&client, Scan::all()).await, names);
    let reversed: Vec<_> = names.iter().rev().cloned().collect();
    assert_eq!(keys(&client, Scan { reverse: true, ..Scan::all() }).await, reversed);
    assert_eq!(keys(&client, Scan { limit: Some(25), ..Scan::all() }).await, names[..25]);
    assert_eq!(keys(&client, Scan { limit: Some(25), reverse: true, ..Scan::all() }).await, reversed[..25]);
    assert_eq!(keys(&client, Scan::prefix("h")).await, names[70..80]);
    assert_eq!(keys(&client, Scan::range("b5", "h2")).await, names[15..72]);
    assert_eq!(keys(&client, Scan { limit: Some(0), ..Scan::all() }).await, Vec::<String>::new());
    assert_eq!(client.count("t", Scan::all()).await.unwrap().count, 260);
    assert_eq!(client.count("t", Scan { limit: Some(41), ..Scan::all() }).await.unwrap().count, 41);
    assert_eq!(client.scan("t", Scan::range("b", "a")).unwrap_err().reason(), Reason::BadRequest);
}

#[tokio::test]
async fn broken_scans_go_on_without_gap_or_repeat() {
    let fake = Fake::start(3, &["c", "h", "p"]);
    let names = fill(&fake);
    let client = connect(&fake).await;
    for reverse in [false, true] {
        fake.faults(Faults { broken_scans: 7, ..Faults::default() });
        let mut expected = names.clone();
        if reverse {
            expected.reverse();
        }
        assert_eq!(keys(&client, Scan { reverse, ..Scan::all() }).await, expected);
        fake.faults(Faults { broken_scans: 7, ..Faults::default() });
        assert_eq!(client.count("t", Scan { reverse, ..Scan::all() }).await.unwrap().count, 260);
    }
}

#[tokio::test]
async fn a_scan_reads_all_tablets_at_the_time_of_its_first_page() {
    let fake = Fake::start(2, &["h", "p"]);
    let names = fill(&fake);
    let client = connect(&fake).await;
    let mut rows = client.scan("t", Scan::all()).unwrap();
    let first = rows.try_next().await.unwrap().unwrap();
    fake.state.lock().unwrap().put("z99", "late");
    let rest: Vec<_> = rows.try_collect().await.unwrap();
    assert_eq!((first.key, rest.len()), (Bytes::from("a0"), names.len() - 1));
    let asked = fake.state.lock().unwrap().scanned_at.clone();
    assert_eq!(asked[0], 0);
    assert!(asked.len() >= 3 && asked[1..].iter().all(|at| *at == asked[1] && *at != 0), "{asked:?}");
}

#[tokio::test]
async fn a_leader_that_moves_between_tablets_of_a_scan_is_followed() {
    let fake = Fake::start(3, &["h", "p"]);
    let names = fill(&fake);
    let client = connect(&fake).await;
    assert_eq!(keys(&client, Scan::all()).await, names);
    fake.lead(1, 1);
    fake.lead(2, 2);
    assert_eq!(keys(&client, Scan::all()).await, names);
}

#[tokio::test]
async fn a_split_batch_reports_by_part() {
    let fake = Fake::start(2, &["m"]);
    let client = connect(&fake).await;
    let batch = Batch::new().set("a", "1").set("z", "2").set("b", "3");
    let parts = client.write_split("t", batch, WriteOptions::default()).await.unwrap();
    let places: Vec<_> = parts.iter().map(|part| part.ops.clone()).collect();
    assert_eq!(places, [vec![0, 2], vec![1]]);
    assert!(parts.into_iter().all(|part| part.result.unwrap().committed().is_ok()));
    let parts = client.delete_range("t", "b", "", WriteOptions::default()).await.unwrap();
    assert_eq!(parts.len(), 2);
    assert_eq!(keys(&client, Scan::all()).await, ["a"]);
}

#[tokio::test]
async fn definite_errors_come_at_once() {
    let fake = Fake::start(1, &[]);
    let client = connect(&fake).await;
    for (table, key, reason) in [("nope", "k", Reason::TableNotFound), ("t", "", Reason::BadRequest)] {
        let error = client.set(table, key, "v").await.unwrap_err();
        assert_eq!((error.reason(), error.is_definite()), (reason, true));
        assert_eq!(client.get_at(table, key, Hlc(1)).await.unwrap_err().reason(), reason);
    }
}

#[tokio::test]
async fn dead_endpoints_are_passed_over_and_named() {
    let fake = Fake::start(1, &[]);
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let mixed = [dead.clone(), fake.addresses[0].clone()];
    let client = Client::builder().endpoints(mixed).timeout(TIMEOUT).connect().await.unwrap();
    client.set("t", "k", "v").await.unwrap().committed().unwrap();
    let error = Client::builder().endpoints([dead.clone()]).connect().await.unwrap_err();
    assert_eq!(error.reason(), Reason::Unavailable);
    assert!(error.message().contains(&dead), "{error}");
}

#[tokio::test]
async fn a_cluster_that_is_gone_is_a_definite_failure_of_new_writes() {
    let fake = Fake::start(1, &[]);
    let client = connect(&fake).await.with_timeout(Duration::from_millis(300));
    client.set("t", "k", "v").await.unwrap().committed().unwrap();
    drop(fake);
    tokio::time::sleep(Duration::from_millis(100)).await;
    for error in [client.get("t", "k").await.unwrap_err(), client.set("t", "k", "w").await.unwrap_err()] {
        assert!(error.is_definite() && error.is_retryable(), "{error}");
        assert_eq!(error.reason(), Reason::Unavailable);
    }
}

#[tokio::test]
async fn operators_calls_find_the_leading_master() {
    let fake = Fake::start(3, &[]);
    let client =
        Client::builder().endpoints([fake.addresses[0].clone()]).timeout(TIMEOUT).connect().await.unwrap();
    assert_eq!(client.admin().list_tables().await.unwrap().len(), 1);
    assert_eq!(client.admin().drop_table("x").await.unwrap_err().reason(), Reason::TableNotFound);
    let slow = client.with_timeout(Duration::from_millis(200));
    assert_eq!(slow.admin().status().await.unwrap_err().reason(), Reason::Unavailable);
}

#[tokio::test]
async fn copies_answer_reads_that_may_be_old() {
    let fake = Fake::start(3, &[]);
    let client = connect(&fake).await;
    let committed = client.set("t", "k", "1").await.unwrap().committed().unwrap();
    let session = committed.session.unwrap();
    assert_eq!((session.lineage, session.ts), (1, committed.ts.0));
    let reads = [Consistency::Bounded(Duration::from_secs(5)), Consistency::Session(session)];
    for _ in 0..20 {
        for read in reads {
            assert_eq!(client.get_with("t", "k", read).await.unwrap().unwrap().value, bytes("1"));
        }
        assert!(client.get_with("t", "none", Consistency::Linearizable).await.unwrap().is_none());
    }
    let copy_reads = fake.state.lock().unwrap().copy_reads;
    assert!(
        (5..40).contains(&copy_reads),
        "two of three copies follow, but {copy_reads} of 40 reads went there"
    );
}

#[tokio::test]
async fn the_leader_answers_for_copies_that_cannot() {
    let mut fake = Fake::start(3, &[]);
    let client = connect(&fake).await;
    client.set("t", "k", "1").await.unwrap().committed().unwrap();
    fake.faults(Faults { behind: true, ..Faults::default() });
    fake.kill(3);
    for _ in 0..10 {
        let read = Consistency::Bounded(Duration::from_secs(5));
        assert_eq!(client.get_with("t", "k", read).await.unwrap().unwrap().value, bytes("1"));
    }
    assert_eq!(fake.state.lock().unwrap().copy_reads, 0);
}

#[tokio::test]
async fn a_write_that_a_failover_dropped_is_told() {
    let fake = Fake::start(3, &[]);
    let client = connect(&fake).await;
    let lost = Consistency::Session(SessionToken { lineage: 9, epoch: 1, seq: 1, ts: 1 });
    for _ in 0..50 {
        if let Err(error) = client.get_with("t", "k", lost).await {
            assert_eq!((error.reason(), error.is_retryable()), (Reason::WriteLost, false));
            return;
        }
    }
    panic!("no copy was ever asked");
}

#[tokio::test]
async fn levels_that_a_table_cannot_have_are_refused_at_once() {
    let fake = Fake::start(1, &[]);
    let client = connect(&fake).await;
    for level in [AckLevel::Leader, AckLevel::InSync, AckLevel::Copies(2), AckLevel::Copies(3)] {
        client.check_ack("t", level).await.unwrap();
    }
    for copies in [1, 4] {
        let error = client.check_ack("t", AckLevel::Copies(copies)).await.unwrap_err();
        assert!(error.reason() == Reason::BadRequest && error.message().contains("2 to 3"), "{error}");
    }
}

#[tokio::test]
async fn ledgers_of_all_servers_are_asked_and_silent_ones_named() {
    let mut fake = Fake::start(3, &[]);
    let client = connect(&fake).await;
    fake.kill(2);
    let lost = client.list_lost("").await.unwrap();
    assert_eq!(lost.records.iter().map(|record| record.server_id).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(lost.unreachable.iter().map(|(server, _)| server.id).collect::<Vec<_>>(), [2]);
    assert_eq!(client.list_lost("t").await.unwrap().records.len(), 1);
    assert_eq!(client.list_lost("none").await.unwrap_err().reason(), Reason::TableNotFound);

    let server = &client.admin().list_servers().await.unwrap()[2].server.clone().unwrap();
    let entries: Vec<_> = client.show_lost(server, 7).await.unwrap().try_collect().await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [1, 2, 3]);
    let error = client.show_lost(server, 8).await.err().unwrap();
    assert_eq!(error.reason(), Reason::RecordNotFound);
}

#[tokio::test]
async fn leadership_is_handed_over() {
    let fake = Fake::start(2, &[]);
    let admin = connect(&fake).await.admin();
    let answer = admin.transfer_leader(1, 2).await.unwrap();
    assert_eq!((answer.job_id, answer.tablet.unwrap().tablet.unwrap().leader_server_id), (7, 2));
    assert_eq!(admin.transfer_leader(1, 1).await.unwrap_err().reason(), Reason::NotTransferable);
    let late = admin.transfer_leader(1, 3).await.unwrap_err();
    assert_eq!((late.reason(), late.message()), (Reason::TimedOut, "it did not take over"));
    assert_eq!(admin.transfer_leader(9, 1).await.unwrap_err().reason(), Reason::TabletNotFound);
}
