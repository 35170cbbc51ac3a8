//! Who a data directory is, and that only one process has it.
//!
//! The text file `IDENTITY` names the server; it is replaced as a whole and synced. The file
//! `LOCK` is locked while the process lives. A new directory gets a new disk generation and
//! is nobody until its first registration; it never inherits a server id from an address.

use crate::durable_file;
use crate::limits::IDENTITY_BYTES_MAX;
use ebla_kernel::ids::{DiskGeneration, ServerId};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Version of the layout of a data directory.
pub const IDENTITY_FORMAT: u32 = 2;

const IDENTITY: &str = "IDENTITY";
const LOCK: &str = "LOCK";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process has it.
    #[error(
        "data directory {dir} is in use{holder}: stop that process or give another --data-dir",
        dir = .dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// What its lock file says of the holder.
        holder: String,
    },
    /// A newer version wrote it.
    #[error("data directory {dir} has format {found}, this ebla knows {IDENTITY_FORMAT}: use a newer ebla",
        dir = .dir.display())]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The identity file is not one.
    #[error("{path} is not an identity file ({what}): restore it, or move the directory away and start empty",
        path = .path.display())]
    Garbage {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The directory holds data but no identity.
    #[error("data directory {dir} holds {found} but no IDENTITY: restore that file, or give an empty directory",
        dir = .dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
        /// A name that was found in it.
        found: String,
    },
    /// The server was registered as another one.
    #[error(
        "data directory {dir} belongs to server {server} of cluster {cluster}: give the directory of this cluster",
        dir = .dir.display()
    )]
    Belongs {
        /// The directory.
        dir: PathBuf,
        /// The cluster that it belongs to.
        cluster: String,
        /// The server that it is.
        server: ServerId,
    },
    /// The file system refused.
    #[error("cannot {tried} in data directory {dir}", dir = .dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        tried: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// Whom metadata took this directory for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// The cluster.
    pub cluster_id: String,
    /// The server.
    pub server_id: ServerId,
}

/// What a data directory says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Names the content of the directory.
    pub disk_generation: DiskGeneration,
    /// How often it was opened, this time among them.
    pub starts: u64,
    /// Who it is; none before the first registration.
    pub registered: Option<Registered>,
}

/// A data directory that this process holds.
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

impl DataDir {
    /// Takes the directory `path`, creating it if there is none, reads or creates its identity,
    /// and counts the start; durable on return.
    ///
    /// # Errors
    /// `InUse`, `NewerFormat`, `Garbage`, `Missing` or `Io`; nothing was changed in it.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        let io_error = |tried| move |source| IdentityError::Io { dir: path.into(), tried, source };
        fs::create_dir_all(path).map_err(io_error("create directories"))?;
        let lock = lock(path)?;
        let identity = match read_identity(&path.join(IDENTITY)).map_err(io_error("read IDENTITY"))? {
            Some(text) => parse(path, &text)?,
            None => {
                refuse_data_without_identity(path)?;
                Identity { disk_generation: new_generation(), starts: 0, registered: None }
            }
        };
        let identity = Identity { starts: identity.starts.saturating_add(1), ..identity };
        write(path, &identity)?;
        Ok(Self { path: path.into(), identity, _lock: lock })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Notes what metadata answered to a registration; durable on return.
    ///
    /// # Errors
    /// `Belongs` when it was registered as another one, `Io`.
    pub fn register(&mut self, registered: Registered) -> Result<(), IdentityError> {
        match &self.identity.registered {
            Some(known) if *known == registered => Ok(()),
            Some(known) => Err(IdentityError::Belongs {
                dir: self.path.clone(),
                cluster: known.cluster_id.clone(),
                server: known.server_id,
            }),
            None => self.replace(Identity { registered: Some(registered), ..self.identity.clone() }),
        }
    }

    fn replace(&mut self, identity: Identity) -> Result<(), IdentityError> {
        write(&self.path, &identity)?;
        self.identity = identity;
        Ok(())
    }
}

fn lock(dir: &Path) -> Result<File, IdentityError> {
    let io_error = |source| IdentityError::Io { dir: dir.into(), tried: "take the lock", source };
    let path = dir.join(LOCK);
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Who holds it is only for the message.
            let holder = match file.take(32).read_to_string(&mut pid) {
                Ok(1..) => format!(" by process {}", pid.trim()),
                Ok(0) | Err(_) => String::new(),
            };
            return Err(IdentityError::InUse { dir: dir.into(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(io_error(source)),
    }
    file.set_len(0).map_err(io_error)?;
    writeln!(file, "{}", std::process::id()).map_err(io_error)?;
    Ok(file)
}

fn read_identity(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(IDENTITY_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// An empty directory may become a server; one with data has lost who it was.
fn refuse_data_without_identity(dir: &Path) -> Result<(), IdentityError> {
    let io_error = |source| IdentityError::Io { dir: dir.into(), tried: "list it", source };
    for entry in fs::read_dir(dir).map_err(io_error)? {
        let name = entry.map_err(io_error)?.file_name();
        let is_ours = name == LOCK || name == "IDENTITY.new" || name == "lost+found";
        if !is_ours {
            return Err(IdentityError::Missing {
                dir: dir.into(),
                found: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

fn new_generation() -> DiskGeneration {
    // The random half of a version 7 UUID; its variant bits keep it from being 0.
    DiskGeneration(uuid::Uuid::now_v7().as_u64_pair().1)
}

fn write(dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let written = durable_file::replace(&dir.join(IDENTITY), render(identity).as_bytes());
    written.map_err(|source| IdentityError::Io { dir: dir.into(), tried: "write IDENTITY", source })
}

fn render(identity: &Identity) -> String {
    let Identity { disk_generation, starts, .. } = identity;
    let mut text =
        format!("format = {IDENTITY_FORMAT}\ndisk_generation = {}\nstarts = {starts}\n", disk_generation.0);
    if let Some(Registered { cluster_id, server_id }) = &identity.registered {
        text += &format!("cluster_id = {cluster_id}\nserver_id = {}\n", server_id.0);
    }
    text
}

fn parse(dir: &Path, text: &str) -> Result<Identity, IdentityError> {
    let garbage = |what: &str| IdentityError::Garbage { path: dir.join(IDENTITY), what: what.into() };
    let field = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(" = "));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let number = |name: &str| match field(name) {
        Some(value) => value.parse::<u64>().map(Some).map_err(|_| garbage(&format!("{name} is no number"))),
        None => Ok(None),
    };
    let format = number("format")?.ok_or_else(|| garbage("no format"))?;
    let format = u32::try_from(format).unwrap_or(u32::MAX);
    if format > IDENTITY_FORMAT {
        return Err(IdentityError::NewerFormat { dir: dir.into(), found: format });
    }
    let generation = number("disk_generation")?.ok_or_else(|| garbage("no disk_generation"))?;
    let starts = number("starts")?.ok_or_else(|| garbage("no starts"))?;
    let registered = match (field("cluster_id"), number("server_id")?) {
        (Some(cluster_id), Some(server_id)) => {
            Some(Registered { cluster_id: cluster_id.into(), server_id: ServerId(server_id) })
        }
        (None, None) => None,
        (Some(_), None) => return Err(garbage("no server_id")),
        (None, Some(_)) => return Err(garbage("no cluster_id")),
    };
    Ok(Identity { disk_generation: DiskGeneration(generation), starts, registered })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered() -> Registered {
        Registered { cluster_id: "0198-aa".into(), server_id: ServerId(3) }
    }

    #[test]
    fn a_directory_keeps_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = DataDir::open(&dir.path().join("new/deep")).unwrap();
        assert_eq!(first.identity().registered, None);
        first.register(registered()).unwrap();
        first.register(registered()).unwrap();
        let other = Registered { server_id: ServerId(4), ..registered() };
        assert!(matches!(first.register(other), Err(IdentityError::Belongs { .. })));
        let (path, identity) = (first.path().to_owned(), first.identity().clone());
        assert_eq!(identity.starts, 1);
        drop(first);
        let again = DataDir::open(&path).unwrap();
        assert_eq!(*again.identity(), Identity { starts: 2, ..identity });
        assert_eq!(again.identity().registered, Some(registered()));
    }

    #[test]
    fn a_directory_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let Err(IdentityError::InUse { holder, .. }) = DataDir::open(dir.path()).map(drop) else {
            panic!("two have it")
        };
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn what_cannot_be_understood_is_refused_and_kept() {
        for (text, is_newer) in [
            ("", false),
            ("\u{0}\u{1}garbage", false),
            ("format = 1\n", false),
            ("format = 1\ndisk_generation = x\n", false),
            ("format = 2\ndisk_generation = 5\n", false),
            ("format = 2\ndisk_generation = 5\nstarts = 3\nserver_id = 1\n", false),
            ("format = 2\ndisk_generation = 5\nstarts = 3\ncluster_id = c\n", false),
            ("format = 3\nsomething = new\n", true),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(IDENTITY), text).unwrap();
            match DataDir::open(dir.path()).map(drop) {
                Err(IdentityError::NewerFormat { found: 3, .. }) => assert!(is_newer, "{text:?}"),
                Err(IdentityError::Garbage { .. }) => assert!(!is_newer, "{text:?}"),
                other => panic!("{text:?} gave {other:?}"),
            }
            assert_eq!(fs::read_to_string(dir.path().join(IDENTITY)).unwrap(), text);
        }
    }

    #[test]
    fn data_without_an_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("oplog")).unwrap();
        assert!(matches!(DataDir::open(dir.path()).map(drop), Err(IdentityError::Missing { .. })));
        assert!(!dir.path().join(IDENTITY).exists());
    }

    #[test]
    fn the_documented_file_is_what_is_written() {
        let identity = Identity {
            disk_generation: DiskGeneration(9_302_938_402_938),
            starts: 7,
            registered: Some(registered()),
        };
        assert!(include_str!("../../docs/formats.md").contains(&render(&identity)));
    }
}
