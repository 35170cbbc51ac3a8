//! Applying commands: every guard of the metadata, evaluated here and nowhere else.
//!
//! Deterministic: the same commands in the same order give the same state on every master.
//! A command whose guard fails changes nothing and is answered with the record as it stands,
//! so that a proposer whose answer was lost reads its own outcome.

use super::command::{Appointment, Command, NewTablet, RegisterServer};
use super::spec::{BadTable, TableSpec, check_table_name};
use super::state::{ClusterId, Leader, Replica, Server, State, Table, Tablet};
use crate::hlc::Hlc;
use crate::ids::{ConfigVersion, DiskGeneration, Epoch, Incarnation, ReplicaId, ServerId, TableId, TabletId};
use crate::limits::{BOOT_IDS_PAST_MAX, SERVER_TEXT_BYTES_MAX, SERVERS_MAX, TABLES_MAX, TABLETS_MAX};
use crate::range::KeyRange;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a command gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// The cluster is formed, under this name.
    Initialized(ClusterId),
    /// The server is registered.
    Registered(Registered),
    /// The table exists, with these tablets in key order.
    Created(Table, Vec<TabletId>),
    /// The table is gone.
    Dropped(Table),
    /// One result per tablet of a `Recover` or an `Appoint`.
    Elections(Vec<Result<Tablet, Rejection>>),
    /// Nothing changed, and why.
    Rejected(Rejection),
}

/// How a server was registered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The server's record.
    pub server: Server,
}

/// Why a command changed nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rejection {
    /// No cluster id yet.
    NotFormed,
    /// The server belongs to another cluster.
    WrongCluster {
        /// This cluster.
        ours: ClusterId,
        /// Its cluster.
        theirs: ClusterId,
    },
    /// The server's directory names an id that this cluster never gave.
    UnknownServer(ServerId),
    /// A later run of the same server is registered.
    Superseded(Server),
    /// An address or a zone that is too long.
    TextTooLong,
    /// A limit of the cluster is reached.
    LimitReached(&'static str),
    /// The table's name is taken.
    TableExists(Table),
    /// The table breaks a rule.
    BadTable(BadTable),
    /// The tablets do not cover every key once, or a placement names no usable server.
    BadPlacement,
    /// No such table.
    NoTable(TableId),
    /// No such tablet.
    NoTablet(TabletId),
    /// The tablet's epoch is another.
    StaleEpoch(Tablet),
    /// The tablet waits for a leader already.
    AlreadyRecovering(Tablet),
    /// The tablet does not wait for a leader.
    NotRecovering(Tablet),
    /// The copy is not in the in-sync set, or its data is lost.
    NotEligible(Tablet),
    /// The run that was to lead is over.
    StaleIncarnation(Tablet),
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFormed => f.write_str("the cluster is not formed yet: try again"),
            Self::WrongCluster { ours, theirs } => write!(
                f,
                "the data directory belongs to cluster {theirs}, the masters to {ours}: point --masters at its own cluster or start with an empty --data-dir"
            ),
            Self::UnknownServer(id) => write!(
                f,
                "the data directory names server {}, which this cluster never had: start with an empty --data-dir",
                id.0
            ),
            Self::Superseded(server) => write!(
                f,
                "another process runs as server {} at {}: stop one of the two",
                server.id.0, server.address
            ),
            Self::TextTooLong => {
                write!(f, "an address or a zone is above {SERVER_TEXT_BYTES_MAX} bytes: shorten it")
            }
            Self::LimitReached(what) => {
                write!(f, "the limit of {what} per cluster is reached: remove some first")
            }
            Self::TableExists(table) => {
                write!(f, "table {} exists already: drop it first or choose another name", table.name)
            }
            Self::BadTable(bad) => bad.fmt(f),
            Self::BadPlacement => f.write_str("the tablets could not be placed: try again"),
            Self::NoTable(_) => f.write_str("the table is gone"),
            Self::NoTablet(id) => write!(f, "tablet {id} is gone"),
            Self::StaleEpoch(tablet) => write!(f, "tablet {} is at epoch {}", tablet.id, tablet.epoch),
            Self::AlreadyRecovering(tablet) => {
                write!(f, "tablet {} waits for a leader of {} already", tablet.id, tablet.epoch)
            }
            Self::NotRecovering(tablet) => write!(f, "tablet {} does not wait for a leader", tablet.id),
            Self::NotEligible(tablet) => write!(f, "the copy may not lead tablet {}", tablet.id),
            Self::StaleIncarnation(tablet) => {
                write!(f, "the process that was to lead tablet {} is over", tablet.id)
            }
        }
    }
}

/// The records that a command touched.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Whether everything may have changed: after a snapshot, or when changes were missed.
    pub all: bool,
    /// New and changed servers.
    pub servers: BTreeSet<ServerId>,
    /// New tables.
    pub tables: BTreeSet<TableId>,
    /// Tables that are gone.
    pub removed_tables: BTreeSet<TableId>,
    /// New and changed tablets.
    pub tablets: BTreeSet<TabletId>,
    /// Tablets that are gone, with their table and the servers that held copies.
    pub removed_tablets: BTreeMap<TabletId, (TableId, Vec<ServerId>)>,
}

impl Changes {
    /// Whatever the state holds.
    #[must_use]
    pub fn everything() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Applies the command at `index` of the log.
pub fn apply(state: &mut State, index: u64, command: Command) -> (Reply, Changes) {
    assert!(index > state.applied, "commands are applied once, in order");
    state.applied = index;
    let mut changes = Changes::default();
    let reply = match command {
        Command::InitCluster { cluster_id, masters } => Ok(init(state, cluster_id, masters)),
        Command::RegisterServer(register) => register_server(state, register, &mut changes),
        Command::CreateTable { name, spec, tablets } => {
            create_table(state, name, spec, tablets, &mut changes)
        }
        Command::DropTable { table } => drop_table(state, table, &mut changes),
        Command::Recover { tablets } => {
            let recover = |(id, epoch): (TabletId, Epoch)| recover(state, id, epoch, &mut changes);
            Ok(Reply::Elections(tablets.into_iter().map(recover).collect()))
        }
        Command::Appoint { appointments } => {
            let appoint = |appointment: Appointment| appoint(state, &appointment, &mut changes);
            Ok(Reply::Elections(appointments.into_iter().map(appoint).collect()))
        }
    };
    if !changes.is_empty() {
        state.changed = index;
    }
    (reply.unwrap_or_else(Reply::Rejected), changes)
}

fn init(state: &mut State, cluster_id: ClusterId, masters: BTreeMap<u64, u64>) -> Reply {
    let formed = state.cluster_id.get_or_insert_with(|| {
        state.masters = masters;
        cluster_id
    });
    Reply::Initialized(*formed)
}

fn register_server(
    state: &mut State,
    register: RegisterServer,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let cluster_id = check_registration(state, &register)?;
    let known = match register.server_id {
        Some(id) => Some(state.server(id).ok_or(Rejection::UnknownServer(id))?),
        None => {
            let id = state.index.generations.get(&register.disk_generation);
            id.and_then(|id| state.server(*id))
        }
    };
    let server = match known.cloned() {
        Some(server) if server.boot_id == register.boot_id => server,
        Some(server) if server.boot_ids_past.contains(&register.boot_id) => {
            return Err(Rejection::Superseded(server));
        }
        Some(server) => restarted(state, server, register, changes),
        None => new_server(state, register)?,
    };
    if state.server(server.id) != Some(&server) {
        changes.servers.insert(server.id);
        state.insert_server(server.clone());
    }
    Ok(Reply::Registered(Registered { cluster_id, server }))
}

fn check_registration(state: &State, register: &RegisterServer) -> Result<ClusterId, Rejection> {
    let ours = state.cluster_id.ok_or(Rejection::NotFormed)?;
    match register.cluster_id {
        Some(theirs) if theirs != ours => return Err(Rejection::WrongCluster { ours, theirs }),
        Some(_) | None => {}
    }
    if register.address.len().max(register.zone.len()) > SERVER_TEXT_BYTES_MAX {
        return Err(Rejection::TextTooLong);
    }
    Ok(ours)
}

/// A known server in a new run, perhaps on another disk.
fn restarted(
    state: &mut State,
    mut server: Server,
    register: RegisterServer,
    changes: &mut Changes,
) -> Server {
    if server.disk_generation != register.disk_generation {
        state.index.generations.remove(&server.disk_generation);
        mark_lost(state, server.id, register.disk_generation, changes);
    }
    if server.boot_ids_past.len() == BOOT_IDS_PAST_MAX {
        server.boot_ids_past.remove(0);
    }
    server.boot_ids_past.push(server.boot_id);
    Server {
        id: server.id,
        address: register.address,
        zone: register.zone,
        ordinal: server.ordinal,
        incarnation: server.incarnation.next(),
        disk_generation: register.disk_generation,
        boot_id: register.boot_id,
        boot_ids_past: server.boot_ids_past,
        registered_ms: register.time_ms,
    }
}

/// Copies on a disk that is gone answer no poll and never lead; they stay in the in-sync set
/// for the quota (m14, m16).
fn mark_lost(state: &mut State, server: ServerId, present: DiskGeneration, changes: &mut Changes) {
    let ids: Vec<TabletId> = state.tablets_on(server).map(|tablet| tablet.id).collect();
    for id in ids {
        let Some(tablet) = state.tablets.get_mut(&id) else { continue };
        for replica in tablet.replicas.iter_mut().filter(|replica| replica.server == server) {
            if replica.disk_generation != present && !replica.lost {
                replica.lost = true;
                changes.tablets.insert(id);
            }
        }
    }
}

fn new_server(state: &mut State, register: RegisterServer) -> Result<Server, Rejection> {
    if state.servers.len() >= SERVERS_MAX {
        return Err(Rejection::LimitReached("servers"));
    }
    let id = state.next.server;
    let ordinal = state.next.ordinal;
    state.next.server = id.next();
    state.next.ordinal = ordinal.next();
    Ok(Server {
        id,
        address: register.address,
        zone: register.zone,
        ordinal,
        incarnation: Incarnation(1),
        disk_generation: register.disk_generation,
        boot_id: register.boot_id,
        boot_ids_past: Vec::new(),
        registered_ms: register.time_ms,
    })
}

fn create_table(
    state: &mut State,
    name: String,
    spec: TableSpec,
    tablets: Vec<NewTablet>,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    check_table_name(&name).and_then(|()| spec.check()).map_err(Rejection::BadTable)?;
    if let Some(table) = state.table_named(&name) {
        return Err(Rejection::TableExists(table.clone()));
    }
    if state.tables.len() >= TABLES_MAX {
        return Err(Rejection::LimitReached("tables"));
    }
    if state.tablets.len() + tablets.len() > TABLETS_MAX {
        return Err(Rejection::LimitReached("tablets"));
    }
    check_placement(state, &spec, &tablets)?;
    let table = Table { id: state.next.table, name, spec };
    state.next.table = table.id.next();
    changes.tables.insert(table.id);
    state.insert_table(table.clone());
    let ids = tablets.into_iter().map(|tablet| create_tablet(state, table.id, tablet)).collect::<Vec<_>>();
    changes.tablets.extend(&ids);
    Ok(Reply::Created(table, ids))
}

/// The ranges cover every key once, and each copy goes to another known server.
fn check_placement(state: &State, spec: &TableSpec, tablets: &[NewTablet]) -> Result<(), Rejection> {
    let whole = tablets.first().is_some_and(|first| first.range.start().is_empty())
        && tablets.last().is_some_and(|last| last.range.end().is_none())
        && tablets.windows(2).all(|pair| KeyRange::is_followed_by(&pair[0].range, &pair[1].range));
    let placed = tablets.iter().all(|tablet| {
        let distinct: BTreeSet<ServerId> = tablet.servers.iter().copied().collect();
        distinct.len() == usize::from(spec.replicas)
            && distinct.len() == tablet.servers.len()
            && distinct.iter().all(|id| state.servers.contains_key(id))
    });
    if whole && placed { Ok(()) } else { Err(Rejection::BadPlacement) }
}

fn create_tablet(state: &mut State, table: TableId, new: NewTablet) -> TabletId {
    let id = state.next.tablet;
    let lineage = state.next.lineage;
    state.next.tablet = id.next();
    state.next.lineage = lineage.next();
    let replicas: Vec<Replica> =
        new.servers.into_iter().map(|server| create_replica(state, server)).collect();
    let tablet = Tablet {
        id,
        table,
        range: new.range,
        epoch: Epoch(0),
        leader: None,
        in_sync: replicas.iter().map(|replica| replica.id).collect(),
        replicas,
        config_version: ConfigVersion(0),
        lineage,
        recovering: false,
        appointed_ts: Hlc::MIN,
    };
    state.insert_tablet(tablet);
    id
}

fn create_replica(state: &mut State, server: ServerId) -> Replica {
    let id: ReplicaId = state.next.replica;
    state.next.replica = id.next();
    let disk_generation = state.servers[&server].disk_generation;
    Replica { id, server, disk_generation, lost: false }
}

fn drop_table(state: &mut State, id: TableId, changes: &mut Changes) -> Result<Reply, Rejection> {
    let (table, tablets) = state.remove_table(id).ok_or(Rejection::NoTable(id))?;
    changes.removed_tables.insert(id);
    for tablet in tablets {
        let servers = tablet.replicas.iter().map(|replica| replica.server).collect();
        changes.removed_tablets.insert(tablet.id, (id, servers));
    }
    Ok(Reply::Dropped(table))
}

/// Record 1 of an election: the epoch is raised and nobody leads it yet.
fn recover(
    state: &mut State,
    id: TabletId,
    epoch: Epoch,
    changes: &mut Changes,
) -> Result<Tablet, Rejection> {
    let tablet = state.tablets.get_mut(&id).ok_or(Rejection::NoTablet(id))?;
    if tablet.epoch != epoch {
        return Err(Rejection::StaleEpoch(tablet.clone()));
    }
    if tablet.recovering {
        return Err(Rejection::AlreadyRecovering(tablet.clone()));
    }
    tablet.epoch = epoch.next();
    tablet.leader = None;
    tablet.recovering = true;
    changes.tablets.insert(id);
    Ok(tablet.clone())
}

/// Record 2 of an election: the epoch goes to one run of one copy, for ever. The in-sync set
/// stays as it is (m4).
fn appoint(state: &mut State, new: &Appointment, changes: &mut Changes) -> Result<Tablet, Rejection> {
    let tablet = state.tablet(new.tablet).ok_or(Rejection::NoTablet(new.tablet))?;
    if tablet.epoch != new.epoch {
        return Err(Rejection::StaleEpoch(tablet.clone()));
    }
    if !tablet.recovering || tablet.leader.is_some() {
        return Err(Rejection::NotRecovering(tablet.clone()));
    }
    let eligible = tablet.in_sync_replicas().find(|replica| replica.id == new.replica);
    let Some(replica) = eligible.filter(|replica| state.holds_data(replica)) else {
        return Err(Rejection::NotEligible(tablet.clone()));
    };
    let leader = Leader { replica: replica.id, server: replica.server, incarnation: new.incarnation };
    if !state.is_current(&leader) {
        return Err(Rejection::StaleIncarnation(tablet.clone()));
    }
    let tablet = state.tablets.get_mut(&new.tablet).ok_or(Rejection::NoTablet(new.tablet))?;
    tablet.leader = Some(leader);
    tablet.recovering = false;
    tablet.config_version = tablet.config_version.next();
    tablet.appointed_ts = new.ts;
    changes.tablets.insert(new.tablet);
    Ok(tablet.clone())
}
