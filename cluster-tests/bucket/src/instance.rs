//! The service that tells a machine in a cloud its credentials, in its second version: a token
//! first, with a PUT, then everything else with that token.

use crate::server::{self, Connection};
use crate::{ACCESS_KEY, SECRET_KEY};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use s3s::{Body, HttpError};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a caller proves itself with.
const TOKEN: &str = "token-of-a-test";

/// Name of the one role.
const ROLE: &str = "ebla-backups";

const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/";

/// A running service.
pub struct Instance {
    address: SocketAddr,
    told: Arc<AtomicU64>,
}

impl Instance {
    /// Starts a service that tells the credentials of the one account.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn start() -> io::Result<Self> {
        let told = Arc::<AtomicU64>::default();
        let shared = Arc::clone(&told);
        let address = server::start(None, move |connection| serve(connection, Arc::clone(&shared)))?;
        Ok(Self { address, told })
    }

    /// What a process needs in its environment.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 1] {
        [("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{}", self.address))]
    }

    /// How often credentials were told.
    #[must_use]
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }
}

async fn serve(connection: Connection, told: Arc<AtomicU64>) {
    let answer = service_fn(move |request| {
        let answer = answer(&request, &told);
        async { Ok::<_, HttpError>(answer) }
    });
    connection.serve(answer).await;
}

fn answer(request: &Request<Incoming>, told: &AtomicU64) -> Response<Body> {
    let path = request.uri().path();
    if path == "/latest/api/token" {
        let is_put = request.method() == Method::PUT;
        return if is_put { text(StatusCode::OK, TOKEN) } else { text(StatusCode::METHOD_NOT_ALLOWED, "") };
    }
    let header = request.headers().get("x-aws-ec2-metadata-token");
    if header.is_none_or(|token| token != TOKEN) {
        return text(StatusCode::UNAUTHORIZED, "");
    }
    match path.strip_prefix(CREDENTIALS) {
        Some("") => text(StatusCode::OK, ROLE),
        Some(ROLE) => {
            told.fetch_add(1, Ordering::Relaxed);
            text(StatusCode::OK, &credentials())
        }
        Some(_) | None => text(StatusCode::NOT_FOUND, ""),
    }
}

fn credentials() -> String {
    format!(
        r#"{{"Code":"Success","LastUpdated":"2026-01-01T00:00:00Z","Type":"AWS-HMAC","AccessKeyId":"{ACCESS_KEY}","SecretAccessKey":"{SECRET_KEY}","Token":"session","Expiration":"2099-01-01T00:00:00Z"}}"#
    )
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    if status == StatusCode::OK && text == TOKEN {
        let seconds = hyper::header::HeaderValue::from_static("21600");
        response.headers_mut().insert("x-aws-ec2-metadata-token-ttl-seconds", seconds);
    }
    response
}
