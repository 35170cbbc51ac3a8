//! Every bound that a tablet server sets by itself, each with its reason.

use ebla_kernel::limits::{IN_SYNC_LAG_BYTES, IN_SYNC_LAG_MS};
use std::time::Duration;

/// Memtable of the data store in bytes: what a crash makes replay from the log, and what
/// three servers in one process may hold at once.
pub const WRITE_BUFFER_BYTES_DEFAULT: usize = 64 * 1024 * 1024;

/// Memtables that may wait for their flush before writes are stalled.
pub const WRITE_BUFFERS_MAX: i32 = 3;

/// Block cache of the data store in bytes; index and filter blocks count against it, so it
/// bounds what open files cost.
pub const BLOCK_CACHE_BYTES_DEFAULT: usize = 64 * 1024 * 1024;

/// Files that the data store keeps open. Each costs a descriptor; the usual limit is 1,024
/// per process and three servers may share one.
pub const DATA_FILES_OPEN_MAX: i32 = 200;

/// Threads of the data store for flushes and compactions.
pub const STORE_THREADS_MAX: i32 = 2;

/// Size of a data file before compression. Ranges are cleared and moved by file.
pub const DATA_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Keys that are gone but not yet compacted away, of which a look for what is left in a range passes
/// so many.
pub const DATA_LOOK_KEYS_MAX: u64 = 10_000;

/// How hard Zstd works on files that are made to be put in, of copies and restores: packing is a third of
/// the work of a restore at this level. The store's own are packed at 3.
pub const DATA_FILE_IN_ZSTD_LEVEL: i32 = 1;

/// Bytes of a data file that are written before the disk is told to begin with them.
pub const DATA_SYNC_BYTES: u64 = 1024 * 1024;

/// Row cache in bytes, keys and values and bookkeeping together.
pub const ROW_CACHE_BYTES_DEFAULT: usize = 64 * 1024 * 1024;

/// Rows above this share of the row cache are not cached: one of them would drive out
/// thousands of others.
pub const ROW_CACHE_ROW_SHARE_MAX: usize = 64;

/// Parts of the hash table of rows in memory, each with a lock: with ten million rows one of them
/// grows within a millisecond.
pub const NEWEST_SHARDS: usize = 1_024;

/// Counters that guard the filling of the row cache. A write makes fills of the same stripe
/// fail, so there must be many more stripes than writes in flight.
pub const ROW_CACHE_STRIPES: usize = 4_096;

/// Locks among which the timestamps of running reads are spread.
pub const READ_PIN_SHARDS: usize = 16;

/// Versions of one row that a cursor steps over before it seeks past the rest. A seek costs
/// about as much as this many steps.
pub const VERSIONS_STEPPED_MAX: usize = 8;

/// Exact versions that a garbage pass removes in one batch.
pub const GC_BATCH_VERSIONS_MAX: usize = 1_000;

/// Size of one file of the log. Whole files are purged, so it is the grain of the space
/// that a purge gives back.
pub const OPLOG_FILE_BYTES_DEFAULT: u64 = 32 * 1024 * 1024;

/// Above its limit the log still keeps what live copies are about to be sent, up to one nth of the
/// limit more, and at least [`OPLOG_PINNED_BYTES_MIN`].
pub const OPLOG_PINNED_SHARE: u64 = 4;

/// The least of that: some times what an in-sync copy may be behind, whatever the limit.
pub const OPLOG_PINNED_BYTES_MIN: u64 = 4 * IN_SYNC_LAG_BYTES;

/// How long a copy that follows keeps what it has flushed when the log is above its limit: as long
/// as another may be behind and yet in sync, and some more. If it comes to lead, that one wants it.
pub const OPLOG_LIVE_WINDOW: Duration = Duration::from_millis(IN_SYNC_LAG_MS + 1_000);

/// Bytes of log below which a purge does nothing.
pub const OPLOG_PURGE_BYTES_DEFAULT: u64 = 128 * 1024 * 1024;

/// Bytes of entries that one append may bring; the log's own limit is 2 GiB per batch.
pub const OPLOG_GROUP_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bytes of entries that the logs of tables in memory keep, all together. A restart reads nothing
/// from them and tokens are remembered apart, so they are only for copies and watchers that are a
/// little behind; who is further behind is built anew.
pub const MEMORY_LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The same when copies still need the entries: above this they lose, and are built anew.
pub const MEMORY_LOG_BYTES_HARD: u64 = 256 * 1024 * 1024;

/// How often the keeper of tables in memory looks around: what it frees is freed this much later.
pub const MEMORY_KEEPER_PACE: Duration = Duration::from_millis(20);

/// What the clock of heat counts, in milliseconds.
pub const MEMORY_HEAT_TICK_MS: u128 = 100;

/// Thousandths of its limit above which a table in memory keeps old versions for a moment only.
pub const MEMORY_TIGHT_ABOVE: u64 = 750;

/// How long a table in memory near its limit keeps old versions, in milliseconds: for reads of
/// copies that are about to come.
pub const MEMORY_HISTORY_MS: u64 = 250;

/// How long old versions of tables in memory are kept at most for a backup that has not begun to
/// read them, in milliseconds: a backup whose servers are busy comes to them within seconds, and
/// what is kept for the next incremental one must not take their room for hours.
pub const MEMORY_SAFE_POINT_MS: u64 = 60_000;

/// Thousandths of its limit above which rows make room, and down to which. Writes go on meanwhile:
/// what is between it and the limit is what they may bring until the room is there.
pub const MEMORY_EVICT_ABOVE: u64 = 900;

/// The other end.
pub const MEMORY_EVICT_TO: u64 = 870;

/// Most writes that wait for room in one table in memory, in the order in which they asked first.
pub const MEMORY_WAITERS_MAX: usize = 1_024;

/// How long a write that found no room is remembered: it tries again sooner.
pub const MEMORY_SHORT_FOR: Duration = Duration::from_secs(1);

/// Versions of one stretch that is looked at for cold rows, and how many stretches in a round.
pub const MEMORY_SAMPLE_VERSIONS: usize = 2_000;

/// Stretches in a round.
pub const MEMORY_EVICT_STRETCHES: usize = 8;

/// One in so many rows of a stretch goes at most.
pub const MEMORY_EVICT_PART: usize = 8;

/// Rows of one eviction: one that was written meanwhile spares the others.
pub const MEMORY_EVICT_BATCH_ROWS: usize = 16;

/// Thousandths of its limit above which a table in memory takes no deletes either, for a moment:
/// they add before they free.
pub const MEMORY_DELETES_UPTO: u64 = 1_030;

/// Log batches above this are compressed; below it compression costs more than it saves.
pub const OPLOG_COMPRESS_BYTES: u64 = 8 * 1024;

/// Threads that read the log at start.
pub const OPLOG_RECOVERY_THREADS: usize = 2;

/// Memtable of the registry in bytes: some 100,000 records.
pub const REGISTRY_WRITE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Block cache of the registry in bytes: it is read once, at start.
pub const REGISTRY_BLOCK_CACHE_BYTES: usize = 1024 * 1024;

/// Files that the registry keeps open.
pub const REGISTRY_FILES_OPEN_MAX: i32 = 16;

/// Terms that a replica's record may list. One is added per change of leader and dropped
/// when its entries are purged; more than this means that purging does not work.
pub const EPOCHS_PER_REPLICA_MAX: usize = 4_096;

/// Longest IDENTITY file that is read; a valid one has a few hundred bytes.
pub const IDENTITY_BYTES_MAX: u64 = 4_096;

/// Log bytes from which on entries go although the token window wants them.
pub const OPLOG_BYTES_MAX_DEFAULT: u64 = 8 * 1024 * 1024 * 1024;

/// Longest time that applied rows stay unflushed: it bounds what a restart replays.
pub const FLUSH_INTERVAL_DEFAULT: Duration = Duration::from_secs(60);

/// How often dead tombstones and expired rows are looked for.
pub const GC_INTERVAL_DEFAULT: Duration = Duration::from_secs(60);

/// How often the flusher looks whether something is due.
pub const FLUSHER_PACE: Duration = Duration::from_millis(200);

/// How often rows and bytes of changed tablets are counted again.
pub const COUNT_INTERVAL: Duration = Duration::from_secs(10);

/// Versions looked at in one round of counting: a fraction of a second of one core.
pub const COUNT_WORK_MAX: usize = 400_000;

/// Versions of one tablet looked at in one step of counting, so that a large one does not keep
/// others waiting. Tablets of fewer rows are counted whenever they were written.
pub const COUNT_STEP_MAX: usize = 100_000;

/// A larger tablet is counted again when as many versions were written as it has rows, divided by
/// this: its numbers are off by so much at most.
pub const COUNT_DOUBT_PART: u64 = 16;

/// Versions looked at in one step of a garbage pass, after which it pauses.
pub const GC_STEP_VERSIONS: usize = 10_000;

/// Pause between two steps of a garbage pass: it takes a small share of one core.
pub const GC_STEP_PAUSE: Duration = Duration::from_millis(20);

/// Requests that wait for the sequencer; past it they are refused with a retry hint.
pub const REQUESTS_WAITING_MAX: usize = 16 * 1024;

/// Requests sequenced and not answered; past it no more are taken.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 64 * 1024;

/// Inputs that the sequencer takes between two looks at the log: some milliseconds of work.
pub const SEQUENCER_DRAIN_MAX: usize = 8 * 1024;

/// Bytes of a group past which it takes no more requests. One fsync of this much takes
/// tens of milliseconds on an ordinary disk.
pub const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How often deadlines are looked at while there are any.
pub const SEQUENCER_TIMER: Duration = Duration::from_millis(20);

/// How often it does when tablets have just taken another's place: writes wait for their leader.
pub const SEQUENCER_TIMER_HURRY: Duration = Duration::from_millis(1);

/// How long that lasts, in milliseconds.
pub const HURRY_MS: u64 = 100;

/// How long requests wait for whoever takes a tablet's place, in milliseconds: longer than it
/// takes unless something is wrong.
pub const HANDOVER_WAIT_MS: u64 = 200;

/// How often they look.
pub const HANDOVER_LOOK: Duration = Duration::from_millis(1);

/// Questions for copies that are not here yet, of which as many are kept: they may be about to
/// come, and whoever asks would ask again only after a while.
pub const EARLY_PROBES_MAX: usize = 4 * 1024;

/// How long they are kept, in milliseconds.
pub const EARLY_PROBES_MS: u64 = 1_000;

/// How long an idle sequencer sleeps: tokens leave their window at this pace.
pub const SEQUENCER_IDLE_WAIT: Duration = Duration::from_secs(5);

/// How often tokens that left their window are dropped, in milliseconds.
pub const TOKENS_CHECK_MS: u64 = 10_000;

/// Longest timeout that a request may ask for, in milliseconds.
pub const REQUEST_TIMEOUT_MS_MAX: u64 = 10 * 60 * 1000;

/// Calls of one stream that wait for an answer; past it no further frame is read.
pub const PIPE_CALLS_WAITING: u32 = 8 * 1024;

/// Frames of answers that wait for a slow client.
pub const PIPE_FRAMES_WAITING: usize = 16;

/// Answers in one frame.
pub const PIPE_ANSWERS_PER_FRAME: usize = 1_024;

/// Rows in one page of a scan.
pub const SCAN_PAGE_ROWS: usize = 1_000;

/// Bytes of keys and values in one page of a scan, but for its last row.
pub const SCAN_PAGE_BYTES: usize = 512 * 1024;

/// Stored versions that a page looks at: a field of tombstones gives an empty page in
/// some tens of milliseconds.
pub const SCAN_PAGE_WORK: usize = 50_000;

/// Pages that wait for a slow client.
pub const SCAN_PAGES_WAITING: usize = 2;

/// How long a scan waits for its client to read a page. A scan holds a thread, a snapshot
/// and old versions; a client that comes back later goes on with its resume token.
pub const SCAN_CLIENT_PATIENCE: Duration = Duration::from_secs(60);

/// Largest gRPC message that is taken: the largest batch and its framing.
pub const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes of rows applied in one batch while the log is replayed at start.
pub const REPLAY_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Copies of other servers' tablets are not taken when less than this share of the disk (one in
/// n) is free ...
pub const DISK_FREE_SHARE_FOR_COPIES: u64 = 7;
/// ... or less than this many bytes, whichever is smaller: before writes of clients are refused.
pub const DISK_FREE_BYTES_FOR_COPIES: u64 = 1024 * 1024 * 1024;

/// Sets and adds are refused when less than this share of the disk (one in n) is free ...
pub const DISK_FREE_SHARE_FOR_SETS: u64 = 12;
/// ... or less than this many bytes, whichever is smaller.
pub const DISK_FREE_BYTES_FOR_SETS: u64 = 512 * 1024 * 1024;

/// Every write is refused when less than this share of the disk (one in n) is free ...
pub const DISK_FREE_SHARE_FOR_WRITES: u64 = 20;
/// ... or less than this many bytes, whichever is smaller.
pub const DISK_FREE_BYTES_FOR_WRITES: u64 = 128 * 1024 * 1024;

/// How often the disk's fill is read.
pub const DISK_GAUGE_PACE: Duration = Duration::from_secs(1);

/// Longest wait for a master to answer while a session is opened.
pub const MASTER_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause before another master is tried.
pub const MASTER_RETRY_PAUSE: Duration = Duration::from_millis(150);

/// Longest wait for what is in flight when the server stops.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Epochs that a replica's record lists: as many as copies tell each other. Older ones are of
/// no use once their entries are purged.
pub const EPOCHS_KEPT: usize = ebla_kernel::limits::HELLO_EPOCHS_MAX;

/// How often a server tells its master about itself until the master says otherwise.
pub const HEARTBEAT_DEFAULT: Duration = Duration::from_millis(500);

/// Messages to a master that wait for a slow stream.
pub const SESSION_MESSAGES_WAITING: usize = 64;

/// Callers of `GetHeat` at the same time: each costs every request a look into its sketch.
pub const HEAT_WATCHES_MAX: usize = 8;

/// Keys that a watcher of heat remembers: one that gets a 512th of all requests is among them.
pub const HEAT_KEYS_MAX: usize = 512;

/// Requests that a watcher looks at one by one before it begins to take samples.
pub const HEAT_EXACT_REQUESTS: u64 = 4_096;

/// Of how many requests a watcher of a busy server looks at one.
pub const HEAT_SAMPLE_EVERY: u64 = 16;

/// Looks of the janitor over which a tablet's rate is averaged, one a second: a pause of a second
/// does not end its sample.
pub const LOAD_RATE_LOOKS: u64 = 8;

/// Share, one nth, of the load at which a tablet is split, from which on it is sampled ...
pub const LOAD_SAMPLE_FROM: u64 = 2;

/// ... and below which it is no longer.
pub const LOAD_SAMPLE_UNTIL: u64 = 4;

/// Busy tablets of one server that are sampled at the same time, up to 100 KiB each. No server does
/// so much that more were busy by any sensible measure.
pub const LOAD_SAMPLERS_MAX: usize = 256;

/// Shortest time of one window of a sample. Two of them are looked at, and a tablet must have
/// been busy for about thirty seconds before it is split.
pub const LOAD_WINDOW: Duration = Duration::from_secs(10);

/// Bytes of a key that a sample keeps: enough to cut between rows, little enough to be kept.
pub const LOAD_SAMPLE_KEY_BYTES_MAX: usize = 256;

/// Connections that have been accepted and have not said yet what they are; the next one waits.
pub const CONNECTIONS_AT_THE_DOOR_MAX: usize = 1_024;

/// How long a new connection may say nothing: a client speaks first.
pub const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an idle connection is asked whether it still lives.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Tablets named in one message to a master.
pub const REPORTS_PER_MESSAGE: usize = 20_000;

/// Largest message from a master: the whole map of a large cluster.
pub const MASTER_MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bytes of the loss ledger; past it its oldest records are dropped. It is for people, who
/// look at it after a failover, not for ever.
pub const LEDGER_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Bytes of one entry of the loss ledger: the largest batch and its framing.
pub const LEDGER_ENTRY_BYTES_MAX: u32 = 64 * 1024 * 1024;

/// Bytes of entries that one tablet keeps in memory after they are durable, so that a copy
/// that lags a little is not served from the disk.
pub const TAIL_BYTES_PER_TABLET: usize = 256 * 1024;

/// Bytes of such entries of all tablets together; past it durable ones go at once.
pub const TAIL_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How often entries that nobody asked for are dropped from memory, in milliseconds.
pub const TAIL_SWEEP_MS: u64 = 1_000;

/// Bytes of rows that wait for other copies and are kept in memory; past it they are read
/// again from the log.
pub const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Groups and orders that the apply thread joins into one batch of the store.
pub const APPLY_JOINED_MAX: usize = 256;

/// Exact versions that an undo removes in one batch.
pub const UNDO_BATCH_VERSIONS: usize = 10_000;

/// Bytes of entries in one frame to another server, but for its last message: a frame takes
/// some milliseconds of an ordinary network, so that small messages are not held up.
pub const FRAME_BYTES: usize = 1024 * 1024;

/// Messages in one frame.
pub const FRAME_MESSAGES_MAX: usize = 4_096;

/// Frames to another server that are handed over and not sent yet.
pub const FRAMES_WAITING: usize = 2;

/// Messages that wait for a slow server. There is one stream of entries per tablet and copy
/// and few small messages beside it; more means that the connection is of no use.
pub const MESSAGES_WAITING_MAX: usize = 200_000;

/// Bytes of entries from other servers that are taken and not durable yet; past it no frame
/// is read, and the senders wait.
pub const COPIES_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Least bytes that a frame counts for: its messages are not free either.
pub const FRAME_BYTES_COUNTED_MIN: usize = 1_024;

/// Pause before a connection to another server is tried again.
pub const PEER_RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Longest wait for another server to greet.
pub const PEER_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often silence of other servers is looked at.
pub const SILENCE_LOOK_EVERY: Duration = Duration::from_millis(100);

/// Age of the last completed sync, while one is under way, from which on nothing is promised:
/// a leader must not live on behind a disk that hangs.
pub const DISK_HANGS_AFTER_MS: u64 = 500;

/// How long the log is idle before the disk is tried with a small write.
pub const DISK_PROBE_IDLE: Duration = Duration::from_millis(250);

/// How long a read of a copy waits for what it must see before it is sent elsewhere.
pub const COPY_READ_PATIENCE: Duration = Duration::from_secs(1);

/// How often a waiting read of a copy looks again.
pub const COPY_READ_LOOK_EVERY: Duration = Duration::from_millis(3);

/// How long a hand-over of leadership may hold up writes before it is given up.
pub const TRANSFER_PATIENCE_MS: u64 = 2_000;

/// Longest wait for metadata to name other leaders when the server stops.
pub const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a server that stops looks whether others have taken over.
pub const HAND_OVER_LOOK_EVERY: Duration = Duration::from_millis(20);

/// Bytes per second at which copies are sent to servers that lack them: a third of what an
/// ordinary network or disk gives, so that clients keep the rest.
pub const BOOTSTRAP_BYTES_PER_S_DEFAULT: u64 = 50 * 1024 * 1024;

/// Bytes of versions in one part of a bootstrap, but for its last version: one file of the
/// store, held in memory while it is received and checked.
pub const BOOTSTRAP_PART_BYTES: usize = 32 * 1024 * 1024;

/// Largest part that is taken: one version more than a part holds.
pub const BOOTSTRAP_PART_BYTES_MAX: usize = 48 * 1024 * 1024;

/// Bytes in one chunk of a part, but for its last version: what is sent between two looks at
/// the rate.
pub const BOOTSTRAP_CHUNK_BYTES: usize = 512 * 1024;

/// Chunks that wait for a slow receiver.
pub const BOOTSTRAP_CHUNKS_WAITING: usize = 4;

/// Copies that a server builds at once; each holds a part in memory.
pub const BOOTSTRAPS_IN_MAX: usize = 2;

/// Copies that a server sends at once; each holds a thread.
pub const BOOTSTRAPS_OUT_MAX: usize = 4;

/// How long old versions are kept for a copy whose stream broke.
pub const BOOTSTRAP_PIN_TTL: Duration = Duration::from_secs(60);

/// Bytes of tokens that come with a copy: those of the whole window of a busy server.
pub const BOOTSTRAP_TOKENS_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Pause before a copy is asked for again.
pub const BOOTSTRAP_RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How long a source may take until the next message of a stream.
pub const BOOTSTRAP_SILENCE: Duration = Duration::from_secs(30);

/// Up to so many bytes on disk a tablet is walked for its split points: well below a second.
pub const SPLIT_WALK_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Keys that are noted on such a walk; when there are more, every second one is forgotten.
pub const SPLIT_NOTES_MAX: usize = 8_192;

/// Bytes that may wait for one subscriber of rooms. Above it the subscriber is cut off, so that
/// memory stays bounded and nobody waits for it.
pub const SUBSCRIBER_BYTES_WAITING_MAX: usize = 8 * 1024 * 1024;

/// Messages in one frame to a subscriber, calls in one between servers, answers in one to a
/// publisher: enough to spread the cost of a frame.
pub const ROOM_FRAME_ITEMS_MAX: usize = 1_024;

/// Bytes at which such a frame is full.
pub const ROOM_FRAME_BYTES_MAX: usize = 256 * 1024;

/// Bytes of calls about rooms that may wait for one server, and of answers: above it callers are
/// told to come back.
pub const ROOM_CALLS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Calls about rooms to one server that wait for their answers.
pub const ROOM_CALLS_WAITING_MAX: usize = 262_144;

/// Subscriptions of one stream: a few hundred MiB would be needed to say what more of them missed.
pub const SUBSCRIPTIONS_PER_STREAM_DEFAULT: usize = 500_000;

/// Subscriptions of one server: some 200 bytes each.
pub const SUBSCRIPTIONS_PER_SERVER_DEFAULT: usize = 2_000_000;

/// Names in one request of a subscriber.
pub const ROOMS_PER_REQUEST_MAX: usize = 10_000;

/// Rooms that are left under one lock: messages wait meanwhile.
pub const ROOMS_PER_LOCK: usize = 1_000;

/// How long a subscriber waits for the bits of its rooms until it is told, in milliseconds: as
/// long as any request.
pub const ROOM_JOIN_TIMEOUT_MS: u64 = ebla_kernel::limits::REQUEST_TIMEOUT_MS_DEFAULT;

/// How often it is looked for those who wait too long, in milliseconds.
pub const ROOM_JOINS_LOOK_MS: u64 = 500;

/// Bits in one call to a leader, which makes one write of them: one log entry of some hundred KiB.
pub const ROOM_BITS_PER_CALL: usize = 1_000;

/// How long one write of bits may take: less than a bit is kept after its last subscriber, so
/// that none comes after the clear.
pub const ROOM_BITS_TIMEOUT_MS: u64 = 3_000;

/// Shortest pause between two looks at what is due of bits.
pub const ROOM_LOOK_PAUSE: Duration = Duration::from_millis(20);

/// A server that is silent for this long counts as down for messages and for `who`.
pub const ROOM_SILENCE: Duration = Duration::from_secs(3);

/// How often a server says something on a connection about rooms.
pub const ROOM_NUDGE_EVERY: Duration = Duration::from_secs(1);

/// Pause before a connection about rooms is tried again.
pub const ROOM_RETRY_PAUSE: Duration = Duration::from_millis(200);

/// A connection about rooms that nobody used for this long is closed.
pub const ROOM_LINK_IDLE: Duration = Duration::from_secs(60);

/// How long `who` waits for the servers.
pub const ROOM_WHO_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause before a message whose room's row has no leader here is tried again.
pub const ROOM_LEADER_PAUSE: Duration = Duration::from_millis(25);

/// Messages that wait for a leader of their room's row; above it publishers are told to come back.
pub const ROOM_PUBLISHES_PARKED_MAX: usize = 65_536;

/// Rooms of which a leader remembers the last number given, per lock: of those used least lately
/// it keeps the greatest number only.
pub const ROOM_SEQS_PER_SHARD: usize = 4_096;

/// Locks among which the numbers are spread.
pub const ROOM_SEQ_SHARDS: usize = 64;

/// Rows that are looked through for bits of runs that are over in one step of a sweep.
pub const ROOM_SWEEP_ROWS: usize = 10_000;

/// Pause between two steps of a sweep.
pub const ROOM_SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Watches that a server serves at once; each costs some kilobytes and wakes up at every commit
/// of its tablet.
pub const WATCHES_MAX: usize = 10_000;

/// Bytes of entries that a watch reads at once, but for the last one.
pub const WATCH_READ_BYTES: usize = 512 * 1024;

/// Bytes of events in one message of a watch, but for the last one.
pub const WATCH_MESSAGE_BYTES: usize = 256 * 1024;

/// Events in one message of a watch.
pub const WATCH_MESSAGE_EVENTS: usize = 1_000;

/// Messages that wait for a slow consumer.
pub const WATCH_MESSAGES_WAITING: usize = 4;

/// How long a watch waits for its consumer to take a message before it is cut off; it goes on
/// with its token, from the log.
pub const WATCH_CONSUMER_PATIENCE: Duration = Duration::from_secs(10);

/// How often a watch says that it lives, and that it has missed nothing.
pub const WATCH_BEAT: Duration = Duration::from_secs(1);

/// How often a watch of a sealed tablet looks whether others have taken its place.
pub const WATCH_SEALED_LOOK: Duration = Duration::from_millis(10);

/// Pause of a watch that found nothing and has missed a call: its tablet moved just then.
pub const WATCH_LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How long a watch may wait for what it begins with to be safe.
pub const WATCH_BEGIN_PATIENCE: Duration = Duration::from_secs(3);

/// Pages of rows and old versions that are read for watches at once: those that begin must not
/// slow down everybody else.
pub const WATCH_PAGES_AT_ONCE: usize = 4;

/// How often expired rows of watched tablets are looked for: their watchers are told so much
/// later at most, when there are not very many.
pub const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Versions that one such look reads in one tablet: some tens of milliseconds; it goes on there
/// the next time.
pub const SWEEP_WORK_MAX: usize = 200_000;

/// Expired rows that one look deletes in one tablet.
pub const SWEEP_ROWS_MAX: usize = 10_000;

/// Expired rows that are deleted by one write.
pub const SWEEP_BATCH_ROWS: usize = 100;

/// How often it is looked for tablets that begin to serve among those whose changes are published.
pub const PUBLISHED_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Longest wait for the next change of a tablet before it is looked whether it still serves.
pub const PUBLISHED_PATIENCE: Duration = Duration::from_secs(1);

/// How long a change is tried to be published while nobody leads its room's row.
pub const PUBLISHED_CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Exports for backups that a server runs at once; each holds a thread and two files on disk.
pub const BACKUP_EXPORTS_MAX: usize = 2;

/// Imports of restores that a server runs at once; each holds a thread and a batch in memory.
pub const BACKUP_IMPORTS_MAX: usize = 2;

/// Bytes at which a file of a backup ends, with the row that it is at: large enough for targets
/// that count requests, small enough to be sent again, and to lie twice on the local disk.
pub const BACKUP_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// With a rate, a file is what goes to the target in so many seconds ...
pub const BACKUP_FILE_SECONDS: u64 = 60;

/// ... but not smaller than this.
pub const BACKUP_FILE_BYTES_MIN: u64 = 64 * 1024;

/// How long an export or an import waits for the copy here to have everything that it must have,
/// before the coordinator is told to try elsewhere.
pub const BACKUP_CLOSE_PATIENCE: Duration = Duration::from_secs(20);

/// How often it looks meanwhile.
pub const BACKUP_LOOK_EVERY: Duration = Duration::from_millis(10);

/// Versions between two looks at the time and at whether anybody still waits: well below a
/// millisecond of work ...
pub const BACKUP_VERSIONS_PER_LOOK: usize = 128;

/// ... of which a large one counts for as many as it holds so many bytes.
pub const BACKUP_BYTES_PER_VERSION: usize = 8 * 1024;

/// Answers that wait for a slow coordinator; the last one waits for room, others are left out.
pub const BACKUP_ANSWERS_WAITING: usize = 4;

/// How often a coordinator is told how far an export or an import is.
pub const BACKUP_SAY_EVERY: Duration = Duration::from_secs(1);

/// Bytes that are read ahead on long walks through the store: the disk is asked seldom.
pub const COLD_READ_BYTES: usize = 2 * 1024 * 1024;
