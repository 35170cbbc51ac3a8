//! A directory as a target: on this machine, or one that every machine sees under the same path.
//!
//! A file is written beside its name, synced, renamed, and the directory synced. What is being
//! written begins with [`UNFINISHED`], so that what a crash leaves is found.

use super::{Content, Listed, Target, TargetError, Unfinished};
use crate::Pace;
use crate::hex::to_hex;
use crate::limits::COPY_BYTES;
use async_trait::async_trait;
use bytes::Bytes;
use ring::digest;
use rustix::fs::{Advice, fadvise};
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::num::NonZeroU64;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;
use tokio::task::spawn_blocking;

/// What the names of files begin with that are being written.
const UNFINISHED: &str = ".unfinished-";

/// Tells the files that are being written by this process from each other.
static UNFINISHED_NEXT: AtomicU64 = AtomicU64::new(0);

/// A directory.
pub(super) struct Directory {
    root: PathBuf,
}

impl Directory {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where a name lies; never outside of the directory.
    fn path(&self, name: &str) -> Result<PathBuf, TargetError> {
        let path = Path::new(name);
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        let is_inside = !name.is_empty() && !name.contains('\0') && path.components().all(is_plain);
        if is_inside {
            Ok(self.root.join(path))
        } else {
            Err(TargetError::Refused(format!("{name:?} is no name of a file at a target")))
        }
    }

    /// Where names with a prefix lie; the directory itself for an empty one.
    fn folder(&self, prefix: &str) -> Result<PathBuf, TargetError> {
        match prefix.trim_end_matches('/') {
            "" => Ok(self.root.clone()),
            folder => self.path(folder),
        }
    }

    /// Every file below `prefix`, with its name.
    async fn walk(&self, prefix: &str) -> Result<Vec<(String, Metadata)>, TargetError> {
        let (root, folder) = (self.root.clone(), self.folder(prefix)?);
        blocking(move || {
            let listed = |path: &Path, error| failed("list", path, &error);
            fs::metadata(&root).map_err(|error| listed(&root, error))?;
            let mut found = Vec::new();
            let mut folders = vec![folder];
            while let Some(folder) = folders.pop() {
                let entries = match fs::read_dir(&folder) {
                    Ok(entries) => entries,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(listed(&folder, error)),
                };
                for entry in entries {
                    let path = entry.map_err(|error| listed(&folder, error))?.path();
                    let metadata = match about(&path) {
                        Ok(metadata) => metadata,
                        // Somebody has removed or finished it since.
                        Err(error) if error.kind() == ErrorKind::NotFound => continue,
                        Err(error) => return Err(listed(&path, error)),
                    };
                    if metadata.is_dir() {
                        folders.push(path);
                    } else if let Some(name) = path.strip_prefix(&root).ok().and_then(Path::to_str) {
                        found.push((name.to_owned(), metadata));
                    }
                }
            }
            found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            Ok(found)
        })
        .await
    }
}

#[async_trait]
impl Target for Directory {
    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), TargetError> {
        let (root, path) = (self.root.clone(), self.path(name)?);
        blocking(move || {
            let mut file = Beside::create(&root, path)?;
            file.file.write_all(&bytes).map_err(|error| failed("write", &file.path, &error))?;
            file.finish()
        })
        .await
    }

    async fn put_file(&self, name: &str, from: &Path, pace: &dyn Pace) -> Result<Content, TargetError> {
        let (root, path) = (self.root.clone(), self.path(name)?);
        let from = from.to_owned();
        let (copying, beside) = blocking(move || {
            let source = File::open(&from).map_err(|error| local("read", &from, &error))?;
            if let Some(beside) = Beside::link(&root, path.clone(), &from)? {
                return Ok((Copying::new(source, None), beside));
            }
            let beside = Beside::create(&root, path)?;
            let target = beside.file.try_clone().map_err(|error| failed("write", &beside.path, &error))?;
            Ok((Copying::new(source, Some(target)), beside))
        })
        .await?;
        let wrong = |side| match side {
            Side::From(error) => TargetError::Refused(format!("cannot read a file to put: {error}")),
            Side::To(error) => failed("write", &beside.path, &error),
        };
        let content = copying.run(pace).await?.map_err(wrong)?;
        blocking(move || beside.finish()).await?;
        Ok(content)
    }

    async fn get(&self, name: &str, bytes_max: u64) -> Result<Bytes, TargetError> {
        let path = self.path(name)?;
        blocking(move || {
            let read = |error| failed("read", &path, &error);
            let file = File::open(&path).map_err(read)?;
            let mut bytes = Vec::new();
            file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).map_err(read)?;
            if bytes.len() as u64 > bytes_max {
                return Err(too_long(&path.display().to_string(), bytes_max));
            }
            Ok(bytes.into())
        })
        .await
    }

    async fn get_file(&self, name: &str, to: &Path, pace: &dyn Pace) -> Result<Content, TargetError> {
        let (path, to) = (self.path(name)?, to.to_owned());
        let (from, target) = (path.clone(), to.clone());
        let copying = blocking(move || {
            let open = |path: &Path| File::open(path).map_err(|error| failed("read", path, &error));
            // Of a link to a file the file itself gets a second name.
            let whole = fs::canonicalize(&from).map_err(|error| failed("read", &from, &error))?;
            if fs::hard_link(whole, &target).is_ok() {
                return Ok(Copying::new(open(&target)?, None));
            }
            let source = open(&from)?;
            // Not what is there already: it may be a file of a backup under its second name.
            let target = File::create_new(&target).map_err(|error| local("write", &target, &error))?;
            Ok(Copying::new(source, Some(target)))
        })
        .await?;
        copying.run(pace).await?.map_err(|side| match side {
            Side::From(error) => failed("read", &path, &error),
            Side::To(error) => local("write", &to, &error),
        })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, TargetError> {
        let finished = self.walk(prefix).await?.into_iter().filter(|(name, _)| !is_unfinished(name));
        let listed = |(name, metadata): (String, Metadata)| Listed {
            name,
            bytes: metadata.len(),
            modified_ms: modified_ms(&metadata),
        };
        Ok(finished.map(listed).collect())
    }

    async fn list_directories(&self, prefix: &str) -> Result<Vec<String>, TargetError> {
        let (root, folder) = (self.root.clone(), self.folder(prefix)?);
        blocking(move || {
            let listed = |path: &Path, error| failed("list", path, &error);
            fs::metadata(&root).map_err(|error| listed(&root, error))?;
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(listed(&folder, error)),
            };
            let mut names = Vec::new();
            for entry in entries {
                let entry = entry.map_err(|error| listed(&folder, error))?;
                let is_folder = entry.path().is_dir();
                names.extend(entry.file_name().into_string().ok().filter(|_| is_folder));
            }
            names.sort_unstable();
            Ok(names)
        })
        .await
    }

    async fn delete(&self, names: &[String]) -> Result<(), TargetError> {
        let paths: Vec<_> = names.iter().map(|name| self.path(name)).collect::<Result<_, _>>()?;
        let root = self.root.clone();
        blocking(move || paths.iter().try_for_each(|path| remove(&root, path))).await
    }

    async fn list_unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, TargetError> {
        let unfinished = self.walk(prefix).await?.into_iter().filter(|(name, _)| is_unfinished(name));
        let described = |(upload, metadata): (String, Metadata)| {
            let (folder, file) = upload.rsplit_once('/').unwrap_or(("", &upload));
            let file = file.strip_prefix(UNFINISHED).and_then(|rest| rest.splitn(3, '-').nth(2));
            let name = format!("{folder}/{}", file.unwrap_or_default());
            Unfinished { name, bytes: metadata.len(), started_ms: modified_ms(&metadata), upload }
        };
        Ok(unfinished.map(described).collect())
    }

    async fn remove_unfinished(&self, uploads: &[Unfinished]) -> Result<(), TargetError> {
        let names: Vec<_> = uploads.iter().map(|upload| upload.upload.clone()).collect();
        self.delete(&names).await
    }
}

/// What is at a path; of a link to a file what the file is. Links to directories are not followed.
fn about(path: &Path) -> io::Result<Metadata> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_symlink() {
        return Ok(metadata);
    }
    match fs::metadata(path) {
        Ok(file) if file.is_file() => Ok(file),
        Ok(_) | Err(_) => Ok(metadata),
    }
}

/// A file that is being written beside its name; it goes when it is not finished.
struct Beside {
    file: File,
    path: PathBuf,
    beside: PathBuf,
    is_finished: bool,
}

impl Beside {
    fn create(root: &Path, path: PathBuf) -> Result<Self, TargetError> {
        let beside = Self::place(root, &path)?;
        let file = File::create_new(&beside).map_err(|error| failed("create", &beside, &error))?;
        Ok(Self { file, path, beside, is_finished: false })
    }

    /// A second name for the file `from`; none where it cannot have one, as on another disk.
    fn link(root: &Path, path: PathBuf, from: &Path) -> Result<Option<Self>, TargetError> {
        let beside = Self::place(root, &path)?;
        let linked = fs::hard_link(from, &beside).and_then(|()| File::open(&beside));
        Ok(linked.ok().map(|file| Self { file, path, beside, is_finished: false }))
    }

    /// Where to write beside `path`: nothing is there.
    fn place(root: &Path, path: &Path) -> Result<PathBuf, TargetError> {
        let folder = path.parent().unwrap_or(root);
        create_folder(folder).map_err(|error| failed("create", folder, &error))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = UNFINISHED_NEXT.fetch_add(1, Ordering::Relaxed);
        let beside = folder.join(format!("{UNFINISHED}{}-{number}-{name}", std::process::id()));
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &beside, &error)),
            // One that was there was left by another process with this number, long ago or elsewhere.
            Ok(()) | Err(_) => Ok(beside),
        }
    }

    fn finish(mut self) -> Result<(), TargetError> {
        let named = |error| failed("write", &self.path, &error);
        self.file.sync_all().map_err(named)?;
        fs::rename(&self.beside, &self.path).map_err(named)?;
        self.is_finished = true;
        let folder = self.path.parent().ok_or(ErrorKind::InvalidInput.into());
        folder.and_then(sync_folder).map_err(|error| failed("sync", &self.path, &error))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.is_finished {
            // What cannot be removed now is found by `ebla backup prune`.
            let _ = fs::remove_file(&self.beside);
        }
    }
}

/// Which end of a copy failed.
enum Side {
    From(io::Error),
    To(io::Error),
}

/// A copy under way; each step is one trip to a thread that may wait for disks. On one disk a file
/// gets a second name instead, and is only read, to tell what is in it.
struct Copying {
    from: File,
    to: Option<File>,
    buffer: Vec<u8>,
    digest: digest::Context,
    bytes: u64,
}

impl Copying {
    fn new(from: File, to: Option<File>) -> Self {
        Self { from, to, buffer: Vec::new(), digest: digest::Context::new(&digest::SHA256), bytes: 0 }
    }

    async fn run(mut self, pace: &dyn Pace) -> Result<Result<Content, Side>, TargetError> {
        loop {
            let step = |mut copying: Self| {
                let moved = copying.step()?;
                Ok((copying, moved))
            };
            let (copying, moved) = match blocking(move || Ok(step(self))).await? {
                Ok(done) => done,
                Err(side) => return Ok(Err(side)),
            };
            self = copying;
            if moved == 0 {
                let sha256 = to_hex(self.digest.finish().as_ref());
                return Ok(Ok(Content { bytes: self.bytes, sha256 }));
            }
            pace.wait(moved).await;
        }
    }

    /// Moves some bytes; 0 at the end.
    fn step(&mut self) -> Result<usize, Side> {
        // The engine drops what it writes from the page cache: the disk is asked for what follows while
        // this is hashed. Where the advice means nothing it is not needed.
        let next = self.bytes + COPY_BYTES as u64;
        let _ = fadvise(&self.from, next, NonZeroU64::new(COPY_BYTES as u64), Advice::WillNeed);
        self.buffer.clear();
        let mut some = (&mut self.from).take(COPY_BYTES as u64);
        let moved = some.read_to_end(&mut self.buffer).map_err(Side::From)?;
        self.digest.update(&self.buffer);
        if let Some(to) = &mut self.to {
            to.write_all(&self.buffer).map_err(Side::To)?;
        }
        self.bytes += moved as u64;
        Ok(moved)
    }
}

/// Makes a directory and those above it, each durable.
fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().ok_or(ErrorKind::InvalidInput)?;
    create_folder(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => sync_folder(above),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a file, and directories above it that are empty then.
fn remove(root: &Path, path: &Path) -> Result<(), TargetError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove", path, &error)),
        Ok(()) | Err(_) => {}
    }
    let above = path.ancestors().skip(1).take_while(|folder| *folder != root);
    for folder in above {
        // One that is not empty, or gone, stays as it is.
        if fs::remove_dir(folder).is_err() {
            break;
        }
    }
    Ok(())
}

fn is_unfinished(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|file| file.starts_with(UNFINISHED))
}

fn modified_ms(metadata: &Metadata) -> u64 {
    let since_1970 = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since_1970.and_then(|since| u64::try_from(since.as_millis()).ok()).unwrap_or(0)
}

pub(super) fn too_long(name: &str, bytes_max: u64) -> TargetError {
    TargetError::Refused(format!(
        "{name} has more than the {bytes_max} bytes that it may have: it is no file of a backup"
    ))
}

fn local(tried: &str, path: &Path, error: &io::Error) -> TargetError {
    TargetError::Refused(format!(
        "cannot {tried} {}: {error}; look at the disk of this machine",
        path.display()
    ))
}

/// What an error of the file system means for the target.
fn failed(tried: &str, path: &Path, error: &io::Error) -> TargetError {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound => TargetError::NotFound(path.to_string()),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            TargetError::Full(format!(
                "cannot {tried} {path}: {error}; free some space there (`ebla backup prune --to URL` shows what no backup needs), or give another target"
            ))
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory => {
            TargetError::Refused(format!(
                "cannot {tried} {path}: {error}; let the account that Ebla runs as write there, or give another target"
            ))
        }
        _ => TargetError::Unavailable(format!("cannot {tried} {path}: {error}; look at the disk it is on")),
    }
}

/// Runs what may wait for a disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TargetError> + Send + 'static,
) -> Result<T, TargetError> {
    let ended = spawn_blocking(work).await;
    ended.unwrap_or_else(|error| {
        Err(TargetError::Unavailable(format!("the work on a file ended early: {error}")))
    })
}
