//! What a table promises, and which promises this release can keep.

use crate::limits::{
    KEY_BYTES_MAX, MEMORY_LIMIT_BYTES_MIN, PRE_SPLIT_TABLETS_MAX, REPLICAS_DEFAULT, REPLICAS_MAX,
    RETENTION_MS_DEFAULT, ROOMS_RETENTION_MS, SPLIT_BYTES_DEFAULT, SPLIT_LOAD_DEFAULT, TABLE_NAME_BYTES_MAX,
};
use crate::op::AckLevel;
use crate::range::KeyRange;
use crate::room::ROOMS_TABLE;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use std::fmt;

/// Names that begin like this belong to the system.
const RESERVED_PREFIX: &str = "ebla.";

/// The tables that the masters make by themselves.
pub const SYSTEM_TABLES: [&str; 1] = [ROOMS_TABLE];

/// How the table of rooms keeps its rows.
const ROOMS_KIND: TableKind = TableKind::Memory;

/// Whether a table of this name belongs to the system: users neither write nor change it.
#[must_use]
pub fn is_system_name(name: &str) -> bool {
    name.starts_with(RESERVED_PREFIX)
}

/// How a table keeps its rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub enum TableKind {
    /// In the durable store, behind a synced log.
    #[default]
    Durable,
    /// In the memory of its replicas only.
    Memory,
}

/// What a memory table does with a write for which there is no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub enum Eviction {
    /// It is refused.
    #[default]
    None,
    /// The rows that nobody has asked for the longest make room.
    LeastRecent,
    /// The rows that were asked for least often make room.
    LeastFrequent,
}

impl Eviction {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::LeastRecent => "lru",
            Self::LeastFrequent => "lfu",
        }
    }
}

/// What a table does when too few in-sync copies are left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Policy {
    /// Stay unavailable rather than lose an acknowledged write.
    Strict,
    /// Elect with fewer answers.
    Degraded,
}

/// Which idle neighbours the cluster merges by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub enum AutoMerge {
    /// None.
    Off,
    /// Those that it had split by itself. Boundaries that people made stay.
    #[default]
    Own,
    /// Any.
    All,
}

impl AutoMerge {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Own => "own",
            Self::All => "all",
        }
    }
}

/// The promises of one table.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct TableSpec {
    /// How it keeps its rows.
    pub kind: TableKind,
    /// Replication factor R.
    pub replicas: u8,
    /// Durability factor D: copies that a write above `leader` must reach.
    pub min_in_sync: u8,
    /// What to do when too few in-sync copies are left.
    pub policy: Policy,
    /// Level of a write that names none.
    pub ack: AckLevel,
    /// How long old versions are kept, in milliseconds.
    pub retention_ms: u64,
    /// Size in bytes at which a tablet is split.
    pub split_bytes: u64,
    /// Requests per second above which a tablet is split; 0 for never.
    pub split_load: u64,
    /// Which idle neighbours are merged.
    pub auto_merge: AutoMerge,
    /// Bytes that the versions of a memory table may take on one server; none: no limit.
    pub memory_bytes_max: Option<u64>,
    /// What a memory table does when it is full.
    pub eviction: Eviction,
    /// Whether every committed change of a key is a message in the room of table and key.
    pub publish_changes: bool,
}

/// What may be changed of a table; what is none stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub struct TableChange {
    /// Size in bytes at which a tablet is split.
    pub split_bytes: Option<u64>,
    /// Requests per second above which a tablet is split; 0 for never.
    pub split_load: Option<u64>,
    /// Which idle neighbours are merged.
    pub auto_merge: Option<AutoMerge>,
    /// Replication factor R, from D up; D stays what it was.
    pub replicas: Option<u8>,
    /// Whether changes are published.
    pub publish_changes: Option<bool>,
    /// Bytes that the versions of a table in memory may take on one server.
    pub memory_bytes_max: Option<u64>,
    /// What makes room in a table in memory.
    pub eviction: Option<Eviction>,
}

impl Default for TableSpec {
    fn default() -> Self {
        Self {
            kind: TableKind::Durable,
            replicas: 1,
            min_in_sync: 1,
            policy: Policy::Strict,
            ack: AckLevel::Leader,
            retention_ms: RETENTION_MS_DEFAULT,
            split_bytes: SPLIT_BYTES_DEFAULT,
            split_load: SPLIT_LOAD_DEFAULT,
            auto_merge: AutoMerge::default(),
            memory_bytes_max: None,
            eviction: Eviction::None,
            publish_changes: false,
        }
    }
}

/// A table that cannot be created as asked.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum BadTable {
    /// A name of no bytes.
    EmptyName,
    /// A name above the limit.
    NameTooLong(u64),
    /// A name with a character outside of letters, digits, `_`, `-` and `.`.
    NameCharacter,
    /// A name that begins with a dot or the system's prefix.
    NameReserved,
    /// A memory limit, or eviction, of a table that keeps its rows on disk.
    LimitOfDurable,
    /// Eviction without a limit.
    EvictionWithoutLimit,
    /// A memory limit below the least.
    MemoryLimitTooSmall(u64),
    /// More copies than the limit.
    TooManyReplicas(u32),
    /// No copy, or no copy that must have a write.
    ZeroReplicas,
    /// D above R.
    MinInSyncAboveReplicas,
    /// D of 1 with three copies or more, and yet strict.
    OneCopyIsNotStrict(u8),
    /// `copies=n` with n outside of D..=R.
    AckCopies(u8),
    /// Split keys that do not strictly rise, or an empty one.
    SplitKeysUnordered,
    /// A split key above the key limit.
    SplitKeyTooLong,
    /// More tablets than one table may start with.
    TooManyTablets(u64),
}

impl fmt::Display for BadTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyName => f.write_str("the table name is empty: give one"),
            Self::NameTooLong(bytes) => {
                write!(
                    f,
                    "a table name of {bytes} bytes is above the limit of {TABLE_NAME_BYTES_MAX}: shorten it"
                )
            }
            Self::NameCharacter => {
                f.write_str("a table name has letters, digits, '_', '-' and '.' only: choose another")
            }
            Self::NameReserved => {
                write!(f, "a table name may not begin with '.' or '{RESERVED_PREFIX}': choose another")
            }
            Self::LimitOfDurable => f.write_str(
                "--max-memory and --eviction are for tables in memory: give --kind memory, or leave them out",
            ),
            Self::EvictionWithoutLimit => {
                f.write_str("--eviction needs a limit to keep: give --max-memory, such as 1GiB")
            }
            Self::MemoryLimitTooSmall(bytes) => write!(
                f,
                "a memory limit of {bytes} bytes is below the least of {MEMORY_LIMIT_BYTES_MIN}: give --max-memory 1MiB or more"
            ),
            Self::TooManyReplicas(replicas) => {
                write!(
                    f,
                    "{replicas} copies are above the limit of {REPLICAS_MAX}: give --replicas 1 to {REPLICAS_MAX}"
                )
            }
            Self::ZeroReplicas => {
                f.write_str("a table needs at least one copy, and one that has each write: give --replicas 1")
            }
            Self::MinInSyncAboveReplicas => f.write_str(
                "--min-in-sync is above --replicas, so no write could succeed: give at most as many",
            ),
            Self::OneCopyIsNotStrict(replicas) => write!(
                f,
                "with --replicas {replicas} and --min-in-sync 1 no strict election could go on without a single copy: give --min-in-sync 2, or --policy degraded and accept that a failover loses writes"
            ),
            Self::AckCopies(n) => write!(
                f,
                "ack copies={n} lies outside of --min-in-sync to --replicas: give a number between them"
            ),
            Self::SplitKeysUnordered => {
                f.write_str("split keys must strictly rise and not be empty: sort them and drop repeats")
            }
            Self::SplitKeyTooLong => {
                write!(f, "a split key is longer than {KEY_BYTES_MAX} bytes, the limit of keys: shorten it")
            }
            Self::TooManyTablets(tablets) => write!(
                f,
                "{tablets} tablets are above the limit of {PRE_SPLIT_TABLETS_MAX} at creation: give fewer split keys"
            ),
        }
    }
}

impl std::error::Error for BadTable {}

/// Checks a table's name.
///
/// # Errors
/// The rule that it breaks.
pub fn check_table_name(name: &str) -> Result<(), BadTable> {
    if name.is_empty() {
        return Err(BadTable::EmptyName);
    }
    if name.len() > TABLE_NAME_BYTES_MAX {
        return Err(BadTable::NameTooLong(name.len() as u64));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !name.chars().all(allowed) {
        return Err(BadTable::NameCharacter);
    }
    if name.starts_with('.') || name.starts_with(RESERVED_PREFIX) {
        return Err(BadTable::NameReserved);
    }
    Ok(())
}

impl TableSpec {
    /// The table with a change taken in.
    ///
    /// # Errors
    /// What the change says of memory and does not fit the table.
    pub fn changed(&self, change: &TableChange) -> Result<Self, BadTable> {
        let is_about_memory = change.memory_bytes_max.is_some() || change.eviction.is_some();
        if is_about_memory && self.kind == TableKind::Durable {
            return Err(BadTable::LimitOfDurable);
        }
        let replicas =
            change.replicas.filter(|replicas| (self.min_in_sync..=REPLICAS_MAX).contains(replicas));
        let changed = Self {
            split_bytes: change.split_bytes.unwrap_or(self.split_bytes),
            split_load: change.split_load.unwrap_or(self.split_load),
            auto_merge: change.auto_merge.unwrap_or(self.auto_merge),
            replicas: replicas.unwrap_or(self.replicas),
            publish_changes: change.publish_changes.unwrap_or(self.publish_changes),
            memory_bytes_max: change.memory_bytes_max.or(self.memory_bytes_max),
            eviction: change.eviction.unwrap_or(self.eviction),
            ..self.clone()
        };
        changed.check_memory()?;
        Ok(changed)
    }

    /// What the table of rooms promises when it is made with so many servers up. It rather goes on
    /// with fewer copies than waits: servers say their bits again.
    #[must_use]
    pub fn of_rooms(servers_up: usize) -> Self {
        let replicas = Self::default_replicas(servers_up);
        Self {
            kind: ROOMS_KIND,
            replicas,
            min_in_sync: Self::default_min_in_sync(replicas),
            policy: Policy::Degraded,
            retention_ms: ROOMS_RETENTION_MS,
            ..Self::default()
        }
    }

    /// Checks the promises against each other.
    ///
    /// # Errors
    /// The first that contradicts another.
    pub fn check(&self) -> Result<(), BadTable> {
        if self.replicas == 0 || self.min_in_sync == 0 {
            return Err(BadTable::ZeroReplicas);
        }
        if self.replicas > REPLICAS_MAX {
            return Err(BadTable::TooManyReplicas(u32::from(self.replicas)));
        }
        if self.min_in_sync > self.replicas {
            return Err(BadTable::MinInSyncAboveReplicas);
        }
        if self.replicas >= 3 && self.min_in_sync == 1 && self.policy == Policy::Strict {
            return Err(BadTable::OneCopyIsNotStrict(self.replicas));
        }
        self.check_memory()?;
        self.check_ack(self.ack)
    }

    fn check_memory(&self) -> Result<(), BadTable> {
        match (self.kind, self.memory_bytes_max, self.eviction) {
            (TableKind::Durable, None, Eviction::None) => Ok(()),
            (TableKind::Durable, _, _) => Err(BadTable::LimitOfDurable),
            (TableKind::Memory, None, Eviction::None) => Ok(()),
            (TableKind::Memory, None, _) => Err(BadTable::EvictionWithoutLimit),
            (TableKind::Memory, Some(bytes), _) if bytes < MEMORY_LIMIT_BYTES_MIN => {
                Err(BadTable::MemoryLimitTooSmall(bytes))
            }
            (TableKind::Memory, Some(_), _) => Ok(()),
        }
    }

    /// Checks that a write may ask for `level`.
    ///
    /// # Errors
    /// For `copies=n` with n outside of D to R.
    pub fn check_ack(&self, level: AckLevel) -> Result<(), BadTable> {
        match level {
            AckLevel::Copies(n) if n < self.min_in_sync || n > self.replicas => Err(BadTable::AckCopies(n)),
            AckLevel::Leader | AckLevel::InSync | AckLevel::Copies(_) => Ok(()),
        }
    }

    /// R when nobody said: three, or as many as there are servers.
    #[must_use]
    pub fn default_replicas(servers_up: usize) -> u8 {
        u8::try_from(servers_up).map_or(REPLICAS_DEFAULT, |up| up.clamp(1, REPLICAS_DEFAULT))
    }

    /// What to do when too few copies are left, when nobody said. A copy in memory is lost with
    /// its process, so waiting for it would only cost time.
    #[must_use]
    pub fn default_policy(kind: TableKind) -> Policy {
        match kind {
            TableKind::Durable => Policy::Strict,
            TableKind::Memory => Policy::Degraded,
        }
    }

    /// D when nobody said: two as soon as an election can go on without one of the copies.
    #[must_use]
    pub fn default_min_in_sync(replicas: u8) -> u8 {
        if replicas >= 3 { 2 } else { 1 }
    }

    /// Size below which a leader may not shrink the in-sync set.
    #[must_use]
    pub fn in_sync_min(&self) -> usize {
        match self.policy {
            Policy::Strict => usize::from(self.min_in_sync.min(self.replicas)),
            Policy::Degraded => 1,
        }
    }

    /// Servers that may fail while the table goes on by itself, with nothing lost of what was
    /// acknowledged by D copies: an election needs |ISR| - D + 1 of them, a write D.
    #[must_use]
    pub fn failures_tolerated(&self) -> u32 {
        match self.replicas {
            0..=2 => 0,
            replicas => {
                let without_loss = self.min_in_sync.saturating_sub(1);
                u32::from(without_loss.min(replicas.saturating_sub(self.min_in_sync)))
            }
        }
    }
}

/// Cuts the whole key space at `split_keys`.
///
/// # Errors
/// The limit or rule that the keys break.
pub fn cut_ranges(split_keys: &[Bytes]) -> Result<Vec<KeyRange>, BadTable> {
    let tablets = split_keys.len() + 1;
    if tablets > PRE_SPLIT_TABLETS_MAX {
        return Err(BadTable::TooManyTablets(tablets as u64));
    }
    if split_keys.iter().any(|key| key.len() > KEY_BYTES_MAX) {
        return Err(BadTable::SplitKeyTooLong);
    }
    KeyRange::cut_at(split_keys).map_err(|_| BadTable::SplitKeysUnordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "Users_2.v-1", &"x".repeat(TABLE_NAME_BYTES_MAX)] {
            assert_eq!(check_table_name(good), Ok(()), "{good}");
        }
        assert_eq!(check_table_name(""), Err(BadTable::EmptyName));
        assert_eq!(check_table_name(".x"), Err(BadTable::NameReserved));
        assert_eq!(check_table_name("ebla.x"), Err(BadTable::NameReserved));
        assert_eq!(check_table_name("a b"), Err(BadTable::NameCharacter));
        assert_eq!(check_table_name("käse"), Err(BadTable::NameCharacter));
        assert!(matches!(check_table_name(&"x".repeat(129)), Err(BadTable::NameTooLong(129))));
    }

    #[test]
    fn promises_are_checked() {
        let spec = TableSpec::default();
        assert_eq!(spec.check(), Ok(()));
        let check = |change: fn(&mut TableSpec)| {
            let mut spec = TableSpec::default();
            change(&mut spec);
            spec.check()
        };
        assert_eq!(check(|s| s.replicas = 8), Err(BadTable::TooManyReplicas(8)));
        assert_eq!(check(|s| s.replicas = 3), Err(BadTable::OneCopyIsNotStrict(3)));
        assert_eq!(check(|s| (s.replicas, s.min_in_sync) = (7, 2)), Ok(()));
        assert_eq!(check(|s| (s.replicas, s.policy) = (3, Policy::Degraded)), Ok(()));
        assert_eq!(check(|s| s.replicas = 2), Ok(()));
        assert_eq!(check(|s| s.replicas = 0), Err(BadTable::ZeroReplicas));
        assert_eq!(check(|s| s.min_in_sync = 2), Err(BadTable::MinInSyncAboveReplicas));
        assert_eq!(check(|s| s.ack = AckLevel::Copies(2)), Err(BadTable::AckCopies(2)));
        assert_eq!(check(|s| s.ack = AckLevel::Copies(1)), Ok(()));
        let memory = |bytes, eviction| {
            let spec =
                TableSpec { kind: TableKind::Memory, memory_bytes_max: bytes, eviction, ..spec.clone() };
            spec.check()
        };
        assert_eq!(memory(None, Eviction::None), Ok(()));
        assert_eq!(memory(Some(1 << 30), Eviction::LeastFrequent), Ok(()));
        assert_eq!(memory(None, Eviction::LeastRecent), Err(BadTable::EvictionWithoutLimit));
        assert_eq!(memory(Some(5), Eviction::None), Err(BadTable::MemoryLimitTooSmall(5)));
        assert_eq!(check(|s| s.memory_bytes_max = Some(1 << 30)), Err(BadTable::LimitOfDurable));
        assert_eq!(check(|s| s.eviction = Eviction::LeastRecent), Err(BadTable::LimitOfDurable));
        let evict = TableChange { eviction: Some(Eviction::LeastRecent), ..TableChange::default() };
        let limit = TableChange { memory_bytes_max: Some(MEMORY_LIMIT_BYTES_MIN), ..TableChange::default() };
        let in_memory = TableSpec { kind: TableKind::Memory, ..spec.clone() };
        assert_eq!(spec.changed(&limit), Err(BadTable::LimitOfDurable));
        assert_eq!(in_memory.changed(&evict), Err(BadTable::EvictionWithoutLimit));
        let both = in_memory.changed(&limit).and_then(|limited| limited.changed(&evict)).unwrap();
        assert_eq!((both.memory_bytes_max, both.eviction), (limit.memory_bytes_max, Eviction::LeastRecent));
    }

    #[test]
    fn what_nobody_said_follows_from_the_servers() {
        let chosen = |up| {
            let replicas = TableSpec::default_replicas(up);
            (replicas, TableSpec::default_min_in_sync(replicas))
        };
        assert_eq!([0, 1, 2, 3, 4, 900].map(chosen), [(1, 1), (1, 1), (2, 1), (3, 2), (3, 2), (3, 2)]);
    }

    #[test]
    fn copies_of_rooms_follow_from_the_servers() {
        for up in [0, 1, 2, 3, 900] {
            let mut spec = TableSpec::of_rooms(up);
            assert_eq!(spec.check(), Ok(()), "{up} servers");
            assert_eq!(usize::from(spec.replicas), up.clamp(1, 3));
            spec = spec.changed(&TableChange { replicas: Some(3), ..TableChange::default() }).unwrap();
            assert_eq!((spec.replicas, spec.check()), (3, Ok(())));
            let d = spec.min_in_sync;
            spec = spec.changed(&TableChange { replicas: Some(d), ..TableChange::default() }).unwrap();
            assert_eq!(spec.replicas, d);
            spec = spec.changed(&TableChange { replicas: Some(0), ..TableChange::default() }).unwrap();
            assert_eq!(spec.replicas, d, "never below what each write wants");
        }
    }

    #[test]
    fn failures_tolerated_are_those_with_failover() {
        let tolerated = |replicas, min_in_sync| {
            TableSpec { replicas, min_in_sync, ..TableSpec::default() }.failures_tolerated()
        };
        assert_eq!([tolerated(1, 1), tolerated(2, 1), tolerated(2, 2)], [0, 0, 0]);
        assert_eq!([tolerated(3, 1), tolerated(3, 2), tolerated(3, 3)], [0, 1, 0]);
        assert_eq!([tolerated(5, 2), tolerated(5, 3), tolerated(7, 4)], [1, 2, 3]);
    }

    #[test]
    fn split_keys_are_checked() {
        let keys = |keys: &[&'static str]| -> Vec<Bytes> {
            keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect()
        };
        assert_eq!(cut_ranges(&keys(&["b", "c"])).map(|ranges| ranges.len()), Ok(3));
        assert_eq!(cut_ranges(&keys(&["c", "b"])), Err(BadTable::SplitKeysUnordered));
        assert_eq!(cut_ranges(&keys(&["b", "b"])), Err(BadTable::SplitKeysUnordered));
        assert_eq!(cut_ranges(&keys(&[""])), Err(BadTable::SplitKeysUnordered));
        let many = vec![Bytes::from_static(b"k"); PRE_SPLIT_TABLETS_MAX];
        assert!(matches!(cut_ranges(&many), Err(BadTable::TooManyTablets(_))));
        let long = [Bytes::from(vec![b'k'; KEY_BYTES_MAX + 1])];
        assert_eq!(cut_ranges(&long), Err(BadTable::SplitKeyTooLong));
    }
}
