//! Tables with several copies: where they go, who leads them, who is in sync.

use super::support::{FakeServer, Group, eventually};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use std::collections::BTreeSet;

async fn three_servers() -> (Group, Vec<FakeServer>) {
    let group = Group::started(1).await;
    let mut servers = Vec::new();
    for number in 1..=3 {
        let server = FakeServer::new(&group.peers, number);
        server.registered().await;
        servers.push(server);
    }
    eventually("three servers that are up", async || {
        let status = group.status(1).await.ok()?;
        (status.servers.iter().filter(|server| server.silent_ms < 1_000).count() == 3).then_some(())
    })
    .await;
    (group, servers)
}

/// The tablet of a table of one.
async fn tablet(group: &Group) -> v1::Tablet {
    group.tablets("t").await.remove(0)
}

/// What a server says of the run that leads.
fn silent(tablet: &v1::Tablet) -> Vec<v1::ServerRun> {
    vec![v1::ServerRun { server_id: tablet.leader_server_id, incarnation: tablet.leader_incarnation }]
}

fn on(servers: &[FakeServer], id: u64) -> &FakeServer {
    servers.iter().find(|server| server.remembered().server_id == id).unwrap()
}

async fn transfer(group: &Group, tablet_id: u64, server_id: u64) -> Result<v1::Tablet, ApiError> {
    let request = v1::TransferLeaderRequest { tablet_id, server_id };
    match group.leader_admin().await.transfer_leader(request).await {
        Ok(response) => Ok(response.into_inner().tablet.unwrap().tablet.unwrap()),
        Err(status) => Err(ApiError::from_status(&status)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn copies_go_to_distinct_servers_and_no_more_than_are_up() {
    let (group, _servers) = three_servers().await;
    let table = group.create_table("t", vec!["g".into(), "p".into()]).await.unwrap();
    let spec = table.spec.unwrap();
    assert_eq!((spec.replicas, spec.min_in_sync), (3, 2));
    for tablet in group.tablets("t").await {
        let places: BTreeSet<u64> = tablet.replicas.iter().map(|replica| replica.server_id).collect();
        assert_eq!(places.len(), 3);
        assert!(tablet.replicas.iter().all(|replica| replica.in_sync && !replica.lost));
    }
    let describe = v1::DescribeTableRequest { name: "t".into() };
    let described = group.leader_admin().await.describe_table(describe).await.unwrap().into_inner();
    assert_eq!(described.failures_tolerated, 1);

    let refused =
        async |spec: v1::TableSpec| ApiError::from_status(&group.create("no", spec).await.unwrap_err());
    let error = refused(v1::TableSpec { replicas: 4, ..Default::default() }).await;
    assert_eq!(error.reason, Reason::TooFewServers);
    assert!(error.message.starts_with("3 tablet servers are up and 4 are needed"), "{error}");
    let error = refused(v1::TableSpec { replicas: 3, min_in_sync: 1, ..Default::default() }).await;
    assert!(error.reason == Reason::BadRequest && error.message.contains("--policy degraded"), "{error}");
    let copies = |copies| Some(v1::AckLevel { kind: v1::AckKind::Copies as i32, copies });
    for wrong in [1, 4] {
        let error = refused(v1::TableSpec { ack: copies(wrong), ..Default::default() }).await;
        assert_eq!(error.reason, Reason::BadRequest, "copies={wrong}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_a_quota_does_not_hear_is_replaced() {
    let (group, mut servers) = three_servers().await;
    group.create_table("t", vec![]).await.unwrap();
    let before = tablet(&group).await;
    let leads = before.leader_server_id;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leads).collect();
    on(&servers, others[0]).memory.lock().unwrap().silent = silent(&before);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(tablet(&group).await.epoch, before.epoch, "one of three deposes nobody");

    // Its process is gone, and the second one says so.
    servers.retain(|server| server.remembered().server_id != leads);
    on(&servers, others[1]).memory.lock().unwrap().silent = silent(&before);
    let after = eventually("another leader", async || {
        let tablet = tablet(&group).await;
        others.contains(&tablet.leader_server_id).then_some(tablet)
    })
    .await;
    assert_eq!((after.epoch, after.degraded), (before.epoch + 1, false));
    assert!(after.replicas.iter().all(|replica| replica.in_sync), "an election edits no in-sync set");
    let awaits = eventually("the end of its session", async || {
        let tablet = tablet(&group).await;
        (tablet.awaited_server_id != 0).then_some((tablet.awaited_server_id, tablet.awaited_epoch))
    })
    .await;
    assert_eq!(awaits, (leads, before.epoch));
    let warnings = group.status(1).await.unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("what it alone had")), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leadership_is_handed_over_and_refusals_say_why() {
    let (group, servers) = three_servers().await;
    group.create_table("t", vec![]).await.unwrap();
    let before = tablet(&group).await;
    let (leads, target) = (before.leader_server_id, before.leader_server_id % 3 + 1);
    // The copy has what the leader has.
    let ends = on(&servers, leads).remembered().ends;
    on(&servers, target).memory.lock().unwrap().ends = ends;
    let after = transfer(&group, before.id, target).await.unwrap();
    assert_eq!((after.leader_server_id, after.epoch), (target, before.epoch + 1));
    assert!(on(&servers, target).remembered().leads.contains_key(&before.id));
    assert!(!on(&servers, leads).remembered().leads.contains_key(&before.id));

    let refused = async |tablet, server| transfer(&group, tablet, server).await.unwrap_err().reason;
    assert_eq!(refused(before.id, target).await, Reason::NotTransferable);
    assert_eq!(refused(99, target).await, Reason::TabletNotFound);
    assert_eq!(refused(before.id, 99).await, Reason::ServerNotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_learns_the_record_before_the_fate_of_its_wish() {
    let (group, servers) = three_servers().await;
    group.create_table("t", vec![]).await.unwrap();
    let before = tablet(&group).await;
    let leader = on(&servers, before.leader_server_id);
    let out = *before.replicas.iter().find(|copy| copy.server_id != before.leader_server_id).unwrap();
    let ask = |config_version, add, disk_generation| v1::InSyncProposal {
        tablet_id: before.id,
        epoch: before.epoch,
        config_version,
        replica_ids: vec![out.replica_id],
        add,
        incarnation: 1,
        disk_generation,
    };
    let answered = async |proposal: v1::InSyncProposal| {
        let known = leader.remembered().answers.len();
        leader.memory.lock().unwrap().proposals.push(proposal);
        eventually("an answer", async || leader.remembered().answers.get(known).copied()).await
    };
    let version = before.config_version;
    let (answer, known) = answered(ask(version, false, 0)).await;
    assert_eq!((answer.accepted, answer.config_version, known), (true, version, version + 1));
    let copies = tablet(&group).await.replicas;
    assert!(copies.iter().all(|copy| copy.in_sync != (copy.replica_id == out.replica_id)));
    let warnings = group.status(1).await.unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("1 tablets lack a copy")), "{warnings:?}");
    let refused = transfer(&group, before.id, out.server_id).await.unwrap_err();
    assert_eq!(refused.reason, Reason::NotTransferable);
    assert!(refused.message.contains("not in sync"), "{refused}");

    let (answer, _) = answered(ask(version, false, 0)).await;
    assert!(!answer.accepted, "asked again, as if the answer had been lost");
    let (answer, _) = answered(ask(version + 1, true, 777)).await;
    assert!(!answer.accepted, "it lies in another directory");
    let (answer, known) = answered(ask(version + 1, true, out.server_id)).await;
    assert_eq!((answer.accepted, known), (true, version + 2));
}
