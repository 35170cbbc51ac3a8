//! The commands of the metadata log. A command is a value: it can be printed, encoded and
//! replayed. Whatever is not deterministic (ids, times, placement) comes inside.

use super::backup::{BackupStep, RefusedWish, RestoreStep};
use super::job::{JobEnd, Origin, TransferJob, Wish};
use super::merge::MergeStep;
use super::schedule::Schedule;
use super::spec::{TableChange, TableSpec};
use super::state::{ClusterId, Duty};
use super::succession::SplitCommit;
use crate::hlc::Hlc;
use crate::ids::{
    Attempt, ConfigVersion, DiskGeneration, Epoch, Generation, Incarnation, JobId, ReplicaId, ServerId,
    TableId, TabletId,
};
use crate::range::KeyRange;
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Version of the command layout, the first byte of every command. A master that reads
/// another one must halt: skipping it would split the group.
pub const COMMAND_FORMAT: u8 = 12;

/// One change of the metadata.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Command {
    /// Forms the cluster; the first command of every log. A second one changes nothing.
    InitCluster {
        /// The cluster's name.
        cluster_id: ClusterId,
        /// Master id to the number of its data directory.
        masters: BTreeMap<u64, u64>,
    },
    /// A server process presents itself.
    RegisterServer(RegisterServer),
    /// Creates a table with its tablets.
    CreateTable {
        /// Its name.
        name: String,
        /// Its promises.
        spec: TableSpec,
        /// Its tablets in key order, placed.
        tablets: Vec<NewTablet>,
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
    /// Changes what may be changed of a table.
    ChangeTable {
        /// Which.
        table: TableId,
        /// What.
        change: TableChange,
    },
    /// Removes a table and its tablets.
    DropTable {
        /// Which.
        table: TableId,
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
    /// Raises the epochs of tablets that need a leader.
    Recover {
        /// Tablets and their epochs as the proposer knows them.
        tablets: Vec<(TabletId, Epoch)>,
    },
    /// Gives recovering tablets their leaders.
    Appoint {
        /// Whom.
        appointments: Vec<Appointment>,
    },
    /// Lets every master compare its state with the proposer's; changes nothing.
    CompareState {
        /// Index of the last command that the proposer's state held.
        applied: u64,
        /// Hash of that state.
        hash: u64,
    },
    /// Changes in-sync sets, each on its own, as a leader asks for.
    AlterInSync {
        /// The server that leads, and its run.
        proposer: (ServerId, Incarnation),
        /// What it asks for.
        changes: Vec<InSyncChange>,
    },
    /// Adds and removes copies, each on its own.
    ChangeReplicas {
        /// What is to change.
        changes: Vec<ReplicaChange>,
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
    /// Says what a server is wanted for from now on.
    SetDuty {
        /// Which.
        server: ServerId,
        /// What for.
        duty: Duty,
    },
    /// Forgets a server that is to leave and holds nothing.
    ForgetServer {
        /// Which.
        server: ServerId,
    },
    /// Starts a job, with its first attempt. For a split this is the intent.
    StartJob {
        /// What it is to do.
        wish: Wish,
        /// Who wants it.
        origin: Origin,
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
    /// Ends a job before its commit point: a compare-and-set on its record, final for its
    /// attempt (m29). For a split this is the abort.
    EndJob {
        /// Which.
        job: JobId,
        /// The attempt that is ended; none for whichever is under way.
        attempt: Option<Attempt>,
        /// How it ends.
        end: JobEnd,
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
    /// Takes a merge a step further, or back: a compare-and-set on its attempt.
    ChangeMerge {
        /// Which.
        job: JobId,
        /// The attempt that it is at.
        attempt: Attempt,
        /// The step.
        step: MergeStep,
    },
    /// The commit point of a split or a merge: the parents are retired, their children are
    /// there.
    CommitSplit {
        /// The server that leads the parents, and its run.
        proposer: (ServerId, Incarnation),
        /// What it asks for, of every parent in key order.
        commits: Vec<SplitCommit>,
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
    /// Lets tablets of memory tables that have lost every copy begin anew, each on its own.
    Empty {
        /// Which, and where.
        tablets: Vec<NewBeginning>,
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
    /// Pauses what the cluster does by itself, or lets it go on. Copies that are lost are
    /// replaced either way.
    PauseBalancer {
        /// Whether it is to pause.
        paused: bool,
    },
    /// Takes a backup a step further: a compare-and-set on its attempt.
    ChangeBackup {
        /// Which.
        job: JobId,
        /// The attempt that it is at.
        attempt: Attempt,
        /// The step.
        step: BackupStep,
    },
    /// Takes a restore a step further: a compare-and-set on its attempt.
    ChangeRestore {
        /// Which.
        job: JobId,
        /// The attempt that it is at.
        attempt: Attempt,
        /// The step.
        step: RestoreStep,
    },
    /// Sets the schedule of a target.
    SetSchedule {
        /// What.
        schedule: Box<Schedule>,
    },
    /// A backup of a schedule could not even be begun.
    FailSchedule {
        /// URL of the target.
        url: String,
        /// Why, and what to do about it.
        error: String,
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
    /// Removes the schedule of a target; its backups stay.
    RemoveSchedule {
        /// URL of the target.
        url: String,
    },
    /// Notes that leadership was handed over for an operator, as a job that is done.
    RecordTransfer {
        /// What went where.
        transfer: TransferJob,
        /// When it was ordered, milliseconds since 1970.
        started_ms: u64,
        /// When the other copy led.
        ended_ms: u64,
    },
    /// Notes a backup or a restore that was refused before it began, for audits.
    RecordRefusal {
        /// What was asked for, as far as that is known.
        wish: RefusedWish,
        /// Why not.
        error: String,
        /// When it was asked for, milliseconds since 1970.
        started_ms: u64,
        /// When it was refused.
        ended_ms: u64,
    },
}

/// One copy that is added or removed. A new copy is a learner: it counts for nothing before it
/// is in the in-sync set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum ReplicaChange {
    /// A new copy begins.
    Add {
        /// The tablet.
        tablet: TabletId,
        /// Where it goes.
        server: ServerId,
        /// The copy that it takes the place of, which goes when it is in sync; at once if it
        /// lies on the same server and is not in the in-sync set.
        instead_of: Option<ReplicaId>,
    },
    /// A copy outside of the in-sync set ends.
    Remove {
        /// The tablet.
        tablet: TabletId,
        /// Which.
        replica: ReplicaId,
    },
    /// A copy that is one too many is to go; another one takes over what it has.
    Shed {
        /// The tablet.
        tablet: TabletId,
        /// Which.
        replica: ReplicaId,
    },
    /// A copy that says that it has diverged from its leader counts as lost from now on.
    Forsake {
        /// The tablet.
        tablet: TabletId,
        /// Which.
        replica: ReplicaId,
    },
    /// A copy has arrived that takes nobody's place, or whose predecessor is needed after all.
    Settle {
        /// The tablet.
        tablet: TabletId,
    },
}

/// How a server process presents itself.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct RegisterServer {
    /// The cluster that its data directory names.
    pub cluster_id: Option<ClusterId>,
    /// The server id that its data directory names.
    pub server_id: Option<ServerId>,
    /// The number of its data directory.
    pub disk_generation: DiskGeneration,
    /// The random number of its run.
    pub boot_id: u64,
    /// How often its data directory was opened, this run among them.
    pub starts: u64,
    /// HOST:PORT under which clients reach it.
    pub address: String,
    /// Its failure zone.
    pub zone: String,
    /// When, milliseconds since 1970.
    pub time_ms: u64,
}

/// A tablet to create.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct NewTablet {
    /// Its keys.
    pub range: KeyRange,
    /// Where its copies go.
    pub servers: Vec<ServerId>,
}

/// The leader of one epoch.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Appointment {
    /// The tablet.
    pub tablet: TabletId,
    /// The epoch to lead.
    pub epoch: Epoch,
    /// The copy that leads.
    pub replica: ReplicaId,
    /// The run that leads.
    pub incarnation: Incarnation,
    /// A floor for its clock.
    pub ts: Hlc,
    /// Whether fewer copies answered than a strict election needs.
    pub degraded: bool,
}

/// A tablet that lost every copy, and where its empty ones are to be.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct NewBeginning {
    /// The tablet.
    pub tablet: TabletId,
    /// Its epoch as the proposer knows it.
    pub epoch: Epoch,
    /// Servers that are connected: at others a copy would be lost before it begins.
    pub servers: Vec<ServerId>,
}

/// One copy that comes into an in-sync set, or copies that go out of it together: a compare-and-set
/// on the epoch and on the version of the set.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct InSyncChange {
    /// The tablet.
    pub tablet: TabletId,
    /// The epoch that the proposer leads.
    pub epoch: Epoch,
    /// The version of the set that it changes.
    pub config_version: ConfigVersion,
    /// The copy that comes in, or those that go out.
    pub replicas: BTreeSet<ReplicaId>,
    /// Whether it comes in.
    pub add: bool,
    /// The run of its server that the leader knows, of one that comes in.
    pub incarnation: Incarnation,
    /// What the data that the leader knows lives and dies with.
    pub generation: Generation,
}

/// A command that this version cannot read. Always fatal for the master that meets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommandError {
    /// No bytes.
    Empty,
    /// Written by another version.
    UnknownFormat(u8),
    /// Not a command.
    Malformed(String),
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the metadata command is empty"),
            Self::UnknownFormat(format) => write!(
                f,
                "metadata command format {format} is not {COMMAND_FORMAT}, the one of this version: start the version that wrote it"
            ),
            Self::Malformed(reason) => write!(f, "the metadata command is malformed: {reason}"),
        }
    }
}

impl std::error::Error for CommandError {}

impl Command {
    /// The command's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![COMMAND_FORMAT];
        self.serialize(&mut out).expect("writing to a vector does not fail");
        out
    }

    /// Reads a command back.
    ///
    /// # Errors
    /// `CommandError` for bytes that this version has not written.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        match bytes.split_first() {
            None => Err(CommandError::Empty),
            Some((&COMMAND_FORMAT, body)) => {
                borsh::from_slice(body).map_err(|error| CommandError::Malformed(error.to_string()))
            }
            Some((&format, _)) => Err(CommandError::UnknownFormat(format)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_survive_encoding() {
        let command = Command::Recover { tablets: vec![(TabletId(7), Epoch(3))] };
        assert_eq!(Command::decode(&command.encode()), Ok(command));
    }

    #[test]
    fn another_format_is_named() {
        for format in [COMMAND_FORMAT - 1, COMMAND_FORMAT + 1] {
            assert_eq!(Command::decode(&[format, 0]), Err(CommandError::UnknownFormat(format)));
        }
        assert_eq!(Command::decode(&[]), Err(CommandError::Empty));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut command = vec![COMMAND_FORMAT];
            command.extend(bytes);
            let _ = Command::decode(&command);
        }
    }
}
