//! A bucket for tests: a real S3 server (HTTP and HTTPS, signatures, multipart) in this process,
//! over a directory, that fails where it is told to; and the service that tells a machine in a
//! cloud its credentials.
//!
//! They run on threads of their own, so that tests with and without a runtime can use them, and
//! serve until the process ends. Know nothing of backups.

mod certificates;
mod instance;
mod server;
mod uploads;

pub use instance::Instance;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError};
use server::Connection;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use uploads::Uploads;

/// Name of the one bucket.
pub const BUCKET: &str = "backups";

/// Name of the one account.
pub const ACCESS_KEY: &str = "EBLATESTACCOUNT";

/// What the account proves itself with; tests look that it appears nowhere.
pub const SECRET_KEY: &str = "ebla-test-secret-that-nobody-may-print";

/// A running server.
pub struct Bucket {
    address: SocketAddr,
    /// The authority of its certificate, as PEM, if it has one.
    authority: Option<String>,
    shared: Arc<Shared>,
}

/// What every connection shares.
struct Shared {
    service: S3Service,
    faults: Faults,
    uploads: Uploads,
}

/// What the server does wrong.
#[derive(Default)]
struct Faults {
    requests: AtomicU64,
    /// 0 for never.
    fail_every: AtomicU64,
    is_full: AtomicBool,
}

impl Bucket {
    /// Starts a server that keeps its objects in `dir`.
    ///
    /// # Errors
    /// When the directory or the port cannot be had.
    pub fn start(dir: &Path) -> io::Result<Self> {
        let shared = shared(dir)?;
        let address = server::start(None, connections(&shared))?;
        Ok(Self { address, authority: None, shared })
    }

    /// The same under TLS, with a certificate by an authority that nobody else knows.
    ///
    /// # Errors
    /// When the directory, the port or the certificate cannot be had.
    pub fn start_tls(dir: &Path) -> io::Result<Self> {
        let shared = shared(dir)?;
        let (tls, authority) = certificates::server()?;
        let address = server::start(Some(tls), connections(&shared))?;
        Ok(Self { address, authority: Some(authority), shared })
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// URL of a place for backups under `prefix`; needs nothing but credentials, and under TLS
    /// the authority.
    #[must_use]
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}?endpoint={}", self.endpoint())
    }

    /// The authority of its certificate, as PEM; empty without TLS.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.authority.as_deref().unwrap_or_default()
    }

    /// What a process needs in its environment.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 2] {
        [("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned())]
    }

    /// Lets every nth request fail, in turn with `503 SlowDown` and a cut connection; 0 ends it.
    pub fn fail_every(&self, n: u64) {
        self.shared.faults.fail_every.store(n, Ordering::Relaxed);
    }

    /// Lets every upload fail as on a full disk, or no longer.
    pub fn set_full(&self, is_full: bool) {
        self.shared.faults.is_full.store(is_full, Ordering::Relaxed);
    }

    /// Keys of uploads in parts that were begun and not ended.
    #[must_use]
    pub fn open_uploads(&self) -> Vec<String> {
        self.shared.uploads.open().into_iter().map(|(key, _)| key).collect()
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.faults.requests.load(Ordering::Relaxed)
    }
}

/// An authority that no server here is known by, as PEM.
///
/// # Errors
/// When no key can be made.
pub fn other_authority() -> io::Result<String> {
    certificates::authority().map(|(_, pem)| pem).map_err(io::Error::other)
}

fn shared(dir: &Path) -> io::Result<Arc<Shared>> {
    std::fs::create_dir_all(dir.join(BUCKET))?;
    let files = s3s_fs::FileSystem::new(dir).map_err(|error| io::Error::other(format!("{error:?}")))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    Ok(Arc::new(Shared { service: builder.build(), faults: Faults::default(), uploads: Uploads::new(dir) }))
}

/// Work on a connection.
type Served = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What is done with every connection.
fn connections(shared: &Arc<Shared>) -> impl Fn(Connection) -> Served + Send + 'static {
    let shared = Arc::clone(shared);
    move |connection| {
        let shared = Arc::clone(&shared);
        let answer = service_fn(move |request| answer(request, Arc::clone(&shared)));
        Box::pin(connection.serve(answer))
    }
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, HttpError> {
    let Shared { service, faults, uploads } = &*shared;
    let number = faults.requests.fetch_add(1, Ordering::Relaxed) + 1;
    let every = faults.fail_every.load(Ordering::Relaxed);
    if every > 0 && number.is_multiple_of(every) {
        if (number / every).is_multiple_of(2) {
            return Err(HttpError::new(Box::new(io::Error::other("a fault of the test"))));
        }
        return Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"));
    }
    let is_upload = matches!(*request.method(), Method::PUT | Method::POST);
    if is_upload && faults.is_full.load(Ordering::Relaxed) {
        return Ok(refusal(StatusCode::INSUFFICIENT_STORAGE, "XMinioStorageFull"));
    }
    if request.method() == Method::GET && Uploads::is_list(request.uri()) {
        return Ok(uploads.list(request.uri()));
    }
    let begins = request.method() == Method::POST && Uploads::is_begin(request.uri());
    let uri = request.uri().clone();
    let answer = hyper::service::Service::call(service, request).await?;
    if begins { Ok(uploads.note(&uri, answer).await) } else { Ok(answer) }
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>a fault of the test</Message></Error>"
    );
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}
