//! Why the metadata refuses a command: closed, typed, with the record as it stands.

use super::job::{Job, JobKind};
use super::spec::BadTable;
use super::split::BadSplitPoint;
use super::state::{ClusterId, Server, Table, Tablet};
use crate::ids::{JobId, ServerId, TableId, TabletId};
use crate::limits::{
    BACKUP_EVERY_MS_MIN, BACKUP_KEEP_MAX, BACKUP_TEXT_BYTES_MAX, SERVER_TEXT_BYTES_MAX, SPLIT_CHILDREN_MAX,
};
use std::collections::BTreeSet;
use std::fmt;

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
    Superseded(Box<Server>),
    /// An address or a zone that is too long.
    TextTooLong,
    /// A limit of the cluster is reached.
    LimitReached(&'static str),
    /// The table's name is taken.
    TableExists(Box<Table>),
    /// The table breaks a rule.
    BadTable(BadTable),
    /// The tablets do not cover every key once, or a placement names no usable server.
    BadPlacement,
    /// No such table.
    NoTable(TableId),
    /// No such tablet.
    NoTablet(TabletId),
    /// The tablet's epoch is another.
    StaleEpoch(Box<Tablet>),
    /// The tablet waits for a leader already.
    AlreadyRecovering(Box<Tablet>),
    /// The tablet does not wait for a leader.
    NotRecovering(Box<Tablet>),
    /// The copy is not in the in-sync set, or its data is lost.
    NotEligible(Box<Tablet>),
    /// The run that was to lead is over.
    StaleIncarnation(Box<Tablet>),
    /// Whoever asks does not lead the tablet.
    NotLeader(Box<Tablet>),
    /// The in-sync set is of another version.
    StaleConfig(Box<Tablet>),
    /// The copy is none of the tablet's.
    NoReplica(Box<Tablet>),
    /// The copy's process or data is another than the one that was meant, or is lost.
    StaleCopy(Box<Tablet>),
    /// The copy is in the set already, or out of it, or leads.
    NothingToChange(Box<Tablet>),
    /// The in-sync set may not become smaller.
    TooFewInSync(Box<Tablet>),
    /// The job is past its commit point.
    JobCommitted(Box<Job>),
    /// The server holds no copy of the tablet.
    NoCopy(TabletId, ServerId),
    /// The server takes no copies any more.
    ServerLeaves(ServerId),
    /// Too few servers would be left for the copies of a table.
    TooFewLeft(ServerId, u8),
    /// No other server may lead.
    LastToServe(ServerId),
    /// The server still holds copies, or is not to leave.
    ServerInUse(ServerId),
    /// The server holds a copy of the tablet already.
    HasCopy(TabletId, ServerId),
    /// The copy leads or is in the in-sync set.
    CopyIsNeeded(Box<Tablet>),
    /// The tablet has as many copies as its table wants.
    EnoughCopies(Box<Tablet>),
    /// No such server.
    NoServer(ServerId),
    /// The tablet is no more; these took its place.
    Retired(TabletId, BTreeSet<TabletId>),
    /// A split point is not strictly inside of the tablet, or they do not rise.
    BadSplitPoint(Box<BadSplitPoint>),
    /// More tablets than one split makes, or only one.
    BadSplitCount,
    /// Another job is about the tablet.
    JobRuns(Box<Job>),
    /// No such job.
    NoJob(JobId),
    /// The job is over, or past its commit point.
    JobEnded(Box<Job>),
    /// The attempt is not the one under way.
    StaleAttempt(Box<Job>),
    /// The copies that are ready are too few, lack the leader, or one of them is not what it was.
    NotReady(Box<Tablet>),
    /// The copies that are ready for these tablets lie on different servers.
    ReadyApart(Vec<TabletId>),
    /// A tablet cannot be merged with itself.
    SameTablet(TabletId),
    /// The tablets are of different tables, or others lie between them.
    NotNeighbours(Box<Tablet>, Box<Tablet>),
    /// The tablets belong to different tables.
    OtherTable(TabletId, TabletId),
    /// The tablet has no leader, or not all of its copies are in sync.
    NotWhole(Box<Tablet>),
    /// The copies of the tablets of a merge do not lie together.
    NotGathered(Box<Job>),
    /// A copy of the tablet may still have its rows: it does not begin anew.
    HasData(Box<Tablet>),
    /// Another backup is under way.
    BackupRuns(Box<Job>),
    /// The table is being brought back from a backup.
    TableRestoring(Box<Table>),
    /// A copy has not taken its rows in yet.
    NotRestored(JobId),
    /// Two tables of a restore would get one name.
    NameTwice(String),
    /// A URL or a name of a backup is too long.
    BackupTextTooLong,
    /// A schedule's times or counts are out of bounds.
    BadSchedule,
    /// No schedule of that target.
    NoSchedule(String),
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
                "server {} runs at {} from a later start of its data directory: another process uses a copy of the directory (stop one of the two), or this one was put back from an older copy (start with an empty --data-dir)",
                server.id.0, server.address
            ),
            Self::TextTooLong => {
                write!(f, "an address or a zone is above {SERVER_TEXT_BYTES_MAX} bytes: shorten it")
            }
            Self::LimitReached(what) => {
                write!(f, "the limit of {what} per cluster is reached: remove some first")
            }
            Self::TableExists(table) => match table.restoring {
                Some(job) => write!(
                    f,
                    "table {} is being restored by job {}: wait for it, cancel it, or choose another name",
                    table.name, job.0
                ),
                None => {
                    write!(f, "table {} exists already: drop it first or choose another name", table.name)
                }
            },
            Self::BadTable(bad) => bad.fmt(f),
            Self::BadPlacement => f.write_str("the tablets could not be placed: try again"),
            Self::NoTable(_) => f.write_str("the table is gone"),
            Self::NoTablet(id) => {
                write!(f, "there is no tablet {}: `ebla tablet list` shows them", id.0)
            }
            Self::StaleEpoch(tablet) => write!(f, "tablet {} is at epoch {}", tablet.id, tablet.epoch),
            Self::AlreadyRecovering(tablet) => {
                write!(f, "tablet {} waits for a leader of {} already", tablet.id, tablet.epoch)
            }
            Self::NotRecovering(tablet) => write!(f, "tablet {} does not wait for a leader", tablet.id),
            Self::NotEligible(tablet) => write!(f, "the copy may not lead tablet {}", tablet.id),
            Self::StaleIncarnation(tablet) => {
                write!(f, "the process that was to lead tablet {} is over", tablet.id)
            }
            Self::NotLeader(tablet) => write!(f, "another process leads tablet {}", tablet.id),
            Self::StaleConfig(tablet) => {
                write!(f, "the in-sync set of tablet {} is at {}", tablet.id, tablet.config_version)
            }
            Self::NoReplica(tablet) => write!(f, "tablet {} has no such copy", tablet.id),
            Self::StaleCopy(tablet) => {
                write!(f, "the copy of tablet {} is not the one that was meant", tablet.id)
            }
            Self::NothingToChange(tablet) => {
                write!(f, "the in-sync set of tablet {} is as it must be", tablet.id)
            }
            Self::TooFewInSync(tablet) => {
                write!(f, "the in-sync set of tablet {} may not become smaller", tablet.id)
            }
            Self::JobCommitted(job) => write!(
                f,
                "job {} is past its commit point and runs to its end: wait with `ebla job wait {}`",
                job.id.0, job.id.0
            ),
            Self::NoCopy(tablet, server) => write!(
                f,
                "server {} has no copy of tablet {}: `ebla tablet describe {}` shows who has",
                server.0, tablet.0, tablet.0
            ),
            Self::ServerLeaves(id) => write!(
                f,
                "server {} is drained or leaves and takes no copies: choose another, see `ebla server list`",
                id.0
            ),
            Self::TooFewLeft(id, copies) => write!(
                f,
                "without server {} too few servers would be left that take copies, for tables with {copies}: start another first, or activate one that `ebla server list` shows as drained",
                id.0
            ),
            Self::LastToServe(id) => write!(
                f,
                "no server but {} may lead, so that nobody could take its tablets over: start another first, or activate one that `ebla server list` shows as drained",
                id.0
            ),
            Self::ServerInUse(id) => write!(
                f,
                "server {} still holds copies or is not to leave: run `ebla server decommission {}` and wait until it holds none",
                id.0, id.0
            ),
            Self::HasCopy(tablet, server) => {
                write!(f, "server {} has a copy of tablet {} already: choose another", server.0, tablet.0)
            }
            Self::CopyIsNeeded(tablet) => {
                write!(f, "the copy of tablet {} leads or is in sync", tablet.id)
            }
            Self::EnoughCopies(tablet) => {
                write!(f, "tablet {} has as many copies as its table wants", tablet.id)
            }
            Self::NoServer(id) => {
                write!(f, "there is no server {}: `ebla server list` shows them", id.0)
            }
            Self::Retired(id, successors) => {
                let ids = successors.iter().map(|id| id.0.to_string()).collect::<Vec<_>>();
                let (id, ids) = (id.0, ids.join(", "));
                match successors.len() {
                    1 => write!(f, "tablet {id} is no more, its keys are in tablet {ids}: name that"),
                    _ => write!(f, "tablet {id} is no more, its keys are in tablets {ids}: name one of them"),
                }
            }
            Self::BadSplitPoint(bad) => bad.fmt(f),
            Self::BadSplitCount => {
                write!(f, "one split makes 2 to {SPLIT_CHILDREN_MAX} tablets: give as many parts")
            }
            Self::JobRuns(job) => write!(
                f,
                "job {} ({}) is under way: wait with `ebla job wait {}` or end it with `ebla job cancel {}`",
                job.id.0,
                job.kind.name(),
                job.id.0,
                job.id.0
            ),
            Self::NoJob(id) => write!(f, "there is no job {}: `ebla job list` shows them", id.0),
            Self::JobEnded(job) => {
                write!(f, "job {} is {} already: nothing was changed", job.id.0, job.state.name())
            }
            Self::StaleAttempt(job) => write!(f, "job {} is at attempt {}", job.id, job.attempt),
            Self::NotReady(tablet) => write!(f, "the copies of tablet {} are not ready", tablet.id),
            Self::ReadyApart(tablets) => {
                write!(f, "the copies that are ready lie on different servers for {tablets:?}")
            }
            Self::SameTablet(id) => {
                write!(f, "tablet {} cannot be merged with itself: name two neighbours", id.0)
            }
            Self::NotNeighbours(one, other) => write!(
                f,
                "tablets {} {} and {} {} are no neighbours: `ebla tablet list TABLE` shows them in order",
                one.id.0, one.range, other.id.0, other.range
            ),
            Self::OtherTable(one, other) => write!(
                f,
                "tablets {} and {} belong to different tables: name two neighbours of one",
                one.0, other.0
            ),
            Self::NotWhole(tablet) => write!(
                f,
                "tablet {} lacks its leader or a copy in sync: wait until `ebla tablet describe {}` shows all of them",
                tablet.id.0, tablet.id.0
            ),
            Self::HasData(tablet) => {
                write!(f, "a copy of tablet {} may still have its rows", tablet.id)
            }
            Self::BackupRuns(job) => {
                let backup = match &job.kind {
                    JobKind::Backup(backup) => &backup.wish.backup[..],
                    JobKind::Split(_)
                    | JobKind::Merge(_)
                    | JobKind::Move(_)
                    | JobKind::Restore(_)
                    | JobKind::Transfer(_) => "",
                };
                write!(
                    f,
                    "backup {backup} is under way as job {}, and there is one at a time: wait with `ebla job wait {}` or \
                     end it with `ebla job cancel {}`",
                    job.id.0, job.id.0, job.id.0
                )
            }
            Self::TableRestoring(table) => {
                let job = table.restoring.map_or(0, |job| job.0);
                write!(
                    f,
                    "table {} is being restored by job {job}: wait with `ebla job wait {job}` or end it with `ebla job cancel {job}`",
                    table.name
                )
            }
            Self::NotRestored(job) => {
                write!(f, "not every copy of the tables of {job} has taken its rows in yet")
            }
            Self::NameTwice(name) => {
                write!(
                    f,
                    "two tables would be restored as {name}: restore them one by one with --table and --as"
                )
            }
            Self::BackupTextTooLong => write!(
                f,
                "the URL or a name of the backup is above {BACKUP_TEXT_BYTES_MAX} bytes: shorten it"
            ),
            Self::BadSchedule => write!(
                f,
                "a schedule makes a backup every {} s or more, a full one not more often, and keeps 1 to {BACKUP_KEEP_MAX}: choose other values",
                BACKUP_EVERY_MS_MIN / 1_000
            ),
            Self::NoSchedule(url) => {
                write!(f, "there is no schedule to {url}: `ebla backup schedule list` shows them")
            }
            Self::NotGathered(job) => write!(f, "the copies of job {} do not lie together", job.id),
        }
    }
}
