//! Large objects: in parts, some at once, whole or not at all.

use super::S3;
use super::failure::failed;
use crate::Pace;
use crate::hex::to_hex;
use crate::limits::{S3_PART_BYTES, S3_PARTS_MAX, S3_TRANSFERS_MAX};
use crate::target::{Content, TargetError};
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::abort_multipart_upload::builders::AbortMultipartUploadFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use ring::digest;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use tokio::task::{JoinSet, spawn_blocking};
use tracing::warn;

/// A local file on its way, read from its beginning to its end.
pub(super) struct Source {
    file: File,
    part_bytes: u64,
    digest: digest::Context,
    /// Bytes read so far.
    bytes: u64,
}

impl Source {
    /// Opens a local file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) async fn open(path: &Path) -> Result<(Self, u64), TargetError> {
        let path = path.to_owned();
        let opened = spawn_blocking(move || {
            let file = File::open(&path)?;
            let bytes = file.metadata()?.len();
            Ok((file, bytes))
        });
        let (file, bytes) = read_here(opened.await)?;
        let part_bytes = S3_PART_BYTES.max(bytes.div_ceil(S3_PARTS_MAX));
        Ok((Self { file, part_bytes, digest: digest::Context::new(&digest::SHA256), bytes: 0 }, bytes))
    }

    /// The next part; empty at the end.
    pub(super) async fn next(mut self) -> Result<(Self, Bytes), TargetError> {
        let read = spawn_blocking(move || {
            let mut bytes = Vec::new();
            (&mut self.file).take(self.part_bytes).read_to_end(&mut bytes)?;
            self.digest.update(&bytes);
            self.bytes += bytes.len() as u64;
            Ok((self, Bytes::from(bytes)))
        });
        read_here(read.await)
    }

    /// What was read.
    pub(super) fn content(self) -> Content {
        Content { bytes: self.bytes, sha256: to_hex(self.digest.finish().as_ref()) }
    }
}

fn read_here<T>(read: Result<std::io::Result<T>, tokio::task::JoinError>) -> Result<T, TargetError> {
    let read = read.map_err(std::io::Error::other).and_then(|read| read);
    read.map_err(|error| {
        TargetError::Refused(format!("cannot read a file to put: {error}; look at the disk of this machine"))
    })
}

/// An upload that is aborted unless it is completed.
struct Upload {
    object: Object,
    is_ended: bool,
}

/// An object that is on its way up, and how messages call it.
#[derive(Clone)]
struct Object {
    client: Client,
    bucket: String,
    key: String,
    upload: String,
    shown: String,
}

impl S3 {
    /// Puts a file in parts.
    pub(super) async fn put_parts(
        &self,
        name: &str,
        source: Source,
        pace: &dyn Pace,
    ) -> Result<Content, TargetError> {
        let (key, shown) = (self.key(name), self.shown(name));
        let begun = self.client.create_multipart_upload().bucket(&self.bucket).key(&key).send().await;
        let begun = begun.map_err(|error| failed("begin to put", &shown, &error))?;
        let upload = begun.upload_id().unwrap_or_default().to_owned();
        let object = Object { client: self.client.clone(), bucket: self.bucket.clone(), key, upload, shown };
        let upload = Upload { object, is_ended: false };
        match upload.object.send(source, pace).await {
            Ok(content) => {
                upload.forget();
                Ok(content)
            }
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }
}

impl Object {
    /// Sends everything: read one after the other, sent some at once.
    async fn send(&self, mut source: Source, pace: &dyn Pace) -> Result<Content, TargetError> {
        let mut sending = JoinSet::new();
        let mut sent = Vec::new();
        for number in 1.. {
            let (rest, bytes) = source.next().await?;
            source = rest;
            if bytes.is_empty() {
                break;
            }
            pace.wait(bytes.len()).await;
            if sending.len() >= S3_TRANSFERS_MAX {
                sent.extend(self.sent(&mut sending).await?);
            }
            let object = self.clone();
            sending.spawn(async move { object.send_part(number, bytes).await });
        }
        while let Some(part) = self.sent(&mut sending).await? {
            sent.push(part);
        }
        sent.sort_unstable_by_key(CompletedPart::part_number);
        let content = source.content();
        self.complete(sent, content.bytes).await?;
        Ok(content)
    }

    /// Waits for one of those that are on their way.
    async fn sent(
        &self,
        sending: &mut JoinSet<Result<CompletedPart, TargetError>>,
    ) -> Result<Option<CompletedPart>, TargetError> {
        let lost = |error| TargetError::Unavailable(format!("cannot put {}: {error}", self.shown));
        sending.join_next().await.transpose().map_err(lost)?.transpose()
    }

    async fn send_part(&self, number: i32, bytes: Bytes) -> Result<CompletedPart, TargetError> {
        let request = self.client.upload_part().bucket(&self.bucket).key(&self.key).upload_id(&self.upload);
        let sent = request.part_number(number).body(ByteStream::from(bytes)).send().await;
        let sent = sent.map_err(|error| match failed("put", &self.shown, &error) {
            TargetError::NotFound(_) => self.is_gone(),
            other => other,
        })?;
        let tag = sent.e_tag().map(str::to_owned);
        Ok(CompletedPart::builder().part_number(number).set_e_tag(tag).build())
    }

    async fn complete(&self, parts: Vec<CompletedPart>, bytes: u64) -> Result<(), TargetError> {
        let request = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(&self.key)
            .upload_id(&self.upload);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let Err(error) = request.multipart_upload(parts).send().await else { return Ok(()) };
        let failed = failed("put", &self.shown, &error);
        if !matches!(failed, TargetError::NotFound(_)) {
            return Err(failed);
        }
        // The answer of a try that did its work may have been lost.
        let head = self.client.head_object().bucket(&self.bucket).key(&self.key).send().await;
        let found = head.ok().and_then(|head| u64::try_from(head.content_length()?).ok());
        if found == Some(bytes) { Ok(()) } else { Err(self.is_gone()) }
    }

    fn is_gone(&self) -> TargetError {
        TargetError::Unavailable(format!(
            "cannot put {}: somebody has aborted its upload; try again",
            self.shown
        ))
    }

    fn abort(&self) -> AbortMultipartUploadFluentBuilder {
        self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.key).upload_id(&self.upload)
    }
}

impl Upload {
    fn forget(mut self) {
        self.is_ended = true;
    }

    async fn abort(mut self) {
        self.is_ended = true;
        if self.object.abort().send().await.is_err() {
            warn!(
                key = self.object.key,
                "an upload that failed was not aborted: `ebla backup prune` does it"
            );
        }
    }
}

impl Drop for Upload {
    /// Somebody has given up waiting.
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.is_ended {
            let abort = self.object.abort();
            // If it cannot be aborted, `ebla backup prune` finds it.
            runtime.spawn(async move { drop(abort.send().await) });
        }
    }
}
