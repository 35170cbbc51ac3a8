//! Masters as a group in one process, over loopback, with tablet servers that only pretend.

mod copies;
mod jobs;
mod support;

use ebla_master::{Error, Master};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::{self, route_service_client::RouteServiceClient};
use std::time::{Duration, Instant};
use support::{FakeServer, Group, Memory, disk, eventually, free_addresses};
use tokio::task::JoinSet;

fn reason<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> Reason {
    ApiError::from_status(&result.unwrap_err()).reason
}

fn keys(count: usize) -> Vec<bytes::Bytes> {
    (0..count).map(|number| format!("k{number:06}").into()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_master_forms_alone_and_creates_tables() {
    let group = Group::started(1).await;
    assert_eq!(reason(group.create_table("early", vec![]).await), Reason::Unavailable);
    let server = FakeServer::new(&group.peers, 1);
    let id = server.registered().await;
    let table = eventually("a server that is up", async || group.create_table("t", keys(2)).await.ok()).await;
    assert_eq!(table.name, "t");
    let tablets = group.tablets("t").await;
    assert_eq!(tablets.len(), 3);
    assert!(tablets.iter().all(|tablet| tablet.leader_server_id == id && tablet.epoch == 1));
    assert!(tablets.windows(2).all(|pair| pair[0].end == pair[1].start));
    assert_eq!(reason(group.create_table("t", vec![]).await), Reason::TableExists);
    assert_eq!(reason(group.create_table("bad name", vec![]).await), Reason::BadRequest);
    let mut admin = group.leader_admin().await;
    let described = admin.describe_table(v1::DescribeTableRequest { name: "t".into() }).await.unwrap();
    let summary = described.into_inner().table.unwrap();
    assert_eq!((summary.tablets, summary.tablets_serving, summary.rows_estimate), (3, 3, 21));
    admin.drop_table(v1::DropTableRequest { name: "t".into() }).await.unwrap();
    let dropped = admin.describe_table(v1::DescribeTableRequest { name: "t".into() }).await;
    assert_eq!(reason(dropped), Reason::TableNotFound);
    eventually("the copies' removal", async || server.remembered().leads.is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_masters_survive_the_loss_of_their_leader() {
    let mut group = Group::started(3).await;
    let server = FakeServer::new(&group.peers, 1);
    server.registered().await;
    eventually("a server that is up", async || group.create_table("t", keys(9)).await.ok()).await;
    let old = group.leader().await;
    let cluster = group.status(old).await.unwrap().cluster_id;
    let other = group.peers.keys().copied().find(|id| *id != old).unwrap();
    let error = ApiError::from_status(&group.status(other).await.unwrap_err());
    assert_eq!(error.reason, Reason::NotLeader);
    assert_eq!(error.metadata.get("leader"), Some(&group.peers[&old]));
    let sessions = server.remembered().sessions;

    group.kill(old);
    let killed = Instant::now();
    let new = group.leader().await;
    assert!(killed.elapsed() < Duration::from_millis(1_500), "a new leader took {:?}", killed.elapsed());
    assert_ne!(new, old);

    let tablets = group.tablets("t").await;
    assert_eq!(tablets.len(), 10);
    assert!(tablets.iter().all(|tablet| tablet.epoch == 1), "a new master leader changes no tablet leader");
    eventually("the session with the new leader", async || {
        (server.remembered().sessions > sessions).then_some(())
    })
    .await;
    let status = eventually("a server known to be up", async || {
        let status = group.status(new).await.ok()?;
        (status.servers.first()?.tablets == 10).then_some(status)
    })
    .await;
    assert_eq!((status.tablets_serving, status.cluster_id.as_str()), (10, cluster.as_str()));
    assert!(status.warnings.iter().any(|warning| warning.contains(&format!("master {old}"))));

    group.stop_all().await;
    group.start_all().await;
    let status = group.status(group.leader().await).await.unwrap();
    assert_eq!((status.tablets, status.cluster_id), (10, cluster));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_took_no_messages_for_a_while_gets_a_new_session() {
    let group = Group::started(1).await;
    let server = FakeServer::new(&group.peers, 1);
    server.registered().await;
    eventually("a server that is up", async || group.create_table("t", vec![]).await.ok()).await;
    server.memory.lock().unwrap().deaf = true;
    // More than the connection takes and than may wait: its session ends.
    let (admin, mut made) = (group.leader_admin().await, JoinSet::new());
    let mut number = 0;
    while group.status(1).await.unwrap().servers[0].server.as_ref().unwrap().state() == v1::ServerState::Up {
        assert!(number < 10_000, "there is room for everything");
        let (mut admin, split_keys) =
            (admin.clone(), (b'a'..b'd').map(|byte| vec![byte; 4_000].into()).collect());
        let table = v1::CreateTableRequest { name: format!("t{number}"), spec: None, split_keys };
        made.spawn(async move { admin.create_table(table).await });
        tokio::time::sleep(Duration::from_millis(5)).await;
        number += 1;
    }
    drop(made);
    server.memory.lock().unwrap().deaf = false;
    eventually("a table on it", async || group.create_table("late", vec![]).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stopping_leader_hands_over() {
    let mut group = Group::started(3).await;
    let old = group.leader().await;
    let stopping = Instant::now();
    group.masters.remove(&old).unwrap().stop().await.unwrap();
    group.leader().await;
    assert!(stopping.elapsed() < Duration::from_millis(2_000), "handing over took {:?}", stopping.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restarted_server_gets_a_new_epoch_and_a_twin_is_fenced() {
    let group = Group::started(1).await;
    let server = FakeServer::new(&group.peers, 1);
    server.registered().await;
    eventually("a server that is up", async || group.create_table("t", keys(3)).await.ok()).await;
    let before = server.remembered();
    assert_eq!(before.incarnation, 1);
    let second = Memory { leads: Default::default(), ..before };
    // The first run is still connected: the second one, of the same directory, fences it.
    let twin = FakeServer::start(&group.peers, disk(1, 2), second);
    eventually("new epochs", async || {
        let tablets = group.tablets("t").await;
        tablets.iter().all(|tablet| tablet.epoch == 2 && tablet.leader_server_id != 0).then_some(())
    })
    .await;
    assert_eq!(twin.remembered().incarnation, 2);
    let ended = eventually("the first run's end", async || server.remembered().ended).await;
    assert_eq!(ApiError::from_status(&ended).reason, Reason::Superseded);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(twin.remembered().incarnation, 2, "a run that was replaced does not come back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_of_another_cluster_is_refused() {
    let group = Group::started(1).await;
    let foreign = Memory { cluster_id: "0".repeat(32), server_id: 1, ..Memory::default() };
    let server = FakeServer::start(&group.peers, disk(1, 1), foreign);
    let ended = eventually("the refusal", async || server.remembered().ended).await;
    let error = ApiError::from_status(&ended);
    let ours = group.status(1).await.unwrap().cluster_id;
    assert_eq!(error.reason, Reason::WrongCluster);
    assert!(error.message.contains(&"0".repeat(32)) && error.message.contains(&ours), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_follower_that_was_away_catches_up_by_snapshot() {
    let mut group = Group::new(3);
    group.snapshot_entries = 20;
    group.start_all().await;
    let server = FakeServer::new(&group.peers, 1);
    server.registered().await;
    eventually("a server that is up", async || group.create_table("t", vec![]).await.ok()).await;
    let leader = group.leader().await;
    let away = group.peers.keys().copied().find(|id| *id != leader).unwrap();
    group.kill(away);
    for number in 0..20 {
        group.create_table(&format!("t{number}"), keys(1)).await.unwrap();
    }
    group.start(away).await;
    let mut routes = RouteServiceClient::connect(format!("http://{}", group.peers[&away])).await.unwrap();
    eventually("catching up", async || {
        let map = routes.get_routes(v1::GetRoutesRequest::default()).await.unwrap().into_inner().routes?;
        (map.tables.len() == 21).then_some(())
    })
    .await;
    let snapshots = group.config(away).data_dir.join("snapshots");
    assert!(std::fs::read_dir(snapshots).unwrap().count() > 0);
    // What came by snapshot survives its restart, too.
    group.kill(away);
    group.start(away).await;
    eventually("its routes", async || {
        let address = format!("http://{}", group.peers[&away]);
        let mut routes = RouteServiceClient::connect(address).await.ok()?;
        let map = routes.get_routes(v1::GetRoutesRequest::default()).await.ok()?.into_inner().routes?;
        (map.tables.len() == 21).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn routes_are_pushed() {
    let group = Group::started(1).await;
    let server = FakeServer::new(&group.peers, 1);
    server.registered().await;
    let mut routes = RouteServiceClient::connect(format!("http://{}", group.peers[&1])).await.unwrap();
    let mut watch = routes.watch_routes(v1::WatchRoutesRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().unwrap().full);
    eventually("a server that is up", async || group.create_table("t", keys(1)).await.ok()).await;
    let mut leaders = std::collections::BTreeMap::new();
    while leaders.len() < 2 || leaders.values().any(|leader| *leader == 0) {
        let push = watch.message().await.unwrap().unwrap().routes.unwrap();
        leaders.extend(push.tablets.iter().map(|tablet| (tablet.id, tablet.leader_server_id)));
    }
    let request = v1::DropTableRequest { name: "t".into() };
    group.leader_admin().await.drop_table(request).await.unwrap();
    loop {
        let push = watch.message().await.unwrap().unwrap();
        if push.removed_tablet_ids.len() == 2 {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_tablets_are_created_at_once() {
    let group = Group::started(1).await;
    let servers: Vec<FakeServer> = (1..=3).map(|number| FakeServer::new(&group.peers, number)).collect();
    for server in &servers {
        server.registered().await;
    }
    let version = group.status(1).await.unwrap().version;
    let start = Instant::now();
    group.create_table("big", keys(9_999)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
    let after = group.status(1).await.unwrap();
    assert_eq!((after.tablets, after.tablets_serving), (10_000, 10_000));
    assert!(after.version - version < 50, "a few entries, not one per tablet: {}", after.version - version);
    for summary in after.servers {
        assert!((3_333..=3_334).contains(&summary.leaders), "{}", summary.leaders);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_directory_that_does_not_fit_is_refused() {
    let mut group = Group::started(3).await;
    let refused = async |config| match Master::start(config).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    };
    let in_use = refused(group.config(1)).await;
    assert!(matches!(in_use, Error::InUse(_)), "{in_use}");
    group.masters.remove(&3).unwrap().stop().await.unwrap();
    let mut other_id = group.config(3);
    other_id.id = 2;
    assert!(refused(other_id).await.to_string().contains("belongs to master 3"));
    let mut other_peers = group.config(3);
    other_peers.peers.insert(2, free_addresses(1).remove(0));
    assert!(refused(other_peers).await.to_string().contains("other --peers"));
    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("photo.jpg"), "x").unwrap();
    let mut not_ours = group.config(3);
    not_ours.data_dir = foreign.path().to_owned();
    assert!(refused(not_ours).await.to_string().contains("empty --data-dir"));
    // A raft id is never reused with an empty directory.
    let empty = tempfile::tempdir().unwrap();
    let mut wiped = group.config(3);
    wiped.data_dir = empty.path().to_owned();
    let wiped = refused(wiped).await;
    assert!(matches!(wiped, Error::Refused(_)), "{wiped}");
    group.start(3).await;
    eventually("its return", async || group.masters[&3].is_ready().then_some(())).await;
}
