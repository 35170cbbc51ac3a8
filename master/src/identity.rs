//! What a master's data directory says of itself: the files `LOCK` and `IDENTITY`.
//!
//! A Raft id is never reused with another directory: a master that forgot its votes could
//! vote twice. Each directory therefore has a random number. The numbers of the whole group
//! are agreed upon when the cluster is formed and stand in its first command; an empty
//! directory that comes later under the same id has another number and is refused.

use crate::config::Config;
use crate::error::Error;
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

const FORMAT: u64 = 1;
const IDENTITY: &str = "IDENTITY";
const LOCK: &str = "LOCK";

/// The content of `IDENTITY`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub id: u64,
    pub peers: BTreeMap<u64, String>,
    /// Random number of this directory.
    pub directory_id: u64,
    /// Numbers of all directories of the group; empty until this master has joined it.
    pub directories: BTreeMap<u64, u64>,
}

/// A data directory that no other process uses.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory where needed and locks it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let doing = || format!("opening the data directory {}", path.display());
        fs::create_dir_all(path).map_err(Error::io(doing()))?;
        let lock = File::create(path.join(LOCK)).map_err(Error::io(doing()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(Error::io(doing())(error)),
        }
    }

    pub fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }

    pub fn snapshot_dir(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// The identity that the directory has or now gets, checked against the configuration.
    pub fn identity(&self, config: &Config, directory_id: u64) -> Result<Identity, Error> {
        let path = self.path.join(IDENTITY);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return self.new_identity(config, directory_id);
            }
            Err(error) => return Err(Error::io(format!("reading {}", path.display()))(error)),
        };
        let stored = parse(&text, &path)?;
        self.check(&stored, config)?;
        Ok(stored)
    }

    /// Writes an identity durably.
    pub fn store(&self, identity: &Identity) -> Result<(), Error> {
        write_durably(&self.path, IDENTITY, print(identity).as_bytes())
    }

    fn new_identity(&self, config: &Config, directory_id: u64) -> Result<Identity, Error> {
        let mut entries =
            fs::read_dir(&self.path).map_err(Error::io(format!("reading {}", self.path.display())))?;
        let foreign = entries.find_map(|entry| {
            let name = entry.ok()?.file_name();
            (name != LOCK && name != "lost+found").then_some(name)
        });
        if let Some(name) = foreign {
            return Err(Error::Identity(format!(
                "{} holds {} but no master's IDENTITY: give an empty --data-dir",
                self.path.display(),
                name.display()
            )));
        }
        let identity = Identity {
            id: config.id,
            peers: config.peers.clone(),
            directory_id,
            directories: BTreeMap::new(),
        };
        self.store(&identity)?;
        Ok(identity)
    }

    fn check(&self, stored: &Identity, config: &Config) -> Result<(), Error> {
        let dir = self.path.display();
        if stored.id != config.id {
            return Err(Error::Identity(format!(
                "{dir} belongs to master {}, not {}: give --id {} or another --data-dir",
                stored.id, config.id, stored.id
            )));
        }
        if stored.peers != config.peers {
            return Err(Error::Identity(format!(
                "{dir} was formed with other --peers: start with --peers {}",
                print_peers(&stored.peers)
            )));
        }
        if !stored.directories.is_empty() && !self.log_dir().is_dir() {
            return Err(Error::Identity(format!(
                "{dir} has lost its metadata log: master {} may not come back with it; restore the whole directory",
                stored.id
            )));
        }
        Ok(())
    }
}

/// Replaces a file so that after a crash either the old or the new content is there.
pub(crate) fn write_durably(dir: &Path, name: &str, content: &[u8]) -> Result<(), Error> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.tmp"));
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(Error::io(format!("writing {}", path.display())))
}

fn print_peers(peers: &BTreeMap<u64, String>) -> String {
    let peers: Vec<String> = peers.iter().map(|(id, address)| format!("{id}={address}")).collect();
    peers.join(",")
}

fn print(identity: &Identity) -> String {
    let directories = identity.directories.iter().map(|(id, number)| format!("{id}={number:016x}"));
    format!(
        "format {FORMAT}\nid {}\npeers {}\ndirectory {:016x}\ngroup {}\n",
        identity.id,
        print_peers(&identity.peers),
        identity.directory_id,
        directories.collect::<Vec<_>>().join(",")
    )
}

fn parse(text: &str, path: &Path) -> Result<Identity, Error> {
    let fields: BTreeMap<&str, &str> =
        text.lines().map(|line| line.split_once(' ').unwrap_or((line, ""))).collect();
    let damaged = || Error::Corrupt(format!("{} is damaged: restore it from a copy", path.display()));
    let field = |name: &str| fields.get(name).copied().ok_or_else(damaged);
    let format: u64 = field("format")?.parse().map_err(|_| damaged())?;
    if format > FORMAT {
        return Err(Error::Identity(format!(
            "{} has format {format}, newer than {FORMAT}: use a newer ebla",
            path.display()
        )));
    }
    let pairs = |text: &str| -> Option<Vec<(u64, String)>> {
        let parts = text.split(',').filter(|part| !part.is_empty());
        parts
            .map(|part| {
                let (id, value) = part.split_once('=')?;
                Some((id.parse().ok()?, value.to_owned()))
            })
            .collect()
    };
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let directories = pairs(field("group")?).ok_or_else(damaged)?;
    Ok(Identity {
        id: field("id")?.parse().map_err(|_| damaged())?,
        peers: pairs(field("peers")?).ok_or_else(damaged)?.into_iter().collect(),
        directory_id: number(field("directory")?).ok_or_else(damaged)?,
        directories: directories
            .into_iter()
            .map(|(id, value)| number(&value).map(|number| (id, number)))
            .collect::<Option<_>>()
            .ok_or_else(damaged)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            id: 2,
            peers: BTreeMap::from([(1, "a:1".to_owned()), (2, "b:2".to_owned())]),
            directory_id: u64::MAX,
            directories: BTreeMap::from([(1, 7), (2, u64::MAX)]),
        }
    }

    #[test]
    fn survives_the_file() {
        assert_eq!(parse(&print(&identity()), Path::new("x")).unwrap(), identity());
    }

    #[test]
    fn a_newer_format_and_damage_are_told_apart() {
        let newer = print(&identity()).replace("format 1", "format 2");
        assert!(parse(&newer, Path::new("x")).unwrap_err().to_string().contains("newer"));
        assert!(parse("garbage", Path::new("x")).unwrap_err().to_string().contains("damaged"));
    }
}
