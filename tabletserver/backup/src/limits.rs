//! Every bound of this crate, with its reason.

use std::time::Duration;

/// Niceness of threads that work in the background: about a tenth of a core while all cores are
/// wanted by others, all of one while it has nothing better to do.
pub const BACKGROUND_NICENESS: i32 = 10;

/// Versions that are looked through before others go first: well below a millisecond of work.
pub const VERSIONS_PER_YIELD: u64 = 128;

/// How long work without a rate goes on before it rests, in pieces that a request hardly notices.
pub const STRETCH: Duration = Duration::from_millis(2);

/// Longest such rest.
pub const REST_MAX: Duration = Duration::from_millis(500);

/// Without a rate a restore has half a core of each server, and of the master that checks it: what
/// asks for rows at the same time has the rest.
pub const RESTORE_CORE_PARTS: u32 = 2;

/// ... and a backup one: it does nothing while it waits for its disk and its target.
pub const BACKUP_CORE_PARTS: u32 = 1;

/// Files of a backup that are checked at once: one is fetched while another is looked through.
pub const CHECKS_MAX: usize = 2;

/// Longest manifest that is read: a million files of 256 MiB have a fifth of it.
pub const MANIFEST_BYTES_MAX: u64 = 2 << 30;

/// Longest description of a part that is read; a part is one tablet.
pub const PART_BYTES_MAX: u64 = 256 << 20;

/// Bytes that are read, hashed and written at once: enough that a change of threads costs nothing.
pub const COPY_BYTES: usize = 4 << 20;

/// Size above which an object goes up in parts, and of each part; S3 takes no less than 5 MiB.
pub const S3_PART_BYTES: u64 = 8 << 20;

/// Parts that S3 takes of one object are 10,000; larger objects get larger parts.
pub const S3_PARTS_MAX: u64 = 9_000;

/// Parts of one object on their way at once: they hide the way there and back, and take 32 MiB.
pub const S3_TRANSFERS_MAX: usize = 4;

/// Removals on their way at once.
pub const S3_REMOVALS_MAX: usize = 8;

/// Tries of one request: with pauses that double from [`S3_BACKOFF`] to [`S3_BACKOFF_MAX`], each
/// taken at random below that, a bucket may be away for about a minute.
pub const S3_TRIES: u32 = 10;

/// First pause between two tries.
pub const S3_BACKOFF: Duration = Duration::from_millis(200);

/// Longest pause between two tries.
pub const S3_BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Longest wait for a connection.
pub const S3_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest silence within an answer.
pub const S3_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest try of one request: a part at 70 KB/s.
pub const S3_TRY_TIMEOUT: Duration = Duration::from_secs(120);

/// Bytes of versions that a reader of a file holds.
pub const READ_PAGE_BYTES: usize = 256 << 10;

/// Bytes in one block of a file of versions: files are read from end to end.
pub const FILE_BLOCK_BYTES: usize = 32 << 10;

/// Bytes of a file that are written before the disk is told to begin with them.
pub const FILE_SYNC_BYTES: u64 = 1024 * 1024;

/// Longest name of a backup.
pub const ID_BYTES_MAX: usize = 64;

/// Backups that one may depend on: each is read before anything is restored.
pub const CHAIN_MAX: usize = 1_000;

/// How often a backup that is being made says so at its target.
pub const SIGN_EVERY: Duration = Duration::from_secs(15);

/// After so long without a sign of life a backup is taken for dead: a master that elects anew, or
/// whose target does not answer for a minute, is not.
pub const SIGN_DEAD_AFTER: Duration = Duration::from_secs(120);
