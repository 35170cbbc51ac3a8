//! Every bound of the masters' shell, each with its reason.

use std::time::Duration;

/// Sizes of a group: one for a start, three to survive the loss of one. More only make every
/// commit slower.
pub const MASTERS: [usize; 2] = [1, 3];

/// Unit of Raft time. Ten of them without a word from the leader start an election.
pub const RAFT_TICK: Duration = Duration::from_millis(40);

/// Ticks without a word from the leader before the first master asks for votes.
pub const ELECTION_TICKS: usize = 10;

/// Ticks by which the masters' election timeouts are set apart, so that no vote is split: the
/// slowest of three asks after at most 22 ticks, under 0.9 s.
pub const ELECTION_STAGGER_TICKS: usize = 4;

/// Ticks between a leader's heartbeats.
pub const HEARTBEAT_TICKS: usize = 2;

/// Ticks after which a read that got no answer from the group asks again.
pub const READ_RETRY_TICKS: u64 = 5;

/// Inputs that may wait for the Raft thread. Above it callers are told to come back.
pub const RAFT_INBOX_MAX: usize = 4_096;

/// Inputs taken at once before the log is synced: one sync serves them all.
pub const RAFT_INPUTS_PER_SYNC_MAX: usize = 512;

/// Bytes of entries in one append message.
pub const RAFT_MESSAGE_BYTES_MAX: u64 = 1024 * 1024;

/// Append messages under way to one follower.
pub const RAFT_IN_FLIGHT_MAX: usize = 256;

/// Proposals that wait for their commit. Elections batch, so few are ever needed.
pub const PROPOSALS_MAX: usize = 4_096;

/// Entries after which a snapshot is taken and the log is cut.
pub const SNAPSHOT_ENTRIES_DEFAULT: u64 = 5_000;

/// Entries that stay in the log behind a snapshot, as a share (one nth) of the distance
/// between snapshots: a follower that was away for a moment needs no snapshot.
pub const LOG_KEPT_SHARE: u64 = 5;

/// Size of one file of the Raft log.
pub const LOG_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Size of the Raft log above which old files are removed.
pub const LOG_PURGE_BYTES: u64 = 64 * 1024 * 1024;

/// Largest message between masters: a snapshot of the largest state.
pub const MASTER_MESSAGE_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Largest message of a tablet server: reports and answers for all of its tablets.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Largest administrative request: the split keys of the largest pre-split table.
pub const ADMIN_MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Messages that may wait for one peer. Raft sends again whatever was dropped.
pub const PEER_QUEUE_MAX: usize = 1_024;

/// Pause before a peer that could not be reached is tried again.
pub const PEER_RETRY: Duration = Duration::from_millis(100);

/// How long a connection to a peer may take.
pub const PEER_CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a question to a peer may take while the cluster is formed.
pub const HELLO_TIMEOUT: Duration = Duration::from_millis(1_000);

/// Pause between two rounds of questions while the cluster is formed.
pub const HELLO_RETRY: Duration = Duration::from_millis(150);

/// Changes that a slow watcher may lag behind before it gets the whole map again.
pub const CHANGES_KEPT_MAX: usize = 256;

/// Answers that may wait in one stream of routes; after them changes are put together.
pub const ROUTE_QUEUE_MAX: usize = 4;

/// Messages that may wait for one tablet server before its session is ended.
pub const SESSION_QUEUE_MAX: usize = 256;

/// Events of sessions that may wait for the controller.
pub const CONTROL_QUEUE_MAX: usize = 1_024;

/// How often tablet servers are told to send heartbeats.
pub const HEARTBEAT_MS: u64 = 500;

/// Pause between two looks whether servers have come to a new leader.
pub const SETTLE_POLL: Duration = Duration::from_millis(20);

/// Silence up to which a server is up.
pub const UP_SILENCE: Duration = Duration::from_secs(2);

/// Silence up to which a server is suspect; beyond it is down.
pub const SUSPECT_SILENCE: Duration = Duration::from_secs(10);

/// How long the first message of a session may take.
pub const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Default deadline of an administrative call.
pub const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for a new table to serve: the largest pre-split on a slow disk.
pub const CREATE_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Tablets per second that a creation is expected to bring up at least.
pub const CREATE_TABLETS_PER_SECOND_MIN: u64 = 200;

/// Pause between two looks at a table that is being created.
pub const CREATE_POLL: Duration = Duration::from_millis(20);

/// How long a transfer of leadership may take: many times what it takes when all is well.
pub const TRANSFER_LEADER_TIMEOUT: Duration = Duration::from_secs(8);

/// Pause after which the order to hand leadership over is sent again.
pub const TRANSFER_ORDER_AGAIN: Duration = Duration::from_secs(1);

/// Virtual nodes per server on the hash ring: evens out the shares to some percent.
pub const RING_NODES_PER_SERVER: u32 = 128;

/// How long a stopping master waits for another one to lead.
pub const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a stopping master waits for calls that are being answered.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a tablet server may be away before its copies are replaced on others: longer than
/// a reboot, shorter than a second server takes to fail.
pub const REPLACE_AFTER_DEFAULT: Duration = Duration::from_secs(10 * 60);

/// How long a split may take until its children serve; it is given up before it is sealed for
/// so long.
pub const SPLIT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an operator's job waits for one of the cluster that can be cancelled no longer: its
/// old copy has to leave and to be cleared.
pub const COMMITTED_JOB_TIMEOUT: Duration = Duration::from_secs(8);

/// How often to look whether the children of a split serve.
pub const SPLIT_POLL: Duration = Duration::from_millis(5);

/// Time between two looks at what the cluster should do by itself: a look costs one pass over
/// all tablets.
pub const BALANCE_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);

/// The balancer rests for so many times what a round took: commands wait while it takes its
/// picture, and a master of a million tablets has other things to do, too.
pub const BALANCE_REST_TIMES: u32 = 9;

/// Rounds for which an imbalance must last before something is moved: a minute by default.
pub const BALANCE_LASTS_ROUNDS: u32 = 12;

/// Decisions that the leading master remembers for `ebla balancer`, a few hundred bytes each.
pub const DECISIONS_KEPT_MAX: usize = 1_000;

/// How long a tablet server may take to say where a tablet could be split.
pub const SUGGEST_SPLIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Share of its disk, one nth, that a server must have free to be given copies for balance ...
pub const DISK_FREE_SHARE: u64 = 10;

/// ... or so many bytes, whichever is less: a few of the largest tablets.
pub const DISK_FREE_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// Copies on their way in that one server is believed to have: it builds two at once.
pub const ARRIVALS_PER_SERVER_MAX: usize = 64;

/// How often the leading master looks after the system's own tables.
pub const SYSTEM_TABLES_LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks without a new server after which a cluster of fewer servers than copies gets its system
/// tables: servers that are started together come within this.
pub const SYSTEM_TABLES_SETTLE_LOOKS: u32 = 8;

/// How often to look which backups and restores are to be driven: a cancelled one ends within this.
pub const BACKUP_LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often to look which scheduled backups are due: the least period is as long.
pub const BACKUP_SCHEDULE_EVERY: Duration = Duration::from_secs(1);

/// Time between two plans of a backup or a restore while nothing ends.
pub const BACKUP_PLAN_EVERY: Duration = Duration::from_millis(100);

/// How long a master may take to look at a target and to begin a backup or a restore.
pub const BACKUP_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a tablet server may take to accept a connection.
pub const BACKUP_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a restore waits for servers that are away before it makes its tables.
pub const RESTORE_SERVERS_PATIENCE: Duration = Duration::from_secs(60);

/// Largest manifest that servers are shown to see whether they see the same target.
pub const PROBED_MANIFEST_BYTES_MAX: u64 = 1024 * 1024;

/// How long a tablet server may take to find a probe at a target.
pub const BACKUP_PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a tablet server that exports or imports may say nothing: it speaks every second, and
/// one file may take long at its end.
pub const BACKUP_SILENCE: Duration = Duration::from_secs(60);

/// Longest wait for a target to take a sign of life: nothing is planned meanwhile.
pub const BACKUP_SIGN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a manifest is put before its backup fails.
pub const BACKUP_MANIFEST_TRIES: u32 = 5;

/// Directory below a master's own for files of backups that are checked.
pub const BACKUP_SCRATCH: &str = "backup-check";
