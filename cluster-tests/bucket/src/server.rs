//! A port on loopback and what is said there, in plain text or under TLS, on threads of its own.

use hyper::Request;
use hyper::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use s3s::{Body, HttpError};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What a caller and this server say to each other.
pub(crate) enum Connection {
    /// As it is.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// Answers until it ends. A cut connection is one of the faults.
    pub(crate) async fn serve<S>(self, answer: S)
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = HttpError>,
    {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new());
        let _ = match self {
            Self::Plain(stream) => builder.serve_connection(TokioIo::new(stream), answer).await,
            Self::Tls(stream) => builder.serve_connection(TokioIo::new(stream), answer).await,
        };
    }
}

/// Listens until the process ends; `serve` is given every connection.
pub(crate) fn start<S, F>(tls: Option<ServerConfig>, serve: S) -> io::Result<SocketAddr>
where
    S: Fn(Connection) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
    std::thread::spawn(move || runtime.block_on(listen(listener, tls, serve)));
    Ok(address)
}

async fn listen<S, F>(listener: std::net::TcpListener, tls: Option<TlsAcceptor>, serve: S)
where
    S: Fn(Connection) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::from_std(listener).expect("the listener is set to non-blocking");
    loop {
        // A connection that could not be taken is tried again by the client.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let connection = match &tls {
            None => Connection::Plain(stream),
            Some(tls) => match tls.accept(stream).await {
                Ok(stream) => Connection::Tls(Box::new(stream)),
                // It does not trust this server.
                Err(_) => continue,
            },
        };
        tokio::spawn(serve(connection));
    }
}
