//! Brokers to compare rooms with, as far as a benchmark needs them: NATS core and Redis pub/sub,
//! spoken to over plain TCP, and rooms behind the same three calls.
//!
//! A subscriber is one connection with its subjects, a publisher one connection; both send and take
//! as much as there is. What is published begins with the time, so that latencies can be told.

use anyhow::{Context as _, Result, bail, ensure};
use ebla_client::{Client, RoomEvent, RoomPublisher, RoomSubscriber};
use std::collections::VecDeque;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufWriter};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Messages of a publisher whose answers are waited for later.
const PUBLISHED_MAX: usize = 10_000;

/// What is compared.
pub enum Broker {
    /// Rooms, by these connections in turn.
    Ebla(Vec<Client>, AtomicUsize),
    /// A NATS server at an address.
    Nats(String, Server),
    /// A Redis server at an address.
    Redis(String, Server),
}

/// A process that is ended when dropped.
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Broker {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ebla(..) => "ebla",
            Self::Nats(..) => "NATS core",
            Self::Redis(..) => "Redis pub/sub",
        }
    }

    /// Rooms of the cluster at `address`, by so many connections.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ebla(address: &str, connections: usize) -> Result<Self> {
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(Client::builder().endpoints([address]).timeout(PATIENCE).connect().await?);
        }
        Ok(Self::Ebla(clients, AtomicUsize::new(0)))
    }

    /// Starts a NATS server; none when it is not installed.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn nats() -> Result<Option<Self>> {
        let (address, port) = free_port()?;
        let server = start("nats-server", &["-a", "127.0.0.1", "-p", &port]);
        let Some(server) = server? else { return Ok(None) };
        wait_for(&address).await?;
        Ok(Some(Self::Nats(address, server)))
    }

    /// Starts a Redis server that keeps nothing; none when it is not installed.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn redis() -> Result<Option<Self>> {
        let (address, port) = free_port()?;
        let quiet = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", &port];
        let unlimited = ["--client-output-buffer-limit", "pubsub 0 0 0", "--maxclients", "20000"];
        let server = start("redis-server", &[&quiet[..], &unlimited].concat());
        let Some(server) = server? else { return Ok(None) };
        wait_for(&address).await?;
        Ok(Some(Self::Redis(address, server)))
    }

    /// A subscriber of subjects, which hears everything from when this returns.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn subscribe(&self, subjects: &[String]) -> Result<Subscriber> {
        match self {
            Self::Ebla(clients, next) => {
                let client = &clients[next.fetch_add(1, Ordering::Relaxed) % clients.len()];
                let mut subscriber = client.subscriber().await?;
                subscriber.join(subjects.iter().cloned()).await?;
                Ok(Subscriber::Ebla(Box::new(subscriber)))
            }
            Self::Nats(address, _) => {
                let (mut read, mut write) = nats(address).await?;
                for (id, subject) in subjects.iter().enumerate() {
                    write.write_all(format!("SUB {subject} {id}\r\n").as_bytes()).await?;
                }
                write.write_all(b"PING\r\n").await?;
                write.flush().await?;
                let mut line = String::new();
                while line.trim() != "PONG" {
                    line.clear();
                    ensure!(read.read_line(&mut line).await? > 0, "the server hung up");
                }
                Ok(Subscriber::Nats(read, write))
            }
            Self::Redis(address, _) => {
                let (mut read, mut write) = connect(address).await?;
                for subject in subjects {
                    write.write_all(&command(&[b"SUBSCRIBE", subject.as_bytes()])).await?;
                }
                write.flush().await?;
                for _ in subjects {
                    redis_array(&mut read).await?;
                }
                Ok(Subscriber::Redis(read, write))
            }
        }
    }

    /// A publisher.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn publisher(&self) -> Result<Publisher> {
        match self {
            Self::Ebla(clients, next) => {
                let client = &clients[next.fetch_add(1, Ordering::Relaxed) % clients.len()];
                Ok(Publisher::Ebla(client.publisher().await?))
            }
            Self::Nats(address, _) => {
                let (read, write) = nats(address).await?;
                tokio::spawn(swallow(read));
                Ok(Publisher::Nats(write))
            }
            Self::Redis(address, _) => {
                let (read, write) = connect(address).await?;
                tokio::spawn(swallow(read));
                Ok(Publisher::Redis(write))
            }
        }
    }
}

type Reading = BufReader<OwnedReadHalf>;
type Writing = BufWriter<OwnedWriteHalf>;

/// One connection that hears.
pub enum Subscriber {
    /// Of rooms.
    Ebla(Box<RoomSubscriber>),
    /// Of NATS; the other half keeps it open.
    Nats(Reading, Writing),
    /// Of Redis.
    Redis(Reading, Writing),
}

impl Subscriber {
    /// The next message.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Vec<u8>> {
        match self {
            Self::Ebla(subscriber) => match subscriber.next().await? {
                RoomEvent::Message(message) => Ok(message.message.into()),
                RoomEvent::Rejoined(_) => bail!("the stream of a subscriber broke"),
            },
            Self::Nats(read, write) => loop {
                let mut line = String::new();
                ensure!(read.read_line(&mut line).await? > 0, "the server hung up");
                if line.starts_with("PING") {
                    write.write_all(b"PONG\r\n").await?;
                    write.flush().await?;
                } else if line.starts_with("MSG ") {
                    let size = line.split_whitespace().last().context("a size")?.parse()?;
                    return payload(read, size).await;
                }
            },
            Self::Redis(read, _) => redis_array(read).await?.pop().context("a message"),
        }
    }
}

/// One connection that speaks.
pub enum Publisher {
    /// To rooms.
    Ebla(RoomPublisher),
    /// To NATS.
    Nats(Writing),
    /// To Redis.
    Redis(Writing),
}

impl Publisher {
    /// Publishes everything that comes, as fast as the server takes it.
    ///
    /// # Errors
    /// When the connection breaks or a message is refused.
    pub async fn publish_all(self, mut messages: mpsc::Receiver<(String, Vec<u8>)>) -> Result<()> {
        match self {
            Self::Ebla(publisher) => {
                let mut open = VecDeque::new();
                while let Some((subject, message)) = messages.recv().await {
                    open.push_back(publisher.send(subject, message).await?);
                    if open.len() > PUBLISHED_MAX {
                        open.pop_front().context("there are many")?.await?;
                    }
                }
                for sent in open {
                    sent.await?;
                }
            }
            Self::Nats(mut write) => {
                while let Some((subject, message)) = messages.recv().await {
                    write.write_all(format!("PUB {subject} {}\r\n", message.len()).as_bytes()).await?;
                    write.write_all(&message).await?;
                    write.write_all(b"\r\n").await?;
                    if messages.is_empty() {
                        write.flush().await?;
                    }
                }
                write.flush().await?;
            }
            Self::Redis(mut write) => {
                while let Some((subject, message)) = messages.recv().await {
                    write.write_all(&command(&[b"PUBLISH", subject.as_bytes(), &message])).await?;
                    if messages.is_empty() {
                        write.flush().await?;
                    }
                }
                write.flush().await?;
            }
        }
        Ok(())
    }
}

fn free_port() -> Result<(String, String)> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok((address.to_string(), address.port().to_string()))
}

fn start(program: &str, args: &[&str]) -> Result<Option<Server>> {
    let path = [Path::new("/usr/sbin").join(program), Path::new("/usr/bin").join(program)];
    let Some(path) = path.iter().find(|path| path.exists()) else { return Ok(None) };
    let started = Command::new(path).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Ok(Some(Server(started.with_context(|| format!("start {program}"))?)))
}

async fn wait_for(address: &str) -> Result<()> {
    for _ in 0..200 {
        if TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    bail!("nobody listens at {address}")
}

async fn connect(address: &str) -> Result<(Reading, Writing)> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    Ok((BufReader::with_capacity(64 * 1024, read), BufWriter::with_capacity(64 * 1024, write)))
}

async fn nats(address: &str) -> Result<(Reading, Writing)> {
    let (read, mut write) = connect(address).await?;
    write.write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n").await?;
    write.flush().await?;
    Ok((read, write))
}

/// Reads what nobody wants to know.
async fn swallow(mut read: Reading) {
    let mut bytes = vec![0; 16 * 1024];
    while read.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
}

async fn payload(read: &mut Reading, size: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size + 2];
    read.read_exact(&mut bytes).await?;
    bytes.truncate(size);
    Ok(bytes)
}

fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The texts of an answer, without its numbers.
async fn redis_array(read: &mut Reading) -> Result<Vec<Vec<u8>>> {
    let mut line = String::new();
    read.read_line(&mut line).await?;
    let count: usize = line.trim().strip_prefix('*').context("an array")?.parse()?;
    let mut texts = Vec::with_capacity(count);
    for _ in 0..count {
        line.clear();
        read.read_line(&mut line).await?;
        if let Some(size) = line.trim().strip_prefix('$') {
            texts.push(payload(read, size.parse()?).await?);
        }
    }
    Ok(texts)
}
