//! Forming the group: an empty directory asks every peer before it takes part.
//!
//! All masters of a new group must be up once, so that each learns the numbers of all data
//! directories; from then on a majority is enough. One that comes with an empty directory to
//! a formed cluster is refused, unless its directory is the one the cluster was formed with.

use crate::error::Error;
use crate::limits::{HELLO_RETRY, HELLO_TIMEOUT};
use crate::raft::transport::endpoint;
use ebla_proto::v1::meta_raft_service_client::MetaRaftServiceClient;
use ebla_proto::v1::{HelloRequest, HelloResponse};
use std::collections::BTreeMap;
use tokio::time::timeout;

/// What is known while the group forms.
pub(crate) struct Forming {
    id: u64,
    directory_id: u64,
    peers: BTreeMap<u64, String>,
    directories: BTreeMap<u64, u64>,
}

impl Forming {
    pub fn new(id: u64, directory_id: u64, peers: BTreeMap<u64, String>) -> Self {
        Self { id, directory_id, peers, directories: BTreeMap::from([(id, directory_id)]) }
    }

    /// Asks every peer that has not answered. True when this master may take part.
    pub async fn ask_all(&mut self) -> Result<bool, Error> {
        for (id, address) in self.peers.clone() {
            if self.directories.contains_key(&id) {
                continue;
            }
            let Some(answer) = self.ask(&address).await else { continue };
            if answer.id != id {
                return Err(Error::Refused(format!(
                    "the master at {address} has id {}, not {id}: give every master the same --peers",
                    answer.id
                )));
            }
            if !answer.refusal.is_empty() {
                return Err(Error::Refused(answer.refusal));
            }
            self.directories.insert(id, answer.directory_id);
        }
        Ok(self.directories.len() == self.peers.len())
    }

    /// Asks until this master may take part; gives the directories of the group.
    pub async fn wait(mut self) -> Result<BTreeMap<u64, u64>, Error> {
        let mut rounds = 0_u32;
        while !self.ask_all().await? {
            if rounds.is_multiple_of(50) {
                let missing: Vec<&u64> =
                    self.peers.keys().filter(|id| !self.directories.contains_key(id)).collect();
                tracing::info!(?missing, "waiting for masters that have not started yet");
            }
            rounds = rounds.wrapping_add(1);
            tokio::time::sleep(HELLO_RETRY).await;
        }
        Ok(self.directories)
    }

    async fn ask(&self, address: &str) -> Option<HelloResponse> {
        let ask = async {
            let channel = endpoint(address).ok()?.connect().await.ok()?;
            let request = HelloRequest { id: self.id, directory_id: self.directory_id };
            let answer = MetaRaftServiceClient::new(channel).hello(request).await;
            answer.map(tonic::Response::into_inner).ok()
        };
        timeout(HELLO_TIMEOUT, ask).await.ok().flatten()
    }
}
