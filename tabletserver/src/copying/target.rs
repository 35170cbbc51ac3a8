//! Building a copy here: what a source sends, checked, into the store, the log and the registry.
//!
//! The last steps stand in [`Target::install`], in the order that a crash between any two of
//! them needs.

use super::Received;
use super::chunk;
use crate::bootstrap::RecoveredReplica;
use crate::error::Error;
use crate::limits;
use crate::node::Node;
use crate::oplog::{Append, Fsync, Logged, Oplog, Tail};
use crate::registry::{EpochSpan, ReplicaRecord};
use crate::replicas::{Flushed, Replicas};
use crate::replication::connect_peer;
use crate::store::{Incoming, StoreError};
use bytes::{Bytes, BytesMut};
use ebla_backup::Scratch;
use ebla_failpoints::failpoint;
use ebla_kernel::entry::Entry;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{DiskGeneration, Epoch, Generation, Incarnation, ReplicaId, Seq, ServerId, ServerRun};
use ebla_kernel::meta::TableKind;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstone;
use ebla_kernel::tablet::token::TokenTable;
use ebla_kernel::tablet::{PeerInput, PeerMessage, PeerRun, Seals};
use ebla_proto::convert::non_empty;
use ebla_proto::v1;
use ebla_proto::v1::bootstrap_response::Message;
use ebla_proto::v1::bootstrap_service_client::BootstrapServiceClient;
use ring::digest;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tonic::{Status, Streaming};
use tracing::{debug, warn};

/// What copies are built with.
#[derive(Clone)]
pub struct Target {
    /// The server.
    pub node: Arc<Node>,
    /// The records of copies.
    pub replicas: Arc<Replicas>,
    /// The log.
    pub oplog: Arc<Oplog>,
    /// Where files stand before they are put into the store.
    pub dir: PathBuf,
}

/// A copy that is built, and the leader that it meets first.
pub struct Arrived {
    /// As if it had been found at start.
    pub replica: RecoveredReplica,
    /// A word of the leader, to be answered with where the log ends.
    pub probe: PeerInput,
}

/// Everything of a copy, not installed yet. When it is dropped its files go.
pub struct Fetched {
    record: ReplicaRecord,
    tokens: TokenTable,
    base: Base,
    probe: PeerInput,
    writer: Writer,
}

/// Where the log of a copy begins, and what goes with it.
#[derive(Clone, PartialEq, Debug)]
struct Base {
    /// The last entry that the versions contain.
    entry: Entry,
    epochs: Vec<EpochSpan>,
    tombstones: Vec<RangeTombstone>,
    /// Rows and bytes, about.
    size: (u64, u64),
    /// No token of what the versions contain was issued then or later.
    tokens_from_ms: u64,
}

/// What came in of a copy so far; kept when a stream breaks.
struct Progress {
    base: Base,
    probe: PeerInput,
    tokens: BytesMut,
    /// Last stored key of the parts that came in whole.
    after: Bytes,
    /// Of those parts.
    bytes: u64,
    writer: Writer,
}

/// The thread that makes files of parts and installs them.
struct Writer {
    parts: mpsc::Sender<Vec<(Bytes, Bytes)>>,
    /// Told when everything has come in; dropped when it never will.
    whole: oneshot::Sender<Base>,
    ended: JoinHandle<Result<Installed, Error>>,
}

/// How a writer ended.
enum Installed {
    /// The copy is built.
    Yes(Box<ReplicaRecord>),
    /// The record is no longer that of this try.
    Superseded,
    /// What came in is not what it should be.
    Refused,
}

/// Why a stream ended early.
enum Broken {
    /// The same may work in a moment; what came in whole is still good.
    Again(Status),
    /// What came in cannot be used.
    Anew(&'static str),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self::Again(status)
    }
}

impl Target {
    /// Fetches the copy of `record`, however long that takes, and tells in `received` how far it is.
    pub async fn fetch(&self, record: &ReplicaRecord, received: &Received) -> Fetched {
        let mut progress = None;
        let mut failures = 0_u32;
        loop {
            match self.stream(record, &mut progress, received).await {
                Ok(()) => {
                    if let Some(fetched) = progress.take().and_then(|whole: Progress| whole.end(record)) {
                        return fetched;
                    }
                    warn!(tablet = %record.tablet, "a copy came without its tokens: it is fetched anew");
                }
                Err(Broken::Again(status)) => {
                    failures += 1;
                    if failures.is_power_of_two() && failures > 8 {
                        warn!(tablet = %record.tablet, %status, "a copy cannot be fetched yet");
                    } else {
                        debug!(tablet = %record.tablet, %status, "a copy cannot be fetched yet");
                    }
                }
                Err(Broken::Anew(why)) => {
                    warn!(tablet = %record.tablet, why, "a copy is fetched anew");
                    progress = None;
                }
            }
            tokio::time::sleep(limits::BOOTSTRAP_RETRY_PAUSE).await;
        }
    }

    /// Installs what was fetched; none when it cannot be used, or is no longer wanted.
    ///
    /// # Errors
    /// When a store fails: the server must end.
    pub async fn finish(&self, fetched: Fetched) -> Result<Option<Arrived>, Error> {
        let Fetched { record, tokens, base, probe, writer: Writer { parts, whole, ended } } = fetched;
        drop(parts);
        let base = Base { tokens_from_ms: tokens.unknown_from_ms(), ..base };
        let told = whole.send(base.clone());
        let ended = ended.await.map_err(|error| Error::Fatal { what: format!("copying ({error})") })??;
        let record = match (ended, told) {
            (Installed::Yes(record), Ok(())) => *record,
            (Installed::Yes(_) | Installed::Superseded | Installed::Refused, _) => {
                debug!(tablet = %record.tablet, "a copy was not installed");
                return Ok(None);
            }
        };
        let tombstones = base.tombstones.into_iter().collect();
        let (end, epochs) = (base.entry.end(), base.epochs);
        // A sealed tablet is not sent: no seal is in force at its base.
        let (seals, staged) = (Seals::default(), None);
        let replica = RecoveredReplica { record, end, epochs, tokens, tombstones, seals, staged };
        Ok(Some(Arrived { replica, probe }))
    }

    /// Takes one stream up to its end.
    async fn stream(
        &self,
        record: &ReplicaRecord,
        progress: &mut Option<Progress>,
        received: &Received,
    ) -> Result<(), Broken> {
        let mut stream = self.ask(record, progress.as_ref()).await?;
        let Message::Manifest(manifest) = next(&mut stream).await? else {
            return Err(Broken::Anew("the stream does not begin with a manifest"));
        };
        let (base, probe) = read_manifest(record, manifest).map_err(Broken::Anew)?;
        let known = match progress {
            Some(known) if known.base.entry == base.entry => {
                known.probe = probe;
                known
            }
            Some(_) | None => {
                let (tokens, after, writer) = (BytesMut::new(), Bytes::new(), self.writer(record));
                progress.insert(Progress { base, probe, tokens, after, bytes: 0, writer })
            }
        };
        let mut part = Part::default();
        loop {
            match next(&mut stream).await? {
                Message::Manifest(_) => return Err(Broken::Anew("a second manifest")),
                Message::Tokens(tokens) => known.add_tokens(&tokens)?,
                Message::Versions(chunk) => part.add(chunk)?,
                Message::Part(end) => known.add_part(std::mem::take(&mut part), &end).await?,
                Message::End(v1::BootstrapEnd {}) if part.chunks.is_empty() => return Ok(()),
                Message::End(v1::BootstrapEnd {}) => return Err(Broken::Anew("a part without an end")),
            }
            received.set(known.bytes + part.bytes as u64, known.base.size.1);
        }
    }

    /// Asks whoever leads.
    async fn ask(
        &self,
        record: &ReplicaRecord,
        progress: Option<&Progress>,
    ) -> Result<Streaming<v1::BootstrapResponse>, Status> {
        if !self.node.disk.takes_copies() {
            return Err(Status::resource_exhausted("the disk is too full for copies: free some of it"));
        }
        let own = self.node.peers.identity().ok_or_else(|| Status::unavailable("not registered yet"))?;
        let routes = self.node.routes.now();
        let leader = ServerId(routes.tablet(record.tablet).map_or(0, |tablet| tablet.leader_server_id));
        if leader == ServerId(0) || leader == own.run.server {
            return Err(Status::unavailable("nobody else leads the tablet now"));
        }
        let channel = connect_peer(&self.node, leader).await?;
        let mut client =
            BootstrapServiceClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
        let resume = progress.map(|known| v1::BootstrapResume {
            epoch: known.base.entry.pos.epoch.0,
            seq: known.base.entry.pos.seq.0,
            after: known.after.clone(),
        });
        let request = v1::BootstrapRequest {
            greeting: Some(own.greeting(leader)),
            tablet_id: record.tablet.0,
            replica_id: record.replica.0,
            resume,
        };
        Ok(client.bootstrap(request).await?.into_inner())
    }

    fn writer(&self, record: &ReplicaRecord) -> Writer {
        let (parts, received) = mpsc::channel(1);
        let (whole, wanted) = oneshot::channel();
        let (target, record) = (self.clone(), record.clone());
        let ended = spawn_blocking(move || target.write(&record, received, wanted));
        Writer { parts, whole, ended }
    }

    /// Makes files of parts, and installs them if they are the whole.
    fn write(
        &self,
        record: &ReplicaRecord,
        mut parts: mpsc::Receiver<Vec<(Bytes, Bytes)>>,
        wanted: oneshot::Receiver<Base>,
    ) -> Result<Installed, Error> {
        let path = self.dir.join(super::arrivals::dir_name(record));
        let dir = Scratch::make(path.clone()).map_err(|source| Error::CreateDirectory { path, source })?;
        let store = Arc::clone(&self.node.reader.store);
        let mut incoming = store.take_in(record.table, &record.range, &dir.0)?;
        while let Some(versions) = parts.blocking_recv() {
            let mut versions = versions.iter();
            match versions.try_for_each(|(stored_key, stored_value)| incoming.add(stored_key, stored_value)) {
                Ok(()) => {}
                Err(error @ StoreError::Corrupt { .. }) => {
                    warn!(tablet = %record.tablet, %error, "the source sent what it must not");
                    return Ok(Installed::Refused);
                }
                Err(error @ (StoreError::NewerFormat { .. } | StoreError::Engine { .. })) => {
                    return Err(error.into());
                }
            }
        }
        match wanted.blocking_recv() {
            Ok(base) => self.install(record, incoming, base),
            Err(_) => Ok(Installed::Superseded),
        }
    }

    /// The end of a bootstrap. A crash before the last step begins it anew: the record still
    /// says that the range and the log are garbage.
    fn install(
        &self,
        record: &ReplicaRecord,
        incoming: Box<dyn Incoming + '_>,
        base: Base,
    ) -> Result<Installed, Error> {
        let tablet = record.tablet;
        // Clear, flush, ingest, range tombstones, flush.
        incoming.install(&base.tombstones)?;
        // The last entry stands in the log: it proves where the log ends.
        failpoint!("bootstrap.log_clear");
        self.oplog.remove(&[tablet])?;
        if record.kind == TableKind::Memory {
            self.oplog.keep_in_memory(tablet);
        }
        let (end, last) = (base.entry.end(), Arc::new(Logged::from(base.entry)));
        let append = Append { tablet, tail: Tail::Continue, entries: vec![&last] };
        failpoint!("bootstrap.log_append");
        self.oplog.append_group(&[append], Fsync::Now)?;
        let (rows, bytes) = base.size;
        let built = Flushed { tablet, replica: record.replica, end, epochs: base.epochs, rows, bytes };
        // From here on the copy acknowledges what it has.
        let ended = self.replicas.end_bootstrap(record, &built, base.tokens_from_ms)?;
        Ok(ended.map_or(Installed::Superseded, |record| Installed::Yes(Box::new(record))))
    }
}

impl Progress {
    fn add_tokens(&mut self, tokens: &[u8]) -> Result<(), Broken> {
        if self.tokens.len() + tokens.len() > limits::BOOTSTRAP_TOKENS_BYTES_MAX {
            return Err(Broken::Anew("more tokens than a server remembers"));
        }
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    async fn add_part(&mut self, part: Part, end: &v1::BootstrapPart) -> Result<(), Broken> {
        let bytes = part.bytes as u64;
        let versions = part.end(end)?;
        let Some((last, _)) = versions.last() else { return Ok(()) };
        // A slice would keep the whole chunk in memory.
        let after = Bytes::copy_from_slice(last);
        let taken = self.writer.parts.send(versions).await;
        taken.map_err(|_| Broken::Anew("the versions were refused"))?;
        self.after = after;
        self.bytes += bytes;
        Ok(())
    }

    /// Everything came in. None when a stream broke within the tokens.
    fn end(self, record: &ReplicaRecord) -> Option<Fetched> {
        let Self { base, probe, tokens, writer, .. } = self;
        let tokens = TokenTable::decode(&tokens)?;
        Some(Fetched { record: record.clone(), tokens, base, probe, writer })
    }
}

/// A part on its way in.
#[derive(Default)]
struct Part {
    chunks: Vec<Bytes>,
    bytes: usize,
}

impl Part {
    fn add(&mut self, chunk: Bytes) -> Result<(), Broken> {
        self.bytes += chunk.len();
        if self.bytes > limits::BOOTSTRAP_PART_BYTES_MAX {
            return Err(Broken::Anew("a part is too large"));
        }
        self.chunks.push(chunk);
        Ok(())
    }

    /// The versions of a part that came in whole.
    fn end(self, end: &v1::BootstrapPart) -> Result<Vec<(Bytes, Bytes)>, Broken> {
        let mut sum = digest::Context::new(&digest::SHA256);
        self.chunks.iter().for_each(|chunk| sum.update(chunk));
        if sum.finish().as_ref() != &end.sha256[..] {
            return Err(Broken::Anew("a part is not what was sent"));
        }
        let mut versions = Vec::new();
        for chunk in self.chunks {
            versions.extend(chunk::read(chunk).ok_or(Broken::Anew("a chunk is cut short"))?);
        }
        let is_whole = versions.len() as u64 == end.versions;
        if is_whole { Ok(versions) } else { Err(Broken::Anew("versions are missing")) }
    }
}

/// The next message; a source that says nothing for long is as good as gone.
async fn next(stream: &mut Streaming<v1::BootstrapResponse>) -> Result<Message, Status> {
    let received = tokio::time::timeout(limits::BOOTSTRAP_SILENCE, stream.message()).await;
    let received = received.map_err(|_| Status::deadline_exceeded("the source is silent"))??;
    let message = received.and_then(|response| response.message);
    message.ok_or_else(|| Status::unavailable("the stream ended early"))
}

/// A manifest in kernel types, if it is one of this copy.
fn read_manifest(
    record: &ReplicaRecord,
    manifest: v1::BootstrapManifest,
) -> Result<(Base, PeerInput), &'static str> {
    let range = KeyRange::new(manifest.start, non_empty(manifest.end)).map_err(|_| "an inverted range")?;
    if range != record.range {
        return Err("the source's range is another");
    }
    let entry = Entry::decode(&manifest.last_entry).map_err(|_| "the last entry is malformed")?;
    let epochs = manifest.epochs.iter();
    let epochs = epochs.map(|at| EpochSpan { epoch: Epoch(at.epoch), first: Seq(at.first_seq) });
    let mut tombstones = Vec::new();
    for at in manifest.tombstones {
        let covered = KeyRange::new(at.from, non_empty(at.to)).map_err(|_| "an inverted range deletion")?;
        if !range.covers(&covered) {
            return Err("a range deletion that is none of the tablet's");
        }
        tombstones.push(RangeTombstone { range: covered, ts: Hlc(at.ts) });
    }
    let size = (manifest.rows_estimate, manifest.bytes_estimate);
    let server = ServerRun {
        server: ServerId(manifest.leader_server_id),
        incarnation: Incarnation(manifest.leader_incarnation),
    };
    let generation = Generation::Disk(DiskGeneration(manifest.disk_generation));
    let probe = PeerInput {
        from: ReplicaId(manifest.leader_replica_id),
        run: PeerRun { server, generation },
        epoch: Epoch(manifest.leader_epoch),
        message: PeerMessage::Probe,
    };
    Ok((Base { entry, epochs: epochs.collect(), tombstones, size, tokens_from_ms: 0 }, probe))
}
