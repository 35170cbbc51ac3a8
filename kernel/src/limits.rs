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

/// Most tablets of a cluster: about 200 bytes each in every master and in a snapshot.
pub const TABLETS_MAX: usize = 500_000;

/// Longest address and zone of a server, in bytes: they stand in every route map.
pub const SERVER_TEXT_BYTES_MAX: usize = 256;

/// Former runs of a server that are remembered, so that a process that was replaced while
/// it could not be reached is refused when it comes back.
pub const BOOT_IDS_PAST_MAX: usize = 16;

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

/// How long an election waits for better candidates once it has enough answers.
pub const ELECTION_GRACE_MS: u64 = 100;

/// First pause before a step of an election is tried again; it doubles.
pub const ELECTION_RETRY_MS_MIN: u64 = 500;

/// Longest pause before a step of an election is tried again.
pub const ELECTION_RETRY_MS_MAX: u64 = 10_000;
