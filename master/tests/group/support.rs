//! A group of masters in this process, and a tablet server that only says what it would do.

use ebla_master::{Config, Error, Master};
use ebla_proto::v1::admin_service_client::AdminServiceClient;
use ebla_proto::v1::server_control_service_client::ServerControlServiceClient;
use ebla_proto::v1::session_request::Message as Up;
use ebla_proto::v1::session_response::Message as Down;
use ebla_proto::v1::{self, SessionRequest};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

/// Longest wait of a test for something that should happen soon.
const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until `look` finds something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Addresses that were free a moment ago.
pub fn free_addresses(count: usize) -> Vec<String> {
    let listeners: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

/// Some masters and their directories.
pub struct Group {
    dir: tempfile::TempDir,
    pub peers: BTreeMap<u64, String>,
    pub masters: BTreeMap<u64, Master>,
    pub snapshot_entries: u64,
    pub balance_interval: Duration,
}

impl Group {
    /// Directories and addresses for `count` masters, none of them started.
    pub fn new(count: usize) -> Self {
        let peers = (1..).zip(free_addresses(count)).collect();
        Self {
            dir: tempfile::tempdir().unwrap(),
            peers,
            masters: BTreeMap::new(),
            snapshot_entries: 5_000,
            balance_interval: Duration::from_secs(5),
        }
    }

    pub async fn started(count: usize) -> Self {
        let mut group = Self::new(count);
        group.start_all().await;
        group
    }

    pub fn config(&self, id: u64) -> Config {
        let mut config = Config::new(id, self.peers.clone(), self.dir.path().join(id.to_string()));
        config.snapshot_entries = self.snapshot_entries;
        config.balance_interval = Some(self.balance_interval);
        config
    }

    /// Starts a master; one that has just been dropped may hold its directory for a moment.
    pub async fn start(&mut self, id: u64) {
        let config = self.config(id);
        let start = async || match Master::start(config.clone()).await {
            Ok(master) => Some(master),
            Err(Error::InUse(_) | Error::Listen { .. }) => None,
            Err(error) => panic!("master {id} does not start: {error}"),
        };
        let master = eventually("the start", start).await;
        self.masters.insert(id, master);
    }

    pub async fn start_all(&mut self) {
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.start(id).await;
        }
        self.leader().await;
    }

    /// Ends a master as a crash would.
    pub fn kill(&mut self, id: u64) {
        drop(self.masters.remove(&id).unwrap());
    }

    pub async fn stop_all(&mut self) {
        for (_, master) in std::mem::take(&mut self.masters) {
            master.stop().await.unwrap();
        }
    }

    /// Who leads and answers.
    pub async fn leader(&self) -> u64 {
        eventually("leadership", async || {
            for (id, master) in &self.masters {
                if master.is_leader() && self.status(*id).await.is_ok() {
                    return Some(*id);
                }
            }
            None
        })
        .await
    }

    pub async fn admin(&self, id: u64) -> AdminServiceClient<Channel> {
        let address = format!("http://{}", self.peers[&id]);
        eventually("a connection", async || AdminServiceClient::connect(address.clone()).await.ok()).await
    }

    pub async fn leader_admin(&self) -> AdminServiceClient<Channel> {
        self.admin(self.leader().await).await
    }

    pub async fn status(&self, id: u64) -> Result<v1::GetStatusResponse, Status> {
        let status = self.admin(id).await.get_status(v1::GetStatusRequest {}).await?;
        Ok(status.into_inner())
    }

    pub async fn create_table(&self, name: &str, split_keys: Vec<bytes::Bytes>) -> Result<v1::Table, Status> {
        let request = v1::CreateTableRequest { name: name.to_owned(), spec: None, split_keys };
        let response = self.leader_admin().await.create_table(request).await?;
        Ok(response.into_inner().table.unwrap())
    }

    pub async fn create(&self, name: &str, spec: v1::TableSpec) -> Result<v1::Table, Status> {
        let request = v1::CreateTableRequest { name: name.to_owned(), spec: Some(spec), split_keys: vec![] };
        let response = self.leader_admin().await.create_table(request).await?;
        Ok(response.into_inner().table.unwrap())
    }

    pub async fn tablets(&self, table: &str) -> Vec<v1::Tablet> {
        let request = v1::ListTabletsRequest { table: table.to_owned() };
        let response = self.leader_admin().await.list_tablets(request).await.unwrap().into_inner();
        response.tablets.into_iter().map(|summary| summary.tablet.unwrap()).collect()
    }
}

/// What a tablet server's process remembers over its sessions, and its directory over runs.
#[derive(Clone, Default)]
pub struct Memory {
    pub cluster_id: String,
    pub server_id: u64,
    pub incarnation: u64,
    /// Tablet to the epoch that this run leads.
    pub leads: BTreeMap<u64, u64>,
    /// Tablet to the end of its log: epoch and seq.
    pub ends: BTreeMap<u64, (u64, u64)>,
    /// Why the last session ended.
    pub ended: Option<Status>,
    pub sessions: u64,
    /// Whether it hears what it is told.
    pub deaf: bool,
    /// Runs that it says it has not heard of.
    pub silent: Vec<v1::ServerRun>,
    /// Changes of in-sync sets to ask for next.
    pub proposals: Vec<v1::InSyncProposal>,
    /// Tablet to the epoch that this run gave up and the copy that it named.
    pub gave_up: BTreeMap<u64, (u64, u64)>,
    /// Tablet to what was last assigned.
    pub assigned: BTreeMap<u64, v1::Tablet>,
    /// Answers to proposals, each with the in-sync set's version as it was known by then.
    pub answers: Vec<(v1::InSyncAnswer, u64)>,
}

/// A tablet server that follows the leading master until it is dropped.
pub struct FakeServer {
    pub memory: Arc<Mutex<Memory>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
pub struct Disk {
    pub generation: u64,
    pub boot_id: u64,
    pub starts: u64,
    pub address: String,
}

impl FakeServer {
    /// Starts a run on `disk` that remembers what `memory` says.
    pub fn start(peers: &BTreeMap<u64, String>, disk: Disk, memory: Memory) -> Self {
        let memory = Arc::new(Mutex::new(memory));
        let run = Run { peers: peers.clone(), disk, memory: Arc::clone(&memory) };
        Self { memory, task: tokio::spawn(run.follow()) }
    }

    pub fn new(peers: &BTreeMap<u64, String>, number: u64) -> Self {
        Self::start(peers, disk(number, 1), Memory::default())
    }

    pub fn remembered(&self) -> Memory {
        self.memory.lock().unwrap().clone()
    }

    pub async fn registered(&self) -> u64 {
        eventually("registration", async || {
            let id = self.remembered().server_id;
            (id != 0).then_some(id)
        })
        .await
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn disk(number: u64, boot: u64) -> Disk {
    Disk {
        generation: number,
        boot_id: number * 100 + boot,
        starts: boot,
        address: format!("127.0.0.1:{}", 10_000 + number),
    }
}

struct Run {
    peers: BTreeMap<u64, String>,
    disk: Disk,
    memory: Arc<Mutex<Memory>>,
}

impl Run {
    async fn follow(self) {
        loop {
            for address in self.peers.values() {
                if let Err(status) = self.session(address).await {
                    self.memory.lock().unwrap().ended = Some(status);
                }
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    fn register(&self) -> v1::Register {
        let memory = self.memory.lock().unwrap();
        v1::Register {
            cluster_id: memory.cluster_id.clone(),
            server_id: memory.server_id,
            disk_generation: self.disk.generation,
            boot_id: self.disk.boot_id,
            starts: self.disk.starts,
            address: self.disk.address.clone(),
            zone: String::new(),
            clean: true,
        }
    }

    async fn session(&self, address: &str) -> Result<(), Status> {
        let unavailable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        let mut client =
            ServerControlServiceClient::connect(format!("http://{address}")).await.map_err(unavailable)?;
        let (up, requests) = mpsc::channel(64);
        send(&up, Up::Register(self.register())).await;
        let mut answers = client.session(ReceiverStream::new(requests)).await?.into_inner();
        let mut beat = tokio::time::interval(Duration::from_millis(50));
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    send(&up, Up::Heartbeat(self.heartbeat())).await;
                    let proposals = std::mem::take(&mut self.memory.lock().unwrap().proposals);
                    if !proposals.is_empty() {
                        send(&up, Up::InSyncProposals(v1::InSyncProposals { proposals })).await;
                    }
                }
                answer = answers.message(), if !self.memory.lock().unwrap().deaf => match answer?.and_then(|answer| answer.message) {
                    Some(message) => self.take(message, &up).await,
                    None => return Ok(()),
                },
            }
        }
    }

    fn heartbeat(&self) -> v1::Heartbeat {
        let memory = self.memory.lock().unwrap();
        let tablets = memory.leads.keys().chain(memory.gave_up.keys());
        let report = |tablet: &u64| {
            let (gave_up_epoch, successor_replica_id) =
                memory.gave_up.get(tablet).copied().unwrap_or_default();
            v1::TabletReport {
                tablet_id: *tablet,
                serving_epoch: memory.leads.get(tablet).copied().unwrap_or(0),
                rows_estimate: 7,
                bytes: 70,
                gave_up_epoch,
                successor_replica_id,
                behind_replica_ids: Vec::new(),
                diverged_replica_id: 0,
                requests: 0,
            }
        };
        v1::Heartbeat {
            draining: false,
            disk_bytes: 1_000,
            disk_bytes_free: 500,
            tablets: tablets.map(report).collect(),
            silent_leaders: memory.silent.clone(),
            arrivals: Vec::new(),
        }
    }

    async fn take(&self, message: Down, up: &mpsc::Sender<SessionRequest>) {
        match message {
            Down::Registered(registered) => {
                let mut memory = self.memory.lock().unwrap();
                memory.cluster_id = registered.cluster_id;
                memory.server_id = registered.server_id;
                memory.incarnation = registered.incarnation;
                memory.sessions += 1;
            }
            Down::Fences(fences) => {
                let answers = fences.fences.iter().map(|fence| self.answer(fence)).collect();
                send(up, Up::FenceAnswers(v1::FenceAnswers { answers })).await;
            }
            Down::Assignments(assignments) => self.assign(&assignments),
            Down::InSyncAnswers(answers) => {
                let mut memory = self.memory.lock().unwrap();
                for answer in answers.answers {
                    let known = memory.assigned[&answer.tablet_id].config_version;
                    memory.answers.push((answer, known));
                }
            }
            // These tests split nothing.
            Down::SealOrders(_) | Down::SplitRefusals(_) => {}
            Down::Transfers(transfers) => {
                let mut memory = self.memory.lock().unwrap();
                for transfer in transfers.transfers {
                    memory.leads.remove(&transfer.tablet_id);
                    memory.gave_up.insert(transfer.tablet_id, (transfer.epoch, transfer.replica_id));
                }
            }
        }
    }

    fn answer(&self, fence: &v1::Fence) -> v1::FenceAnswer {
        let mut memory = self.memory.lock().unwrap();
        memory.leads.remove(&fence.tablet_id);
        let (end_epoch, end_seq) = memory.ends.get(&fence.tablet_id).copied().unwrap_or_default();
        v1::FenceAnswer {
            tablet_id: fence.tablet_id,
            replica_id: fence.replica_id,
            epoch: fence.epoch,
            end_epoch,
            end_seq,
            end_hash: 0,
            ts_max: 0,
            disk_generation: self.disk.generation,
        }
    }

    fn assign(&self, assignments: &v1::Assignments) {
        let mut memory = self.memory.lock().unwrap();
        if assignments.full {
            memory.leads.clear();
        }
        for assignment in &assignments.assignments {
            let tablet = assignment.tablet.as_ref().unwrap();
            memory.assigned.insert(tablet.id, tablet.clone());
            if !assignment.leads || memory.leads.get(&tablet.id) == Some(&tablet.epoch) {
                continue;
            }
            memory.leads.insert(tablet.id, tablet.epoch);
            memory.gave_up.remove(&tablet.id);
            let seq = memory.ends.get(&tablet.id).map_or(1, |(_, seq)| seq + 1);
            memory.ends.insert(tablet.id, (tablet.epoch, seq));
        }
        for id in &assignments.removed_tablet_ids {
            memory.leads.remove(id);
            memory.ends.remove(id);
        }
    }
}

async fn send(up: &mpsc::Sender<SessionRequest>, message: Up) {
    // A session that has ended is opened again by its owner.
    let _ = up.send(SessionRequest { message: Some(message) }).await;
}
