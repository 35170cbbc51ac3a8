//! Every bound of the client, each with its reason.

use std::time::Duration;

/// Deadline of a request when the caller gives none.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_millis(ebla_kernel::limits::REQUEST_TIMEOUT_MS_DEFAULT);

/// How long a dead address may hold up a connection attempt; a live one answers in a
/// fraction of it, and the deadline leaves room to try others.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a write is tried again while too few copies are in sync for its level: longer than a
/// copy that died stays in the in-sync set. If it lasts, the caller wants to know before the
/// deadline.
pub const COPIES_PATIENCE: Duration = Duration::from_secs(4);

/// How long one source of routes may take before the next is asked.
pub const ROUTE_FETCH_TIMEOUT: Duration = Duration::from_secs(2);

/// Age of a table's route at which it begins to be watched: a short-lived client, such as
/// one command of the command line, never pays for a stream.
pub const ROUTE_WATCH_AFTER: Duration = Duration::from_millis(500);

/// Most tables whose routes are kept and watched. Above it routes are still fetched, but
/// the one used longest ago makes room.
pub const TABLES_CACHED_MAX: usize = 1_024;

/// Silence after which a connection is probed, and silence of the probe after which the
/// connection counts as lost. Together they bound how long a frozen server holds its calls.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// See [`KEEP_ALIVE_INTERVAL`].
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long one copy may take over a read that the leader can answer as well.
pub const COPY_READ_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a server may take to answer after it has watched its requests.
pub const HEAT_SLACK: Duration = Duration::from_secs(2);

/// How long one server may take to list its loss ledger before it counts as unreachable.
pub const LEDGER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a transfer of leadership may take: the masters themselves give up before.
pub const TRANSFER_LEADER_TIMEOUT: Duration = Duration::from_secs(20);

/// Most calls of one frame. Frames of 32 to 64 calls already spread the cost of a message;
/// larger ones only add memory.
pub const FRAME_CALLS_MAX: usize = 128;

/// Bytes at which a frame is full. One call may be larger and then travels alone.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Largest message that the client takes or sends: a frame that is nearly full plus one
/// batch at the limit of the data model, several times over for a server's answers.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Calls that may wait for a frame of one server.
pub const PIPE_QUEUE_CALLS_MAX: usize = 1_024;

/// Room for calls in flight to one server, in units of [`PIPE_UNIT_BYTES`]. A call takes one
/// unit and one more per unit of its size: at most 64 Ki small calls or 64 MiB. Above it
/// callers wait, which is the back-pressure.
pub const PIPE_UNITS_MAX: usize = 64 * 1024;

/// See [`PIPE_UNITS_MAX`].
pub const PIPE_UNIT_BYTES: usize = 1_024;

/// Flow control windows of a connection: one large value must not need many round trips.
pub const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// See [`STREAM_WINDOW_BYTES`].
pub const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Flow control window of a subscriber: one that does not read holds so much of the window of the
/// connection that it shares with others, and many of them must not fill that.
pub const ROOM_STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// Pages of one tablet that a scan reads ahead of its caller.
pub const SCAN_PAGES_AHEAD: usize = 2;

/// Tablets that a scan without limit has open at once: the one it delivers and the next
/// ones, so that many small tablets do not cost a round trip each.
pub const SCAN_TABLETS_OPEN: usize = 4;

/// Tablets that a scan which only counts has open at once; it holds no rows.
pub const COUNT_TABLETS_OPEN: usize = 16;

/// Parts of one split batch, or tablets of one delete range, that are written at once.
pub const PARTS_IN_FLIGHT: usize = 32;

/// First and longest pause between two tries; the true pause is drawn evenly below it.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// See [`BACKOFF_FIRST`].
pub const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// How long a lost stream of routes waits at most before it is opened again: servers serve
/// from their cached map meanwhile, and a wrong route corrects itself.
pub const WATCH_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long the creation of a table may take: thousands of tablets are placed, appointed
/// and served before it returns.
pub const CREATE_TABLE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long one master may take over a question before another is asked: a frozen one must
/// not use up the deadline.
pub const ADMIN_READ_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a split may take on the master until its children serve.
pub const SPLIT_TIMEOUT: Duration = Duration::from_secs(25);

/// How long a tablet server may look for split points.
pub const SUGGEST_SPLIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a job that is waited for is looked at.
pub const JOB_POLL: Duration = Duration::from_millis(100);

/// Rooms in one request of a subscriber: the longest names fit a message.
pub const ROOMS_PER_REQUEST: usize = 1_000;

/// Requests of a subscriber that wait to be sent.
pub const SUBSCRIBE_REQUESTS_WAITING: usize = 4;

/// Messages of a publisher that wait for a frame.
pub const PUBLISH_QUEUE_MAX: usize = 4_096;

/// Messages of one frame of a publisher.
pub const PUBLISH_CALLS_MAX: usize = 512;

/// Messages of changes that wait for a slow caller; behind them the servers wait, and cut the
/// watch off when that lasts.
pub const WATCH_MESSAGES_AHEAD: usize = 16;

/// Silence after which a stream of changes counts as lost: a server says once a second that it
/// lives.
pub const WATCH_SILENCE: Duration = Duration::from_secs(5);

/// Shortest time between two resolved timestamps of a watch: each tablet gives one a second.
pub const WATCH_RESOLVED_EVERY: Duration = Duration::from_millis(900);

/// How long a master may take to look at a target and to begin a backup or a restore.
pub const BACKUP_TIMEOUT: Duration = Duration::from_secs(65);
