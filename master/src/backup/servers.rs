//! What tablet servers are asked for backups.

use crate::limits::{
    BACKUP_CONNECT_TIMEOUT, BACKUP_PROBE_TIMEOUT, BACKUP_SILENCE, PROBED_MANIFEST_BYTES_MAX,
};
use crate::raft::transport::endpoint;
use crate::service::Shared;
use bytes::Bytes;
use ebla_backup::{PROBES, Repository};
use ebla_kernel::backup::Ended;
use ebla_kernel::ids::ServerId;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::backup_service_client::BackupServiceClient;
use ebla_proto::v1::{ExportRequest, ExportResponse, ImportRequest, ImportResponse, ProbeRequest};
use std::collections::BTreeSet;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

/// Servers that are connected to this master.
pub(super) fn connected(shared: &Shared) -> BTreeSet<ServerId> {
    let state = shared.raft.view().state();
    let ids = state.servers().map(|server| server.id);
    ids.filter(|id| shared.liveness.health(*id).connected).collect()
}

/// The cluster's name, for servers to check.
pub(super) fn cluster_id(shared: &Shared) -> String {
    shared.raft.view().state().cluster_id().map(|id| id.to_string()).unwrap_or_default()
}

async fn client(shared: &Shared, server: ServerId) -> Result<BackupServiceClient<Channel>, String> {
    let address = shared.raft.view().state().server(server).map(|server| server.address.clone());
    let address = address.ok_or_else(|| format!("server {} is gone", server.0))?;
    let endpoint = endpoint(&address).map_err(|error| error.to_string())?;
    let connected = timeout(BACKUP_CONNECT_TIMEOUT, endpoint.connect()).await;
    let channel = connected.map_err(|_| format!("the server at {address} does not answer"))?;
    Ok(BackupServiceClient::new(channel.map_err(|error| format!("the server at {address}: {error}"))?))
}

/// What is looked for at a target.
#[derive(Clone, Copy)]
pub(super) enum Sight<'a> {
    /// This master puts something there, and every server reads it and puts something itself.
    Writes,
    /// This master puts something there, and every server reads it. Where nothing can be put, as on
    /// a medium that takes no writes, they read the manifest of this backup.
    Reads(&'a str),
}

/// Every connected server sees at the target what this master sees there, and may do there what it is
/// about to do.
pub(super) async fn probe(
    shared: &Shared,
    repository: &Repository,
    url: &str,
    key_id: &str,
    sight: Sight<'_>,
) -> Result<(), String> {
    shared.settle().await;
    let servers = connected(shared);
    if servers.is_empty() {
        return Err("no tablet server is connected: start one with `ebla tabletserver`".to_owned());
    }
    let number: u64 = rand::random();
    let (name, content) = (format!("{PROBES}{number:016x}"), Bytes::from(number.to_be_bytes().to_vec()));
    let put = repository.target().put(&name, content.clone()).await;
    let cannot = |error| format!("the leading master cannot write to {url}: {error}");
    let (name, content, mut names) = match (put, sight) {
        (Ok(()), _) => (name.clone(), content, vec![name]),
        (Err(error), Sight::Writes) => return Err(cannot(error)),
        (Err(error), Sight::Reads(backup)) => {
            let manifest = repository.manifest_bytes(backup, PROBED_MANIFEST_BYTES_MAX).await;
            let (name, content) = manifest.map_err(|_| cannot(error))?;
            (name, content, Vec::new())
        }
    };
    let writes = matches!(sight, Sight::Writes);
    let mut probed = Ok(());
    for server in servers {
        let answer = if writes { format!("{name}-{}", server.0) } else { String::new() };
        let request = ProbeRequest {
            cluster_id: cluster_id(shared),
            target: url.to_owned(),
            name: name.clone(),
            content: content.clone(),
            answer: answer.clone(),
            key_id: key_id.to_owned(),
        };
        names.extend(writes.then_some(answer));
        probed = probe_one(shared, server, request).await;
        if probed.is_err() {
            break;
        }
    }
    let removed = repository.target().delete(&names).await;
    probed?;
    removed.map_err(|error| format!("probe files at {url} cannot be removed: {error}"))
}

async fn probe_one(shared: &Shared, server: ServerId, request: ProbeRequest) -> Result<(), String> {
    let ask = async { client(shared, server).await?.probe(request).await.map_err(|status| said(&status)) };
    let answer = timeout(BACKUP_PROBE_TIMEOUT, ask).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {BACKUP_PROBE_TIMEOUT:?}")));
    answer.map(drop).map_err(|why| format!("server {} cannot use the target: {why}", server.0))
}

/// What a server says of its work again and again.
trait Said {
    /// Whether it is the last word: everything is done.
    fn is_last(&self) -> bool;

    /// Bytes that are done.
    fn bytes(&self) -> u64;
}

impl Said for ExportResponse {
    fn is_last(&self) -> bool {
        self.done
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Said for ImportResponse {
    fn is_last(&self) -> bool {
        self.done
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Lets a server export; `wrote` hears of its bytes.
pub(super) async fn export(
    shared: &Shared,
    server: ServerId,
    request: ExportRequest,
    wrote: impl Fn(u64),
) -> Result<ExportResponse, Ended> {
    let mut client = client(shared, server).await.map_err(Ended::Refused)?;
    follow(server, client.export(request), false, wrote).await
}

/// Lets a server take rows in; `took` hears of their bytes.
pub(super) async fn import(
    shared: &Shared,
    server: ServerId,
    request: ImportRequest,
    took: impl Fn(u64),
) -> Result<ImportResponse, Ended> {
    let mut client = client(shared, server).await.map_err(Ended::Refused)?;
    follow(server, client.import(request), true, took).await
}

/// Follows a server's work to its last word.
async fn follow<T: Said>(
    server: ServerId,
    begun: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
    reads_files: bool,
    note: impl Fn(u64),
) -> Result<T, Ended> {
    let ended = |status: Status| ended(&status, reads_files);
    let begun = timeout(BACKUP_SILENCE, begun).await.map_err(|_| silent(server))?;
    let mut stream = begun.map_err(ended)?.into_inner();
    loop {
        let said = timeout(BACKUP_SILENCE, stream.message()).await.map_err(|_| silent(server))?;
        let said = said.map_err(ended)?.ok_or_else(|| ended_early(server))?;
        if said.is_last() {
            return Ok(said);
        }
        note(said.bytes());
    }
}

fn ended_early(server: ServerId) -> Ended {
    Ended::Refused(format!("server {} ended its work early", server.0))
}

fn silent(server: ServerId) -> Ended {
    Ended::Refused(format!("server {} said nothing for {BACKUP_SILENCE:?}", server.0))
}

/// Whether asking again, or somebody else, may help. What is older than retention comes back
/// nowhere, a foreign key or a full target are the same for all, and so is a damaged file; what
/// is damaged on one server another one may have whole.
fn ended(status: &Status, reads_files: bool) -> Ended {
    match ApiError::from_status(status).reason {
        Reason::TimestampOutOfRange
        | Reason::BackupTarget
        | Reason::BackupNotFound
        | Reason::BadRequest
        | Reason::DiskFull => Ended::Impossible(said(status)),
        Reason::Corrupt if reads_files => Ended::Impossible(said(status)),
        _ => Ended::Refused(said(status)),
    }
}

fn said(status: &Status) -> String {
    status.message().to_owned()
}
