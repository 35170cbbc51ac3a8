//! A bucket for tests: a real S3 server (HTTP, signatures, multipart) in this process, over a
//! directory, that fails where it is told to.
//!
//! It runs on a thread of its own, so that tests with and without a runtime can use it, and
//! serves until the process ends. Knows nothing of backups.

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::net::{TcpListener, TcpStream};

/// Name of the one bucket.
pub const BUCKET: &str = "backups";

/// Name of the one account.
pub const ACCESS_KEY: &str = "EBLATESTACCOUNT";

/// What the account proves itself with; tests look that it appears nowhere.
pub const SECRET_KEY: &str = "ebla-test-secret-that-nobody-may-print";

/// A running server.
pub struct Bucket {
    address: SocketAddr,
    faults: Arc<Faults>,
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
        std::fs::create_dir_all(dir.join(BUCKET))?;
        let files = s3s_fs::FileSystem::new(dir).map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let faults = Arc::<Faults>::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let shared = Arc::clone(&faults);
        std::thread::spawn(move || runtime.block_on(serve(listener, service, shared)));
        Ok(Self { address, faults })
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// URL of a place for backups under `prefix`; needs nothing but credentials.
    #[must_use]
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}?endpoint={}", self.endpoint())
    }

    /// What a process needs in its environment.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 2] {
        [("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned())]
    }

    /// Lets every nth request fail, in turn with `503 SlowDown` and a cut connection; 0 ends it.
    pub fn fail_every(&self, n: u64) {
        self.faults.fail_every.store(n, Ordering::Relaxed);
    }

    /// Lets every upload fail as on a full disk, or no longer.
    pub fn set_full(&self, is_full: bool) {
        self.faults.is_full.store(is_full, Ordering::Relaxed);
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.faults.requests.load(Ordering::Relaxed)
    }
}

async fn serve(listener: std::net::TcpListener, service: S3Service, faults: Arc<Faults>) {
    let listener = TcpListener::from_std(listener).expect("the listener is set to non-blocking");
    loop {
        // A connection that could not be taken is tried again by the client.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(connection(stream, service.clone(), Arc::clone(&faults)));
    }
}

async fn connection(stream: TcpStream, service: S3Service, faults: Arc<Faults>) {
    let answer = service_fn(move |request| answer(request, service.clone(), Arc::clone(&faults)));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new());
    // A cut connection is one of the faults.
    let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
}

async fn answer(
    request: Request<Incoming>,
    service: S3Service,
    faults: Arc<Faults>,
) -> Result<Response<Body>, HttpError> {
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
    hyper::service::Service::call(&service, request).await
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>a fault of the test</Message></Error>"
    );
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}
