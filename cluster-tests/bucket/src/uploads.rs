//! Uploads in parts that were begun and not ended: the server below does not list them.

use crate::BUCKET;
use hyper::{Response, Uri};
use s3s::Body;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Longest answer to the beginning of an upload.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The uploads that were begun.
pub(crate) struct Uploads {
    dir: PathBuf,
    begun: Mutex<Vec<Begun>>,
}

struct Begun {
    key: String,
    id: String,
}

impl Uploads {
    /// Those of a server that keeps its objects in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), begun: Mutex::default() }
    }

    /// Whether a request, by method and URI, asks for a list.
    pub(crate) fn is_list(uri: &Uri) -> bool {
        uri.path().trim_matches('/') == BUCKET && parameter(uri, "uploads").is_some()
    }

    /// Whether it begins one.
    pub(crate) fn is_begin(uri: &Uri) -> bool {
        uri.path().trim_matches('/') != BUCKET && parameter(uri, "uploads").is_some()
    }

    /// Notes what the answer to a beginning says; gives the answer back.
    pub(crate) async fn note(&self, uri: &Uri, answer: Response<Body>) -> Response<Body> {
        let (head, mut body) = answer.into_parts();
        let Ok(bytes) = body.store_all_limited(ANSWER_BYTES_MAX).await else {
            return Response::from_parts(head, Body::empty());
        };
        let text = String::from_utf8_lossy(&bytes);
        let id = text.split_once("<UploadId>").and_then(|(_, rest)| rest.split_once("</UploadId>"));
        let key = uri.path().trim_start_matches('/').split_once('/');
        if let (Some((id, _)), Some((_, key))) = (id, key) {
            let begun = Begun { key: key.to_owned(), id: id.to_owned() };
            self.begun.lock().unwrap_or_else(PoisonError::into_inner).push(begun);
        }
        Response::from_parts(head, Body::from(bytes))
    }

    /// Keys of those that are not ended.
    pub(crate) fn open(&self) -> Vec<(String, String)> {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let is_open = |begun: &&Begun| self.dir.join(format!(".upload-{}.json", begun.id)).exists();
        begun.iter().filter(is_open).map(|begun| (begun.key.clone(), begun.id.clone())).collect()
    }

    /// The list, on one page.
    pub(crate) fn list(&self, uri: &Uri) -> Response<Body> {
        // Names in tests have nothing that would be escaped, but for the slash.
        let prefix = parameter(uri, "prefix").unwrap_or_default().replace("%2F", "/");
        let mut text = format!(
            "<?xml version=\"1.0\"?><ListMultipartUploadsResult><Bucket>{BUCKET}</Bucket><IsTruncated>false</IsTruncated>"
        );
        for (key, id) in self.open().iter().filter(|(key, _)| key.starts_with(&prefix)) {
            let upload = format!(
                "<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload>"
            );
            write!(text, "{upload}").expect("a string takes everything");
        }
        text.push_str("</ListMultipartUploadsResult>");
        Response::new(Body::from(text))
    }
}

/// The value of a parameter, as it stands there.
fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let pairs =
        uri.query().unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value)
}
