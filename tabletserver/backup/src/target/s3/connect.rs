//! From a location and the environment to a client of S3.

use super::certificate::OnceOnly;
use crate::limits::{
    S3_BACKOFF, S3_BACKOFF_MAX, S3_CONNECT_TIMEOUT, S3_READ_TIMEOUT, S3_TRANSFERS_MAX, S3_TRIES,
    S3_TRY_TIMEOUT,
};
use crate::location::{self, Bucket};
use crate::target::TargetError;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Region of those who name none: any is signed for alike, and servers of one's own ask for none.
const REGION_DEFAULT: &str = "us-east-1";

/// A client for a bucket. Nothing is sent yet.
///
/// # Errors
/// `Refused` when what is set cannot be used.
pub(super) async fn connect(bucket: &Bucket) -> Result<Client, TargetError> {
    let endpoint = endpoint(bucket)?;
    let http = http_client(bucket, endpoint.as_deref()).await?;
    let shared = shared_config(bucket, http).await;
    let endpoint = endpoint.or_else(|| shared.endpoint_url().map(str::to_owned));
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        // A checksum that many other servers do not know; files carry their own.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_classifier(OnceOnly)
        .force_path_style(bucket.path_style.unwrap_or(endpoint.is_some()));
    config.set_endpoint_url(endpoint);
    Ok(Client::from_conf(config.build()))
}

async fn shared_config(bucket: &Bucket, http: SharedHttpClient) -> SdkConfig {
    // Without the instance's own region: asking for it takes seconds where there is no such service.
    let region = RegionProviderChain::first_try(bucket.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new())
        .or_else(REGION_DEFAULT);
    let retries = RetryConfig::standard()
        .with_max_attempts(S3_TRIES)
        .with_initial_backoff(S3_BACKOFF)
        .with_max_backoff(S3_BACKOFF_MAX);
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(S3_CONNECT_TIMEOUT)
        .read_timeout(S3_READ_TIMEOUT)
        .operation_attempt_timeout(S3_TRY_TIMEOUT)
        .build();
    aws_config::defaults(BehaviorVersion::latest())
        .region(region)
        .retry_config(retries)
        .timeout_config(timeouts)
        .http_client(http)
        .load()
        .await
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn endpoint(bucket: &Bucket) -> Result<Option<String>, TargetError> {
    if bucket.endpoint.is_some() {
        return Ok(bucket.endpoint.clone());
    }
    let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
    let Some((name, value)) = names.into_iter().find_map(|name| Some((name, variable(name)?))) else {
        return Ok(None);
    };
    let url = value.into_string().map_err(|_| TargetError::Refused(format!("{name} is no URL")))?;
    let url = location::endpoint(url).map_err(|error| TargetError::Refused(format!("{name}: {error}")))?;
    Ok(Some(url))
}

/// Connections: with the given certificate authorities only, or those of the system.
async fn http_client(bucket: &Bucket, endpoint: Option<&str>) -> Result<SharedHttpClient, TargetError> {
    let trust = match bucket.ca.clone().or_else(|| variable("AWS_CA_BUNDLE").map(PathBuf::from)) {
        Some(path) => TrustStore::empty().with_pem_certificate(certificates(&path).await?),
        // A machine without any certificate may well reach a server of its own network.
        None => {
            TrustStore::empty().with_native_roots(!endpoint.is_some_and(|url| url.starts_with("http://")))
        }
    };
    let context = TlsContext::builder().with_trust_store(trust).build();
    let context = context.map_err(|error| TargetError::Refused(format!("TLS cannot be set up: {error}")))?;
    Ok(Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(context)
        .pool_max_idle_per_host(2 * S3_TRANSFERS_MAX)
        .build_https())
}

/// A file of certificates, looked through: the library takes what it is given for sound.
async fn certificates(path: &Path) -> Result<Vec<u8>, TargetError> {
    let refused = |what: String| {
        TargetError::Refused(format!(
            "the file of certificates {} {what}: give `ca=` or AWS_CA_BUNDLE a PEM file with the authority of the endpoint",
            path.display()
        ))
    };
    let pem = tokio::fs::read(path).await.map_err(|error| refused(format!("cannot be read ({error})")))?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate.map_err(|error| error.to_string());
        let added = added.and_then(|found| store.add(found).map_err(|error| error.to_string()));
        added.map_err(|error| refused(format!("holds what is no certificate ({error})")))?;
    }
    if store.is_empty() {
        return Err(refused("holds no certificate".to_owned()));
    }
    Ok(pem)
}
