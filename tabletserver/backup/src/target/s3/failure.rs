//! What an answer of S3, or none, means.

use super::certificate;
use crate::target::TargetError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use std::error::Error;
use std::fmt::Write as _;

/// Codes of those whose disks or quota are full.
const FULL: [&str; 4] = ["XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "EntityTooLarge"];

/// Codes that mean that there is no such object.
const NOT_FOUND: [&str; 3] = ["NoSuchKey", "NotFound", "NoSuchUpload"];

/// Why something could not be done with `place`.
pub(super) fn failed<E>(tried: &str, place: &str, error: &SdkError<E>) -> TargetError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let code = error.code().unwrap_or_default();
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    let what = format!("cannot {tried} {place}: {}", described(error));
    if FULL.contains(&code) || status == 507 {
        return TargetError::Full(format!(
            "{what}; free some space there (`ebla backup prune --to URL` shows what no backup needs), or give another target"
        ));
    }
    match code {
        "NoSuchBucket" => {
            return TargetError::Refused(format!("{what}; create the bucket, or give the name of another"));
        }
        _ if NOT_FOUND.contains(&code) => return TargetError::NotFound(place.to_owned()),
        _ => {}
    }
    match (status, error) {
        (404, _) => TargetError::NotFound(place.to_owned()),
        (400..=499, _) if !matches!(status, 408 | 429) => TargetError::Refused(format!(
            "{what}; look at the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE), at what they allow, and at the region"
        )),
        (_, SdkError::ConstructionFailure(_)) => TargetError::Refused(format!("{what}; look at the URL")),
        _ if certificate::is_refused(error) => TargetError::Refused(format!(
            "{what}; the certificate of the server is not trusted here: give `ca=` or AWS_CA_BUNDLE the file with its authority, for every process of Ebla"
        )),
        _ if has_no_credentials(error) => TargetError::Refused(format!(
            "{what}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, for every process of Ebla"
        )),
        _ => TargetError::Unavailable(format!("{what}; look at the server of the bucket and the way to it")),
    }
}

/// Whether the target does not know such a request.
pub(super) fn is_unknown_request<E>(error: &SdkError<E>) -> bool
where
    E: ProvideErrorMetadata,
{
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    matches!(status, 405 | 501) || matches!(error.code(), Some("NotImplemented" | "MethodNotAllowed"))
}

fn has_no_credentials<E: Error + 'static>(error: &SdkError<E>) -> bool {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<aws_credential_types::provider::error::CredentialsError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The code and the message of an answer, otherwise all causes.
fn described<E>(error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + Error + 'static,
{
    if let Some(code) = error.code() {
        return format!("{code}: {}", error.message().unwrap_or("the server says no more"));
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(text, ": {error}").expect("a string takes everything");
        cause = error.source();
    }
    text
}
