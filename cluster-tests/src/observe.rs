//! What a cluster of real processes says of itself, and waiting until it says what it should.
//!
//! Everything is asked through the CLI and its JSON, as an operator's script would.

use crate::cli::exit;
use crate::cluster::{Cluster, Node, eventually};
use anyhow::{Context as _, Result};
use ebla_client::Client;
use serde_json::Value as Json;
use std::time::Duration;

/// How long a healed cluster may take until every tablet is led and every copy is in sync, a
/// slow machine included.
pub const WHOLE_MAX: Duration = Duration::from_secs(60);

/// Ids of servers in a field of a tablet, such as `replicas` or `in_sync`.
#[must_use]
pub fn servers_in(tablet: &Json, field: &str) -> Vec<u64> {
    tablet[field].as_array().map(|ids| ids.iter().filter_map(Json::as_u64).collect()).unwrap_or_default()
}

/// The id of a tablet, a job or a server.
///
/// # Errors
/// When it has none.
pub fn id_in(record: &Json) -> Result<u64> {
    record["id"].as_u64().with_context(|| format!("there is no id in {record}"))
}

impl Cluster {
    /// A client of all processes.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn connect(&self, timeout: Duration) -> Result<Client> {
        let nodes = self.servers.iter().chain(&self.masters);
        let endpoints: Vec<String> = nodes.map(|node| node.address.clone()).collect();
        Ok(Client::builder().endpoints(endpoints).timeout(timeout).connect().await?)
    }

    /// Every tablet; none when no master answers.
    #[must_use]
    pub fn tablets(&self) -> Vec<Json> {
        self.cli().list(&["tablet", "list"]).unwrap_or_default()
    }

    /// Ids of every tablet, in the order of their keys.
    #[must_use]
    pub fn tablet_ids(&self) -> Vec<u64> {
        self.tablets().iter().filter_map(|tablet| tablet["id"].as_u64()).collect()
    }

    /// The tablet with the lowest keys.
    ///
    /// # Errors
    /// When there is none, or no master answers.
    pub fn first_tablet(&self) -> Result<Json> {
        self.tablets().into_iter().next().context("there is a tablet")
    }

    /// The id of the server that is up at the address of the `at`th one.
    ///
    /// # Errors
    /// When it is not up.
    pub fn id_of(&self, at: usize) -> Result<u64> {
        let servers = self.cli().list(&["server", "list"]).context("the servers are listed")?;
        let address = self.servers[at].address.as_str();
        // A server that was wiped is listed beside the one that has its address now.
        let found = servers.iter().rfind(|server| server["address"] == address && server["state"] == "up");
        found.and_then(|server| server["id"].as_u64()).with_context(|| format!("server {at} is not up"))
    }

    /// Ids of all servers, in the order of `servers`.
    ///
    /// # Errors
    /// When one is not up.
    pub fn ids(&self) -> Result<Vec<u64>> {
        (0..self.servers.len()).map(|at| self.id_of(at)).collect()
    }

    /// Which of `servers` leads a tablet.
    ///
    /// # Errors
    /// When nobody does, or no master answers.
    pub fn leader_of(&self, tablet: u64) -> Result<usize> {
        let tablets = self.tablets();
        let described = tablets.iter().find(|one| one["id"].as_u64() == Some(tablet));
        let leader = described.and_then(|one| one["leader"].as_u64()).context("the tablet is led")?;
        let servers = self.cli().list(&["server", "list"]).context("the servers are listed")?;
        let known = servers.iter().find(|server| server["id"].as_u64() == Some(leader));
        let address = known.and_then(|server| server["address"].as_str()).context("the leader is known")?;
        self.servers.iter().position(|node| node.address == address).context("it is one of ours")
    }

    /// Whether every server says of itself that it does its work. The masters notice only after a
    /// while that one is gone.
    #[must_use]
    pub fn all_ready(&self) -> bool {
        self.servers.iter().all(Node::is_ready)
    }

    /// Which master leads.
    #[must_use]
    pub fn leading_master(&self) -> Option<usize> {
        let output = self.cli().run(&["status", "-o", "json", "--timeout", "5s"]);
        let status = (output.code == exit::OK).then(|| output.json())?;
        let masters = status["masters"].as_array()?;
        let leading = masters.iter().find(|master| master["leader"] == true)?;
        self.masters.iter().position(|node| leading["address"] == node.address.as_str())
    }

    /// Whether every tablet is led and has at least `copies` copies in sync, whatever else is
    /// under way.
    #[must_use]
    pub fn has_spare_copies(&self, copies: usize) -> bool {
        let tablets = self.tablets();
        let has = |tablet: &Json| {
            tablet["leader"].as_u64() > Some(0) && servers_in(tablet, "in_sync").len() >= copies
        };
        !tablets.is_empty() && tablets.iter().all(has)
    }

    /// Whether every tablet serves with exactly `copies` copies, all in sync, none of them on the
    /// servers of `without`.
    #[must_use]
    pub fn is_whole(&self, copies: usize, without: &[u64]) -> bool {
        let is_whole = |tablet: &Json| {
            let (replicas, in_sync) = (servers_in(tablet, "replicas"), servers_in(tablet, "in_sync"));
            tablet["leader"].as_u64() > Some(0)
                && tablet["state"] == "serving"
                && (replicas.len(), in_sync.len()) == (copies, copies)
                && without.iter().all(|server| !replicas.contains(server))
        };
        let tablets = self.tablets();
        !tablets.is_empty() && tablets.iter().all(is_whole)
    }

    /// Waits until every tablet serves with exactly `copies` copies, all in sync, none of them
    /// on the servers of `without`.
    ///
    /// # Errors
    /// When that takes too long; the tablets are in the message.
    pub fn wait_until_whole(&self, copies: usize, without: &[u64]) -> Result<Duration> {
        let whole = || self.is_whole(copies, without);
        eventually("every tablet serves with all its copies in sync", WHOLE_MAX, whole)
            .with_context(|| format!("{:#?}", self.tablets()))
    }

    /// Lets the copies on `server` lead every tablet.
    pub fn let_lead(&self, server: u64) {
        for tablet in self.tablets() {
            if tablet["leader"].as_u64() != Some(server) {
                let (id, to) = (tablet["id"].to_string(), server.to_string());
                let _ = self.cli().run(&["tablet", "transfer-leader", &id, "--to", &to]).expect(exit::OK);
            }
        }
    }
}
