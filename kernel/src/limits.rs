//! Every bound that the protocol or the data model sets, each with its reason.

/// Longest user key in bytes. A key stands in every index block and log entry of its row;
/// past a few KiB indexes grow faster than data.
pub const KEY_BYTES_MAX: usize = 4 * 1024;

/// Longest value in bytes. One value must fit a log batch, a frame and a follower's queue
/// several times over; larger things are to be cut into chunks by the caller.
pub const VALUE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Most operations in one atomic batch: one log entry that every replica applies at once.
pub const BATCH_OPS_MAX: usize = 10_000;

/// Most bytes of keys and values in one atomic batch; twice the largest single row.
pub const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Longest table name in bytes: it stands in every request.
pub const TABLE_NAME_BYTES_MAX: usize = 128;

/// Most tablets that one `CreateTable` may pre-split into: one metadata entry of some MiB.
pub const PRE_SPLIT_TABLETS_MAX: usize = 20_000;

/// Rows up to which a delete range is expanded into ordinary tombstones of one entry.
pub const DELETE_RANGE_EXPANDED_ROWS_MAX: usize = 1_000;

/// Most range tombstones of one tablet; each is looked at by every read of the tablet.
pub const RANGE_TOMBSTONES_PER_TABLET_MAX: usize = 1_000;

/// How long a write token is remembered: longer than any sensible client deadline.
pub const TOKEN_WINDOW_MS: u64 = 5 * 60 * 1000;

/// Most tokens that one server remembers, about 200 bytes each. Above it the oldest are
/// forgotten and late retries of those are refused, never run twice.
pub const TOKENS_PER_SERVER_MAX: usize = 2_000_000;

/// Greatest difference between a timestamp from outside and the local wall clock that is
/// adopted. One machine that runs hours ahead must not drag a cluster with it.
pub const CLOCK_OFFSET_MS_MAX: u64 = 500;

/// How far ahead the persisted upper bound of issued timestamps is put. After a crash a
/// server starts there, so it must stay below `CLOCK_OFFSET_MS_MAX`: otherwise the others
/// would not believe it (`docs/decisions/0005-clock-bound.md`).
pub const HLC_BOUND_AHEAD_MS: u64 = 400;

/// A bound closer than this is extended while timestamps are issued: time enough for the
/// sync of a busy disk.
pub const HLC_BOUND_MARGIN_MS: u64 = 250;

/// Default retention of old versions: long enough for a slow scan and a backup.
pub const RETENTION_MS_DEFAULT: u64 = 60 * 60 * 1000;

/// Default size in bytes at which a tablet is split.
pub const SPLIT_BYTES_DEFAULT: u64 = 512 * 1024 * 1024;

/// Default requests per second above which a tablet is split: a tenth of what one server does for
/// single sets, so that one hot range reaches several servers before it fills one.
pub const SPLIT_LOAD_DEFAULT: u64 = 5_000;

/// Default deadline of a request in milliseconds.
pub const REQUEST_TIMEOUT_MS_DEFAULT: u64 = 10_000;

/// How long keys already applied stay known to the sequencer, so that what a request task
/// read before sequencing can be judged. A request that took longer reads again.
pub const RECENT_WRITES_MS: u64 = 200;

/// Most bytes of rows already applied that one tablet keeps known to its sequencer.
pub const RECENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How far a client's clock may be ahead of a server's when it issues write tokens. After a
/// restart that much more of the past counts as forgotten.
pub const TOKEN_CLOCK_SLACK_MS: u64 = 5_000;

/// Most servers that a cluster registers: a server's ordinal is its bit in every room.
pub const SERVERS_MAX: usize = 4_096;

/// Most tables of a cluster: each has a name in every client's route map.
pub const TABLES_MAX: usize = 10_000;

/// Most tablets of a cluster: with three copies about 1 KiB each in every master (measured by
/// `make bench-meta`).
pub const TABLETS_MAX: usize = 2_000_000;

/// Longest address and zone of a server, in bytes: they stand in every route map.
pub const SERVER_TEXT_BYTES_MAX: usize = 256;

/// Most tablets in one metadata entry of an election: some hundred KiB.
pub const ELECTION_BATCH_TABLETS_MAX: usize = 10_000;

/// Most copies of a tablet. Each in-sync copy must be heard before it costs the others their
/// speed; beyond seven more copies are for reading, which is another thing.
pub const REPLICAS_MAX: u8 = 7;

/// Copies of a tablet when nobody said how many and there are servers enough.
pub const REPLICAS_DEFAULT: u8 = 3;

/// How long an election of a table with policy `degraded` waits for the answers that a strict
/// one needs, once it has one: longer than a restart, shorter than patience.
pub const DEGRADED_ELECTION_MS: u64 = 10_000;

/// The same of a memory table: a copy that restarts comes back without its rows, so that only
/// one which cannot be reached for a moment is waited for.
pub const DEGRADED_MEMORY_ELECTION_MS: u64 = 3_000;

/// Least memory limit of a table: below it the constant part of a row's cost and one large value
/// would decide everything.
pub const MEMORY_LIMIT_BYTES_MIN: u64 = 1 << 20;

/// How long an election waits for better candidates once it has enough answers.
pub const ELECTION_GRACE_MS: u64 = 100;

/// First pause before a step of an election is tried again; it doubles.
pub const ELECTION_RETRY_MS_MIN: u64 = 500;

/// Longest pause before a step of an election is tried again.
pub const ELECTION_RETRY_MS_MAX: u64 = 10_000;

/// How long a server promises to answer no fence against a leader's server, in milliseconds.
/// A failover waits that long, a lease is lost after that long without contact.
pub const LEASE_MS: u64 = 1_000;

/// How often promises are renewed, in milliseconds: four may be lost before the lease is.
pub const LEASE_HEARTBEAT_MS: u64 = 200;

/// Greatest difference in speed of two clocks that leases allow for, per mille.
pub const LEASE_DRIFT_PER_MILLE: u64 = 10;

/// What is taken off or put on a lease beside the drift: clocks are read in milliseconds and
/// threads are scheduled late.
pub const LEASE_GUARD_MS: u64 = 100;

/// Most questions for a promise that are remembered while unanswered.
pub const LEASE_ASKS_OPEN_MAX: usize = 32;

/// Most tablets that one promise lists as exceptions; above it nothing is promised.
pub const LEASE_EXCEPTIONS_MAX: usize = 20_000;

/// A leader's session that is silent for this long is reported to the masters.
pub const LEADER_SILENCE_MS: u64 = 600;

/// A follower that is silent or behind for this long leaves the in-sync set.
pub const IN_SYNC_LAG_MS: u64 = 2_000;

/// A follower that is this many bytes behind leaves the in-sync set.
pub const IN_SYNC_LAG_BYTES: u64 = 64 * 1024 * 1024;

/// A follower that left the in-sync set comes back at the earliest after this long.
pub const IN_SYNC_REJOIN_MS: u64 = 1_000;

/// How long a tablet in memory that has lost every copy waits for all their servers to be connected
/// before it begins anew where some of them are.
pub const NEW_BEGINNING_WAIT_MS: u64 = 1_000;

/// How often a leader whose in-sync set is below D, so that it publishes nothing, notes what stands
/// nevertheless. A copy that comes in must have that, so it must not follow each write.
pub const STANDING_EVERY_MS: u64 = 1_000;

/// Pause before a change of the in-sync set is proposed again while its fate is unknown.
pub const PROPOSAL_RETRY_MS: u64 = 500;

/// First pause before a silent follower is probed again; it doubles.
pub const PROBE_RETRY_MS_MIN: u64 = 300;

/// Longest pause between two probes of a silent follower.
pub const PROBE_RETRY_MS_MAX: u64 = 5_000;

/// A follower that acknowledges nothing for this long, though there is something to
/// acknowledge, is probed again.
pub const ACK_SILENCE_MS: u64 = 1_000;

/// Most entries on the way to one follower of one tablet.
pub const STREAM_WINDOW_ENTRIES: u64 = 16_384;

/// Part of a write's deadline that is kept for a revert when the wait for copies has failed:
/// a quarter, at most this long, in milliseconds.
pub const REVERT_MARGIN_MS_MAX: u64 = 1_000;

/// Most writes of one tablet that wait for a pending write of the same row.
pub const PARKED_WRITES_MAX: usize = 4_096;

/// Most pending writes of one tablet: each is held in memory until its level is reached.
pub const PENDING_WRITES_MAX: usize = 65_536;

/// Epochs that a copy names when it is asked how its log grew; more are sent when a leader
/// finds none in common.
pub const HELLO_EPOCHS_MAX: usize = 256;

/// Copies that are on their way to one server at a time. Each keeps the log of its tablet at
/// the leader from being purged, and the server builds few of them at once.
pub const COPIES_ON_THEIR_WAY_MAX: usize = 16;

/// Leaderships that a server which is drained hands over at a time: enough for a thousand within
/// seconds, few enough that the pause of each is that of one alone.
pub const DRAINS_AT_ONCE: usize = 16;

/// Pause before a change of a tablet's copies is proposed again while its fate is unknown.
pub const REPLICA_CHANGE_RETRY_MS: u64 = 2_000;

/// Tablets that are looked at again when a copy has arrived: those that waited for its place.
pub const REPAIRS_RETRIED_MAX: usize = 64;
/// Most tablets that one split makes of one: each has a log of its own to begin, and the
/// seal names all of them in one entry.
pub const SPLIT_CHILDREN_MAX: usize = 64;

/// Tablets of one server that are sealed at once: while it is sealed a tablet holds its writes,
/// and the work of a switch is shared by all of them.
pub const SPLITS_PER_SERVER_MAX: usize = 4;

/// How long a split that was ordered may take until it is given up, in milliseconds. Writes
/// wait meanwhile, and their clients have a deadline of some seconds.
pub const SPLIT_PATIENCE_MS: u64 = 4_000;

/// How long both tablets of a merge may be sealed until they are opened again, in milliseconds:
/// writes wait, and the merge is tried again when what was in its way is over.
pub const MERGE_PATIENCE_MS: u64 = 2_000;

/// How long the tablets of a merge must lie together before they are sealed, in milliseconds: a
/// leader that was appointed just now first has to serve, and the copies to follow it.
pub const MERGE_SETTLE_MS: u64 = 200;

/// Pause after a merge was taken back until it is tried again, in milliseconds; it grows with
/// the tries.
pub const MERGE_PAUSE_MS: u64 = 2_000;

/// How often a merge may be taken back until it is given up.
pub const MERGE_TRIES_MAX: u8 = 10;

/// How long a leader waits for the copies that are not ready once D are, in milliseconds. One
/// that is left out has to be rebuilt, and writes wait.
pub const SPLIT_READY_PATIENCE_MS: u64 = 500;

/// Pause before the order to seal is sent again, in milliseconds.
pub const SPLIT_ORDER_RETRY_MS: u64 = 500;

/// A tablet is sealed only this long after a word of the masters, in milliseconds: the commit
/// needs them, and writes wait for it.
pub const SEAL_CONTACT_MS: u64 = 200;

/// First pause of a child's leader before a copy is probed again: its servers switch within
/// milliseconds of each other.
pub const CHILD_PROBE_RETRY_MS: u64 = 5;

/// Most jobs that are under way: each is looked at when its tablet changes.
pub const JOBS_RUNNING_MAX: usize = 1_000;

/// Finished jobs that are remembered for `ebla job list`; the oldest are forgotten.
pub const JOBS_FINISHED_MAX: usize = 1_000;

/// Retired tablets whose successors are remembered, about 100 bytes each; the oldest are
/// forgotten, all of a table when it is dropped.
pub const RETIRED_TABLETS_MAX: usize = 100_000;

/// Longest reason that a failed job keeps, in bytes.
pub const JOB_ERROR_BYTES_MAX: usize = 512;

/// Backups and restores that ended and are remembered for audits: a year of one every nine hours.
pub const BACKUP_ATTEMPTS_MAX: usize = 1_000;

/// Bytes of a URL, a name or an author of a backup: they stand in every list of them.
pub const BACKUP_TEXT_BYTES_MAX: usize = 1_024;

/// Schedules of a cluster: each is a target that somebody looks after.
pub const BACKUP_SCHEDULES_MAX: usize = 100;

/// Least time between two backups of a schedule: a backup has a fixed cost per tablet.
pub const BACKUP_EVERY_MS_MIN: u64 = 1_000;

/// Most backups that a schedule keeps: a list of them is still read by people.
pub const BACKUP_KEEP_MAX: u32 = 10_000;

/// Splits that the cluster begins by itself and that are under way at once, over all servers:
/// so many commits and new logs at a time are hardly noticed.
pub const AUTOMATIC_SPLITS_MAX: usize = 16;

/// Copies that are moved at once for balance, over all servers; besides, one to and one from
/// each server. Repairs come on top.
pub const AUTOMATIC_MOVES_MAX: usize = 16;

/// Leaderships that one server hands over, or takes, in one round of balancing: each pauses its
/// tablet for some milliseconds.
pub const HAND_OVERS_PER_SERVER_MAX: usize = 4;

/// Lightest servers that are tried as places for a copy: more would make a round's cost grow
/// with servers times copies.
pub const MOVE_TARGETS_TRIED_MAX: usize = 16;

/// How long an imbalance must last before something is moved, in milliseconds.
pub const BALANCE_LASTS_MS_DEFAULT: u64 = 60_000;

/// How much a server must be off the mean, in percent of it: a difference that small is never
/// worth a move.
pub const BALANCE_TOLERANCE_PERCENT: u64 = 10;

/// A tablet that was moved stays for so many times as long as an imbalance must last.
pub const BALANCE_CALM_TIMES: u64 = 10;

/// Time constant of smoothed rates, in times of what an imbalance must last: a wave of some
/// minutes disappears in it.
pub const RATE_SMOOTHING_TIMES: u64 = 15;

/// Time constant of the rates that splits by load look at: what an imbalance must last, over so
/// much. Twice the load that is allowed shows within a few rounds.
pub const RECENT_SMOOTHING_PART: u64 = 3;

/// A tablet is split by load when it has been too busy for what an imbalance must last, over so
/// much: a burst passes, a hot spot is split within a minute.
pub const BUSY_LASTS_PART: u64 = 2;

/// A tablet that was too busy no longer is below this percentage of the limit, so that noise
/// about the limit does not begin the wait anew.
pub const BUSY_ENDS_PERCENT: u64 = 80;

/// Most tablets that are made of one for its load: quantiles of a small sample are no better.
pub const LOAD_SPLIT_PARTS_MAX: u64 = 8;

/// Requests in one window of a sample: enough that a half of them is a half within some percent.
pub const LOAD_SAMPLE_KEYS_MAX: usize = 128;

/// Requests in one window below which a sample says nothing.
pub const LOAD_SAMPLE_KEYS_MIN: usize = 32;

/// Share of a tablet's requests, in percent, above which one key is called hot: no cut would
/// take half of them away from it.
pub const HOT_KEY_PERCENT: usize = 50;

/// Neighbours may be merged when each has at most this percentage of what it is split at: both
/// together are then far below it.
pub const IDLE_PERCENT: u64 = 10;

/// Neighbours are merged when both have been idle for so many times what an imbalance must
/// last: an hour by default.
pub const MERGE_CALM_TIMES: u64 = 60;

/// Merges that the cluster begins by itself and that are under way at once, over all servers:
/// nobody waits for them.
pub const AUTOMATIC_MERGES_MAX: usize = 4;

/// Mean requests per second and tablet below which load counts for less than the number of
/// tablets: a few requests say nothing.
pub const REQUESTS_MEAN_FLOOR: u64 = 20;

/// Mean bytes of a tablet below which bytes count for less than the number of tablets.
pub const BYTES_MEAN_FLOOR: u64 = 1024 * 1024;

/// How long an automatic split may take until its job is there: the search for the split points
/// reads what the store knows of its files.
pub const SPLIT_START_PATIENCE_MS: u64 = 30_000;

/// Pause before a tablet that could not be split is tried again: one row may be all that it has.
pub const SPLIT_REFUSED_PAUSE_MS: u64 = 60_000;

/// Pause before a busy tablet of which too few requests were sampled is asked for again.
pub const LOAD_SAMPLE_RETRY_MS: u64 = 5_000;

/// How long a leadership that is handed over counts as handed over already.
pub const HAND_OVER_PATIENCE_MS: u64 = 10_000;

/// Longest name of a room in bytes: a key of a row, and in memory once for every room of a server.
pub const ROOM_NAME_BYTES_MAX: usize = 1024;

/// Longest message to a room in bytes: it waits in the queue of each subscriber.
pub const ROOM_MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// How long after the last subscriber left a server clears its bit, in milliseconds: longer than
/// a client takes to come back, and than a set of the bit can be under way.
pub const ROOM_CLEAR_DELAY_MS: u64 = 5_000;

/// In this time a server says all of its bits again, in milliseconds: what was lost without
/// anybody noticing comes back.
pub const ROOM_REASSERT_MS: u64 = 30_000;

/// Pause before a bit that could not be set or cleared is said again, in milliseconds.
pub const ROOM_RETRY_MS: u64 = 200;

/// Most bits of which one server has said something and heard no answer: some batches to each of
/// a few leaders. A million rooms in doubt are no storm but a stream.
pub const ROOM_BITS_IN_FLIGHT_MAX: usize = 16_384;

/// How long old versions of room rows are kept, in milliseconds: as long as a list of all rooms may
/// take to be read. Nobody reads the past of a room.
pub const ROOMS_RETENTION_MS: u64 = 60_000;

/// How often an idle tablet that is watched closes its past, in milliseconds: its watchers learn
/// about once a second that they have missed nothing.
pub const WATCH_CLOSE_EVERY_MS: u64 = 1_000;

/// Entries a second that idle watched tablets of one server write for that, all together: a
/// small share of what its log takes.
pub const WATCH_CLOSES_PER_S_MAX: u64 = 200;

/// Bytes of a watch's token that are read: some thousands of pieces.
pub const WATCH_TOKEN_BYTES_MAX: usize = 1024 * 1024;

/// Pieces of the watched range whose exact places a token of a watch keeps; of more, all but one
/// are joined by time, so that the token of an event stays short.
pub const WATCH_TOKEN_PIECES_EXACT: usize = 8;

/// Exports of a backup, or imports of a restore, that one server does at once: one reads while
/// the other one's file is on its way to the target.
pub const BACKUP_ORDERS_PER_SERVER_MAX: usize = 2;

/// Orders of one backup or restore that are under way at once, over all servers: the master
/// keeps a stream for each.
pub const BACKUP_ORDERS_MAX: usize = 64;

/// First pause before a range that was refused is asked for again, in milliseconds: a split, or
/// an election, is over by then.
pub const BACKUP_PAUSE_MS_MIN: u64 = 500;

/// Longest such pause, in milliseconds.
pub const BACKUP_PAUSE_MS_MAX: u64 = 10_000;

/// After so long without any progress a backup or a restore says what it waits for, in milliseconds.
pub const BACKUP_WAIT_SHOWN_MS: u64 = 5_000;

/// How long a backup or a restore goes on without any progress, in milliseconds: longer than a
/// server takes to restart, shorter than an operator's patience with a disk that fills up because
/// garbage stays.
pub const BACKUP_PATIENCE_MS: u64 = 10 * 60_000;

/// First pause after a scheduled backup that failed, in milliseconds; doubled by every further
/// one, and never longer than the schedule's own.
pub const SCHEDULE_RETRY_MS: u64 = 60_000;

/// Scheduled backups that may fail one after the other before the next is a full one: what they
/// were to add to may be damaged.
pub const SCHEDULE_FAILURES_UNTIL_FULL: u32 = 3;

/// For how many times its own period a schedule keeps what the next incremental backup needs. A
/// schedule that fails for longer must not fill the disks with garbage.
pub const SCHEDULE_HELD_TIMES: u64 = 2;
