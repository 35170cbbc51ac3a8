//! A certificate authority that nobody else knows, and a server's certificate by it.

use rcgen::{BasicConstraints, CertificateParams, DnType, Error, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use std::io;
use std::sync::Arc;

/// What a server of `127.0.0.1` shows, and the authority, as PEM, that says who it is.
pub(crate) fn server() -> io::Result<(ServerConfig, String)> {
    let (authority, pem) = authority().map_err(io::Error::other)?;
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).map_err(io::Error::other)?;
    let certificate = params.signed_by(&key, &authority).map_err(io::Error::other)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(io::Error::other)?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key);
    Ok((config.map_err(io::Error::other)?, pem))
}

/// An authority, and what its certificate says, as PEM.
pub(crate) fn authority() -> Result<(Issuer<'static, KeyPair>, String), Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "authority of a test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key)?.pem();
    Ok((Issuer::new(params, key), pem))
}
