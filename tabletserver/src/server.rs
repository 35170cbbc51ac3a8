//! A tablet server from start to stop.

use crate::backup::{Backups, is_on_its_way};
use crate::bootstrap::{self, Opened};
use crate::clock::Clock;
use crate::config::Config;
use crate::copying::{Source, Target, clear_leftovers, is_of_a_try};
use crate::disk::{DiskGauge, SyncWatch};
use crate::error::Error;
use crate::flusher::Flusher;
use crate::front_door::{self, MainConnections};
use crate::identity::DataDir;
use crate::janitor::Janitor;
use crate::ledger::Ledger;
use crate::limits;
use crate::master_link::{self, Link, Masters, Registration, forward_outward, open_session};
use crate::memory_keeper::MemoryKeeper;
use crate::meters::Meters;
use crate::node::{Node, TokenMaker};
use crate::pipeline::{
    Apply, Control, Cutter, Log, LogDisk, Outward, Request, Sequencer, SequencerHandle, SequencerParts,
};
use crate::promises::answering::Answering;
use crate::promises::asking::Asking;
use crate::promises::{Leases, PromiseThread};
use crate::read::Reader;
use crate::replica_set::ReplicaSet;
use crate::replication::{Identity, Links, Replication, keep_connected};
use crate::rooms::{RoomLimits, Rooms};
use crate::routes::RouteCache;
use crate::service::{HeatReport, Kv, Lost, Room, RoomPeer, Route, Split, Watch};
use crate::store::Store;
use crate::store::cache::RowCache;
use crate::store::gc::ReadPins;
use crate::sweeper::Sweeper;
use crate::watch::Watches;
use arc_swap::ArcSwap;
use crossbeam::channel::{self, Receiver};
use ebla_backup::Rate;
use ebla_kernel::ids::{Incarnation, ServerId, ServerRun, TabletId};
use ebla_proto::v1;
use ebla_proto::v1::backup_service_server::BackupServiceServer;
use ebla_proto::v1::bootstrap_service_server::BootstrapServiceServer;
use ebla_proto::v1::heat_service_server::HeatServiceServer;
use ebla_proto::v1::kv_service_server::KvServiceServer;
use ebla_proto::v1::lost_service_server::LostServiceServer;
use ebla_proto::v1::replication_service_server::ReplicationServiceServer;
use ebla_proto::v1::room_peer_service_server::RoomPeerServiceServer;
use ebla_proto::v1::room_service_server::RoomServiceServer;
use ebla_proto::v1::route_service_server::RouteServiceServer;
use ebla_proto::v1::split_service_server::SplitServiceServer;
use ebla_proto::v1::watch_service_server::WatchServiceServer;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::{error, info, warn};

/// A running tablet server.
pub struct TabletServer {
    address: SocketAddr,
    node: Arc<Node>,
    registered: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    /// Tells the gRPC server and the tasks to end.
    ending: watch::Sender<bool>,
    failed: Arc<Failure>,
    threads: Vec<JoinHandle<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// The first reason for which the server must end.
#[derive(Default)]
struct Failure {
    first: Mutex<Option<Error>>,
    told: tokio::sync::Notify,
}

impl Failure {
    fn report(&self, error: Error) {
        error!(error = &error as &dyn std::error::Error, "the server must end");
        self.first.lock().expect("no holder of this lock panics").get_or_insert(error);
        self.told.notify_one();
    }
}

impl TabletServer {
    /// Opens the data directory, replays the log, listens, and registers with the masters in
    /// the background.
    ///
    /// # Errors
    /// When the directory cannot be used or the address cannot be listened on.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let listen_error = |source| Error::Listen { listen: config.listen.clone(), source };
        let listener = TcpListener::bind(&config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        // It goes to the runtime of another thread.
        let listener = listener.into_std().map_err(listen_error)?;
        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let opened = bootstrap::open(&opening)?;
            clear_leftovers(&backup_dir(&opening), is_on_its_way)?;
            Ok::<_, Error>(opened)
        })
        .await
        .map_err(|error| Error::Fatal { what: format!("recovery ({error})") })??;
        Ok(Self::run(config, opened, listener, address))
    }

    fn run(config: Config, opened: Opened, listener: std::net::TcpListener, address: SocketAddr) -> Self {
        let failed = Arc::new(Failure::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (ending, ended) = watch::channel(false);
        let syncs = Arc::new(SyncWatch::new(&config.data_dir));
        let (node, outward, mut threads) = start_pipeline(&config, &opened, &syncs, &stop, &failed);
        threads.extend(start_upkeep(&config, &opened, &node, &stop, &failed));
        let (door, incoming, asked) = front_door::open(listener);
        let promises = PromiseThread {
            door,
            connections: asked,
            asking: Asking { node: Arc::clone(&node), syncs: Arc::clone(&syncs), stop: Arc::clone(&stop) },
            answering: Answering {
                node: Arc::clone(&node),
                replicas: Arc::clone(&opened.replicas),
                syncs: Arc::clone(&syncs),
            },
        };
        threads.extend(start_promises(promises, &node, &syncs, &stop, &failed));
        let mut server = Self {
            address,
            node: Arc::clone(&node),
            registered: Arc::default(),
            stop,
            ending,
            failed: Arc::clone(&failed),
            threads,
            tasks: Vec::new(),
        };
        let room = Arc::new(Semaphore::new(limits::COPIES_BYTES_MAX));
        let links = Links { node: Arc::clone(&node), oplog: Arc::clone(&opened.oplog), room };
        let rate = Arc::new(Rate::new(config.bootstrap_bytes_per_s));
        let rooms_limits =
            RoomLimits { per_stream: config.subscriptions_per_stream, per_server: config.subscriptions_max };
        let (rooms, keeping_rooms) = Rooms::start(Arc::clone(&node), Arc::clone(&opened.oplog), rooms_limits);
        let services = Services {
            rooms,
            backups: Backups::new(Arc::clone(&node), Arc::clone(&opened.replicas), backup_dir(&config)),
            source: Source::new(Arc::clone(&node), Arc::clone(&opened.oplog), rate),
            node: Arc::clone(&node),
            watches: Arc::new(Watches::new(Arc::clone(&node), Arc::clone(&opened.oplog))),
            ledger: Arc::clone(&opened.ledger),
            replication: Replication { links: links.clone() },
        };
        server.spawn(ended.clone(), services.serve(incoming, ended.clone()));
        server.spawn(ended.clone(), async move {
            keep_connected(links).await;
            Ok(())
        });
        server.spawn(ended, async move {
            keeping_rooms.await;
            Ok(())
        });
        let sweeper = Sweeper::new(Arc::clone(&node));
        server.spawn(server.ending.subscribe(), async move {
            sweeper.run().await;
            Ok(())
        });
        let masters = Arc::new(Masters::new(config.masters.clone()));
        let ended = server.ending.subscribe();
        let watching = master_link::watch_routes(Arc::clone(&masters), Arc::clone(&node));
        server.spawn(ended.clone(), async move {
            watching.await;
            Ok(())
        });
        let linking = link(Linking {
            address: advertised(&config, address),
            config,
            masters,
            node,
            opened,
            outward,
            registered: Arc::clone(&server.registered),
        });
        server.spawn(ended, linking);
        server
    }

    /// Runs a part of the server until it ends or the server does.
    fn spawn(
        &mut self,
        mut ended: watch::Receiver<bool>,
        part: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        let failed = Arc::clone(&self.failed);
        self.tasks.push(tokio::spawn(async move {
            tokio::select! {
                result = part => if let Err(error) = result {
                    failed.report(error);
                },
                _ = ended.wait_for(|ended| *ended) => {}
            }
        }));
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Registered, and every tablet with a copy here serves, here or elsewhere.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let routes = self.node.routes.now();
        let own = self.node.peers.identity().map_or(0, |own| own.run.server.0);
        let is_led_elsewhere = |id: TabletId| {
            routes.tablet(id).is_some_and(|tablet| ![0, own].contains(&tablet.leader_server_id))
        };
        self.registered.load(Ordering::Relaxed)
            && routes.version > 0
            && self
                .node
                .directory
                .load()
                .tablets()
                .all(|tablet| tablet.serving().is_some() || is_led_elsewhere(tablet.id))
    }

    /// Resolves when the server must end, with the reason.
    pub async fn failed(&self) -> Error {
        loop {
            self.failed.told.notified().await;
            if let Some(error) = self.failed.first.lock().expect("no holder of this lock panics").take() {
                return error;
            }
        }
    }

    /// Stops cleanly: takes no new writes, finishes what is in flight, flushes, closes.
    ///
    /// # Errors
    /// When what is in flight cannot be finished in time; nothing acknowledged is lost.
    pub async fn stop(self) -> Result<(), Error> {
        self.hand_over().await;
        self.node.draining.store(true, Ordering::Relaxed);
        let (done, drained) = oneshot::channel();
        let _ = self.node.sequencer.control.send(Control::Drain(done));
        if tokio::time::timeout(limits::DRAIN_TIMEOUT, drained).await.is_err() {
            warn!("writes in flight did not end in time; the next start replays them");
        }
        let _ = self.ending.send(true);
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let _ = tokio::time::timeout(limits::DRAIN_TIMEOUT, task).await;
        }
        let _ = self.node.sequencer.control.send(Control::Stop);
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().map(JoinHandle::join).all(|joined| joined.is_ok())
        });
        match joined.await {
            Ok(true) => {
                info!("stopped cleanly");
                Ok(())
            }
            Ok(false) | Err(_) => Err(Error::Fatal { what: "shutdown".to_owned() }),
        }
    }
}

impl TabletServer {
    /// Hands leaderships over to in-sync copies elsewhere, and waits until the map says so: a
    /// server that stops cleanly costs its tablets a moment, not an election.
    async fn hand_over(&self) {
        let (done, handed) = oneshot::channel();
        let _ = self.node.sequencer.control.send(Control::HandOver(done));
        let handed = handed.await.unwrap_or_default();
        if handed.is_empty() {
            return;
        }
        info!(tablets = handed.len(), "handing leaderships over");
        let own = self.node.peers.identity().map_or(0, |own| own.run.server.0);
        let is_ours = |id: &&TabletId| {
            let serves =
                self.node.directory.load().tablet(**id).is_some_and(|tablet| tablet.serving().is_some());
            let routes = self.node.routes.now();
            serves || routes.tablet(**id).is_none_or(|tablet| [0, own].contains(&tablet.leader_server_id))
        };
        let waiting = async {
            while handed.iter().any(|id| is_ours(&id)) {
                tokio::time::sleep(limits::HAND_OVER_LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(limits::HAND_OVER_TIMEOUT, waiting).await.is_err() {
            warn!("not every leadership was taken over in time; the masters elect the rest");
        }
    }
}

/// Where files of backups stand on their way to a target or from it.
fn backup_dir(config: &Config) -> PathBuf {
    config.data_dir.join("backup")
}

/// The server as request tasks see it, and the threads of the commit pipeline behind it.
fn start_pipeline(
    config: &Config,
    opened: &Opened,
    syncs: &Arc<SyncWatch>,
    stop: &Arc<AtomicBool>,
    failed: &Arc<Failure>,
) -> (Arc<Node>, mpsc::UnboundedReceiver<Outward>, Vec<JoinHandle<()>>) {
    let (clock, bound_wanted) = Clock::new(Arc::clone(&opened.registry), opened.hlc_bound);
    let clock = Arc::new(clock);
    let (requests, asked) = channel::bounded(limits::REQUESTS_WAITING_MAX);
    let (control, told) = channel::unbounded();
    let node = Arc::new(Node {
        reader: Reader {
            store: Arc::clone(&opened.store) as Arc<dyn Store>,
            cache: Arc::new(RowCache::new(config.row_cache_bytes)),
            clock: Arc::clone(&clock),
        },
        memory: Arc::clone(&opened.memory),
        leases: Arc::new(Leases::new(clock.elapsed(), opened.lease_ms_max)),
        clock: Arc::clone(&clock),
        directory: ArcSwap::default(),
        routes: RouteCache::default(),
        floors: Arc::clone(&opened.floors),
        pins: ReadPins::new(),
        log_pins: Arc::default(),
        sequencer: SequencerHandle { requests, control },
        peers: Arc::default(),
        disk: Arc::new(DiskGauge::new(&config.data_dir)),
        draining: AtomicBool::new(false),
        tokens: TokenMaker::default(),
        meters: Meters::default(),
        heat: Arc::default(),
        imports: Arc::default(),
    });
    let (outward, messages) = mpsc::unbounded_channel();
    let mut threads = start_stages(&node, opened, (asked, told, outward), syncs, failed);
    let stop = Arc::clone(stop);
    threads.push(spawn_thread("clock", failed, move || {
        clock.keep_bound_ahead(&bound_wanted, &stop).map_err(Error::from)
    }));
    (node, messages, threads)
}

/// The threads through which a group goes, and that of cuts.
fn start_stages(
    node: &Arc<Node>,
    opened: &Opened,
    (requests, told, outward): (Receiver<Request>, Receiver<Control>, mpsc::UnboundedSender<Outward>),
    syncs: &Arc<SyncWatch>,
    failed: &Arc<Failure>,
) -> Vec<JoinHandle<()>> {
    // No queue before the log: a group grows in the sequencer until the log takes it.
    let (groups, to_log) = channel::bounded(0);
    let (memory_groups, to_memory_log) = channel::bounded(0);
    let (durable, to_apply) = channel::bounded(1);
    let (orders, ordered) = channel::unbounded();
    let (cuts, to_cut) = channel::unbounded();
    let control = &node.sequencer.control;
    let (store, cache, oplog) = (&node.reader.store, &node.reader.cache, &opened.oplog);
    let sequencer = Sequencer::new(SequencerParts {
        requests,
        control: told,
        log: groups,
        memory_log: memory_groups,
        orders: orders.clone(),
        cuts: cuts.clone(),
        outward,
        clock: Arc::clone(&node.clock),
        leases: Arc::clone(&node.leases),
        peers: Arc::clone(&node.peers),
    });
    let log = |groups, disk| Log {
        groups,
        durable: durable.clone(),
        control: control.clone(),
        oplog: Arc::clone(oplog),
        disk,
    };
    let disk = LogDisk { gauge: Arc::clone(&node.disk), syncs: Arc::clone(syncs) };
    let (memory_log, log) = (log(to_memory_log, None), log(to_log, Some(disk)));
    // Only the logs hold its sending end: apply ends with them.
    drop(durable);
    let apply = Apply {
        durable: to_apply,
        orders: ordered,
        control: control.clone(),
        cuts,
        store: Arc::clone(store),
        cache: Arc::clone(cache),
        oplog: Arc::clone(oplog),
        tablets: HashMap::new(),
        waiting: Vec::new(),
        unsummed: 0,
    };
    let (pins, cache, stores) = (Arc::clone(&node.pins), Arc::clone(cache), opened.cut_stores());
    let cutter = Cutter { work: to_cut, control: control.clone(), orders, pins, cache, stores };
    vec![
        spawn_thread("sequencer", failed, move || {
            sequencer.run();
            Ok(())
        }),
        spawn_thread("log", failed, move || log.run().map_err(Error::from)),
        spawn_thread("memory log", failed, move || memory_log.run().map_err(Error::from)),
        spawn_thread("apply", failed, move || apply.run()),
        spawn_thread("cut", failed, move || cutter.run()),
    ]
}

/// The threads that look after the stores.
fn start_upkeep(
    config: &Config,
    opened: &Opened,
    node: &Arc<Node>,
    stop: &Arc<AtomicBool>,
    failed: &Arc<Failure>,
) -> Vec<JoinHandle<()>> {
    let flusher = Flusher {
        node: Arc::clone(node),
        replicas: Arc::clone(&opened.replicas),
        oplog: Arc::clone(&opened.oplog),
        memtable_bytes: (config.write_buffer_bytes as u64) / 4 * 3,
        interval: config.flush_interval,
        oplog_bytes_max: config.oplog_bytes_max,
        stop: Arc::clone(stop),
    };
    let memory = MemoryKeeper { node: Arc::clone(node), stop: Arc::clone(stop) };
    let janitor = Janitor { node: Arc::clone(node), gc_interval: config.gc_interval, stop: Arc::clone(stop) };
    vec![
        spawn_thread("flusher", failed, move || flusher.run()),
        spawn_thread("janitor", failed, move || {
            janitor.run();
            Ok(())
        }),
        spawn_thread("memory", failed, move || {
            memory.run();
            Ok(())
        }),
    ]
}

/// The threads that keep leases.
fn start_promises(
    promises: PromiseThread,
    node: &Arc<Node>,
    syncs: &Arc<SyncWatch>,
    stop: &Arc<AtomicBool>,
    failed: &Arc<Failure>,
) -> Vec<JoinHandle<()>> {
    let (leases, syncs, stop) = (Arc::clone(&node.leases), Arc::clone(syncs), Arc::clone(stop));
    vec![
        spawn_thread("promises", failed, move || promises.run()),
        spawn_thread("disk-probe", failed, move || {
            while !stop.load(Ordering::Relaxed) {
                if leases.is_asked() {
                    syncs.probe_if_idle();
                }
                std::thread::sleep(limits::SILENCE_LOOK_EVERY);
            }
            Ok(())
        }),
    ]
}

/// A named thread whose failure or panic ends the server.
fn spawn_thread(
    name: &'static str,
    failed: &Arc<Failure>,
    body: impl FnOnce() -> Result<(), Error> + Send + 'static,
) -> JoinHandle<()> {
    let failed = Arc::clone(failed);
    let guarded = move || match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => failed.report(error),
        Err(_) => failed.report(Error::Fatal { what: format!("{name} thread") }),
    };
    let builder = std::thread::Builder::new().name(format!("ebla-{name}"));
    builder.spawn(guarded).expect("the system gives a thread")
}

/// What is served.
struct Services {
    rooms: Arc<Rooms>,
    node: Arc<Node>,
    watches: Arc<Watches>,
    ledger: Arc<Ledger>,
    replication: Replication,
    source: Source,
    backups: Backups,
}

impl Services {
    /// The gRPC server.
    async fn serve(self, incoming: MainConnections, mut ended: watch::Receiver<bool>) -> Result<(), Error> {
        let Self { rooms, node, watches, ledger, replication, source, backups } = self;
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<KvServiceServer<Kv>>().await;
        health.set_serving::<RouteServiceServer<Route>>().await;
        health.set_serving::<WatchServiceServer<Watch>>().await;
        health.set_serving::<RoomServiceServer<Room>>().await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(ebla_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let bad_descriptors = |error| Error::Fatal { what: format!("reflection ({error})") };
        let kv = KvServiceServer::new(Kv { node: Arc::clone(&node) })
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        let watch = WatchServiceServer::new(Watch { watches })
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        let heat = HeatServiceServer::new(HeatReport { node: Arc::clone(&node) });
        let lost = LostServiceServer::new(Lost { node: Arc::clone(&node), ledger });
        let replication = ReplicationServiceServer::new(replication)
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        let source = BootstrapServiceServer::new(source).max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        let backups = BackupServiceServer::new(backups);
        let split = SplitServiceServer::new(Split { node: Arc::clone(&node) });
        let room = RoomServiceServer::new(Room { rooms: Arc::clone(&rooms) })
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        let room_peer = RoomPeerServiceServer::new(RoomPeer { rooms })
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        let route =
            RouteServiceServer::new(Route { node }).max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
            .add_service(kv)
            .add_service(route)
            .add_service(watch)
            .add_service(lost)
            .add_service(heat)
            .add_service(split)
            .add_service(room)
            .add_service(room_peer)
            .add_service(replication)
            .add_service(source)
            .add_service(backups)
            .add_service(health_service)
            .add_service(reflection().build_v1().map_err(bad_descriptors)?)
            .add_service(reflection().build_v1alpha().map_err(bad_descriptors)?)
            .serve_with_incoming_shutdown(incoming.into_stream(), async move {
                let _ = ended.wait_for(|ended| *ended).await;
            })
            .await?;
        Ok(())
    }
}

/// What the link to the masters begins with.
struct Linking {
    config: Config,
    address: String,
    masters: Arc<Masters>,
    node: Arc<Node>,
    opened: Opened,
    outward: mpsc::UnboundedReceiver<Outward>,
    registered: Arc<AtomicBool>,
}

async fn link(linking: Linking) -> Result<(), Error> {
    let Linking { config, address, masters, node, opened, outward, registered } = linking;
    let replicas = opened.replicas;
    let boot_id = uuid::Uuid::now_v7().as_u64_pair().1;
    let registration = Registration { address, zone: config.zone, boot_id };
    let dir: Arc<Mutex<DataDir>> = Arc::new(Mutex::new(opened.dir));
    let session = open_session(&masters, &registration, &dir).await?;
    let own = identity(&session.registered, &dir);
    let incarnation = own.run.incarnation;
    info!(server = %own.run.server, %incarnation, "registered");
    node.peers.set_identity(own.clone());
    let (reports, reports_received) = mpsc::unbounded_channel();
    let target = Target {
        node: Arc::clone(&node),
        replicas: Arc::clone(&replicas),
        oplog: opened.oplog,
        dir: config.data_dir.join("incoming"),
    };
    clear_leftovers(&target.dir, is_of_a_try)?;
    let (failed, mut failures) = mpsc::unbounded_channel();
    let set = Arc::new(ReplicaSet::new(target, &own, opened.recovered, failed));
    set.finish_removals(&replicas.all())?;
    registered.store(true, Ordering::Relaxed);
    let store = Arc::clone(&node.reader.store);
    let forwarding = forward_outward(outward, replicas, store, node.sequencer.clone(), reports);
    let link = Link {
        masters,
        registration,
        dir,
        node,
        set,
        incarnation,
        reports: reports_received,
        told: HashMap::new(),
    };
    tokio::select! {
        result = link.run(session) => result,
        result = forwarding => result,
        Some(error) = failures.recv() => Err(error),
    }
}

fn identity(registered: &v1::Registered, dir: &Mutex<DataDir>) -> Identity {
    let generation = dir.lock().expect("no holder of this lock panics").identity().disk_generation;
    let (server, incarnation) = (ServerId(registered.server_id), Incarnation(registered.incarnation));
    let run = ServerRun { server, incarnation };
    Identity { cluster_id: registered.cluster_id.clone(), run, generation }
}

/// The address that clients are told: the configured host with the port that was bound.
fn advertised(config: &Config, bound: SocketAddr) -> String {
    match config.listen.rsplit_once(':') {
        Some((host, _)) if !host.is_empty() && host != "0.0.0.0" && host != "[::]" => {
            format!("{host}:{}", bound.port())
        }
        Some(_) | None => bound.to_string(),
    }
}
