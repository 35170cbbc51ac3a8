//! The one port of the server, and the thread that each connection goes to.
//!
//! A connection that carries promises says so in its first bytes. It stays with the thread of
//! promises, which also accepts; every other one speaks HTTP/2 from the first byte and goes to
//! the main runtime. So a server that is busy with requests still answers in time for leases.
//!
//! ```text
//!   accept ── first bytes? ──┬── EBLA-PROMISES ──▶ promises, on this thread
//!                            └── anything else ──▶ main runtime
//! ```

use crate::limits;
use hyper_util::rt::TokioIo;
use std::io;
use std::net::TcpStream as Detached;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use tracing::{debug, warn};

/// First bytes of a connection that carries promises; no HTTP method begins like it.
const PROMISES: [u8; 16] = *b"EBLA-PROMISES 1\n";

/// Pause after the system refused to accept: too many files are open.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// The door, and where those go who come in by it.
pub struct FrontDoor {
    /// Where to accept.
    pub listener: std::net::TcpListener,
    to_main: mpsc::Sender<Detached>,
    to_promises: mpsc::Sender<TcpStream>,
}

/// Connections of the main runtime, not yet known to any runtime.
pub struct MainConnections(mpsc::Receiver<Detached>);

/// Connections that carry promises.
pub struct PromiseConnections(mpsc::Receiver<TcpStream>);

/// A door on `listener`.
#[must_use]
pub fn open(listener: std::net::TcpListener) -> (FrontDoor, MainConnections, PromiseConnections) {
    let (to_main, main) = mpsc::channel(limits::CONNECTIONS_AT_THE_DOOR_MAX);
    let (to_promises, promises) = mpsc::channel(limits::CONNECTIONS_AT_THE_DOOR_MAX);
    (FrontDoor { listener, to_main, to_promises }, MainConnections(main), PromiseConnections(promises))
}

impl MainConnections {
    /// Connections as the gRPC server takes them; belongs to the runtime that polls it.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<TcpStream>> {
        ReceiverStream::new(self.0).map(TcpStream::from_std)
    }
}

impl PromiseConnections {
    /// Connections as the gRPC server takes them.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<TcpStream>> {
        ReceiverStream::new(self.0).map(Ok)
    }
}

impl FrontDoor {
    /// Accepts for ever, on the runtime of the promises.
    ///
    /// # Errors
    /// When the listener cannot be used.
    pub async fn run(self) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        let room = Arc::new(Semaphore::new(limits::CONNECTIONS_AT_THE_DOOR_MAX));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(REFUSED_PAUSE).await;
                    continue;
                }
            };
            // Whoever says nothing keeps a place for a while; with all taken, others must wait.
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
            let (to_main, to_promises) = (self.to_main.clone(), self.to_promises.clone());
            tokio::spawn(async move {
                let letting_in = let_in(stream, &to_main, &to_promises);
                match tokio::time::timeout(limits::FIRST_BYTES_TIMEOUT, letting_in).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(%error, "a connection broke at the door"),
                    Err(_) => debug!("a connection said nothing"),
                }
                drop(place);
            });
        }
    }
}

async fn let_in(
    mut stream: TcpStream,
    to_main: &mpsc::Sender<Detached>,
    to_promises: &mpsc::Sender<TcpStream>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(());
    }
    if first[0] != PROMISES[0] {
        // Whoever waits behind a closed channel is gone: the server ends.
        let _ = to_main.send(stream.into_std()?).await;
        return Ok(());
    }
    let mut preface = [0; PROMISES.len()];
    stream.read_exact(&mut preface).await?;
    if preface == PROMISES {
        let _ = to_promises.send(stream).await;
    }
    Ok(())
}

/// Connects to the thread of promises of another server.
///
/// # Errors
/// When the server does not answer.
pub async fn connect_for_promises(endpoint: &Endpoint) -> Result<Channel, Status> {
    let connector = tower::service_fn(|uri: Uri| async move {
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&PROMISES).await?;
        Ok::<_, io::Error>(TokioIo::new(stream))
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| Status::unavailable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What came in by a new door: the first bytes of each connection, by where it went.
    async fn door() -> (std::net::SocketAddr, MainConnections, PromiseConnections) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (door, main, promises) = open(listener);
        tokio::spawn(door.run());
        (address, main, promises)
    }

    #[tokio::test]
    async fn connections_go_where_their_first_bytes_say() {
        let (address, main, promises) = door().await;
        let (mut main, mut promises) = (Box::pin(main.into_stream()), Box::pin(promises.into_stream()));
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(b"PRI * HTTP/2.0").await.unwrap();
        let mut stream = main.next().await.unwrap().unwrap();
        let mut bytes = [0; 14];
        let _ = stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"PRI * HTTP/2.0", "nothing is taken away");
        let mut promise = TcpStream::connect(address).await.unwrap();
        promise.write_all(&PROMISES).await.unwrap();
        promise.write_all(b"x").await.unwrap();
        let mut stream = promises.next().await.unwrap().unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x', "the preface is gone");
        let mut garbled = TcpStream::connect(address).await.unwrap();
        garbled.write_all(b"EBLA-PROMISES 9\n").await.unwrap();
        assert_eq!(garbled.read(&mut bytes).await.unwrap(), 0, "it is closed");
        silent.write_all(b"P").await.unwrap();
        assert!(main.next().await.unwrap().is_ok(), "whoever waits holds up nobody");
    }
}
