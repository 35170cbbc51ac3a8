//! One master process: starting its parts in order, and ending them in order.

use crate::backup::{self, Backups};
use crate::balancer::Balancer;
use crate::clock;
use crate::config::Config;
use crate::controller::Controller;
use crate::error::Error;
use crate::forming::Forming;
use crate::identity::{DataDir, Identity};
use crate::limits::{STOP_TIMEOUT, TRANSFER_TIMEOUT};
use crate::liveness::Liveness;
use crate::raft::node::{Input, Options, Raft, spawn};
use crate::raft::storage::Storage;
use crate::raft::transport::{Outbox, connect};
use crate::raft::view::View;
use crate::server::serve;
use crate::service::Shared;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A running master. Dropping it ends it at once, as a crash would.
pub struct Master {
    address: SocketAddr,
    raft: Raft,
    peers: usize,
    stopping: watch::Sender<bool>,
    failure: FailureSender,
    serving: tokio::task::JoinHandle<()>,
    tasks: JoinSet<()>,
    thread: ThreadSlot,
}

type FailureSender = Arc<watch::Sender<Option<Arc<Error>>>>;
type ThreadSlot = Arc<Mutex<Option<JoinHandle<()>>>>;

/// What taking part in the group needs, once this master may.
struct Start {
    config: Config,
    dir: DataDir,
    identity: Identity,
    storage: Storage,
    raft: Raft,
    inputs: mpsc::Receiver<Input>,
    outbox: Outbox,
    controller: Controller,
    events: tokio::sync::mpsc::Receiver<crate::controller::Event>,
    thread: ThreadSlot,
}

impl Master {
    /// Starts a master. It listens when this returns; it takes part in the group as soon as
    /// the group lets it (see [`Master::is_ready`]).
    ///
    /// # Errors
    /// [`Error`] when the configuration, the data directory or a peer speaks against it.
    pub async fn start(config: Config) -> Result<Self, Error> {
        config.check()?;
        let dir = DataDir::open(&config.data_dir)?;
        let identity = dir.identity(&config, clock::random_id())?;
        let voters = config.peers.keys().copied().collect();
        let (storage, state) = Storage::open(&dir.log_dir(), &dir.snapshot_dir(), voters)?;
        let (raft, inputs) = Raft::new(Arc::new(View::new(state)));
        let (outbox, mut tasks) = connect(&config.peers, config.id, &raft);
        let listener = TcpListener::bind(config.address())
            .await
            .map_err(|source| Error::Listen { address: config.address().to_owned(), source })?;
        let address = listener.local_addr().map_err(Error::io("reading the own address"))?;
        let (stopping, stop) = watch::channel(false);
        let (peers, settings) = (config.peers.clone(), config.settings());
        let liveness = Arc::new(Liveness::new());
        let (controller, sender, events) =
            Controller::new(raft.clone(), Arc::clone(&liveness), peers, settings);
        let (weak, interval) = (sender.downgrade(), config.balance_interval);
        let balancer = Arc::new(Balancer::new(raft.clone(), Arc::clone(&liveness), weak, interval));
        tasks.spawn(Arc::clone(&balancer).run());
        let shared = Shared {
            id: config.id,
            peers: Arc::new(config.peers.clone()),
            raft: raft.clone(),
            outbox: outbox.clone(),
            liveness,
            balancer,
            backups: Arc::new(Backups::new(config.data_dir.clone())),
            stopping: stop,
        };
        tasks.spawn(crate::system_tables::keep(shared.clone()));
        tasks.spawn(backup::run(shared.clone()));
        let failure: FailureSender = Arc::new(watch::channel(None).0);
        let server = serve(shared, sender, identity.directory_id, !identity.directories.is_empty(), listener);
        let serving = tokio::spawn(report(server, Arc::clone(&failure)));
        let peers = config.peers.len();
        let thread = ThreadSlot::default();
        let mut forming = Forming::new(config.id, identity.directory_id, config.peers.clone());
        if identity.directories.is_empty()
            && let Err(error) = forming.ask_all().await
        {
            serving.abort();
            return Err(error);
        }
        let start = Start {
            config,
            dir,
            identity,
            storage,
            raft: raft.clone(),
            inputs,
            outbox,
            controller,
            events,
            thread: Arc::clone(&thread),
        };
        tasks.spawn(report(start.take_part(forming), Arc::clone(&failure)));
        Ok(Self { address, raft, peers, stopping, failure, serving, tasks, thread })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it knows who leads the group.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.raft.view().role().leader.is_some()
    }

    /// Whether it leads the group.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.raft.view().role().leading
    }

    /// Gives leadership away where it can, then ends cleanly.
    ///
    /// # Errors
    /// What had failed before, if anything had.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.give_leadership_away().await;
        self.stopping.send_replace(true);
        let raft = self.raft.clone();
        let thread = take_thread(&self.thread);
        let ended = tokio::task::spawn_blocking(move || {
            if let Some(thread) = thread {
                raft.stop();
                // A panic was reported by the thread itself.
                let _ = thread.join();
            }
        });
        // The blocking task does not panic and is not aborted.
        let _ = ended.await;
        self.tasks.shutdown().await;
        if timeout(STOP_TIMEOUT, &mut self.serving).await.is_err() {
            self.serving.abort();
        }
        let failure = self.failure.borrow().clone();
        failure.map_or(Ok(()), |error| Err(Error::Failed(error)))
    }

    /// Resolves when the master has failed and the process must end.
    pub async fn failed(&self) -> Error {
        let mut failure = self.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(error) => error.clone().map_or(Error::ThreadEnded, Error::Failed),
            Err(_) => Error::ThreadEnded,
        }
    }

    async fn give_leadership_away(&self) {
        if self.peers == 1 || !self.is_leader() {
            return;
        }
        let mut role = self.raft.view().watch_role();
        if self.raft.send(Input::TransferAway).is_ok() {
            // Nobody there to take it: then the others elect when they are back.
            let _ = timeout(TRANSFER_TIMEOUT, role.wait_for(|role| !role.leading)).await;
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.stopping.send_replace(true);
        self.serving.abort();
        // A full inbox: the thread ends when the last sender is gone.
        let _ = self.raft.send(Input::Stop);
    }
}

fn take_thread(slot: &ThreadSlot) -> Option<JoinHandle<()>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Runs a part and remembers how it failed, if it did.
async fn report(part: impl Future<Output = Result<(), Error>>, failure: FailureSender) {
    if let Err(error) = part.await {
        tracing::error!(%error, "this master failed");
        failure.send_if_modified(|present| {
            let first = present.is_none();
            if first {
                *present = Some(Arc::new(error));
            }
            first
        });
    }
}

impl Start {
    /// Waits until the group lets this master in, then runs thread and controller.
    async fn take_part(mut self, forming: Forming) -> Result<(), Error> {
        if self.identity.directories.is_empty() {
            self.identity.directories = forming.wait().await?;
            self.dir.store(&self.identity)?;
        }
        let directories: BTreeMap<u64, u64> = self.identity.directories.clone();
        let options = Options {
            id: self.config.id,
            peers: self.config.peers.keys().copied().collect(),
            run: clock::random_id(),
            snapshot_entries: self.config.snapshot_entries,
        };
        let (thread, mut failure) =
            spawn(options, self.storage, &self.raft, self.inputs, self.outbox, self.dir)?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        let failed = async {
            let failed = failure.wait_for(Option::is_some).await.map(|error| error.clone());
            match failed {
                Ok(error) => error,
                // It ended without a failure: it was told to.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            error = failed => Err(error.map_or(Error::ThreadEnded, Error::Failed)),
            () = self.controller.run(directories, self.events) => Ok(()),
        }
    }
}
