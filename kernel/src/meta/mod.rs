//! The metadata core: who serves which range of keys.
//!
//! Three parts, all pure:
//! - the replicated state ([`State`]), changed only by [`apply()`], which every master runs over
//!   the same commands in the same order. Guards are evaluated there, never at propose time;
//! - jobs ([`Job`]): what takes more than one command is a record, so that any master goes on
//!   with it or ends it;
//! - the control core ([`Control`]), which only the leading master runs. It sees what was
//!   applied and which servers are connected, and proposes the commands that give every
//!   tablet a leader.
//!
//! Nothing here knows how commands travel, where state is stored or what time it is.

mod apply;
mod backup;
mod campaign;
mod command;
mod control;
mod drains;
mod election;
mod emptied;
mod in_sync;
mod job;
mod leaving;
mod merge;
mod merge_control;
mod registration;
mod rejection;
mod repair;
mod replicas;
mod schedule;
mod seal_control;
mod snapshot;
mod spec;
mod split;
mod state;
mod succession;
mod suspicion;
mod transfer;

pub use apply::{Changes, Comparison, Registered, Reply, apply};
pub use backup::{
    BackupJob, BackupStep, BackupWish, Ledger, NewTable, RefusedWish, RestoreJob, RestoreStep, RestoreWish,
    RestoredCopy, Totals,
};
pub use command::{
    Appointment, Command, CommandError, InSyncChange, NewBeginning, NewTablet, RegisterServer, ReplicaChange,
};
pub use control::{Control, Effect, Input, Settings};
pub use election::{Fence, FenceAnswer, GaveUp};
pub use in_sync::PROGRESS_IN_SYNC;
pub use job::{Job, JobEnd, JobKind, JobState, MoveJob, Origin, TransferJob, Wish};
pub use merge::{MergeJob, MergeStep};
pub use rejection::Rejection;
pub use schedule::{Schedule, SchedulePast};
pub use seal_control::SealOrder;
pub use snapshot::{SnapshotError, decode_snapshot, encode_snapshot, state_hash};
pub use spec::{
    AutoMerge, BadTable, Eviction, Policy, SYSTEM_TABLES, TableChange, TableKind, TableSpec,
    check_table_name, cut_ranges, is_system_name,
};
pub use split::{BadSplitPoint, check_split_keys};
pub use state::{
    ClusterId, Duty, Emptied, FormerLeader, Leader, Move, Parent, Replica, Server, State, Table, Tablet,
};
pub use succession::{SplitCommit, Succession};
pub use transfer::TransferRefusal;
