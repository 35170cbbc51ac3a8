//! A bucket of S3, or of a server that speaks it, as a target.
//!
//! Whole or not at all is what S3 promises of every object. Each request is tried some times,
//! with pauses that grow and are drawn at random; downloads that break off within an answer are
//! asked for again. Nothing here relies on conditional requests, which some servers ignore.

mod certificate;
mod connect;
mod failure;
mod upload;

use super::directory::too_long;
use super::{Content, Listed, Target, TargetError, Unfinished};
use crate::Pace;
use crate::hex::to_hex;
use crate::limits::{S3_BACKOFF, S3_BACKOFF_MAX, S3_PART_BYTES, S3_REMOVALS_MAX, S3_TRANSFERS_MAX, S3_TRIES};
use crate::location::Bucket;
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use bytes::Bytes;
use failure::{failed, is_unknown_request};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ring::digest;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tracing::debug;
use upload::Source;

/// A bucket, or what of it has a prefix.
pub(super) struct S3 {
    client: Client,
    bucket: String,
    /// Empty, or with a slash at its end.
    prefix: String,
}

/// Bytes of an object, and how many it has.
struct Piece {
    bytes: Bytes,
    all: u64,
}

impl S3 {
    pub(super) async fn open(bucket: &Bucket) -> Result<Self, TargetError> {
        let client = connect::connect(bucket).await?;
        let prefix = if bucket.prefix.is_empty() { String::new() } else { format!("{}/", bucket.prefix) };
        Ok(Self { client, bucket: bucket.name.clone(), prefix })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// How messages call it.
    fn shown(&self, name: &str) -> String {
        format!("s3://{}/{}{name}", self.bucket, self.prefix)
    }

    async fn put_whole(&self, name: &str, bytes: Bytes) -> Result<(), TargetError> {
        let request = self.client.put_object().bucket(&self.bucket).key(self.key(name));
        let put = request.body(ByteStream::from(bytes)).send().await;
        put.map(|_| ()).map_err(|error| failed("put", &self.shown(name), &error))
    }

    /// Reads an object or a part of it, again when an answer breaks off.
    async fn read(&self, name: &str, part: Option<(u64, u64)>, bytes_max: u64) -> Result<Piece, TargetError> {
        let mut tries = 0;
        loop {
            let request = self.client.get_object().bucket(&self.bucket).key(self.key(name));
            let range = part.map(|(first, end)| format!("bytes={first}-{}", end - 1));
            let got = request.set_range(range).send().await;
            let got = got.map_err(|error| failed("get", &self.shown(name), &error))?;
            let all = all_bytes(&got);
            if got
                .content_length()
                .and_then(|bytes| u64::try_from(bytes).ok())
                .is_none_or(|bytes| bytes > bytes_max)
            {
                return Err(too_long(&self.shown(name), bytes_max));
            }
            tries += 1;
            match got.body.collect().await {
                Ok(body) => return Ok(Piece { bytes: body.into_bytes(), all }),
                Err(error) if tries >= S3_TRIES => {
                    let place = self.shown(name);
                    return Err(TargetError::Unavailable(format!(
                        "cannot get {place}: the answer broke off {tries} times ({error}); look at the server of the bucket and the way to it"
                    )));
                }
                Err(error) => debug!(name, %error, "an answer broke off"),
            }
            tokio::time::sleep(pause(tries)).await;
        }
    }

    /// Names with a prefix, of one level only or of all.
    async fn pages(&self, prefix: &str, delimiter: Option<&str>) -> Result<Page, TargetError> {
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(self.key(prefix));
        let mut pages = request.set_delimiter(delimiter.map(str::to_owned)).into_paginator().send();
        let mut all = Page::default();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| match failed("list", &self.shown(prefix), &error) {
                TargetError::NotFound(place) => {
                    TargetError::Refused(format!("{place} cannot be listed: is there such a bucket?"))
                }
                other => other,
            })?;
            let own = |key: &str| key.strip_prefix(&self.prefix).map(str::to_owned);
            for object in page.contents() {
                let Some(name) = object.key().and_then(own) else { continue };
                let bytes = object.size().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
                all.listed.push(Listed { name, bytes, modified_ms: millis(object.last_modified()) });
            }
            let folders = page.common_prefixes().iter().filter_map(|common| own(common.prefix()?));
            all.folders.extend(
                folders.filter_map(|name| Some(name.strip_prefix(prefix)?.trim_end_matches('/').to_owned())),
            );
        }
        all.listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all.folders.sort_unstable();
        Ok(all)
    }
}

/// What a listing gave.
#[derive(Default)]
struct Page {
    listed: Vec<Listed>,
    folders: Vec<String>,
}

#[async_trait]
impl Target for S3 {
    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), TargetError> {
        self.put_whole(name, bytes).await
    }

    async fn put_file(&self, name: &str, from: &Path, pace: &dyn Pace) -> Result<Content, TargetError> {
        let (source, bytes) = Source::open(from).await?;
        if bytes > S3_PART_BYTES {
            return self.put_parts(name, source, pace).await;
        }
        let (source, bytes) = source.next().await?;
        pace.wait(bytes.len()).await;
        self.put_whole(name, bytes).await?;
        Ok(source.content())
    }

    async fn get(&self, name: &str, bytes_max: u64) -> Result<Bytes, TargetError> {
        Ok(self.read(name, None, bytes_max).await?.bytes)
    }

    async fn get_file(&self, name: &str, to: &Path, pace: &dyn Pace) -> Result<Content, TargetError> {
        let first = self.read(name, Some((0, S3_PART_BYTES)), S3_PART_BYTES).await?;
        let all = first.all;
        let starts = (1..all.div_ceil(S3_PART_BYTES)).map(|part| part * S3_PART_BYTES);
        let rest = stream::iter(starts).map(|start| async move {
            let end = all.min(start + S3_PART_BYTES);
            let piece = self.read(name, Some((start, end)), S3_PART_BYTES).await?;
            Ok::<_, TargetError>(piece.bytes)
        });
        let mut pieces = pin!(rest.buffered(S3_TRANSFERS_MAX));
        pace.wait(first.bytes.len()).await;
        let mut sink = Sink::create(to).await?.write(first.bytes).await?;
        while let Some(bytes) = pieces.try_next().await? {
            pace.wait(bytes.len()).await;
            sink = sink.write(bytes).await?;
        }
        Ok(sink.content())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, TargetError> {
        Ok(self.pages(prefix, None).await?.listed)
    }

    async fn list_directories(&self, prefix: &str) -> Result<Vec<String>, TargetError> {
        Ok(self.pages(prefix, Some("/")).await?.folders)
    }

    async fn delete(&self, names: &[String]) -> Result<(), TargetError> {
        // One by one: the request for many needs a checksum that not every server knows.
        let removals = stream::iter(names.to_vec()).map(|name| async move {
            let removed = self.client.delete_object().bucket(&self.bucket).key(self.key(&name)).send().await;
            match removed.map_err(|error| failed("remove", &self.shown(&name), &error)) {
                Ok(_) | Err(TargetError::NotFound(_)) => Ok(()),
                Err(error) => Err(error),
            }
        });
        removals.buffer_unordered(S3_REMOVALS_MAX).try_collect().await
    }

    async fn list_unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, TargetError> {
        let mut found = Vec::new();
        let (mut key_marker, mut upload_marker) = (None, None);
        loop {
            let request = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(self.key(prefix));
            let request = request.set_key_marker(key_marker).set_upload_id_marker(upload_marker);
            let page = match request.send().await {
                Ok(page) => page,
                Err(error) if is_unknown_request(&error) => {
                    debug!(bucket = self.bucket, "the target cannot list unfinished uploads");
                    return Ok(found);
                }
                Err(error) => return Err(failed("list uploads of", &self.shown(prefix), &error)),
            };
            found.extend(page.uploads().iter().filter_map(|upload| {
                let name = upload.key()?.strip_prefix(&self.prefix)?.to_owned();
                let started_ms = millis(upload.initiated());
                Some(Unfinished { name, upload: upload.upload_id()?.to_owned(), bytes: 0, started_ms })
            }));
            key_marker = page.next_key_marker().map(str::to_owned);
            upload_marker = page.next_upload_id_marker().map(str::to_owned);
            if page.is_truncated() != Some(true) || key_marker.is_none() {
                return Ok(found);
            }
        }
    }

    async fn remove_unfinished(&self, uploads: &[Unfinished]) -> Result<(), TargetError> {
        for upload in uploads {
            let request =
                self.client.abort_multipart_upload().bucket(&self.bucket).key(self.key(&upload.name));
            let aborted = request.upload_id(&upload.upload).send().await;
            match aborted.map_err(|error| failed("abort the upload of", &self.shown(&upload.name), &error)) {
                Ok(_) | Err(TargetError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A local file that is being written.
struct Sink {
    file: File,
    digest: digest::Context,
    bytes: u64,
}

impl Sink {
    async fn create(path: &Path) -> Result<Self, TargetError> {
        let path = path.to_owned();
        let file = written(spawn_blocking(move || File::create_new(path)).await)?;
        Ok(Self { file, digest: digest::Context::new(&digest::SHA256), bytes: 0 })
    }

    async fn write(mut self, bytes: Bytes) -> Result<Self, TargetError> {
        let write = spawn_blocking(move || {
            self.digest.update(&bytes);
            self.bytes += bytes.len() as u64;
            self.file.write_all(&bytes)?;
            Ok(self)
        });
        written(write.await)
    }

    fn content(self) -> Content {
        Content { bytes: self.bytes, sha256: to_hex(self.digest.finish().as_ref()) }
    }
}

fn written<T>(done: Result<std::io::Result<T>, tokio::task::JoinError>) -> Result<T, TargetError> {
    let done = done.map_err(std::io::Error::other).and_then(|done| done);
    done.map_err(|error| {
        TargetError::Refused(format!(
            "cannot write a file that was fetched: {error}; look at the disk of this machine"
        ))
    })
}

/// How many bytes the object of an answer has, also when it is only a part of it.
fn all_bytes(got: &GetObjectOutput) -> u64 {
    let of_range = got.content_range().and_then(|range| range.rsplit_once('/')?.1.parse().ok());
    of_range.or_else(|| u64::try_from(got.content_length()?).ok()).unwrap_or(0)
}

fn millis(at: Option<&DateTime>) -> u64 {
    at.and_then(|at| u64::try_from(at.to_millis().ok()?).ok()).unwrap_or(0)
}

/// Some time below a bound that doubles with every try.
fn pause(tries: u32) -> Duration {
    let bound = S3_BACKOFF.saturating_mul(1_u32 << tries.min(16)).min(S3_BACKOFF_MAX);
    bound.mul_f64(rand::random::<f64>())
}
