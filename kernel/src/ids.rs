//! Newtypes for every id, index and size, so that two of them cannot be swapped by mistake.
//!
//! Ids come from metadata and are never reused. A value of zero means "none yet" where a
//! type says so and is otherwise never issued.

use borsh::{BorshDeserialize, BorshSerialize};
use std::fmt;

macro_rules! newtype {
    ($(#[$meta:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize,
        )]
        pub struct $name(pub $inner);

        impl $name {
            /// The next value; ids and counters of 64 bits do not run out.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a counter of this width does not run out"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

newtype!(
    /// Names a table for ever. Id 0 is the system's own prefix in the stores, never a table.
    TableId(u32), "table-"
);
newtype!(
    /// Names one immutable key range of one table for ever.
    TabletId(u64), "t"
);
newtype!(
    /// Names one copy of one tablet; a copy that lost its data comes back under a new id.
    ReplicaId(u64), "r"
);
newtype!(
    /// Names a tablet server; bound to its data directory, not to its address.
    ServerId(u64), "s"
);
newtype!(
    /// One run of a server process, raised by metadata at each registration.
    Incarnation(u64), "i"
);
newtype!(
    /// Names the content of a data directory; new when the directory is new or was lost.
    DiskGeneration(u64), "g"
);
newtype!(
    /// The term of one leader of one tablet. 0: nobody has led yet.
    Epoch(u64), "e"
);
newtype!(
    /// Index of a log entry; without gaps over the life of a lineage. 0: before the first entry.
    Seq(u64), ""
);
newtype!(
    /// Version of a tablet's in-sync set, raised by every change of it.
    ConfigVersion(u64), "c"
);
newtype!(
    /// Small integer of a server: its bit in a room.
    Ordinal(u32), "o"
);
newtype!(
    /// Names an ancestry of tablets; new when history was broken (unclean election, lost memory table).
    Lineage(u64), "l"
);
newtype!(
    /// Names a job for ever.
    JobId(u64), "j"
);
newtype!(
    /// One try of a job, never reused: what an old try left behind satisfies nothing (m28, m29).
    /// Attempts rise over the whole cluster. 0: none.
    Attempt(u64), "a"
);
newtype!(
    /// A request that waits at a core for its answer; unique within one shell.
    RequestId(u64), "q"
);
newtype!(
    /// A reading of a process's monotonic clock in milliseconds since an arbitrary start.
    Tick(u64), "@"
);

/// What the data of a copy lives and dies with. Wherever a rule says "disk generation", a copy
/// in memory has its process instead: a process that restarted has lost everything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize, BorshDeserialize)]
pub enum Generation {
    /// On disk: the content of a data directory.
    Disk(DiskGeneration),
    /// In memory: one run of a server process (the volatile generation).
    Process(Incarnation),
}

/// One run of one server's process: what promises, leaderships and progress are bound to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct ServerRun {
    /// The server.
    pub server: ServerId,
    /// Its run.
    pub incarnation: Incarnation,
}

impl fmt::Display for ServerRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.server, self.incarnation)
    }
}

impl fmt::Debug for ServerRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Tick {
    /// This reading plus `ms` milliseconds.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this reading; 0 when `earlier` is later.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A position in a tablet's log. Ordered by epoch first: the later epoch wins whatever its length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct Pos {
    /// The term whose leader appended the entry.
    pub epoch: Epoch,
    /// The entry's index.
    pub seq: Seq,
}

impl Pos {
    /// Before the first entry of a lineage.
    pub const ZERO: Self = Self { epoch: Epoch(0), seq: Seq(0) };

    /// The position `seq` of `epoch`.
    #[must_use]
    pub fn new(epoch: Epoch, seq: Seq) -> Self {
        Self { epoch, seq }
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.seq)
    }
}

impl fmt::Debug for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
