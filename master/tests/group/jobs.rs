//! Whose job goes first: an operator's ends one of the cluster, or waits for it when that can
//! be ended no longer, and is refused only against another operator's.

use super::support::{FakeServer, Group, eventually};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::{self, JobState};
use std::time::Duration;

/// Some tablets on server 1; servers 2 and 3 come later, so that the cluster moves copies there.
async fn moving() -> (Group, Vec<FakeServer>) {
    let mut group = Group::new(1);
    group.balance_interval = Duration::from_millis(20);
    group.start_all().await;
    let first = FakeServer::new(&group.peers, 1);
    first.registered().await;
    eventually("a server that is up", async || {
        let spec = v1::TableSpec { replicas: 1, ..Default::default() };
        let split_keys = ('b'..='p').map(|key| key.to_string().into()).collect();
        let request = v1::CreateTableRequest { name: "t".into(), spec: Some(spec), split_keys };
        group.leader_admin().await.create_table(request).await.ok()
    })
    .await;
    let mut servers = vec![first];
    for number in 2..=3 {
        let server = FakeServer::new(&group.peers, number);
        server.registered().await;
        servers.push(server);
    }
    (group, servers)
}

async fn jobs(group: &Group) -> Vec<v1::Job> {
    let request = v1::ListJobsRequest { running: false };
    group.leader_admin().await.list_jobs(request).await.unwrap().into_inner().jobs
}

/// A move that the cluster has begun by itself.
async fn automatic(group: &Group) -> v1::Job {
    let runs = |job: &v1::Job| job.automatic && job.state() == JobState::Running;
    eventually("a move by itself", async || jobs(group).await.into_iter().find(runs)).await
}

async fn pause(group: &Group) {
    let request = v1::PauseBalancerRequest { paused: true };
    group.leader_admin().await.pause_balancer(request).await.unwrap();
}

async fn move_tablet(group: &Group, job: &v1::Job, to: u64) -> Result<u64, ApiError> {
    let request = v1::MoveTabletRequest {
        tablet_id: job.tablet_id,
        from_server_id: job.from_server_id,
        to_server_id: to,
    };
    match group.leader_admin().await.move_tablet(request).await {
        Ok(response) => Ok(response.into_inner().job_id),
        Err(status) => Err(ApiError::from_status(&status)),
    }
}

async fn state_of(group: &Group, id: u64) -> JobState {
    jobs(group).await.into_iter().find(|job| job.id == id).map_or(JobState::Unspecified, |job| job.state())
}

async fn tablet(group: &Group, id: u64) -> v1::Tablet {
    group.tablets("t").await.into_iter().find(|tablet| tablet.id == id).unwrap()
}

/// Lets the leader ask that the copy on a server comes into the in-sync set, or goes.
async fn alter(group: &Group, servers: &[FakeServer], tablet_id: u64, server: u64, add: bool) {
    let tablet = tablet(group, tablet_id).await;
    let copy = tablet.replicas.iter().find(|copy| copy.server_id == server).unwrap();
    let by = servers.iter().find(|one| one.remembered().server_id == tablet.leader_server_id).unwrap();
    by.memory.lock().unwrap().proposals.push(v1::InSyncProposal {
        tablet_id,
        epoch: tablet.epoch,
        config_version: tablet.config_version,
        replica_ids: vec![copy.replica_id],
        add,
        incarnation: 1,
        disk_generation: server,
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_operator_s_job_ends_one_of_the_cluster_and_no_other() {
    let (group, _servers) = moving().await;
    let wanted = automatic(&group).await;
    pause(&group).await;
    let other = 5 - wanted.to_server_id;
    let job = move_tablet(&group, &wanted, other).await.unwrap();
    assert_eq!(state_of(&group, wanted.id).await, JobState::Cancelled);
    assert_eq!(state_of(&group, job).await, JobState::Running);
    let places: Vec<u64> =
        tablet(&group, wanted.tablet_id).await.replicas.iter().map(|copy| copy.server_id).collect();
    assert_eq!(places, [1, other], "nothing of the job that was ended stays");
    let refused = move_tablet(&group, &wanted, wanted.to_server_id).await.unwrap_err();
    assert_eq!(refused.reason, Reason::JobConflict, "{refused}");
    assert!(refused.message.contains(&format!("ebla job cancel {job}")), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_operator_s_job_waits_for_one_that_is_past_its_commit_point() {
    let (group, servers) = moving().await;
    let wanted = automatic(&group).await;
    pause(&group).await;
    let (id, to) = (wanted.tablet_id, wanted.to_server_id);
    let target = servers.iter().find(|server| server.remembered().server_id == to).unwrap();
    // The copy has what the leader has, and comes in: the old one must go now.
    let ends = servers[0].remembered().ends;
    target.memory.lock().unwrap().ends = ends;
    alter(&group, &servers, id, to, true).await;
    eventually("the new copy leads", async || {
        (tablet(&group, id).await.leader_server_id == to).then_some(())
    })
    .await;
    let back = v1::Job { from_server_id: to, ..wanted.clone() };
    let asked = async { move_tablet(&group, &back, 5 - to).await };
    let held = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(state_of(&group, wanted.id).await, JobState::Running, "it cannot be ended");
        assert_eq!(jobs(&group).await.iter().filter(|job| job.tablet_id == id).count(), 1);
        alter(&group, &servers, id, 1, false).await;
    };
    let (job, ()) = tokio::join!(asked, held);
    let job = job.unwrap();
    assert_eq!(state_of(&group, wanted.id).await, JobState::Done);
    assert_eq!(state_of(&group, job).await, JobState::Running);
}
