//! Backups as they lie at a target: a directory or a bucket.
//!
//! ```text
//!   URL/backups/ID/manifest.json          put last: without it there is no backup
//!   URL/backups/ID/sign.json              while it is being made: who does that
//!   URL/backups/ID/parts/PART.json        a range that is done; what a job is resumed from
//!   URL/backups/ID/data/PART-NNNN.sst     versions in the order of keys
//!   URL/probes/...                        whether everybody sees the same target
//! ```
//!
//! Knows nothing of servers: what a backup holds is decided in the kernel, tablet servers write
//! and read the files, masters the manifests, and people look at them without a cluster.
//! The bytes of everything here: `docs/formats.md`.

pub mod background;
mod chain;
mod check;
mod coverage;
mod document;
mod encryption;
mod error;
mod hex;
mod inventory;
mod key;
pub mod limits;
mod location;
mod manifest;
mod names;
mod pace;
mod prune;
mod rate;
mod repository;
mod scratch;
mod settings;
mod sign;
mod sst;
mod target;

pub use chain::{layers, retain_tables};
pub use check::check_manifest;
pub use coverage::{NotCovered, boundaries, check_coverage};
pub use encryption::ALGORITHM;
pub use error::BackupError;
pub use inventory::{Fault, Inventory};
pub use key::{KEY_FILE_VARIABLE, KEY_VARIABLE, Key};
pub use location::{BadLocation, Bucket, Location};
pub use manifest::{
    CreatedBy, Encryption, FileEntry, MANIFEST_FORMAT, Manifest, Parent, Part, TableEntry, Tombstone, Totals,
};
pub use names::{PROBES, check_id, new_id};
pub use pace::{Crew, Held, Pace, Unpaced, Worker};
pub use prune::{Garbage, Kept, KeptWhy, PruneWish, Spared};
pub use rate::Rate;
pub use repository::Repository;
pub use scratch::Scratch;
pub use settings::{TableSettings, UnknownWord};
pub use sign::Sign;
pub use sst::{FileReader, FileVersion, FileWriter, TABLE_ID_BYTES, Written, split_key};
pub use target::{Content, Listed, Target, TargetError, Unfinished, open as open_target};
