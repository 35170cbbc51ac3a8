//! How a master is started.

use crate::error::Error;
use crate::limits::{BALANCE_INTERVAL_DEFAULT, MASTERS, REPLACE_AFTER_DEFAULT, SNAPSHOT_ENTRIES_DEFAULT};
use ebla_kernel::meta::Settings;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// How a master is started.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which of the peers this is.
    pub id: u64,
    /// Every master of the group, itself included: id to HOST:PORT. Fixed at the first start.
    pub peers: BTreeMap<u64, String>,
    /// Where log and snapshots lie.
    pub data_dir: PathBuf,
    /// Entries after which a snapshot is taken and the log is cut.
    pub snapshot_entries: u64,
    /// How long a tablet server may be away before its copies are replaced on others; none:
    /// for ever.
    pub replace_after: Option<Duration>,
    /// Time between two looks at what the cluster should do by itself; none: it does nothing.
    pub balance_interval: Option<Duration>,
}

impl Config {
    /// A master with default settings.
    #[must_use]
    pub fn new(id: u64, peers: BTreeMap<u64, String>, data_dir: PathBuf) -> Self {
        Self {
            id,
            peers,
            data_dir,
            snapshot_entries: SNAPSHOT_ENTRIES_DEFAULT,
            replace_after: Some(REPLACE_AFTER_DEFAULT),
            balance_interval: Some(BALANCE_INTERVAL_DEFAULT),
        }
    }

    /// What the control core is set to.
    pub(crate) fn settings(&self) -> Settings {
        let ms = |after: Duration| u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Settings { replaces_copies: true, replace_after_ms: self.replace_after.map(ms) }
    }

    /// Where this master listens.
    pub(crate) fn address(&self) -> &str {
        self.peers.get(&self.id).map_or("", String::as_str)
    }

    /// Checks that the parts agree.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.peers.contains_key(&0) || self.id == 0 {
            return Err(Error::Config("master ids begin at 1: number the --peers from 1".to_owned()));
        }
        if !self.peers.contains_key(&self.id) {
            let ids: Vec<String> = self.peers.keys().map(u64::to_string).collect();
            return Err(Error::Config(format!(
                "--id {} is not among the --peers ({}): add {}=HOST:PORT or choose one of them",
                self.id,
                ids.join(", "),
                self.id
            )));
        }
        if !MASTERS.contains(&self.peers.len()) {
            let hint = format!("{} masters cannot form a group: give 1 or 3 --peers", self.peers.len());
            return Err(Error::Config(hint));
        }
        let addresses: BTreeSet<&String> = self.peers.values().collect();
        if addresses.len() != self.peers.len() {
            return Err(Error::Config("two --peers have the same address: give each its own".to_owned()));
        }
        match self.peers.iter().find(|(_, address)| !is_host_port(address)) {
            Some((id, address)) => {
                let hint = format!("peer {id} has no address of the form HOST:PORT: {address:?}");
                Err(Error::Config(hint))
            }
            None => Ok(()),
        }
    }
}

fn is_host_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: u64, peers: &[(u64, &str)]) -> Result<(), String> {
        let peers = peers.iter().map(|(id, address)| (*id, (*address).to_owned())).collect();
        Config::new(id, peers, PathBuf::new()).check().map_err(|error| error.to_string())
    }

    #[test]
    fn contradictions_are_named() {
        assert_eq!(check(1, &[(1, "127.0.0.1:7400")]), Ok(()));
        assert!(check(2, &[(1, "h:1")]).unwrap_err().contains("--id 2 is not among"));
        assert!(check(1, &[(1, "h:1"), (2, "h:2")]).unwrap_err().contains("give 1 or 3"));
        assert!(check(1, &[(1, "h:1"), (2, "h:1"), (3, "h:2")]).unwrap_err().contains("same address"));
        assert!(check(1, &[(1, "h")]).unwrap_err().contains("HOST:PORT"));
        assert!(check(0, &[(0, "h:1")]).unwrap_err().contains("begin at 1"));
    }
}
