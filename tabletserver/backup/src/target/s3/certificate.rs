//! A server whose certificate is not trusted: the same tomorrow, so it is asked once.

use aws_sdk_s3::config::interceptors::InterceptorContext;
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction};
use std::error::Error;
use std::io;

/// Says that nothing gets better by trying again.
#[derive(Debug)]
pub(super) struct OnceOnly;

impl ClassifyRetry for OnceOnly {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let failed = context.output_or_error().and_then(Result::err);
        let connecting = failed.and_then(|error| error.as_connector_error());
        if connecting.is_some_and(|error| is_refused(error)) {
            return RetryAction::RetryForbidden;
        }
        RetryAction::NoActionIndicated
    }

    fn name(&self) -> &'static str {
        "certificates that are not trusted"
    }
}

/// Whether the certificate of the server is among the causes of an error.
pub(super) fn is_refused(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        // What an I/O error is made of is none of its causes.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}
